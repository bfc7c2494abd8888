"""Run a list of checks as rows of a table. No row can end another.

A child process runs the rows, in order, and notes each of them in a file. Its parent watches: if a
row takes too long, or ends the process (as a broken GPU does), the row counts as failed, and a new
child runs the rows behind it.
"""

import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PASSED, FAILED, IMPOSSIBLE, SKIPPED = "passed", "failed", "not possible here", "not run"
STATES = (PASSED, FAILED, IMPOSSIBLE, SKIPPED)
BROKEN = 3  # exit status of a child with a broken device


class NotPossible(Exception):
    """The reason why a row cannot be tried on this machine."""


@dataclass
class Row:
    """A check: it returns its figures as text, or a dict with "figures", "values" and "table"; it
    raises an error if it fails. ``limit``: after so many seconds it counts as failed."""

    name: str
    check: Callable
    limit: float = 60


class Notes:
    """The file of begun and ended rows, one JSON object a line."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, **note):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(note, ensure_ascii=False) + "\n")

    def read(self) -> list[dict]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        # A line without its end is still being written
        return [json.loads(line) for line in lines[:-1]]

    def results(self) -> list[dict]:
        return [note for note in self.read() if "state" in note]

    def running(self) -> dict | None:
        """Return the note of the row begun and not ended."""
        notes = [note for note in self.read() if "name" in note]
        return notes[-1] if notes and "state" not in notes[-1] else None


def run_rows(rows: list[Row], notes: Notes, works=lambda: True) -> int:
    """Run the rows without a result; return the exit status of the child.

    works: a function, called after a failure; it returns True if the device still computes.
    """
    done = {note["name"] for note in notes.results()}
    for row in rows:
        if row.name in done:
            continue
        notes.add(name=row.name, began=time.time(), limit=row.limit)
        began, outcome = time.perf_counter(), {}
        try:
            answer = row.check()
            outcome = answer if isinstance(answer, dict) else {"figures": answer or ""}
            state = PASSED
        except NotPossible as reason:
            state, outcome = IMPOSSIBLE, {"figures": str(reason)}
        except (Exception, SystemExit) as error:  # the other rows run all the same
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            state, outcome = FAILED, {"figures": f"{type(error).__name__}: {lines[0][:300]}"}
        seconds = round(time.perf_counter() - began, 1)
        notes.add(name=row.name, state=state, seconds=seconds, **outcome)
        if state == FAILED and not works():
            return BROKEN
    return 0


def supervise(command, notes: Notes, log: Path, seconds: float, report) -> None:
    """Start children until every row has a result or the time is over.

    Args:
        command: of a child, which calls `run_rows`.
        log: the file of what children print.
        report: called with all results after each new one.
    """
    end, seen = time.monotonic() + seconds, 0
    while True:
        began_before = len(notes.read())
        with open(log, "ab") as output:
            child = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            status = None
            while status is None:
                time.sleep(0.1)
                status = child.poll()
                row, results = notes.running(), notes.results()
                if len(results) > seen:
                    seen = len(results)
                    report(results)
                over = time.monotonic() > end
                late = row and time.time() - row["began"] > row["limit"]
                if status is None and (late or over):
                    status = _kill(child)
                    if not over:
                        _fail(notes, f"ended after {row['limit']:.0f} s")
                    elif row:
                        _fail(notes, "ended: the time was over", SKIPPED)
        finally:
            if child.poll() is None:
                _kill(child)
        if not over and status not in (0, BROKEN):
            _fail(notes, f"its process ended with status {status}, see {log.name}")
        report(notes.results())
        if over or status == 0 or len(notes.read()) == began_before:
            return


def _fail(notes: Notes, reason: str, state: str = FAILED):
    row = notes.running()
    if row:
        seconds = round(time.time() - row["began"], 1)
        notes.add(name=row["name"], state=state, seconds=seconds, figures=reason)


def _kill(child) -> int:
    """End a child and its own processes."""
    if hasattr(os, "killpg"):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    return child.wait()


def counts(results) -> dict:
    return {state: sum(row["state"] == state for row in results) for state in STATES}


def markdown(about: dict, results: list[dict]) -> str:
    """Return the results as a Markdown table, with the rows' own tables below it."""
    lines = [f"{', '.join(f'{key} {value}' for key, value in about.items())}", ""]
    lines += ["| row | result | seconds | figures |", "|---|---|---|---|"]
    for row in results:
        figures = str(row["figures"]).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row['name']} | {row['state']} | {row['seconds']} | {figures} |")
    for row in results:
        if row.get("table"):
            lines += ["", f"## {row['name']}", "", *row["table"]]
    return "\n".join(lines) + "\n"


def show(row: dict):
    print(f"{row['name']:66} {row['state']:17} {row['figures']}", flush=True)

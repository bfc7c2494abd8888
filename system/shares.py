"""Divide a list of jobs among processes: torchrun's, Slurm's, or the user's by --part."""

import os
import re
from dataclasses import dataclass

from system.files import UserError
from system.processes import launched


@dataclass(frozen=True)
class Share:
    """One of ``count`` equal shares of the work; ``index`` counts from 0.

    reason: torchrun, srun, ..., for a message; empty if one process does it all.
    """

    index: int = 0
    count: int = 1
    reason: str = ""

    def has(self, number: int) -> bool:
        """Return True if job `number` belongs to this share."""
        return number % self.count == self.index

    def within(self, index: int, count: int, reason: str) -> "Share":
        """Divide this share once more."""
        if count == 1:
            return self
        reasons = " and ".join(filter(None, (self.reason, reason)))
        return Share(self.index * count + index, self.count * count, reasons)

    def __str__(self):
        return f"part {self.index + 1} of {self.count} ({self.reason})"


def own_share(part: str = "") -> Share:
    """Return the share of this process.

    Without `part`, a Slurm job array divides the work (SLURM_ARRAY_TASK_ID). Both are divided again
    among the processes of torchrun (RANK, WORLD_SIZE) or of srun (SLURM_PROCID).

    Args:
        part: "3/8" for the third of eight parts; "1/1": all, also in a job array.
    Raises UserError for another text, and for incomplete variables of a launcher.
    """
    share = _named(part) if part else _of_job_array()
    rank, world = launched()
    return (
        share.within(rank, world, "torchrun") if world > 1 else share.within(*srun_task(), "srun")
    )


def srun_task() -> tuple[int, int]:
    """Return this process's number among srun's, and their count; (0, 1) outside of srun.

    Raises UserError for impossible variables of Slurm.
    """
    env = os.environ
    # The script of sbatch itself has SLURM_NTASKS, too. But it is a single process: it has a job
    # and no step
    if not env.get("SLURM_PROCID") or ("SLURM_JOB_ID" in env and "SLURM_STEP_ID" not in env):
        return 0, 1
    rank = env["SLURM_PROCID"]
    count = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or "1"
    # A lonely SLURM_PROCID=0 is a single process
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise UserError(
            f"the environment has SLURM_PROCID={rank} of {count} tasks: start the processes by "
            "srun; for one process: unset SLURM_PROCID"
        )
    return int(rank), int(count)


def _named(part: str) -> Share:
    match = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", part)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"part={part!r}: give a number and their count, for example 3/8")
    index, count = int(match[1]) - 1, int(match[2])
    return Share(index, count, "--part") if count > 1 else Share()


def _of_job_array() -> Share:
    names = ("ID", "COUNT", "MIN", "STEP")
    given = [os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names]
    if not given[0].isdecimal() or not given[1].isdecimal():
        return Share()
    task, count = int(given[0]), int(given[1])
    # --array=1-8 counts from 1, --array=0-28:4 in steps of 4
    smallest = int(given[2]) if given[2].isdecimal() else 0
    step = int(given[3]) if given[3].isdecimal() and int(given[3]) else 1
    index, rest = divmod(task - smallest, step)
    if rest or not 0 <= index < count:
        raise UserError(
            f"SLURM_ARRAY_TASK_ID={task}: not one of {count} tasks from {smallest} on in steps of "
            f"{step}; name the share with --part {{number}}/{count}"
        )
    return Share().within(index, count, "SLURM_ARRAY_TASK_ID; --part 1/1 for all")

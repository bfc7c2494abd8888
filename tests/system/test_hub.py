"""hf://owner/name/file: downloaded once, by revision, from a server of this machine."""

import hashlib
import http.server
import subprocess
import sys
import threading

import pytest
from launch import finished
from sample_layouts import random_layers, state_dict, torch_bytes

from system.download import hub_file

LAYERS = random_layers((9, 1, 5), 1, (8, 4))
COMMITS = {"main": "a" * 40, "v1": "b" * 40, "a" * 40: "a" * 40, "b" * 40: "b" * 40}


class Server(http.server.BaseHTTPRequestHandler):
    """The part of the Hub for a download: {(commit, file): content}."""

    protocol_version = "HTTP/1.1"
    files, asked, tokens = {}, [], set()

    def do_HEAD(self):
        Server.asked.append((self.command, self.path))
        Server.tokens.add(self.headers.get("Authorization"))
        parts = self.path.split("?")[0].split("/")
        known = parts[1:4] == ["owner", "name", "resolve"]
        commit = COMMITS.get(parts[4]) if known else None
        content = Server.files.get((commit, "/".join(parts[5:])))
        if content is None:
            code = "EntryNotFound" if commit else "RevisionNotFound" if known else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = Server.files.get((commit, "size"), len(content))
        self.send_response(200)
        for name, value in {
            "Content-Length": size,
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Accept-Ranges": "none",
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install ...")
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    Server.files, Server.asked, Server.tokens = {}, [], set()
    for name, value in {
        "HF_ENDPOINT": f"http://127.0.0.1:{running.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "no_proxy": "*",
    }.items():
        monkeypatch.setenv(name, value)
    yield running
    running.shutdown()
    running.server_close()


def in_a_process(folder, code: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own: the package reads its settings when it is imported."""
    (folder / "code.py").write_text(code)
    return finished(folder / "code.py", cwd=folder)


def test_weights_from_the_hub(server, tmp_path):
    """Load by name and by revision, with the user's token; the second time from the cache, also
    without a connection."""
    Server.files["a" * 40, "weights/x3.pth"] = torch_bytes(state_dict(LAYERS))
    Server.files["b" * 40, "weights/x3.pth"] = torch_bytes(state_dict(random_layers((9, 5, 5))))
    done = in_a_process(
        tmp_path,
        """
from pathlib import Path
from model import SRCNN
for name in ("hf://owner/name/weights/x3.pth", "hf://owner/name/weights/x3.pth@v1"):
    print(SRCNN.from_pretrained(name).kernel_sizes, SRCNN.from_pretrained(Path(name)).kernel_sizes)
""",
    )
    assert done.stdout.split("\n")[:2] == ["(9, 1, 5) (9, 1, 5)", "(9, 5, 5) (9, 5, 5)"], (
        done.stderr
    )
    gets = [path for method, path in Server.asked if method == "GET"]
    assert len(gets) == 2 and Server.tokens == {"Bearer hf_secret"}
    server.shutdown()
    server.server_close()
    done = in_a_process(
        tmp_path,
        """
from checkpoints.loading import load_checkpoint
print(load_checkpoint("hf://owner/name/weights/x3.pth")["widths"])
try:
    load_checkpoint("hf://owner/name/weights/x2.pth")
except OSError as error:
    print(error)
""",
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "(8, 4)", done.stderr
    assert lines[1].startswith("hf://owner/name/weights/x2.pth: cannot be downloaded (it is not")


def test_what_is_wrong_is_one_line(server, tmp_path):
    Server.files["a" * 40, "text.pth"] = b"text"
    Server.files["a" * 40, "large.pth"] = b"P" * 2000
    done = in_a_process(
        tmp_path,
        """
import checkpoints.loading
checkpoints.loading.MAX_BYTES = 1000
for name in ("owner/name/none.pth", "owner/name/text.pth@v9", "other/name/a.pth", "owner/file",
             "owner/name/large.pth", "owner/name/text.pth"):
    try:
        checkpoints.loading.load_checkpoint(f"hf://{name}")
    except (ValueError, OSError) as error:
        print(type(error).__name__, error)
""",
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stdout + done.stderr
    expected = (
        "OSError hf://owner/name/none.pth: cannot be downloaded (",
        "OSError hf://owner/name/text.pth@v9: cannot be downloaded (",
        "OSError hf://other/name/a.pth: cannot be downloaded (",
        "UserError hf://owner/file: expected hf://owner/name/file",
        "UserError hf://owner/name/large.pth: larger than",
        "UserError hf://owner/name/text.pth: neither a PyTorch checkpoint",
    )
    for line, begin in zip(lines, expected):
        assert line.startswith(begin) and len(line) < 300, line
    assert all("404" in line and "check the address" in line for line in lines[:3])


def test_as_a_script(server, run_script, tmp_path):
    Server.files["a" * 40, "x3.pth"] = torch_bytes(state_dict(LAYERS))
    done = run_script("convert.py", "--model_path", "hf://owner/name/x3.pth@main")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "x3_ours.pth").is_file()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="needs the package huggingface_hub: pip install"):
        hub_file("hf://owner/name/x3.pth", 1000)

"""A headless Chromium for the tests of pages, and a local server for docs/."""

import contextlib
import functools
import http.server
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CDN = "https://cdn.jsdelivr.net/npm/onnxruntime-web@"


@contextlib.contextmanager
def chromium(folder, *flags):
    """Start a selenium driver; skip if selenium or Chromium is missing. folder: for its profile and
    downloads."""
    pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--force-prefers-reduced-motion",
        f"--user-data-dir={folder / 'chromium'}",
        *flags,
    ):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def look_like(driver, width, height, dark=False, ratio=1):
    """Set a screen of this size in CSS pixels, and the reader's choice of colours."""
    screen = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


@functools.cache
def runtime_folder() -> Path:
    """Fetch ONNX Runtime Web from npm, once for all test runs; skip if impossible."""
    source = (ROOT / "docs" / "worker.js").read_text()
    version = source.split('VERSION = "')[1].split('"')[0]
    folder = Path(tempfile.gettempdir()) / f"onnxruntime-web-{version}"
    if (folder / "package" / "dist").is_dir():
        return folder / "package" / "dist"
    if not shutil.which("npm"):
        pytest.skip("needs npm: apt-get install npm")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        fetched = subprocess.run(
            ["npm", "pack", f"onnxruntime-web@{version}"], cwd=work, capture_output=True, text=True
        )
        if fetched.returncode:
            pytest.skip(f"npm cannot fetch onnxruntime-web: {fetched.stderr.strip()[-200:]}")
        shutil.unpack_archive(next(Path(work).glob("*.tgz")), work)
        with contextlib.suppress(OSError):  # another test run was faster
            (Path(work) / "package").rename(folder / "package")
    return folder / "package" / "dist"


@contextlib.contextmanager
def served_docs(runtime: Path | None = None):
    """Serve docs/ on a local server, with the CDN's address in worker.js replaced by the runtime's folder there; yields
    (address, list of the requests "METHOD path" so far)."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            requests.append(f"{self.command} {self.path}")
            if self.path.startswith("/ort/"):
                self.directory, self.path = str(runtime), self.path.removeprefix("/ort")
            elif self.path == "/worker.js":
                source = (ROOT / "docs" / "worker.js").read_text()
                assert source.count(CDN + "${VERSION}/dist/") == 1
                content = source.replace(CDN + "${VERSION}/dist/", "/ort/").encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/javascript")
                self.end_headers()
                return self.wfile.write(content)
            return super().do_GET()

        def do_POST(self):
            requests.append(f"{self.command} {self.path}")
            self.send_error(405)

        do_PUT = do_POST

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(ROOT / "docs"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()

"""Download files from the web or the Hugging Face Hub, encrypted, with limits of size and time."""

import functools
import hashlib
import re
import string
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit

import torch
from tqdm import tqdm

from system.files import UserError, printable, replace_file

SILENCE = 30  # seconds without an answer
SECONDS = 600  # for one file of weights, all in all
PAUSE = 1  # seconds before the second attempt, twice as many before the third
CHUNK = 2**16  # bytes
LOCAL = ("localhost", "127.0.0.1")  # tests have their servers there


def address_of(path) -> str:
    """Return a path as an address (pathlib leaves one slash of two); "" for a file's path."""
    found = re.match(r"(https?|hf):/+(.+)", str(path), re.IGNORECASE)
    return f"{found[1].lower()}://{found[2]}" if found else ""


def cached(address: str, limit: int) -> Path:
    """Return the file at an https:// address, downloaded once into torch.hub's folder.

    Raises UserError for an address without encryption and for a file of more than ``limit``
    bytes, and OSError if the download fails, in one line each.
    """
    check_encrypted(address)
    try:
        path = place_of(address)
        if not path.is_file():
            download(address, path, limit)
    except OSError as error:
        raise OSError(
            f"{error}; check the address, or download the file yourself and give its path"
        ) from None
    return path


def hub_file(address: str, limit: int) -> Path:
    """Return the file at hf://owner/name/path[@revision], from the Hub or from its local cache.

    It needs the optional package huggingface_hub. The package's own settings apply: cache, token,
    HF_ENDPOINT, HF_HUB_OFFLINE.
    Raises UserError for a wrong address, a missing package and a file of more than ``limit`` bytes,
    and OSError if the download fails, in one line each.
    """
    found = re.fullmatch(r"hf://([^/]+/[^/]+)/([^@]+)(?:@(.+))?", address)
    if not found:
        raise UserError(f"{printable(address)}: expected hf://owner/name/file or .../file@revision")
    repository, file, revision = found.groups()
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            f"{printable(address)}: needs the package huggingface_hub: pip install huggingface_hub"
        ) from None
    get = functools.partial(huggingface_hub.hf_hub_download, repository, file, revision=revision)
    try:
        # The size first: the download itself has no limit
        try:
            url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
            size = huggingface_hub.get_hf_file_metadata(url).size or 0
        except HfHubHTTPError:
            raise
        except Exception:  # no connection, by errors of several libraries: the cache may have it
            return Path(get(local_files_only=True))
        if size > limit:
            raise UserError(
                f"{printable(address)}: larger than {limit >> 20} MiB: no SRCNN is so large"
            )
        return Path(get())
    except UserError:
        raise
    except LocalEntryNotFoundError:
        remedy = "it is not in the local cache, and the Hub cannot be reached"
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "")
        remedy = f"{type(error).__name__}, HTTP status {status}; check the address and your token"
    except Exception as error:  # network errors of several libraries
        remedy = f"{type(error).__name__}: {printable(error, 200)}; check address and connection"
    raise OSError(f"{printable(address)}: cannot be downloaded ({remedy})")


def place_of(address: str) -> Path:
    """Return the path of a cached download in torch.hub's own folder for checkpoints."""
    try:
        name = Path(urlsplit(address).path)
    except ValueError as error:
        raise OSError(f"cannot download {printable(address)} ({error})") from None
    # Many files are called best.pth: a digest of the whole address tells them apart
    digest = hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()[:8]
    # Only characters allowed by every file system
    stem = re.sub(r"[^\w.-]", "_", name.stem)[:80] or "weights"
    suffix = re.sub(r"[^\w.]", "", name.suffix)[:8]
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{stem}-{digest}{suffix}"


def check_encrypted(address: str):
    """Raise UserError for an address without encryption: anybody on the way could change the file.

    http:// is allowed on this machine alone.
    """
    if not is_encrypted(address):
        raise UserError(
            f"{printable(address)}: not encrypted; give its https:// address, or download it "
            "yourself and give the file"
        )


def is_encrypted(address: str, local: bool = True) -> bool:
    """Return True for an address with https://, or (with ``local``) http:// on this machine."""
    try:
        parts = urlsplit(address)
    except ValueError:  # for example [ without ]: the download itself reports it
        return True
    return parts.scheme == "https" or (local and parts.scheme == "http" and parts.hostname in LOCAL)


def download(
    address: str,
    path: Path,
    limit: int,
    *,
    digest: str = "",
    is_valid=None,
    attempts: int = 1,
    seconds: float = SECONDS,
    progress: bool = False,
    stop=None,
):
    """Download a file to ``path``, atomically, in up to ``attempts`` attempts.

    Args:
        limit: the most bytes of the file.
        digest: its SHA-256; "": any.
        is_valid: function of the downloaded path; it returns False for an incomplete file.
        seconds: limit for each attempt, from the connection to the last byte.
        progress: show a progress bar, and announce each further attempt.
        stop: a threading.Event; there are no further attempts once it is set.
    Raises UserError for an address without encryption and for a file above the limit, and OSError
    if the last attempt fails, in one line each.
    """
    check_encrypted(address)
    stop = stop or threading.Event()
    for attempt in range(1, attempts + 1):
        try:
            with replace_file(path) as temporary:
                _within(seconds, _transfer, address, temporary, limit, digest, progress)
                if is_valid and not is_valid(temporary):
                    raise OSError("the file is incomplete")
            return
        except UserError:
            raise
        except Exception as error:  # urllib raises nearly anything on a server's answers
            reason = printable(str(error)) or type(error).__name__
            cause = error
        if progress and attempt < attempts:
            print(f"download: {reason}; attempt {attempt + 1} of {attempts}")
        if attempt == attempts or stop.wait(PAUSE * attempt):
            break
    raise OSError(f"cannot download {printable(address)} ({reason})") from cause


class _TooLate(Exception):
    """The deadline of a download has passed."""


def _within(seconds: float, function, *arguments):
    """Call a function in a thread; raise TimeoutError if it does not return in time."""
    # A socket's timeout is for each read. A server could send a byte now and then, even within its
    # headers, and never exceed it
    failed, deadline = [], time.monotonic() + seconds

    def work():
        try:
            function(*arguments, deadline)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    # The thread may notice the deadline first
    if thread.is_alive() or (failed and isinstance(failed[0], _TooLate)):
        raise TimeoutError(f"not finished after {seconds:.0f} seconds")
    if failed:
        raise failed[0]


def _transfer(address: str, path: Path, limit: int, digest: str, progress: bool, deadline: float):
    """Write the answer of a server to a file, and check its size and SHA-256."""
    opener = urllib.request.build_opener(Redirects)
    # Browsers show letters and spaces in addresses, servers want %C3%A4 and %20
    quoted = quote(address, safe=string.punctuation)
    request = urllib.request.Request(quoted, headers={"User-Agent": "srcnn-pytorch"})
    received, found = 0, hashlib.sha256()
    with opener.open(request, timeout=SILENCE) as response, open(path, "wb") as file:
        # 206 is a part of a file, 204 none; compression is nothing that was asked for
        if response.status != 200:
            raise OSError(f"HTTP status {response.status} instead of 200")
        encoding = response.headers.get("Content-Encoding", "identity")
        # Some servers call the file itself so
        packed = urlsplit(address).path.endswith((".gz", ".tgz"))
        if encoding != "identity" and not packed:
            raise OSError(f"it sent the file compressed ({encoding})")
        options = dict(total=response.length, unit="B", unit_scale=True, leave=False)
        with tqdm(**options, disable=None if progress else True) as bar:
            while chunk := response.read1(CHUNK):
                received += len(chunk)
                if received > limit:
                    size = f"{limit >> 20} MiB" if limit >= 2**20 else f"{limit} bytes"
                    raise UserError(f"{printable(address)}: larger than {size}; give another file")
                if time.monotonic() > deadline:
                    raise _TooLate
                found.update(chunk)
                file.write(chunk)
                bar.update(len(chunk))
        # http.client does not complain if less came than the server had announced
        if response.length:
            raise OSError("the connection was cut off")
    # A login page of a network, for example
    if digest and found.hexdigest() != digest:
        raise OSError("it sent another file: the SHA-256 differs")


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but only to encrypted addresses (or within this machine)."""

    def redirect_request(self, request, response, code, message, headers, address):
        # From the web to this machine is no way for a public file either
        from_web = urlsplit(request.full_url).scheme == "https"
        if not is_encrypted(address, local=not from_web):
            raise UserError(
                f"{printable(request.full_url)}: redirects to {printable(address)}, not encrypted; "
                "download it yourself and give the file"
            )
        return super().redirect_request(request, response, code, message, headers, address)

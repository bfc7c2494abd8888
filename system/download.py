"""A file at an address on the web, kept so that it is downloaded once."""

import hashlib
import re
import string
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit

import torch

from system.files import UserError, write_file

SECONDS = 30  # that a server may be silent


def address_of(path) -> str:
    """A path as an address (of which pathlib leaves one slash); "" if it is a file's."""
    found = re.match(r"(https?):/+(.+)", str(path), re.IGNORECASE)
    return f"{found[1].lower()}://{found[2]}" if found else ""


def download(address: str, limit: int) -> Path:
    """The file at an https:// address, in torch.hub's folder: from there if it was downloaded
    before.

    Raises ValueError for an address without encryption and for a file of more than ``limit``
    bytes, and OSError if the download fails, in one line each.
    """
    # Not torch.hub.download_url_to_file, which takes files of any size and follows a redirect to
    # anywhere. The file is read into memory, no more than limit, and written when it is complete
    try:
        check(address)
        path = place_of(address)
        if path.is_file():
            return path
        opener = urllib.request.build_opener(Redirects)
        # Browsers show letters and spaces in addresses that servers want as %C3%A4 and %20
        quoted = quote(address, safe=string.punctuation)
        request = urllib.request.Request(quoted, headers={"User-Agent": "srcnn-pytorch"})
        with opener.open(request, timeout=SECONDS) as response:
            # One byte more than allowed tells that there is more
            data = response.read(limit + 1)
            # http.client says nothing if less came than the server had promised
            if response.length and len(data) <= limit:
                raise OSError("the connection was cut off")
    except UserError:
        raise
    except Exception as error:  # urllib raises nearly anything on what servers send
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"{address}: cannot be downloaded ({reason}); check the address, or download it "
            "yourself and give the file"
        ) from error
    if len(data) > limit:
        raise UserError(f"{address}: larger than {limit >> 20} MiB, which no SRCNN is")
    write_file(data, path)
    return path


def place_of(address: str) -> Path:
    """Where a download lies: torch.hub's own folder for checkpoints."""
    # Of the address only what is fit for a file's name on any system
    name = Path(urlsplit(address).path)
    # Everybody calls their files best.pth: the whole address tells them apart
    digest = hashlib.sha256(address.encode()).hexdigest()[:8]
    stem = re.sub(r"[^\w.-]", "_", name.stem)[:80] or "weights"
    suffix = re.sub(r"[^\w.]", "", name.suffix)[:8]
    return Path(torch.hub.get_dir()) / "checkpoints" / f"{stem}-{digest}{suffix}"


def check(address: str):
    """Raise UserError for an address that is not encrypted: anybody between could change the file.

    Addresses on this machine are taken: the tests have a server there.
    """
    parts = urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1"):
        raise UserError(
            f"{address}: not encrypted; give its https:// address, or download it yourself and "
            "give the file"
        )


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server elsewhere, but not to an address that we would not take ourselves."""

    def redirect_request(self, request, response, code, message, headers, address):
        check(address)
        return super().redirect_request(request, response, code, message, headers, address)

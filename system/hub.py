"""Files of the Hugging Face Hub, by the optional package huggingface_hub."""

import functools
import re
from pathlib import Path

from system.files import UserError, printable


def hub_file(address: str, limit: int) -> Path:
    """Return the file at hf://owner/name/path[@revision], from the Hub or from its local cache.

    The package's own settings apply: cache, token, HF_ENDPOINT, HF_HUB_OFFLINE.
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

"""Bring the images of the known sets into data_dir: from the web, or from the user's files."""

import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from images.archives import MAX_ARCHIVE_BYTES, MAX_IMAGE_BYTES, is_whole, read_source
from images.named_sets import known_files
from system.download import download
from system.files import UserError, write_file

# T91, Set5 and Set14, byte for byte the images of the SRCNN authors: one archive of 30 MB
ARCHIVE = (
    "https://codeload.github.com/tegg89/SRCNN-Tensorflow/zip/"
    "78be1a24697935fc39a3a8cf59a6632264afade7"
)
# The other sets come file by file, each from a folder of a repository
RAW = "https://raw.githubusercontent.com"
SELFEXSR = "jbhuang0604/SelfExSR/8f6dd8c1d20cb7e8792a7177b4f6fd677633f598/data"
BSDS500 = "BIDS/BSDS500/a04b7c6c3a9f0ace74bf205c72a43d32e1c72722/BSDS500/data/images"
FILE_BY_FILE = {
    # BSD100's images for x3 are the largest (480 x 321): those for x2 and x4 are their upper left
    # parts. With these two folders bicubic gets the figures of the literature
    "BSD100": f"{SELFEXSR}/BSD100/image_SRF_3",
    "Urban100": f"{SELFEXSR}/Urban100/image_SRF_4",
    "BSDS500-train": f"{BSDS500}/train",
    "BSD200": f"{BSDS500}/test",
}
ATTEMPTS = 3  # of every download
ARCHIVE_SECONDS = 3600  # for the archive, all in all
CONNECTIONS = 6


def fetch(names, data_dir: Path, source: str = ""):
    """Bring the images of these sets into data_dir, if they are missing or damaged there.

    Args:
        names: sets; other names (folders, "sample") are ignored.
        source: folder or archive (.zip, .tar, .tar.gz) to take them from; empty: download them.

    Every image is checked by its SHA-256 before it is written. Raises UserError or OSError, one
    line with the remedy.
    """
    # Complete images are not fetched again
    missing = {}
    for name in names:
        for key, digest in known_files(name).items():
            path = Path(data_dir, *key)
            if not path.is_file() or not is_whole(path.read_bytes(), digest):
                missing[key] = digest
    if not missing:
        return
    if source:
        fetch_from_source(source, missing, data_dir)
        return
    by_file = {key: digest for key, digest in missing.items() if key[0] in FILE_BY_FILE}
    by_archive = {key: digest for key, digest in missing.items() if key not in by_file}
    if by_archive:
        fetch_archive(by_archive, data_dir)
    if by_file:
        fetch_files(by_file, data_dir)


def fetch_from_source(source: str, missing: dict, data_dir: Path):
    """Take {(set, file): SHA-256} from the user's files: all of them, or none."""
    try:
        images = read_source(Path(source).expanduser(), missing)
    except UserError as error:
        raise UserError(f"source={source}: {error}") from None
    _write_images(images, data_dir)


def fetch_archive(missing: dict, data_dir: Path):
    """Take {(set, file): SHA-256} from one download, and delete the download afterwards."""
    # An earlier run may have ended before it wrote the images
    archive = data_dir / "SRCNN-Tensorflow.zip"
    if not archive.exists():
        try:
            download(
                *(ARCHIVE, archive, MAX_ARCHIVE_BYTES),
                is_valid=zipfile.is_zipfile,
                attempts=ATTEMPTS,
                seconds=ARCHIVE_SECONDS,
                progress=True,
            )
        except OSError as error:
            raise OSError(
                f"{error}; fetch it yourself and give --source FILE, or use the photographs of "
                "scikit-image: --train_set sample --test_sets sample"
            ) from None
    try:
        images = read_source(archive, missing)
    except UserError as error:
        archive.unlink()
        raise UserError(f"the download from {ARCHIVE}: {error}; run this again") from None
    _write_images(images, data_dir)
    archive.unlink()


def fetch_files(missing: dict, data_dir: Path):
    """Download {(set, file): SHA-256} one by one, over several connections.

    Complete files stay: a second run fetches only the others.
    """
    names = ", ".join(dict.fromkeys(name for name, _ in missing))
    pool, stop = ThreadPoolExecutor(CONNECTIONS), threading.Event()
    try:
        jobs = []
        for (name, file), digest in missing.items():
            url = f"{RAW}/{FILE_BY_FILE[name]}/{file}"
            target, options = data_dir / name / file, dict(attempts=ATTEMPTS, stop=stop)
            jobs.append(
                pool.submit(download, url, target, MAX_IMAGE_BYTES, digest=digest, **options)
            )
        for job in tqdm(as_completed(jobs), total=len(jobs), unit="image", desc=names):
            job.result()
    except OSError as error:
        raise OSError(
            f"{error}; run this again to fetch the rest, or fetch {names} yourself "
            "and give --source FOLDER"
        ) from None
    finally:
        # After an error or Ctrl-C, finish running downloads, and begin no others
        stop.set()
        pool.shutdown(cancel_futures=True)


def _write_images(images: dict, data_dir: Path):
    for (name, file), content in images.items():
        write_file(content, data_dir / name / file)

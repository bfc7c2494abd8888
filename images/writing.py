"""Write image files, with colour profile and EXIF data.

Pillow writes images of 8 bits, tifffile (a part of scikit-image's installation) TIFF files of 16.
"""

from pathlib import Path

import numpy as np

from images import formats
from images.colour import NoProfile, profile_of_tags
from images.formats import BLOCK, SUFFIXES, load_opencv, load_pillow
from images.metadata import (
    DESCRIBING,
    EXIF_PART,
    GPS_PART,
    current_exif,
    encoded_text,
    fitting_metadata,
)
from images.png import write_png
from images.transparency import has_alpha, on_white
from imgproc import eight_bits
from system.files import UserError, replace_file

JPEG, TIFF = (".jpg", ".jpeg"), (".tif", ".tiff")
NAMES = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP"}
LONGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # more does not fit the format
JPEG_QUALITY = 95
MOST_JPEG_EXIF = 65_000  # bytes: a JPEG file holds EXIF data in a segment of 64 KB


def write_image(
    path, image: np.ndarray, metadata: dict | None = None, durable: bool = False
) -> list[str]:
    """Write an image atomically, in the format of its suffix.

    Args:
        image: as `read_image` returns them. PNG and TIFF keep 16 bits, others get 8. JPEG has no
            alpha: the image is put on white. JPEG and WebP are written with quality 95; WebP
            without loss if the metadata say "lossless".
        metadata: as `read_photo` returns it. Colour tags become a profile in formats without them.
        durable: see `replace_file`.
    Returns notes about parts left out or changed, because the format cannot hold them.
    Raises UserError for another suffix, and if the format cannot hold the image; OSError.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    check_format(path, image.shape)
    name = NAMES.get(suffix, suffix[1:].upper())
    if image.shape[2:] == (1,):
        image = image[..., 0]
    # WebP knows no gray
    if suffix == ".webp" and image.ndim == 2:
        image = np.stack([image] * 3, 2)
    # Pillow, and so `read_image`, does not open a TIFF file of gray and alpha of 16 bits
    if suffix in TIFF and image.dtype == np.uint16 and image.shape[2:] == (2,):
        image = image[..., [0, 0, 0, 1]]
    fitting = fitting_metadata({**(metadata or {}), "notes": ()}, image)
    notes = fitting.pop("notes", [])
    if suffix not in (".png", *TIFF) and image.dtype == np.uint16:
        notes.append(f"{name} keeps 8 of its 16 bits a channel; PNG and TIFF keep all")
        image = eight_bits(image)
    if suffix in JPEG and has_alpha(image):
        notes.append("JPEG keeps no transparency, so it is put on white; PNG keeps it")
        image = on_white(image)
    if suffix != ".png":
        notes += _tags_to_profile(fitting, image, name)
        notes += _leave_out(fitting, suffix, image, name)
    if image.shape[0] * image.shape[1] > formats.MAX_PIXELS:
        notes.append(f"more than {formats.MAX_PIXELS} pixels: these programs cannot read it again")
    # A full disk or Ctrl-C leaves an old file as it was
    with replace_file(path, durable) as temporary:
        if suffix == ".png":
            write_png(temporary, image, fitting)
        elif image.dtype == np.uint16:
            _write_deep_tiff(temporary, image, fitting)
        else:
            notes += _write_by_pillow(temporary, suffix, image, fitting)
    return notes


def check_format(path, shape: tuple[int, ...]):
    """Raise UserError if `write_image` cannot write an image of this shape to this path."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of image; name it {', '.join(SUFFIXES)}")
    if len(shape) not in (2, 3) or (len(shape) == 3 and not 1 <= shape[2] <= 4):
        raise UserError(f"{path}: {suffix} cannot hold an image of shape {shape}")
    longest = LONGEST_SIDE.get(suffix, 2**31 - 1)
    if max(shape[:2]) > longest:
        raise UserError(
            f"{path}: {suffix} holds {longest} pixels a side at most, these are {shape[1]} x "
            f"{shape[0]}; use .png"
        )


def _tags_to_profile(metadata: dict, image: np.ndarray, name: str) -> list[str]:
    """Replace PNG's colour tags by a profile; return a note if none is equivalent."""
    tags = metadata.pop("colour_tags", None)
    # A profile comes before all tags but cICP, and no simple profile is equivalent to HDR's cICP
    if not tags or ("icc_profile" in metadata and "cICP" not in tags):
        return []
    try:
        profile = profile_of_tags(tags, image.ndim == 2 or image.shape[2] < 3)
    except NoProfile as reason:
        return [f"{name} cannot hold its {reason}: colours may look different; PNG holds it"]
    if profile:
        metadata.setdefault("icc_profile", profile)
    return []


def _leave_out(metadata: dict, suffix: str, image: np.ndarray, name: str) -> list[str]:
    """Remove metadata without a place in the format; return notes."""
    texts_only = suffix in TIFF and image.dtype == np.uint16
    lost = []
    if suffix == ".bmp" and metadata.pop("icc_profile", None):
        lost.append("colour profile")
    exif = metadata.get("exif", b"")
    if exif and (suffix == ".bmp" or suffix in JPEG and len(exif) > MOST_JPEG_EXIF):
        del metadata["exif"]
        lost.append("EXIF data")
    elif texts_only and set(_exif_of(metadata)) & {EXIF_PART, GPS_PART}:
        lost.append("EXIF data but texts")
    bmp_with_alpha = suffix == ".bmp" and has_alpha(image)
    if (suffix == ".webp" or bmp_with_alpha) and metadata.pop("dpi", None):
        lost.append("resolution")
    form = f"{name} of 16 bits" if texts_only else name
    return [f"{form} cannot hold its {', '.join(lost)}"] if lost else []


def _write_by_pillow(path, suffix: str, image: np.ndarray, metadata: dict) -> list[str]:
    """Write 8 bits in any format but PNG; return notes."""
    picture, options = load_pillow().fromarray(image), {}
    if suffix == ".bmp" and picture.mode in ("LA", "RGBA"):
        # Pillow cannot read its own way of writing alpha
        cv2, image = load_opencv(), np.asarray(picture.convert("RGBA"))
        cv2.imencode(".bmp", cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA))[1].tofile(path)
        return []
    if suffix in LONGEST_SIDE:
        options["quality"] = JPEG_QUALITY
    if metadata.pop("lossless", False) and suffix == ".webp":
        # Quality is now the effort to compress: Pillow's default
        options = {"lossless": True, "quality": 80}
    if suffix in TIFF:
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        exif = _exif_of(metadata)
        # Pillow compresses by libtiff, and it cannot write such parts
        parts = EXIF_PART in exif or GPS_PART in exif
        options["compression"] = None if parts else "tiff_lzw"
        # Given as "exif", texts would be decoded, and written in ASCII
        metadata.pop("exif", None)
        metadata["tiffinfo"] = ImageFileDirectory_v2()
        for tag, value in current_exif(exif, only_describing=True).items():
            metadata["tiffinfo"][tag] = value
    kind = load_pillow().registered_extensions()[suffix]
    try:
        picture.save(path, kind, **options, **metadata)
    except Exception as error:
        # EXIF data with values of wrong types are a reason to leave them out, a full disk is none
        lost = [metadata.pop(name, None) for name in ("exif", "tiffinfo")]
        if isinstance(error, OSError) and error.errno or not any(lost):
            raise
        picture.save(path, kind, **options, **metadata)
        return ["ignored its EXIF data: they are damaged"]
    return []


def _exif_of(metadata: dict):
    exif = load_pillow().Exif()
    exif.load(metadata.get("exif", b""))
    return exif


def _write_deep_tiff(path, image: np.ndarray, metadata: dict):
    """Write 16 bits a channel. Pillow cannot."""
    import tifffile

    channels = image.shape[2] if image.ndim == 3 else 1
    # tifffile writes the texts of EXIF data only: camera, author, title
    texts = [(tag, text) for tag, text in _exif_of(metadata).items() if isinstance(text, str)]
    tifffile.imwrite(
        path,
        image,
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        compressionargs={"level": 1},
        rowsperstrip=max(1, BLOCK // image.shape[1]),
        iccprofile=metadata.get("icc_profile"),
        resolution=metadata.get("dpi"),
        extratags=[
            (tag, "s", 0, encoded_text(text), True) for tag, text in texts if tag in DESCRIBING
        ],
        metadata=None,
        software=False,
    )

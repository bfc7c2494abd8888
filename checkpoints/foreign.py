"""Recognise the files of other tools, and name a remedy."""

import io
import re
import tarfile
import zipfile

from checkpoints.pickles import MAX_ENTRIES

# Usual endings of files with weights
WEIGHTS = (".pth", ".pt", ".tar", ".ckpt", ".mat", ".safetensors", ".bin", ".pkl")
SAVE = "load it with that tool, and save its arrays with torch.save({name: torch.tensor(array)})"
KERAS = (
    "open it with Keras, and save with torch.save each layer's kernel (transposed by (3, 2, 0, 1)) "
    "and bias"
)
PICTURE = "give the weights by --model_path, pictures and films to upscale.py"
# Position, first bytes from there, name of the format, remedy
SIGNATURES = [
    (0, b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run git lfs pull"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, Caffe or MATLAB -v7.3)", KERAS),
    (0, b"\x93NUMPY", "one array by numpy.save, not a network", "save a dict of all arrays"),
    (4, b"TFL3", "a TensorFlow Lite file", "give the Keras or PyTorch weights it was made from"),
    (0, b"GGUF", "a GGUF file (llama.cpp), never an SRCNN", "give PyTorch weights"),
    (0, b"lmgg", "a GGML file (llama.cpp), never an SRCNN", "give PyTorch weights"),
    (0, b"7767517", "an ncnn file", "give the PyTorch weights it was made from"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it, and give a file of it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it, and give a file of it"),
    (0, b"Rar!", "a RAR archive", "unpack it, and give a file of it"),
    (0, b"\xfd7zXZ", "an xz archive", "unpack it, and give a file of it"),
    (0, b"BZh", "a bzip2 archive", "unpack it, and give a file of it"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it, and give a file of it"),
    (12, b"V 1", "a Torch7 (Lua) file", "convert it to PyTorch with the package torchfile"),
    (0, b"\x12\x01\0\0\0\0\0\0", "an MXNet file", SAVE),
    *((0, magic, "a picture", PICTURE) for magic in (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM")),
    *((0, magic, "a picture", PICTURE) for magic in (b"II*\0", b"MM\0*", b"II+\0")),
    (8, b"WEBP", "a picture", PICTURE),
    (4, b"ftyp", "a film or a picture", PICTURE),
    (0, b"\x1aE\xdf\xa3", "a film", PICTURE),
    (0, b"%PDF", "a PDF document", "give a file of weights"),
]


def describe(data: bytes, path: str = "") -> str:
    """Return a message for a file of another tool: its format and a remedy; "" for other files.

    The message follows the file's name.
    """
    if data.startswith((b"PK", b"\x80")):
        return _zip(data) if data.startswith(b"PK") else ""
    if not data:
        return "an empty file; copy or download it again"
    if not data.strip(b"\0"):
        return "a file of zeros alone, as a failed copy leaves it; copy or download it again"
    if data.startswith(b"\x93NUMPY") and b"'|O'" in data[:200]:
        return (
            "a dict by numpy.save; save it for PyTorch: "
            "torch.save(numpy.load(FILE, allow_pickle=True).item(), 'new.pth')"
        )
    for at, magic, kind, remedy in SIGNATURES:
        if data[at : at + len(magic)] == magic:
            return f"{kind}; {remedy}"
    if data[257:262] == b"ustar":
        return f"a tar archive{_members(_tar_names(data))}; unpack it, and give a file of it"
    return _protobuf(data) or _tensorflow(data, path) or _text(data) or _unknown(data)


def _zip(data: bytes) -> str:
    """Describe a zip archive by another tool than torch.save."""
    if data.count(b"PK\1\2") > MAX_ENTRIES:  # the reader of torch's files refuses it
        return ""
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except Exception:  # damaged: the reader of torch's files reports it
        return ""
    if any(name.endswith("/data.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return (
            "numpy arrays by numpy.savez; save them for PyTorch: "
            "torch.save({k: torch.from_numpy(v) for k, v in numpy.load(FILE).items()}, 'new.pth')"
        )
    if any(name.endswith("model.weights.h5") for name in names):
        return f"a Keras archive; {KERAS}"
    exported = "models/model.json", "serialized_exported_program.json"
    if any(name.endswith(exported) for name in names):
        return "a program by torch.export; save the network's state_dict with torch.save"
    if any(name.endswith("saved_model.pb") for name in names):
        return f"an archive of a TensorFlow SavedModel; {SAVE}"
    return (
        f"a zip archive, but not by torch.save (no data.pkl in it{_members(names)}); unpack it, or "
        "save the network's state_dict with torch.save"
    )


def _members(names: list[str]) -> str:
    """Name the first file of an archive with the ending of weights."""
    inside = [name for name in names if name.lower().endswith(WEIGHTS)]
    return f", with {ascii(inside[0][:60])[1:-1]} in it" if inside else ""


def _tar_names(data: bytes) -> list[str]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            return [member.name for _, member in zip(range(100), archive)]
    except Exception:  # damaged
        return []


def _protobuf(data: bytes) -> str:
    """Describe files of protocol buffers: ONNX, SavedModel, Caffe, GraphDef."""
    # Field 1 as a number, then field 2 or 7 (ONNX: version, producer or graph)
    if data[:3] == b"\x08\x01\x12" and b"\x0a" in data[3:10]:
        return f"a TensorFlow SavedModel; {SAVE}"
    if data[:1] == b"\x08" and data[1:2] < b"\x20" and data[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return "an ONNX graph; give the weights it was made from (convert.py writes ONNX only)"
    # Field 1 as a text: the network's name in Caffe; in a GraphDef a node with name and operation
    if data[:1] == b"\x0a":
        head = data[:4096]
        if b"Placeholder" in head or b"\x05Const" in head:
            return f"a TensorFlow graph; {SAVE}"
        if re.search(rb"Convolution|InnerProduct|\xa2\x06|Data|conv", head):
            return (
                "a Caffe model; load it with cv2.dnn.readNetFromCaffe (with its .prototxt), and "
                "save its layers' blobs with torch.save"
            )
    return ""


def _tensorflow(data: bytes, path: str) -> str:
    """Describe the parts of a TensorFlow checkpoint."""
    table = data.endswith(b"\x57\xfb\x80\x8b\x24\x75\x47\xdb")
    named = re.search(r"\.(data-\d{5}-of-\d{5}|index|meta)$", path)
    if table or named or data.startswith(b"model_checkpoint_path"):
        return (
            "part of a TensorFlow checkpoint; read it with tf.train.load_checkpoint, and save its "
            "arrays, kernels transposed by (3, 2, 0, 1), with torch.save"
        )
    return ""


def _text(data: bytes) -> str:
    """Describe a text file."""
    head = data[:4096]
    if re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", head):
        return ""
    if re.search(rb"^\s*(layers?\s*\{|input:|name:\s*\")", head, re.MULTILINE):
        return "a Caffe network without weights (.prototxt); give weights for PyTorch"
    if head.lstrip()[:1] == b"<" and b"<net" in head:
        return "an OpenVINO network; give the PyTorch weights it was made from"
    if re.search(rb"<(!DOCTYPE html|html|head|body)", head, re.IGNORECASE):
        return (
            "a web page, not the file itself; download the file by its own address (on GitHub "
            "with raw, on Hugging Face with resolve, in place of blob)"
        )
    return ""


def _unknown(data: bytes) -> str:
    return (
        f"neither a PyTorch checkpoint nor a MATLAB or safetensors file (it begins with "
        f"{data[:32]!r}); give a file by torch.save, or the authors' .mat"
    )

"""Read torch's files (and pickled numpy arrays) as plain data, without running anything in them.

A pickle is a program for a small stack machine. Its instructions can import and call any name. The
machine below is Python's own (the module pickle has it in Python as well as in C), with only the
instructions for numbers, text and tuples. The others are replaced or forbidden. An imported name
becomes an inert `Opaque`. Lists and dicts are read without opaque items. So a checkpoint with
objects of other classes is read without them, and code does not run. If a file holds a complete
network, its tensors are read: they are plain data.

The constants below bound time and memory for any file.
"""

import io
import math
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from dataclasses import dataclass

import torch

from system.files import UserError

# Bytes read from the pickles of one file. Every read costs at least STEP, and an instruction takes
# one to three reads: 9,000 rows of training history use a third of the budget
MAX_READ, STEP = 2**25, 32
MAX_TEXT = 2**16  # bytes of one text: longer ones are read only for the kernels of a convolution
MAX_LINE = 2**12  # bytes of a line, in the old text instructions
MAX_BITS = 128  # of an integer: numpy's random state has as many
MAX_NAME = 100  # characters of an imported name, and of its module
MAX_ENTRIES = 10_000  # in an archive
MAX_MODULES = 20  # complete networks in one file
LEGACY_MARK = 0x1950A86A20F9469CFC6C  # the first number in files by torch before 1.6
TOO_MANY = "far more entries than an SRCNN has; give another file"

# torch.FloatStorage holds torch.float, and so on; four are called otherwise
DTYPES = {name: getattr(torch, name.lower()) for name in "Float Double Half BFloat16".split()}
DTYPES |= {name: getattr(torch, name.lower()) for name in "Long Int Short Bool".split()}
DTYPES |= {"Char": torch.int8, "Byte": torch.uint8}
DTYPES |= {"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128}
# numpy's names of its number types, and their letters in the module struct
NUMPY_TYPES = dict(zip("f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 b1".split(), "dfeqihbQIHB?"))
ARRAY_TYPES = {
    **{"d": torch.float64, "f": torch.float32, "e": torch.float16, "B": torch.uint8},
    **{"q": torch.int64, "i": torch.int32, "h": torch.int16, "b": torch.int8, "?": torch.bool},
}


# Compared by identity: a comparison by content would take time chosen by the file
@dataclass(eq=False)
class Opaque:
    """An inert stand-in for a class, a function or an object of the file."""

    name: str
    # The meaning of the name for this reader, in the kinds below
    known: object = None


class Maker(Opaque):
    """A name for plain data; known: our function to make it."""


class StorageType(Opaque):
    """torch.FloatStorage and the like; known: the torch.dtype."""


class Storage(Opaque):
    """The numbers under tensors (their views); known: a tensor of one dimension."""


class NumpyType(Opaque):
    """A number type of numpy's; known: its name in struct, such as "<d"."""


class LongText(Opaque):
    """A skipped text; known: its position and size in the file, and True for UTF-8."""


class Array(Opaque):
    """An array of numpy's; known: a tensor, once its numbers are read."""


class Module:
    """A network's module, in a TorchScript archive or by torch.save(network): its attributes,
    other modules among them. Its class, and so its code, are left in the file."""

    def __init__(self, *_):
        self.attributes = {}


# ------------------------------------------------------------------------------ plain data
def _plain(item):
    """Return the tensor of an array already read, anything else unchanged."""
    return item.known if isinstance(item, Array) and item.known is not None else item


def _fill(target, items):
    """Extend a list by items, or a dict by keys and values in turn, leaving out opaque ones."""
    items = list(map(_plain, items))
    if isinstance(target, list):
        target.extend(item for item in items if not isinstance(item, Opaque))
    elif isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2]):
            if isinstance(key, Opaque) or isinstance(value, Opaque):
                continue
            # Others may be slow on purpose (huge integers of equal hashes) or overflow the stack
            # (tuples within tuples): an inert key replaces them
            small = type(key) is int and key.bit_length() < 64
            if not small and type(key) not in (str, float, bool, type(None)):
                key = Opaque(type(key).__name__)
            target[key] = value
    elif not isinstance(target, Opaque):
        raise ValueError(f"a {type(target).__name__} is filled")


def _dict(*items):
    """Make a collections.OrderedDict or similar: empty, or (by Python 2) from a list of pairs."""
    made = OrderedDict()
    for pair in items[0] if items and isinstance(items[0], list) else ():
        # `key, value = pair` would make a tensor for each number of a tensor
        if isinstance(pair, (list, tuple)):
            _fill(made, pair[:2])
    return made


def _tensor(storage, offset, size, stride, *_):
    """Make a view of a storage. Check it before torch sees it: the file chooses all numbers."""
    if not isinstance(storage, Storage):
        return Opaque("torch.Tensor")
    if len(size) != len(stride) or len(size) > 16:
        raise ValueError("size and stride of a tensor differ")
    if any(type(n) is not int or not 0 <= n < 2**40 for n in (offset, *size, *stride)):
        raise ValueError("a tensor's size is not a number")
    count = math.prod(size)
    # Strides of 0 make a large tensor of a small storage; checkpoints/layouts.py refuses it
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if count > 2**40 or (count and last >= len(storage.known)):
        raise ValueError("a tensor reaches beyond its storage")
    return storage.known.as_strided(size, stride, offset)


def _bytes(text, encoding):
    """Read bytes as protocols 0 to 2 write them (_codecs.encode)."""
    if isinstance(text, LongText):
        return text
    plain = type(text) is str and encoding == "latin1"
    return text.encode("latin1") if plain else Opaque("_codecs.encode")


def _numpy_type(kind, *_):
    """Read numpy.dtype("f8"); BUILD then states the byte order."""
    known = type(kind) is str and kind in NUMPY_TYPES
    return NumpyType("numpy.dtype", f"<{NUMPY_TYPES[kind]}") if known else Opaque("numpy.dtype")


def _numpy_number(kind, raw):
    """Read a scalar of numpy's: many training loops store their best PSNR so."""
    if not isinstance(kind, NumpyType) or type(raw) is not bytes:
        return Opaque("numpy scalar")
    return struct.unpack(kind.known, raw)[0]


def _module_parts(state) -> list[dict]:
    """Return an nn.Module's attributes, tensors and modules, for any class of module.

    Empty if the state belongs to another object.
    """
    if not isinstance(state, dict):
        return []
    parts = [state, state.get("_parameters"), state.get("_modules")]
    return parts if all(isinstance(part, dict) for part in parts) else []


def _array(*_):
    """Begin an array of numpy's; BUILD then gives shape, type and numbers."""
    return Array("numpy.ndarray")


def _array_of(raw, kind, shape, order="C", *_):
    """Read an array of numpy's as protocol 5 writes it; `Machine.call` reads the numbers."""
    made = Array("numpy.ndarray")
    made.state = (1, shape, kind, order == "F", raw)
    return made


def _same(thing=(), *_):
    """Return the first argument unchanged."""
    return thing


# A file can call only these functions. None of them imports, calls or opens anything
MAKERS = {
    "collections.OrderedDict": _dict,
    "typing.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: OrderedDict(),
    "collections.Counter": lambda counts=None: OrderedDict() if counts is None else counts,
    "builtins.set": _same,
    "__builtin__.set": _same,
    "torch.Size": _same,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch.jit._pickle.build_intlist": _same,
    "_codecs.encode": _bytes,
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_number,
    "numpy._core.multiarray.scalar": _numpy_number,
    "numpy.ndarray": _array,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.core.numeric._frombuffer": _array_of,
    "numpy._core.numeric._frombuffer": _array_of,
}


# ------------------------------------------------------------------------------ the machine
class Bounded(io.BytesIO):
    """A file in memory with a limit on the bytes read."""

    # The machine reads a byte for each step: this limits the steps as well
    left = MAX_READ

    def spend(self, size: int):
        self.left -= max(size, STEP)
        if self.left < 0:
            raise UserError(TOO_MANY)

    def read(self, size: int, read=io.BytesIO.read) -> bytes:
        # As `spend`: this call is most of the time of a large pickle
        self.left -= size if size > STEP else STEP
        if self.left < 0:
            raise UserError(TOO_MANY)
        return read(self, size)

    def readline(self) -> bytes:
        line = super().readline(MAX_LINE)
        self.spend(len(line))
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class Machine(pickle._Unpickler):
    """Python's machine with other instructions for importing, calling and filling.

    ``storage(dtype, key, count)`` returns the numbers of a storage. Attribute ``ignored`` has the
    imported names without plain data, each once, and ``arrays`` the number of numpy's arrays.
    """

    def __init__(self, file: Bounded, storage):
        super().__init__(file, encoding="latin1")
        self.file, self.storage, self.ignored, self.arrays = file, storage, {}, 0

    def load(self):
        """Return the object of the pickle at the file's position."""
        self.memo = {}  # each pickle in a file numbers its own objects
        return _plain(super().load())

    def find_class(self, module: str, name: str) -> Opaque:
        """Return the stand-in for an imported name."""
        # Cut, because a long text can be used as a name many times
        name = f"{module[:MAX_NAME]}.{name[:MAX_NAME]}"
        if name in MAKERS:
            return Maker(name, MAKERS[name])
        # cuda's as well: files saved on a GPU are read on any machine
        storage = re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name)
        if storage and storage[1] in DTYPES:
            return StorageType(name, DTYPES[storage[1]])
        # The classes of TorchScript; their code stays in the archive
        if name.startswith("__torch__."):
            return Maker(name, Module)
        self.ignored[name] = True
        return Opaque(name)

    def persistent_load(self, reference):
        """Return the storage of a tensor, by its reference."""
        if isinstance(reference, tuple) and len(reference) >= 5 and reference[0] == "storage":
            # ("storage", type, its name in the archive, device, how many numbers)
            _, kind, key, _, count, *view = reference
            if isinstance(kind, StorageType) and type(key) is str and type(count) is int:
                values = self.storage(kind.known, key, count)
                # Before torch 0.4: (key, start, count), for a part of another storage
                if view and view[0]:
                    values = values[view[0][1] :][: view[0][2]]
                return Storage("torch.Storage", values)
        return Opaque("torch.Storage")

    def call(self, kind, arguments, _keywords=None):
        """Put the result of calling ``kind`` on the stack. Only our own makers are called."""
        if not isinstance(kind, Opaque) or not isinstance(arguments, (tuple, list)):
            raise ValueError(f"a {type(kind).__name__} is called")
        made = Opaque(kind.name)
        if isinstance(kind, Maker):
            # They are copied, and the same long ones can be given again and again
            self.file.spend(len(arguments) * STEP)
            for thing in arguments:
                if isinstance(thing, (list, str)):
                    self.file.spend(len(thing) * (STEP if isinstance(thing, list) else 1))
            made = kind.known(*arguments)
            if isinstance(made, Array) and hasattr(made, "state"):
                self.read_array(made, made.state)
        self.append(made)

    _instantiate = call  # Python's INST and OBJ come here

    def build(self):
        """Give an object its state, if this reader knows its kind."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Array) and isinstance(state, tuple):
            self.read_array(target, state)
        elif isinstance(target, Module) and isinstance(state, dict):
            target.attributes = state
        elif parts := _module_parts(state):
            self.stack[-1] = module = Module()
            for part in parts:
                # They are copied, and the same large ones can be given again and again
                self.file.spend(len(part) * STEP)
                module.attributes |= part
        # numpy's (version, byte order, ...); types of one byte have the order "|"
        elif isinstance(target, NumpyType) and isinstance(state, tuple) and len(state) > 1:
            target.known = (">" if state[1] == ">" else "<") + target.known[1:]
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            # A state dict's versions, and convert.py's place for padding and the like
            if isinstance(state.get("_metadata"), dict):
                target._metadata = state["_metadata"]

    def read_array(self, array: Array, state: tuple):
        """Read the numbers of numpy's array; state: (version, shape, type, column order, bytes)."""
        _, shape, kind, columns_first, raw = state
        is_shape = isinstance(shape, tuple) and len(shape) <= 4
        if not is_shape or not isinstance(kind, NumpyType) or kind.known[1:] not in ARRAY_TYPES:
            return
        if isinstance(raw, LongText):
            # A run's log is long as well: only kernels are read
            if len(shape) != 4:
                return
            raw = self.long_bytes(raw)
        if any(type(n) is not int or not 0 <= n < 2**40 for n in shape):
            raise ValueError("the shape of an array is not of numbers")
        dtype = ARRAY_TYPES[kind.known[1:]]
        if type(raw) is not bytes or math.prod(shape) * dtype.itemsize != len(raw):
            raise ValueError("an array of another size than its numbers")
        numbers = torch.frombuffer(bytearray(raw or b"\0"), dtype=torch.uint8)[: len(raw)]
        if kind.known[0] == ">":
            numbers = numbers.view(-1, dtype.itemsize).flip(1).flatten()
        # The same array with its axes the other way round lies row by row
        values = numbers.view(dtype).reshape(shape[::-1] if columns_first else shape)
        array.known = values.permute(*reversed(range(len(shape)))) if columns_first else values
        self.arrays += 1

    def long_bytes(self, text: LongText) -> bytes:
        """Read the bytes of a long text, at the cost of as many from the budget."""
        start, size, is_utf8 = text.known
        here = self.file.tell()
        self.file.seek(start)
        raw = self.file.read(size)
        self.file.seek(here)
        if len(raw) != size:
            raise EOFError
        return raw.decode().encode("latin1") if is_utf8 else raw

    def put(self):
        """Store an object under a number.

        Huge numbers can have equal hashes and make the memo slow: only small ones are accepted.
        """
        number = int(self.readline())
        if not 0 <= number < 2**32:
            raise ValueError("a large number in the memo")
        self.memo[number] = self.stack[-1]

    def fill(self, items: list, new=None):
        """Add items to the list or dict on top of the stack, or to a new one."""
        if new is not None:
            self.append(new)
        _fill(self.stack[-1], items)


def _python(name: str):
    """Return Python's function for an instruction."""
    return pickle._Unpickler.dispatch[getattr(pickle, name)[0]]


def _bounded(name: str, width: int):
    """Return Python's function for a text or number after its length in ``width`` bytes.

    Long texts are skipped.
    """
    original = _python(name)

    def bounded(machine):
        size = int.from_bytes(machine.file.read(width), "little")
        if size > MAX_TEXT:
            # Skip it: MMEngine stores a run's losses as texts of megabytes
            start = machine.file.tell()
            machine.file.seek(size, 1)
            machine.append(LongText("a long text", (start, size, "UNICODE" in name)))
            return
        machine.file.seek(-width, 1)
        original(machine)
        # Even printing huge numbers takes long
        number = machine.stack[-1]
        if type(number) is int and number.bit_length() > MAX_BITS:
            machine.stack[-1] = Opaque("a large number")

    return bounded


# Python's, unchanged: they only put plain data on the stack and move it about.
# GLOBAL, STACK_GLOBAL and INST call our find_class, BINPERSID our persistent_load
PLAIN = """
    PROTO STOP MARK POP POP_MARK DUP TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE EMPTY_LIST EMPTY_DICT
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 FLOAT BINFLOAT STRING SHORT_BINSTRING UNICODE
    SHORT_BINUNICODE SHORT_BINBYTES GET BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE
    GLOBAL STACK_GLOBAL INST OBJ BINPERSID
""".split()
# Python's, bounded; the number of bytes of the length before them (0: none)
LONG = {"INT": 0, "LONG": 0, "LONG1": 0, "LONG4": 4, "BINSTRING": 4, "BINUNICODE": 4}
LONG |= {"BINBYTES": 4, "BINUNICODE8": 8, "BINBYTES8": 8}
# All instructions of the machine, by their names in the module pickle; any other is an error
INSTRUCTIONS = {
    **{name: _python(name) for name in PLAIN},
    **{name: _bounded(name, width) for name, width in LONG.items()},
    "BYTEARRAY8": _bounded("BINBYTES8", 8),
    # A length for reading ahead. Python's function would bypass Bounded
    "FRAME": lambda machine: machine.file.read(8),
    "PUT": Machine.put,
    # A function and its arguments lie on the stack
    "REDUCE": lambda machine: machine.call(machine.stack.pop(-2), machine.stack.pop()),
    "NEWOBJ": lambda machine: machine.call(machine.stack.pop(-2), machine.stack.pop()),
    "NEWOBJ_EX": lambda machine: machine.call(*(machine.stack.pop(-n) for n in (3, 2, 1))),
    "BUILD": Machine.build,
    # The list or dict lies below the items. Several items begin at a mark
    "APPEND": lambda machine: machine.fill([machine.stack.pop()]),
    "SETITEM": lambda machine: machine.fill([machine.stack.pop(-2), machine.stack.pop()]),
    "APPENDS": lambda machine: machine.fill(machine.pop_mark()),
    "SETITEMS": lambda machine: machine.fill(machine.pop_mark()),
    "DICT": lambda machine: machine.fill(machine.pop_mark(), {}),
    "LIST": lambda machine: machine.fill(machine.pop_mark(), []),
    # A set becomes a list: nothing in it is hashed
    "EMPTY_SET": _python("EMPTY_LIST"),
    "ADDITEMS": lambda machine: machine.fill(machine.pop_mark()),
    "FROZENSET": lambda machine: machine.fill(machine.pop_mark(), []),
}
Machine.dispatch = {getattr(pickle, name)[0]: load for name, load in INSTRUCTIONS.items()}


# ------------------------------------------------------------------------------- the formats
def load(data: bytes) -> tuple[object, list[str]]:
    """Return the content of a file, and the names of ignored classes and functions in it.

    It reads files by torch.save, torch.jit.save and pickle.dump (of a dict of numpy arrays). A
    module, saved by itself or in a dict, becomes a flat dict of its tensors and of its own numbers
    and texts.
    Raises UserError; its message follows the file's name. Damaged files raise nearly anything.
    """
    read = _load_zip if data.startswith(b"PK") else _load_legacy
    content, ignored = read(data)
    if isinstance(content, Module):
        content = _flat(content)
        if not any(isinstance(value, torch.Tensor) for value in content.values()):
            raise UserError(
                "a network or TorchScript archive without parameters of its own (a frozen one?); "
                "save the network's state_dict with torch.save instead"
            )
    elif isinstance(content, dict):
        # Flatten each module once: a file can contain the same one very often
        modules = {id(value): value for value in content.values() if isinstance(value, Module)}
        if len(modules) > MAX_MODULES:
            raise UserError(TOO_MANY)
        flat = {key: _flat(module) for key, module in modules.items()}
        for key, value in content.items():
            if isinstance(value, Module):
                content[key] = flat[id(value)]
    return content, list(ignored)


def _load_zip(data: bytes):
    """Read a file by torch since 1.6: a zip file of data.pkl, and an entry for each storage."""
    if data.count(b"PK\1\2") > MAX_ENTRIES:
        raise UserError(TOO_MANY)
    archive, storages = zipfile.ZipFile(io.BytesIO(data)), {}
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if not pickles:
        raise UserError("a zip archive, but not by torch.save (no data.pkl in it); unpack it")
    # All in one folder; the entries read are no larger than the file. (The code in a TorchScript
    # archive is compressed)
    root = pickles[0].removesuffix("data.pkl")
    wanted = root + "data", root + "byteorder"
    entries = [entry for entry in archive.infolist() if entry.filename.startswith(wanted)]
    size = sum(entry.file_size for entry in entries)
    if size > len(data) or any(entry.compress_type for entry in entries):
        raise UserError("a compressed archive, never by torch.save; give the file as it was saved")
    # Some machines write the bytes of a number in the other order
    order = root + "byteorder"
    swapped = order in archive.namelist() and archive.read(order) != sys.byteorder.encode()

    def storage(dtype, key, _count):
        """Return the numbers of one storage; zipfile verifies their checksum."""
        if key not in storages:
            raw = bytearray(archive.read(f"{root}data/{key}"))
            numbers = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.zeros(0).byte()
            if swapped:
                width = dtype.itemsize // (2 if dtype.is_complex else 1)
                numbers = numbers.view(-1, width).flip(1).flatten()
            storages[key] = numbers
        return storages[key].view(dtype)

    machine = Machine(Bounded(archive.read(pickles[0])), storage)
    return machine.load(), machine.ignored


def _load_legacy(data: bytes):
    """Read a file by torch before 1.6 (five pickles, then the numbers of each storage), or one
    pickle of numpy's arrays."""
    storages = {}

    def storage(dtype, key, count):
        """Return space for the numbers at the file's end; never more than the file is long."""
        if key not in storages:
            taken = sum(values.nbytes for values in storages.values())
            if not 0 <= count * dtype.itemsize <= len(data) - taken or len(storages) > 1000:
                raise EOFError
            storages[key] = torch.zeros(count, dtype=dtype)
        return storages[key]

    # Five pickles: the format's number, its version, the machine, the content, and the order of the
    # storages after them
    machine = Machine(file := Bounded(data), storage)
    mark = machine.load()
    if isinstance(mark, (dict, list, tuple)) and machine.arrays and not storages:
        return mark, machine.ignored
    if type(mark) is not int or mark != LEGACY_MARK:
        raise UserError(
            "a pickle, but not by torch.save; save the network's state_dict with torch.save"
        )
    _protocol, _system, content, keys = (machine.load() for _ in range(4))
    # Texts alone: comparing nested lists could take forever
    texts = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not texts or sorted(keys) != sorted(storages):
        raise EOFError
    at = file.tell()
    for values in map(storages.get, keys):
        # Eight bytes with the count, then the numbers
        if struct.unpack_from("<q", data, at) != (len(values),):
            raise EOFError
        if len(values):
            numbers = bytearray(data[at + 8 : at + 8 + values.nbytes])
            values.copy_(torch.frombuffer(numbers, dtype=values.dtype, count=len(values)))
        at += 8 + values.nbytes
    return content, machine.ignored


def _flat(module: Module) -> dict:
    """Return the tensors of a module by their dotted names, as in a state dict.

    Also the numbers and texts of the outermost module, or of the one inside a mere wrapper.
    """
    # DataParallel and the like have one module and no tensors of their own. Ten times at most,
    # because a module may contain itself
    flat = {}
    for _ in range(10):
        values = module.attributes.values()
        inner = [value for value in values if isinstance(value, (Module, torch.Tensor))]
        if len(inner) == 1 and isinstance(inner[0], Module):
            stated = {k: v for k, v in module.attributes.items() if type(v) in (int, float, str)}
            flat = stated | flat if len(stated) < 100 else flat
            module = inner[0]
    # In the order of a state dict, and counted: modules may contain each other in a circle
    waiting, seen = [("", module)], 0
    while waiting:
        prefix, module = waiting.pop()
        children = []
        seen += len(module.attributes)
        if seen > MAX_ENTRIES:
            raise UserError(TOO_MANY)
        for name, value in module.attributes.items():
            name = f"{prefix}{name}"
            if len(name) > 200:
                continue
            if isinstance(value, torch.Tensor) or (not prefix and type(value) in (int, float, str)):
                flat[name] = value
            elif isinstance(value, Module):
                children.append((f"{name}.", value))
        waiting += reversed(children)
    return flat

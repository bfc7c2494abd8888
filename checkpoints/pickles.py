"""What torch.save wrote, as plain data: nothing in the file is imported, called or run.

A pickle is a program for a small stack machine. Its instructions may import any name and
call it, and Python's machine does as it is told. The one below is Python's own (the module
pickle has it in Python as well as in C), of which only the instructions for numbers, text and
tuples are left. The others are replaced or forbidden: for a name that is to be imported stands
an inert `Opaque`, which is left out of every list and dict. So a checkpoint that also holds
objects of somebody's classes is read without them, and one that would run code runs none.
Of a network that was saved whole, its tensors are read, since they lie there as plain data.

Time and memory are bounded by the constants below, whatever the file says.
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

# Bytes read from the pickles of one file. Each read counts as STEP at least, and an instruction
# takes one to three reads: 9,000 rows of training history come to a third of it
MAX_READ, STEP = 2**25, 32
MAX_TEXT = 2**16  # bytes of one text: longer ones (a run's log as an array) are passed over
MAX_LINE = 2**12  # bytes of a line, in the old text instructions
MAX_BITS = 128  # of an integer: numpy's random state has as many
MAX_NAME = 100  # characters of an imported name, and of its module
MAX_ENTRIES = 10_000  # in an archive
MAX_MODULES = 20  # saved whole, side by side
LEGACY_MARK = 0x1950A86A20F9469CFC6C  # with which files by torch before 1.6 begin
TOO_MANY = "far more entries than an SRCNN has; give another file"

# torch.FloatStorage holds torch.float, and so on; four are called otherwise
DTYPES = {name: getattr(torch, name.lower()) for name in "Float Double Half BFloat16".split()}
DTYPES |= {name: getattr(torch, name.lower()) for name in "Long Int Short Bool".split()}
DTYPES |= {"Char": torch.int8, "Byte": torch.uint8}
DTYPES |= {"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128}
# numpy's names of its number types, and the letters that the module struct has for them
NUMPY_TYPES = dict(zip("f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 b1".split(), "dfeqihbQIHB?"))


# Compared by identity, never by what they hold, so that the file has no say in it
@dataclass(eq=False)
class Opaque:
    """In place of a class, a function or an object that this reader does not make."""

    name: str
    # What the name means to this reader, in the four kinds below
    known: object = None


class Maker(Opaque):
    """A name that stands for plain data; known: the function of ours that makes it."""


class StorageType(Opaque):
    """torch.FloatStorage and the like; known: the torch.dtype."""


class Storage(Opaque):
    """The numbers that tensors are views of; known: a tensor of one dimension."""


class NumpyType(Opaque):
    """A number type of numpy's; known: its name in struct, such as "<d"."""


class Module:
    """A network's module, in a TorchScript archive or by torch.save(network): its attributes,
    other modules among them. Its class, and so its code, are left in the file."""

    def __init__(self, *_):
        self.attributes = {}


# ------------------------------------------------------------------------------ plain data
def _fill(target, items):
    """Extend a list by items, or a dict by keys and values in turn, without what is opaque."""
    if isinstance(target, list):
        target.extend(item for item in items if not isinstance(item, Opaque))
    elif isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2]):
            if isinstance(key, Opaque) or isinstance(value, Opaque):
                continue
            # Others can be made to be slow (huge integers of equal hashes) or to overflow the
            # stack (tuples within tuples), so that an inert key takes their place
            small = type(key) is int and key.bit_length() < 64
            if not small and type(key) not in (str, float, bool, type(None)):
                key = Opaque(type(key).__name__)
            target[key] = value
    elif not isinstance(target, Opaque):
        raise ValueError(f"a {type(target).__name__} is filled")


def _dict(*items):
    """collections.OrderedDict and its kin: empty, or (from Python 2) with a list of pairs."""
    made = OrderedDict()
    for pair in items[0] if items and isinstance(items[0], list) else ():
        # Not `key, value = pair`: of a tensor that would make one for each of its numbers
        if isinstance(pair, (list, tuple)):
            _fill(made, pair[:2])
    return made


def _tensor(storage, offset, size, stride, *_):
    """A view of a storage, checked before torch sees it: the file chooses all the numbers."""
    if not isinstance(storage, Storage):
        return Opaque("torch.Tensor")
    if len(size) != len(stride) or len(size) > 16:
        raise ValueError("size and stride of a tensor differ")
    if any(type(n) is not int or not 0 <= n < 2**40 for n in (offset, *size, *stride)):
        raise ValueError("a tensor's size is not a number")
    count = math.prod(size)
    # Steps of 0 let a small storage be a large tensor, which checkpoints/layouts.py refuses
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if count > 2**40 or (count and last >= len(storage.known)):
        raise ValueError("a tensor reaches beyond its storage")
    return storage.known.as_strided(size, stride, offset)


def _bytes(text, encoding):
    """_codecs.encode: how protocols 0 to 2 write bytes."""
    plain = type(text) is str and encoding == "latin1"
    return text.encode("latin1") if plain else Opaque("_codecs.encode")


def _numpy_type(kind, *_):
    """numpy.dtype("f8"); BUILD then tells the byte order."""
    known = type(kind) is str and kind in NUMPY_TYPES
    return NumpyType("numpy.dtype", f"<{NUMPY_TYPES[kind]}") if known else Opaque("numpy.dtype")


def _numpy_number(kind, raw):
    """A scalar of numpy's, which many loops keep as their best PSNR."""
    if not isinstance(kind, NumpyType) or type(raw) is not bytes:
        return Opaque("numpy scalar")
    return struct.unpack(kind.known, raw)[0]


def _module_parts(state) -> list[dict]:
    """The attributes, tensors and modules that Python keeps of an nn.Module, whatever its class;
    none if the state is another object's."""
    if not isinstance(state, dict):
        return []
    parts = [state, state.get("_parameters"), state.get("_modules")]
    return parts if all(isinstance(part, dict) for part in parts) else []


def _same(thing=(), *_):
    """For what adds nothing to its argument that is wanted here."""
    return thing


# All that a file can have called. Not one of them imports, calls or opens anything
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
}


# ------------------------------------------------------------------------------ the machine
class Bounded(io.BytesIO):
    """A file in memory of which only so much is read."""

    # The machine reads a byte for each of its steps: to bound what is read bounds the steps
    left = MAX_READ

    def spend(self, size: int):
        self.left -= max(size, STEP)
        if self.left < 0:
            raise UserError(TOO_MANY)

    def read(self, size: int) -> bytes:
        self.spend(size)
        return super().read(size)

    def readline(self) -> bytes:
        line = super().readline(MAX_LINE)
        self.spend(len(line))
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class Machine(pickle._Unpickler):
    """Python's, but for the instructions that import, call and fill in.

    ``storage(dtype, key, count)`` gives the numbers that tensors refer to. Attribute
    ``ignored`` has the names met that stand for no plain data, each once.
    """

    def __init__(self, file: Bounded, storage):
        super().__init__(file, encoding="latin1")
        self.file, self.storage, self.ignored = file, storage, {}

    def load(self):
        """The object that the pickle at the file's position describes."""
        self.memo = {}  # each pickle in a file numbers its own objects
        return super().load()

    def find_class(self, module: str, name: str) -> Opaque:
        """What an imported name stands for here."""
        # Cut, because a long text can be given as a name again and again
        name = f"{module[:MAX_NAME]}.{name[:MAX_NAME]}"
        if name in MAKERS:
            return Maker(name, MAKERS[name])
        # cuda's as well: what was saved on a GPU is read on any machine
        storage = re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name)
        if storage and storage[1] in DTYPES:
            return StorageType(name, DTYPES[storage[1]])
        # The classes of TorchScript, whose code lies in the archive and is left there
        if name.startswith("__torch__."):
            return Maker(name, Module)
        self.ignored[name] = True
        return Opaque(name)

    def persistent_load(self, reference):
        """The storage that a tensor refers to."""
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
        """Put there what calling ``kind`` stands for: one of our makers is called, nothing else."""
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
        self.append(made)

    _instantiate = call  # Python's INST and OBJ come here

    def build(self):
        """Give an object its state, where it is one that has any here."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Module) and isinstance(state, dict):
            target.attributes = state
        elif parts := _module_parts(state):
            self.stack[-1] = module = Module()
            for part in parts:
                # They are copied, and the same large ones can be given again and again
                self.file.spend(len(part) * STEP)
                module.attributes |= part
        # numpy's (version, byte order, ...); "|" stands for types of one byte, which have none
        elif isinstance(target, NumpyType) and isinstance(state, tuple) and len(state) > 1:
            target.known = (">" if state[1] == ">" else "<") + target.known[1:]
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            # A state dict's versions, and where convert.py puts what the weights are for
            if isinstance(state.get("_metadata"), dict):
                target._metadata = state["_metadata"]

    def put(self):
        """Keep an object under a number. Huge numbers can be made to have equal hashes, which would
        make the memo slow, so only small ones are taken."""
        number = int(self.readline())
        if not 0 <= number < 2**32:
            raise ValueError("a large number in the memo")
        self.memo[number] = self.stack[-1]

    def fill(self, items: list, new=None):
        """Put items into the list or dict on top of the stack, or into a new one."""
        if new is not None:
            self.append(new)
        _fill(self.stack[-1], items)


def _python(name: str):
    """Python's function for an instruction."""
    return pickle._Unpickler.dispatch[getattr(pickle, name)[0]]


def _bounded(name: str, width: int):
    """Python's function for a text or number, whose length stands in front in ``width`` bytes;
    long ones are passed over."""
    original = _python(name)

    def bounded(machine):
        size = int.from_bytes(machine.file.read(width), "little")
        if size > MAX_TEXT:
            # Not read at all: MMEngine keeps a run's losses as texts of megabytes
            machine.file.seek(size, 1)
            machine.append(Opaque("a long text"))
            return
        machine.file.seek(-width, 1)
        original(machine)
        # Of huge numbers even printing takes long
        number = machine.stack[-1]
        if type(number) is int and number.bit_length() > MAX_BITS:
            machine.stack[-1] = Opaque("a large number")

    return bounded


# Python's as they are: all that they can do is put plain data on the stack and move it about.
# GLOBAL, STACK_GLOBAL and INST ask find_class, BINPERSID asks persistent_load, which are ours
PLAIN = """
    PROTO STOP MARK POP POP_MARK DUP TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE EMPTY_LIST EMPTY_DICT
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 FLOAT BINFLOAT STRING SHORT_BINSTRING UNICODE
    SHORT_BINUNICODE SHORT_BINBYTES GET BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE
    GLOBAL STACK_GLOBAL INST OBJ BINPERSID
""".split()
# Python's, bounded, with the bytes in which their length stands in front; 0: they have none
LONG = {"INT": 0, "LONG": 0, "LONG1": 0, "LONG4": 4, "BINSTRING": 4, "BINUNICODE": 4}
LONG |= {"BINBYTES": 4, "BINUNICODE8": 8, "BINBYTES8": 8}
# All that the machine knows, by their names in the module pickle; any other is an error
INSTRUCTIONS = {
    **{name: _python(name) for name in PLAIN},
    **{name: _bounded(name, width) for name, width in LONG.items()},
    "BYTEARRAY8": _bounded("BINBYTES8", 8),
    # A length that serves to read ahead: then Bounded would not see what is read
    "FRAME": lambda machine: machine.file.read(8),
    "PUT": Machine.put,
    # A function and its arguments lie on the stack
    "REDUCE": lambda machine: machine.call(machine.stack.pop(-2), machine.stack.pop()),
    "NEWOBJ": lambda machine: machine.call(machine.stack.pop(-2), machine.stack.pop()),
    "NEWOBJ_EX": lambda machine: machine.call(*(machine.stack.pop(-n) for n in (3, 2, 1))),
    "BUILD": Machine.build,
    # What is to be filled lies below the items, which begin at a mark where they are many
    "APPEND": lambda machine: machine.fill([machine.stack.pop()]),
    "SETITEM": lambda machine: machine.fill([machine.stack.pop(-2), machine.stack.pop()]),
    "APPENDS": lambda machine: machine.fill(machine.pop_mark()),
    "SETITEMS": lambda machine: machine.fill(machine.pop_mark()),
    "DICT": lambda machine: machine.fill(machine.pop_mark(), {}),
    "LIST": lambda machine: machine.fill(machine.pop_mark(), []),
    # A set becomes a list, so that nothing in it is hashed
    "EMPTY_SET": _python("EMPTY_LIST"),
    "ADDITEMS": lambda machine: machine.fill(machine.pop_mark()),
    "FROZENSET": lambda machine: machine.fill(machine.pop_mark(), []),
}
Machine.dispatch = {getattr(pickle, name)[0]: load for name, load in INSTRUCTIONS.items()}


# ------------------------------------------------------------------------------- the formats
def load(data: bytes) -> tuple[object, list[str]]:
    """What torch.save or torch.jit.save wrote, and the names in it that were passed over.

    Of a module, saved by itself or in a dict: a flat dict of its tensors, and its own numbers and
    texts.
    Raises UserError, in words that follow the file's name; on damaged files nearly anything.
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
        # By id, because the same one can be there very often
        modules = {id(value): value for value in content.values() if isinstance(value, Module)}
        if len(modules) > MAX_MODULES:
            raise UserError(TOO_MANY)
        flat = {key: _flat(module) for key, module in modules.items()}
        for key, value in content.items():
            if isinstance(value, Module):
                content[key] = flat[id(value)]
    return content, list(ignored)


def _load_zip(data: bytes):
    """By torch since 1.6: a zip file of data.pkl, and an entry of numbers for each storage."""
    if data.count(b"PK\1\2") > MAX_ENTRIES:
        raise UserError(TOO_MANY)
    archive, storages = zipfile.ZipFile(io.BytesIO(data)), {}
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if not pickles:
        raise UserError(
            "a zip archive, but not by torch.save (no data.pkl in it); unpack it, or save the "
            "network's state_dict with torch.save"
        )
    # All in one folder; what is read of it is no larger than the file. (A TorchScript archive
    # has its code there as well, which is compressed)
    root = pickles[0].removesuffix("data.pkl")
    wanted = root + "data", root + "byteorder"
    entries = [entry for entry in archive.infolist() if entry.filename.startswith(wanted)]
    size = sum(entry.file_size for entry in entries)
    if size > len(data) or any(entry.compress_type for entry in entries):
        raise UserError(
            "a compressed archive, which torch.save does not write; give the file as it was saved"
        )
    # Some machines write the bytes of a number the other way round
    order = root + "byteorder"
    swapped = order in archive.namelist() and archive.read(order) != sys.byteorder.encode()

    def storage(dtype, key, _count):
        """The numbers of one storage; zipfile compares them with their checksum."""
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
    """By torch before 1.6: five pickles, then the numbers of each storage in turn."""
    storages = {}

    def storage(dtype, key, count):
        """Space for the numbers, which come later; never more of it than the file is long."""
        if key not in storages:
            taken = sum(values.nbytes for values in storages.values())
            if not 0 <= count * dtype.itemsize <= len(data) - taken or len(storages) > 1000:
                raise EOFError
            storages[key] = torch.zeros(count, dtype=dtype)
        return storages[key]

    # A number that marks the format, its version, the machine it came from, what was saved, and
    # the order in which the storages follow
    machine = Machine(file := Bounded(data), storage)
    mark = machine.load()
    if type(mark) is not int or mark != LEGACY_MARK:
        raise UserError(
            "a pickle, but not by torch.save; save the network's state_dict with torch.save"
        )
    _protocol, _system, content, keys = (machine.load() for _ in range(4))
    # Texts alone: to compare lists of lists of lists could take forever
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
    """The tensors of a module by their dotted names, as a state dict has them, and the numbers
    and texts that are attributes of the outermost one, or of the one that it only wraps."""
    # DataParallel and the like: a module in a module that has no tensors of its own. Ten times at
    # most, because a module may lie within itself
    for _ in range(10):
        values = module.attributes.values()
        inner = [value for value in values if isinstance(value, (Module, torch.Tensor))]
        if len(inner) == 1 and isinstance(inner[0], Module):
            module = inner[0]
    # Breadth first and counted: modules may lie within each other, or in a circle
    flat, waiting, seen = {}, [("", module)], 0
    while waiting:
        prefix, module = waiting.pop(0)
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
                waiting.append((f"{name}.", value))
    return flat

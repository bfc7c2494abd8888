"""What torch.save wrote, as plain data: nothing in the file is imported, called or run.

A pickle is a program for a small stack machine. Its instructions may import any name and
call it, and Python's own machine does as it is told. The machine below cannot: it makes
numbers, text, containers and tensors by itself, and in place of anything else puts an inert
`Opaque`, which it leaves out of every dict and list. So a checkpoint that also holds objects
of somebody's classes is read without them, and one that would run code runs none.

Time and memory are bounded by the constants below, whatever the file says.
"""

import io
import math
import pickletools
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from dataclasses import dataclass

import torch

from files import UserError

MAX_STEPS = 500_000  # instructions in one file; 9,000 rows of training history take 220,000
MAX_TEXT = 2**16  # bytes of one text: longer ones (a run's log as an array) are passed over
MAX_TEXTS = 2**25  # bytes of all texts
MAX_LINE = 2**12  # bytes of a line, in the old text instructions
MAX_ENTRIES = 10_000  # in an archive
TOO_MANY = "far more entries than an SRCNN has; give another file"

# torch.FloatStorage and so on, by the first part of their names
DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
# numpy's names of its number types, and the letters that the module struct has for them
NUMPY_TYPES = dict(zip("f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 b1".split(), "dfeqihbQIHB?"))


# Objects are compared by identity, never by what they hold, so that the file has no say in it
@dataclass(eq=False)
class Opaque:
    """In place of a class, a function or an object that this reader does not make."""

    name: str


@dataclass(eq=False)
class Maker(Opaque):
    """A name that stands for plain data, with the function of ours that makes it."""

    make: object


@dataclass(eq=False)
class StorageType(Opaque):
    """torch.FloatStorage and the like."""

    dtype: torch.dtype


@dataclass(eq=False)
class Storage(Opaque):
    """The numbers that tensors are views of, in one dimension."""

    values: torch.Tensor


@dataclass(eq=False)
class NumpyType(Opaque):
    """A number type of numpy's, in struct's notation, such as "<d"."""

    format: str


class ScriptModule:
    """A module in a TorchScript archive: its attributes, other modules among them."""

    def __init__(self, *_):
        self.attributes = {}


# ------------------------------------------------------------------------------ plain data
def _tensor(storage, offset, size, stride, *_):
    """A view of a storage, checked before torch sees it: the file chooses all the numbers."""
    if not isinstance(storage, Storage):
        return Opaque("torch.Tensor")
    if len(size) != len(stride) or len(size) > 16:
        raise ValueError("size and stride of a tensor differ")
    if any(type(n) is not int or not 0 <= n < 2**40 for n in (offset, *size, *stride)):
        raise ValueError("a tensor's size is not a number")
    count = math.prod(size)
    # Steps of 0 let a small storage be a large tensor, which weights.py refuses
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if count > 2**40 or (count and last >= len(storage.values)):
        raise ValueError("a tensor reaches beyond its storage")
    return storage.values.as_strided(size, stride, offset)


def _dict(*items):
    """collections.OrderedDict and its kin: empty, or (from Python 2) with a list of pairs."""
    made = OrderedDict()
    for key, value in items[0] if items and isinstance(items[0], list) else ():
        _put(made, key, value)
    return made


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
    return struct.unpack(kind.format, raw)[0]


# All that a file can have called. Not one of them imports, calls or opens anything
MAKERS = {
    "collections.OrderedDict": _dict,
    "typing.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: OrderedDict(),
    "collections.Counter": lambda counts=None: OrderedDict() if counts is None else counts,
    "builtins.set": lambda items=(): items,
    "__builtin__.set": lambda items=(): items,
    "torch.Size": lambda size: size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch.jit._pickle.build_intlist": lambda numbers: numbers,
    "_codecs.encode": _bytes,
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_number,
    "numpy._core.multiarray.scalar": _numpy_number,
}


def _put(target, key, value):
    """``target[key] = value`` in a dict, without what is opaque.

    Keys are text and numbers. Anything else could be made to be slow or to overflow the stack
    (tuples within tuples, huge integers with equal hashes), and becomes an opaque key.
    """
    if any(isinstance(thing, Opaque) for thing in (target, key, value)):
        return
    if not isinstance(target, dict):
        raise ValueError(f"a {type(target).__name__} is filled like a dict")
    small = type(key) is int and key.bit_length() < 64
    if not small and type(key) not in (str, float, bool, type(None)):
        key = Opaque(type(key).__name__)
    target[key] = value


# ------------------------------------------------------------------------------ the machine
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
# Instructions whose argument goes on the stack as it is
LITERALS = set(
    "BINUNICODE BININT1 BINFLOAT BININT2 BININT SHORT_BINUNICODE SHORT_BINBYTES BINBYTES LONG1 "
    "LONG4 INT LONG FLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE8 BINBYTES8 "
    "BYTEARRAY8".split()
)
# Instructions with a text of any length, and the bytes in which its length stands in front
SIZED = {
    "BINUNICODE": 4,
    "BINSTRING": 4,
    "BINBYTES": 4,
    "LONG4": 4,
    "BINUNICODE8": 8,
    "BINBYTES8": 8,
    "BYTEARRAY8": 8,
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Lines(io.BytesIO):
    """A file in memory, no line of which is longer than MAX_LINE."""

    def readline(self):
        return super().readline(MAX_LINE)


class Machine:
    """Makes plain data of pickles. ``storage(dtype, key, count)`` gives the numbers of tensors."""

    def __init__(self, storage):
        self.storage = storage
        self.steps, self.texts = MAX_STEPS, MAX_TEXTS
        self.passed_over = {}  # the names met that stand for no plain data, each once

    def spend(self, steps: int, texts: int):
        """Count towards the bounds."""
        self.steps -= steps
        self.texts -= texts
        if min(self.steps, self.texts) < 0:
            raise UserError(TOO_MANY)

    def load(self, file: Lines):
        """The object that the pickle at the file's position describes."""
        self.stack, self.marks, self.memo = [], [], {}
        while True:
            self.steps -= 1
            if self.steps < 0:
                raise UserError(TOO_MANY)
            name, argument = self.read(file)
            if name == "STOP":
                return self.stack.pop()
            if name in LITERALS:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            else:
                self.do(name, argument)

    def read(self, file: Lines):
        """The next instruction: its name and its argument."""
        opcode = OPCODES[file.read(1)]
        if opcode.name in SIZED:
            # Not read at all if it is long: MMEngine keeps a run's losses as texts of megabytes
            width = SIZED[opcode.name]
            size = int.from_bytes(file.read(width), "little")
            if size > MAX_TEXT:
                file.seek(size, 1)
                return opcode.name, Opaque("a long text")
            file.seek(-width, 1)
        argument = opcode.arg.reader(file) if opcode.arg else None
        # 128 bits are numpy's random state; of huge numbers even printing takes long
        if type(argument) is int and argument.bit_length() > 128:
            return opcode.name, Opaque("a large number")
        if type(argument) in (str, bytes, bytearray):
            self.spend(steps=0, texts=len(argument))
        return opcode.name, argument

    def do(self, name: str, argument):
        """Carry out one instruction; those of the same line differ in how they are written."""
        stack = self.stack
        match name:
            # The memo: what was made is kept under a number, to be used again
            case "BINPUT" | "LONG_BINPUT" | "PUT" if argument < 2**32:
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            # The stack
            case "MARK":
                self.marks.append(len(stack))
            case "POP_MARK":
                self.since_mark()
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME":
                pass
            # Containers; a set becomes a list, so that nothing in it is hashed
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "SETITEMS":
                self.set_items(self.since_mark())
            case "SETITEM":
                self.set_items([stack.pop(-2), stack.pop()])
            case "DICT":
                items = self.since_mark()
                stack.append({})
                self.set_items(items)
            case "APPEND":
                self.extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.since_mark())
            case "LIST" | "FROZENSET":
                items = self.since_mark()
                stack.append([])
                self.extend(items)
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "TUPLE1":
                stack[-1] = (stack[-1],)
            case "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            # Python's machine would import, call and fill in here; ours asks the table MAKERS
            case "GLOBAL":
                stack.append(self.named(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, called = stack.pop(-2), stack.pop()
                stack.append(self.named(f"{module}.{called}"))
            case "REDUCE" | "NEWOBJ":
                stack.append(self.made(stack.pop(-2), stack.pop()))
            case "NEWOBJ_EX":
                stack.pop()
                stack.append(self.made(stack.pop(-2), stack.pop()))
            case "INST":
                self.since_mark()
                stack.append(self.named(argument.replace(" ", ".", 1)))
            case "OBJ":
                kind, *values = self.since_mark()
                stack.append(self.made(kind, tuple(values)))
            case "BUILD":
                state = stack.pop()
                self.fill(stack[-1], state)
            case "BINPERSID":
                stack.append(self.stored(stack.pop()))
            case _:
                raise ValueError(f"the instruction {name}")

    def since_mark(self) -> list:
        """Take what was put on the stack since the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def set_items(self, items: list):
        for key, value in zip(items[::2], items[1::2]):
            _put(self.stack[-1], key, value)

    def extend(self, items: list):
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(item for item in items if not isinstance(item, Opaque))
        elif not isinstance(self.stack[-1], Opaque):
            raise ValueError(f"a {type(self.stack[-1]).__name__} is filled like a list")

    def named(self, name: str) -> Opaque:
        """What an imported name stands for here."""
        if name in MAKERS:
            return Maker(name, MAKERS[name])
        # cuda's as well: what was saved on a GPU is read on any machine
        storage = re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name)
        if storage and storage[1] in DTYPES:
            return StorageType(name, DTYPES[storage[1]])
        # The classes of TorchScript, whose code lies in the archive and is left there
        if name.startswith("__torch__."):
            return Maker(name, ScriptModule)
        self.passed_over[name] = True
        return Opaque(name)

    def made(self, kind, arguments: tuple):
        """What calling ``kind`` stands for here: one of our makers is called, nothing else."""
        if isinstance(kind, Maker):
            # The same long list or text can be given again and again
            self.spend(
                steps=sum(len(a) for a in arguments if isinstance(a, list)),
                texts=sum(len(a) for a in arguments if isinstance(a, str)),
            )
            return kind.make(*arguments)
        if isinstance(kind, Opaque):
            return Opaque(kind.name)
        raise ValueError(f"a {type(kind).__name__} is called")

    def fill(self, target, state):
        """Give an object its state, where it is one that has any here."""
        if isinstance(target, ScriptModule) and isinstance(state, dict):
            target.attributes = state
        elif isinstance(target, NumpyType) and isinstance(state, tuple) and len(state) > 1:
            target.format = (">" if state[1] == ">" else "<") + target.format[1:]
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            # A state dict's versions, and where convert.py puts what the weights are for
            if isinstance(state.get("_metadata"), dict):
                target._metadata = state["_metadata"]

    def stored(self, reference):
        """The storage that a tensor refers to."""
        if isinstance(reference, tuple) and len(reference) >= 5 and reference[0] == "storage":
            _, kind, key, _, count, *view = reference
            if isinstance(kind, StorageType) and type(key) is str and type(count) is int:
                values = self.storage(kind.dtype, key, count)
                if view and view[0]:  # (key, start, count): part of another, before torch 0.4
                    values = values[view[0][1] :][: view[0][2]]
                return Storage("torch.Storage", values)
        return Opaque("torch.Storage")


# ------------------------------------------------------------------------------- the formats
def load(data: bytes) -> tuple[object, list[str]]:
    """What torch.save or torch.jit.save wrote, and the names in it that were passed over.

    Of a TorchScript archive: a flat dict of its tensors, and its own numbers and texts.
    Raises UserError, in words that follow the file's name; on damaged files nearly anything.
    """
    if data.startswith(b"PK"):
        content, machine = _load_zip(data)
    else:
        content, machine = _load_legacy(data)
    if isinstance(content, ScriptModule):
        content = _flat(content)
    return content, list(machine.passed_over)


class Archive:
    """A zip file by torch.save or torch.jit.save, of whose entries only those needed are read."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self.archive, self.left, self.storages = archive, size, {}
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if not pickles:
            raise UserError(
                "a zip archive, but not by torch.save (no data.pkl in it); unpack it, or save the "
                "network's state_dict with torch.save"
            )
        self.root = pickles[0].removesuffix("data.pkl")
        order = self.root + "byteorder"
        self.swapped = order in names and self.read("byteorder") != sys.byteorder.encode()

    def read(self, name: str) -> bytes:
        """An entry, which zipfile compares with its checksum."""
        entry = self.archive.getinfo(self.root + name)
        self.left -= entry.file_size
        if entry.compress_type or self.left < 0:
            raise UserError(
                "a compressed archive, which torch.save does not write; give the file as it was "
                "saved"
            )
        return self.archive.read(entry)

    def storage(self, dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        """The numbers of one storage, each of which has an entry of its own."""
        if key not in self.storages:
            self.storages[key] = bytearray(self.read(f"data/{key}"))
        raw = self.storages[key]
        if not raw:
            return torch.zeros(0, dtype=dtype)
        if self.swapped:  # by a machine that writes the bytes of a number the other way round
            width = dtype.itemsize // (2 if dtype.is_complex else 1)
            numbers = torch.frombuffer(raw, dtype=torch.uint8).view(-1, width)
            return numbers.flip(1).flatten().view(dtype)
        return torch.frombuffer(raw, dtype=dtype)


def _load_zip(data: bytes):
    """By torch since 1.6: data.pkl, and an entry of numbers for each storage."""
    if data.count(b"PK\1\2") > MAX_ENTRIES:
        raise UserError(TOO_MANY)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        archive = Archive(file, len(data))
        machine = Machine(archive.storage)
        return machine.load(Lines(archive.read("data.pkl"))), machine


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
    machine, file = Machine(storage), Lines(data)
    _magic, _protocol, _system, content, keys = (machine.load(file) for _ in range(5))
    if sorted(keys) != sorted(storages):
        raise EOFError
    for key in keys:
        values = storages[key]
        # Eight bytes with the count, then the numbers
        (count,) = struct.unpack("<q", file.read(8))
        if count != len(values):
            raise EOFError
        raw = bytearray(file.read(values.nbytes))
        if count:
            values.copy_(torch.frombuffer(raw, dtype=values.dtype, count=count))
    return content, machine


def _flat(module: ScriptModule) -> dict:
    """The tensors of a TorchScript module by their dotted names, as a state dict has them, and
    the numbers and texts that are attributes of the outermost one."""
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
            elif isinstance(value, ScriptModule):
                waiting.append((f"{name}.", value))
    if not any(isinstance(value, torch.Tensor) for value in flat.values()):
        raise UserError(
            "a TorchScript archive without parameters of its own (a frozen one?); save the "
            "network's state_dict with torch.save instead"
        )
    return flat

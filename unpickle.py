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

import torch

from files import UserError

MAX_STEPS = 500_000  # instructions in one file; 9,000 rows of training history take 220,000
MAX_TEXT = 2**16  # bytes of one text: longer ones (a run's log as an array) are passed over
MAX_TEXTS = 2**25  # bytes of all texts
MAX_LINE = 2**12  # bytes of a line, in the old text instructions
MAX_ENTRIES = 10_000  # in an archive
TOO_MANY = "far more entries than an SRCNN has; give another file"

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
}  # of torch.FloatStorage and so on
NUMPY_CODES = {
    "f8": "d",
    "f4": "f",
    "f2": "e",
    "i8": "q",
    "i4": "i",
    "i2": "h",
    "i1": "b",
    "u8": "Q",
    "u4": "I",
    "u2": "H",
    "u1": "B",
    "b1": "?",
}  # numpy's names of its number types, and struct's


class Opaque:
    """In place of a class, a function or an object that this reader does not make."""

    def __init__(self, name: str):
        self.name = name


class Maker(Opaque):
    """A name that stands for plain data, with the function of ours that makes it."""

    def __init__(self, name: str, make):
        super().__init__(name)
        self.make = make


class StorageType(Opaque):
    """torch.FloatStorage and the like."""

    def __init__(self, name: str, dtype: torch.dtype):
        super().__init__(name)
        self.dtype = dtype


class Storage(Opaque):
    """The numbers that tensors are views of."""

    def __init__(self, values: torch.Tensor):
        super().__init__("torch.Storage")
        self.values = values


class NumpyType(Opaque):
    """A number type of numpy's, as struct writes it: "<d"."""

    def __init__(self, kind: str):
        super().__init__("numpy.dtype")
        self.format = "<" + NUMPY_CODES.get(kind, "")


class ScriptModule:
    """A module in a TorchScript archive: its attributes, other modules among them."""

    def __init__(self, *_):
        self.attributes = {}


# ------------------------------------------------------------------------------ plain data
def _tensor(storage, offset, size, stride, *_):
    """A view of a storage, checked before torch sees it."""
    if not isinstance(storage, Storage):
        return Opaque("torch.Tensor")
    if len(size) != len(stride) or len(size) > 16:
        raise ValueError("size and stride of a tensor differ")
    if any(type(n) is not int or not 0 <= n < 2**40 for n in (offset, *size, *stride)):
        raise ValueError("a tensor's size is not a number")
    count = math.prod(size)
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


def _numpy_number(kind, raw):
    """A scalar of numpy's, which many loops keep as their best PSNR."""
    if not isinstance(kind, NumpyType) or type(raw) is not bytes or len(kind.format) < 2:
        return Opaque("numpy scalar")
    return struct.unpack(kind.format, raw)[0]


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
    "numpy.dtype": lambda kind, *_: NumpyType(kind if type(kind) is str else ""),
    "numpy.core.multiarray.scalar": _numpy_number,
    "numpy._core.multiarray.scalar": _numpy_number,
}


def _put(target, key, value):
    """``target[key] = value`` in a dict, without what is opaque.

    Keys are text and numbers. Anything else could be made to be slow or to overflow the stack
    (tuples within tuples, huge integers with equal hashes), and becomes an opaque key.
    """
    if isinstance(target, Opaque):
        return
    if isinstance(value, Opaque) or isinstance(key, Opaque):
        return
    small = type(key) is int and key.bit_length() < 64
    if not small and type(key) not in (str, float, bool, type(None)):
        key = Opaque(type(key).__name__)
    target[key] = value


# ------------------------------------------------------------------------------ the machine
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
LITERALS = set(
    "BINUNICODE BININT1 BINFLOAT BININT2 BININT SHORT_BINUNICODE SHORT_BINBYTES BINBYTES LONG1 "
    "LONG4 INT LONG FLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE8 BINBYTES8 "
    "BYTEARRAY8".split()
)
SIZED = {  # instructions with a text, and the bytes of its length in front
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
    """A file in memory whose lines have an end."""

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
            width = SIZED[opcode.name]
            size = int.from_bytes(file.read(width), "little")
            if size > MAX_TEXT:
                file.seek(size, 1)
                return opcode.name, Opaque("a long text")
            file.seek(-width, 1)
        argument = opcode.arg.reader(file) if opcode.arg else None
        if type(argument) is int and argument.bit_length() > 128:
            return opcode.name, Opaque("a large number")
        if type(argument) in (str, bytes, bytearray):
            self.spend(steps=0, texts=len(argument))
        return opcode.name, argument

    def do(self, name: str, argument):
        """Carry out one instruction; those of the same line differ in how they are written."""
        stack = self.stack
        match name:
            # What was made is kept under a number, and fetched again
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
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            # Everything else is named, called or filled in: by our own functions, or not at all
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
        if not isinstance(self.stack[-1], Opaque):
            self.stack[-1].extend(item for item in items if not isinstance(item, Opaque))

    def named(self, name: str) -> Opaque:
        """What an imported name stands for here."""
        if name in MAKERS:
            return Maker(name, MAKERS[name])
        storage = re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name)
        if storage and storage[1] in DTYPES:
            return StorageType(name, DTYPES[storage[1]])
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
                return Storage(values)
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

    machine, file = Machine(storage), Lines(data)
    _magic, _protocol, _system, content, keys = (machine.load(file) for _ in range(5))
    if sorted(keys) != sorted(storages):
        raise EOFError
    for key in keys:
        values = storages[key]
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

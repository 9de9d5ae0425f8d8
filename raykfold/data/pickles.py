"""Reads pickles of plain arrays from strangers, without running code of theirs.

A pickle is gone over twice. A scan by `pickletools` refuses opcodes that arrays and plain
containers do not need, and whatever would take more memory than the file justifies. Then
`pickle.Unpickler` reads it, with a `find_class` that returns checked stand-ins for a few names and
refuses all others.
"""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from raykfold.data.file_kinds import how_to_save, kind_of_file
from raykfold.errors import BadData
from raykfold.text import one_line

# What pickles of arrays and scalars name, as NumPy 1 and 2 write them with protocols 0 to 5.
_NAMES = {
    *("numpy.ndarray", "numpy.dtype", "_codecs.encode", "__builtin__.bytes"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
    "collections.OrderedDict",
}
_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
}
_NUMBER_OR_TEXT = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|U[0-9]{1,6})")
_MOST_TUPLES = 10_000
_MOST_SHARED_TUPLES = 16


class _Refused(Exception):
    """The pickle is sound, and holds more than plain data."""


def read_pickle(path: Path) -> Any:
    """Return what a pickle of numbers, strings, arrays, lists, tuples and dicts holds.

    Arrays are read at the top, and as items of a list, tuple or dict at the top.

    Raises:
        BadData: the file is damaged, or holds anything else.
    """
    if kind := kind_of_file(path):
        raise BadData(f"{path}: {kind}")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            # No argument of an opcode is longer than the map, whatever its length claims.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                _scan(cast(IO[bytes], mapped), size)
            content = _PlainUnpickler(file, size).load()
        if isinstance(content, list | tuple):
            return [_plain(item) for item in content]
        if isinstance(content, dict):
            return {key: _plain(item) for key, item in content.items()}
        return _plain(content)
    except _Refused as error:
        raise BadData(
            f"{path}: holds {one_line(error)}, which is refused: only NumPy arrays of numbers and "
            f"plain containers are read; {how_to_save(path)}"
        ) from None
    except Exception as error:  # garbage can raise nearly anything, MemoryError included
        raise BadData(
            f"{path}: damaged, or not a pickle of an array ({one_line(error)}); {how_to_save(path)}"
        ) from error


def _scan(file: IO[bytes], size: int) -> None:
    """Refuse what `pickle.Unpickler` would obey before `find_class` has a say."""
    tuples, shared, has_dict = 0, 0, False
    memo_size, memo_tuples, top_is_tuple = 0, set[int](), False
    for opcode, argument, position in pickletools.genops(file):
        name = opcode.name
        if name not in _OPCODES:
            raise _Refused(f"the opcode {name}")
        # The unpickler reserves memory for a frame, and for all memo entries up to an index.
        if name == "FRAME" or name.endswith("PUT"):
            number = int(argument or 0)
            if number > (size if name == "FRAME" else position or 0):
                raise ValueError(f"{name} {number} in a file of {size} bytes")
        tuples += "TUPLE" in name
        has_dict |= name in ("DICT", "SETITEM", "SETITEMS")
        # Which tuples are used more than once: the memo keeps them, and GET fetches them.
        if name == "MEMOIZE" or name.endswith("PUT"):
            index = memo_size if name == "MEMOIZE" else int(argument or 0)
            memo_size += 1
            (memo_tuples.add if top_is_tuple else memo_tuples.discard)(index)
        elif name.endswith("GET"):
            top_is_tuple = int(argument or 0) in memo_tuples
            shared += top_is_tuple
        else:
            top_is_tuple = name.startswith("TUPLE")
    # As a key of a dict, a tuple is hashed: one of tuples within tuples overflows the C stack, and
    # one that holds another twice, which holds another twice, and so on, takes for ever.
    if has_dict and (tuples > _MOST_TUPLES or shared > _MOST_SHARED_TUPLES):
        raise _Refused(f"a dict and {tuples} tuples, which may be too much for a key")


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file)
        self.encodable = size

    def find_class(self, module: str, name: str) -> _Name:
        if f"{module}.{name}" not in _NAMES:
            if module.startswith("torch"):
                raise _Refused(f"a torch tensor ({module}.{name}), whose array is tensor.numpy()")
            raise _Refused(f"the foreign object {module}.{name}")
        return _Name(name, self)


@dataclass(eq=False)
class _Dtype:
    """Stands for a dtype, whose byte order comes after it."""

    value: np.dtype[Any]

    def __setstate__(self, state: Any) -> None:
        match state:
            case int(), "<" | ">" | "|" | "=" as order, None, None, None, *_:
                self.value = np.dtype(order + self.value.str[1:])
            case _:
                raise _Refused("a state for a dtype that no number needs")


@dataclass(eq=False)
class _Array:
    """Stands for an array, whose values come after it."""

    value: npt.NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        match state:
            case int(), shape, _Dtype(dtype), fortran, bytes(data) if self.value is None:
                self.value = _to_array(data, dtype, shape, "F" if fortran else "C")
            case _:
                raise _Refused("a state for an array that no numbers need")


@dataclass(eq=False)
class _Name:
    """Stands for a function or class; `name` is the last part of one of `_NAMES`.

    Only the calls in NumPy's own pickles do something, and they call nothing foreign.
    """

    name: str
    unpickler: _PlainUnpickler

    def __setstate__(self, state: Any) -> None:
        raise _Refused(f"a state for {self.name}")

    def __call__(self, *arguments: Any) -> Any:
        match self.name, arguments:
            case "_reconstruct", (_Name("ndarray"), (0,), _):
                return _Array()
            case "dtype", (str(code), *_):
                if not _NUMBER_OR_TEXT.fullmatch(code):
                    kind = "Python objects" if code.startswith("O") else f"dtype {code}"
                    raise _Refused(f"an array of {kind}")
                return _Dtype(np.dtype(code))
            case "_frombuffer", (data, _Dtype(dtype), shape, "C" | "F" as order):
                return _Array(_to_array(data, dtype, shape, order))
            case "_frombuffer", (data, _Dtype(dtype), shape, "K", tuple(axes)):
                return _Array(_to_array(data, dtype, shape, "C").transpose(axes))
            case "scalar", (_Dtype(dtype), bytes(data)):
                return _to_array(data, dtype, (1,), "C")[0]
            case "encode", (str(text), "latin1"):
                # Each byte is in the file once; more come from one text that is used many times.
                self.unpickler.encodable -= len(text)
                if self.unpickler.encodable < 0:
                    raise _Refused("more bytes than the file has")
                return text.encode("latin1")
            case "bytes", ():
                return b""
            case "OrderedDict", ():
                return {}
        raise _Refused(f"a call of {self.name} that no array needs")


def _plain(item: Any) -> Any:
    if isinstance(item, _Array) and item.value is None:
        raise ValueError("an array without values")
    return item.value if isinstance(item, _Array | _Dtype) else item


def _to_array(data: bytes | bytearray, dtype: np.dtype[Any], shape: Any, order: Any) -> Any:
    if len(shape) > 32 or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError("an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for an array of {dtype} {shape}")
    return np.ndarray(shape, dtype, buffer=data, order=order)

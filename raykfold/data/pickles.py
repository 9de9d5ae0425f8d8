"""Pickles from strangers: read instruction by instruction, nothing being imported or called."""

from __future__ import annotations

import math
import mmap
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from raykfold.errors import BadData
from raykfold.text import one_line

Array = npt.NDArray[Any]

SAVE_AS_NPY = "save plain numbers with numpy.save as .npy"

# What a pickle of plain numbers refers to, as NumPy 1 and 2 and protocols 0 to 5 write it.
_KNOWN_NAMES = {
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "numpy.core.multiarray._reconstruct": "_reconstruct",
    "numpy._core.multiarray._reconstruct": "_reconstruct",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy._core.multiarray.scalar": "scalar",
    "numpy.core.numeric._frombuffer": "_frombuffer",
    "numpy._core.numeric._frombuffer": "_frombuffer",
    "_codecs.encode": "encode",
    "__builtin__.bytes": "bytes",
    "collections.OrderedDict": "OrderedDict",
}
_NUMBER_OR_TEXT = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|U[0-9]{1,6})")
_LITERALS = {
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLE_SIZES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Name:
    """Stands for something that the pickle refers to by name; `role` is a value of _KNOWN_NAMES."""

    role: str


@dataclass(eq=False)
class _PickledDtype:
    dtype: np.dtype[Any]


@dataclass(eq=False)
class _PickledArray:
    array: Array | None = None  # None until its BUILD instruction


def read_pickle(path: Path) -> Any:
    """What a pickle of numbers, strings, arrays, lists, tuples and dicts holds.

    Arrays are found at the top, or as the items of a list or tuple at the top.

    Raises:
        BadData: the file is damaged, or holds or does anything else.
    """
    try:
        # Mapped, because it is read in many small pieces, and none can be longer than the file.
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            content = _PickleReader(path).read(cast(IO[bytes], mapped))
            if isinstance(content, list | tuple):
                return [_finished(item) for item in content]
            return _finished(content)
    except BadData:
        raise
    except Exception as error:  # garbage can raise nearly anything, MemoryError included
        raise BadData(
            f"{path}: damaged, or no pickle of an array ({one_line(error)}); {SAVE_AS_NPY}"
        ) from error


def _finished(item: Any) -> Any:
    if not isinstance(item, _PickledArray):
        return item
    if item.array is None:
        raise ValueError("an array without values")
    return item.array


class _PickleReader:
    """Follows the instructions of a pickle, and has none that imports or calls.

    `pickle.Unpickler` with a strict `find_class` would keep foreign code out as well, but a file
    of ten bytes makes it take 32 GB (for the memo), and a megabyte of nested tuples as a key of a
    dict crashes the process. Here memory stays in proportion to the file, and keys are plain.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._encoded = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self, file: IO[bytes]) -> Any:
        for instruction, argument, _ in pickletools.genops(file):
            if instruction.name == "STOP":
                return self._stack.pop()
            self._follow(instruction.name, argument)
        raise ValueError("no STOP instruction")

    def _follow(self, instruction: str, argument: Any) -> None:
        stack, memo = self._stack, self._memo
        match instruction:
            case "PROTO" | "FRAME":
                return
            case _ if instruction in _LITERALS:
                stack.append(_CONSTANTS.get(instruction, argument))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                self._marks.append(len(stack))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(self._pop_to_mark())
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(_TUPLE_SIZES[instruction])))
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self._pop_to_mark()
                stack.append({})
                self._set_items(items)
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "GLOBAL":
                stack.append(self._name(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, name = self._pop(2)
                if not (isinstance(module, str) and isinstance(name, str)):
                    raise TypeError("a name that is no string")
                stack.append(self._name(f"{module}.{name}"))
            case "REDUCE":
                callee, arguments = self._pop(2)
                stack.append(self._made(callee, arguments))
            case "BUILD":
                (state,) = self._pop(1)
                self._complete(stack[-1], state)
            case _:
                about = f" {argument}" if isinstance(argument, str) else ""
                raise self._foreign(f"the instruction {instruction}{about}")

    def _pop(self, count: int) -> list[Any]:
        start = len(self._stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise ValueError("an instruction without its operands")
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        return self._pop(len(self._stack) - self._marks.pop())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError(f"items for a {kind_of(target)}")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        keys = items[::2]
        if not isinstance(target, dict):
            raise TypeError(f"keys for a {kind_of(target)}")
        if not all(isinstance(key, str | int | np.integer) for key in keys):
            raise TypeError("a dict key that is neither a string nor an integer")
        target.update(zip(keys, items[1::2], strict=True))

    def _name(self, name: str) -> _Name:
        if name not in _KNOWN_NAMES:
            raise self._foreign(f"the foreign object {name}")
        return _Name(_KNOWN_NAMES[name])

    def _made(self, callee: _Name, arguments: tuple[Any, ...]) -> Any:
        """What a call gives in the pickles that NumPy writes; any other call is refused."""
        match callee.role, arguments:
            case "_reconstruct", (_Name("ndarray"), (0,), _):
                return _PickledArray()
            case "dtype", (str(code), *_):
                return _PickledDtype(self._dtype(code))
            case "_frombuffer", (data, _PickledDtype(dtype), shape, "C" | "F" as order):
                return _PickledArray(_shaped(data, dtype, shape, order))
            case "_frombuffer", (data, _PickledDtype(dtype), shape, "K", tuple(axes)):
                return _PickledArray(_shaped(data, dtype, shape, "C").transpose(axes))
            case "scalar", (_PickledDtype(dtype), bytes(data)):
                return _shaped(data, dtype, (1,), "C")[0]
            case "encode", (str(text), "latin1"):
                return self._encode(text)
            case "bytes", ():
                return b""
            case "OrderedDict", ():
                return {}
        raise self._foreign(f"a call of {callee.role} that no array needs")

    def _dtype(self, code: str) -> np.dtype[Any]:
        if not _NUMBER_OR_TEXT.fullmatch(code):
            holds = "Python objects" if code.startswith("O") else f"dtype {code}"
            raise self._foreign(f"an array of {holds}")
        return np.dtype(code)

    def _encode(self, text: str) -> bytes:
        # Each byte stands in the file once; more than that comes from a text used many times.
        self._encoded += len(text)
        if self._encoded > self._size:
            raise self._foreign("more bytes than the file has")
        return text.encode("latin1")

    def _complete(self, target: Any, state: Any) -> None:
        match target, state:
            case _PickledDtype(dtype), (
                int(),
                "<" | ">" | "|" | "=" as order,
                None,
                None,
                None,
                *_,
            ):
                target.dtype = np.dtype(order + dtype.str[1:])
            case _PickledArray(None), (int(), shape, _PickledDtype(dtype), fortran, bytes(data)):
                target.array = _shaped(data, dtype, shape, "F" if fortran else "C")
            case _:
                raise self._foreign(f"a state for a {kind_of(target)} that no array needs")

    def _foreign(self, what: str) -> BadData:
        return BadData(
            f"{self._path}: holds {one_line(what)}, which is refused: only NumPy arrays of "
            f"numbers and plain containers are read; {SAVE_AS_NPY}"
        )


def _shaped(data: bytes | bytearray, dtype: np.dtype[Any], shape: Any, order: Any) -> Array:
    if len(shape) > 32 or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError("an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for an array of {dtype} {shape}")
    return np.ndarray(shape, dtype, buffer=data, order=order)


def kind_of(value: Any) -> str:
    """What a message calls something that was read from a pickle or from JSON."""
    return "NumPy array" if isinstance(value, np.ndarray | _PickledArray) else type(value).__name__

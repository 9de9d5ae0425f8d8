"""Reads labels of classes, folds and groups as integers: text, truth values, one-hot rows, ....

Text is numbered as `raykfold.prepare` numbers the columns of a table.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raykfold.data.tables import by_numbers_within, fold_number, number_names, whole_number
from raykfold.errors import BadData
from raykfold.text import comma_list, one_line

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

_MISSING = ("NAType", "NaTType")  # pandas' types for a value that is not there


@dataclass(frozen=True)
class Kind:
    """What integers stand for.

    Attributes:
        noun: what messages call the values.
        first: number of the first name, where text is numbered.
        number: the number that a text is, or None.
        order: key of the order of names; None for alphabetical.
    """

    noun: str
    first: int
    number: Callable[[str], int | None]
    order: Callable[[str], Any] | None


LABELS = Kind("labels", 0, whole_number, None)
FOLDS = Kind("folds", 1, fold_number, by_numbers_within)
GROUPS = Kind("groups", 0, whole_number, by_numbers_within)
RECORDINGS = Kind("recordings", 0, whole_number, by_numbers_within)


def to_array(name: str, values: Any) -> Array:
    """Return what `numpy.asarray` makes of `values`, or of a tensor on any device.

    Raises:
        BadData: it cannot; or values are masked. The text begins with `name`.
    """
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            raise BadData(f"{name}: {np.ma.count_masked(values)} values are masked; expected none")
        return np.asarray(values)
    if isinstance(values, np.ndarray):
        return values
    try:
        # A tensor may have a gradient or be on a GPU.
        if hasattr(values, "detach"):
            return _tensor_to_array(values)
        if isinstance(values, list | tuple) and values and hasattr(values[0], "detach"):
            return np.stack([_tensor_to_array(each) for each in values])
        return np.asarray(values)
    except (
        ValueError,
        TypeError,
        OverflowError,
        RuntimeError,
        AttributeError,
        MemoryError,
    ) as error:
        raise BadData(f"{name}: not an array of numbers ({one_line(error)})") from error


def _tensor_to_array(tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # NumPy lacks it; float32 has all its values
        tensor = tensor.float()
    return np.asarray(tensor)


def to_label_array(name: str, values: Any) -> Array:
    """Return `values` as `to_array` does; a list with text becomes an array of its items.

    `numpy.asarray` would turn a missing value among texts into the text ``nan``.
    """
    if isinstance(values, list | tuple) and any(isinstance(item, str) for item in values):
        items = np.empty(len(values), dtype=object)
        for index, item in enumerate(values):
            items[index] = item
        return items
    return to_array(name, values)


def to_integers(
    name: str,
    kind: Kind,
    values: Array,
    known: Mapping[int, str] | None = None,
    known_name: str = "",
) -> tuple[Integers, dict[int, str]]:
    """Return integers for `values`, and the names that these stand for.

    Text that is whole numbers (of folds also ``fold1``) is these numbers. Other text is numbered
    in its order, or as `known` says. False is 0 and True is 1.

    Args:
        name: what messages call the values.
        kind: what they are.
        values: (N,) integers, text, truth values, or Python objects that are one of these.
        known: number → name, given for text.
        known_name: what messages call `known`.

    Returns:
        (N,) numbers, and number → name: empty where the values are numbers themselves.

    Raises:
        BadData: a value is missing, or is none of these.
    """
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise BadData(f"{name}: text that is not UTF-8 ({one_line(error)})") from None
    if values.dtype.kind in "OTU":
        plain = _of_one_type(name, kind, values.tolist())
        if isinstance(plain, list):
            return _number_text(name, kind, plain, known, known_name)
        values = plain
    if values.dtype.kind == "b":
        return values.astype(np.int64), {0: "False", 1: "True"}
    return _whole_numbers(name, kind, values), {}


def from_one_hot(name: str, values: Array) -> Integers:
    """Return the column of the 1 in each row.

    Args:
        name: what messages call the values.
        values: (N, C) numbers or truth values.

    Raises:
        BadData: a row does not have exactly one 1 among zeros.
    """
    ones = values == 1
    wrong = np.flatnonzero((ones.sum(axis=1) != 1) | ~(ones | (values == 0)).all(axis=1))
    if len(wrong):
        raise BadData(
            f"{name}: shape {values.shape}, and row {wrong[0]} is not one-hot ({len(wrong)} of "
            f"{len(values)} rows are not); expected one 1 and else zeros in each row (several "
            "classes of one sample, multi-label, are not supported), or a label for each sample"
        )
    return ones.argmax(axis=1).astype(np.int64)


def _of_one_type(name: str, kind: Kind, items: list[Any]) -> list[str] | Array:
    """Return a list of text, or an array of numbers or truth values."""
    for index, item in enumerate(items):
        if _is_missing(item):
            shown = repr(item) if isinstance(item, str) else one_line(item)
            raise BadData(
                f"{name}: no value at index {index} ({shown}); {kind.noun} should be there for "
                "every sample"
            )
    if all(isinstance(item, str) for item in items):
        return [unicodedata.normalize("NFC", str(item)) for item in items]  # str_ as well
    if all(isinstance(item, bool | np.bool_) for item in items):
        return np.array(items, dtype=bool)
    if all(isinstance(i, int | float | np.number) and not isinstance(i, bool) for i in items):
        return to_array(name, items)
    types = comma_list(sorted({kind_of(item) for item in items}))
    raise BadData(
        f"{name}: Python objects of type {types}; {kind.noun} should be all integers, all text or "
        "all bool"
    )


def _is_missing(item: Any) -> bool:
    if isinstance(item, str):
        return not item.strip()
    return (
        item is None
        or type(item).__name__ in _MISSING
        or (isinstance(item, float) and item != item)
    )


def _number_text(
    name: str, kind: Kind, texts: list[str], known: Mapping[int, str] | None, known_name: str
) -> tuple[Integers, dict[int, str]]:
    if known:
        number_of: dict[str, int] = {}
        for number, each in known.items():
            text = unicodedata.normalize("NFC", each)
            if text in number_of and text in texts:
                raise BadData(
                    f"{known_name}: {number_of[text]} and {number} are both {one_line(text)!r}, "
                    f"found in {name}; expected one of them"
                )
            number_of[text] = number
        if all(text in number_of for text in texts):
            return np.array([number_of[text] for text in texts], dtype=np.int64), {}
    numbers = [kind.number(text) for text in texts]
    # 2 and 2.0 are the same, and of folds 1 and fold1. Otherwise 1 and 01 are identifiers.
    whole = {text.partition(".")[0] for text in texts}
    same = kind is FOLDS or len(set(numbers)) == len(whole)
    if None not in numbers and same:
        return np.array(numbers, dtype=np.int64), {}
    if known:
        index = next(index for index, text in enumerate(texts) if text not in number_of)
        raise BadData(
            f"{name}: {one_line(texts[index])!r} at index {index} is missing among the names of "
            f"{known_name}; every one should be there"
        )
    found, names = number_names(texts, kind.first, kind.order)
    return np.array(found, dtype=np.int64), names


def _whole_numbers(name: str, kind: Kind, values: Array) -> Integers:
    if values.dtype.kind in "iu":
        if values.size and values.max() > np.iinfo(np.int64).max:
            raise BadData(f"{name}: value {values.max()}; {kind.noun} should fit 64-bit integers")
        return np.array(values, dtype=np.int64)
    wanted = f"{kind.noun} should be integers, text or bool, one for each sample"
    if values.dtype.kind != "f":
        raise BadData(f"{name}: dtype {values.dtype}; {wanted}, as {kind.noun}.astype(str) is")
    fractions = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
    if len(fractions) == 0:
        raise BadData(
            f"{name}: dtype {values.dtype}, non-integer {kind.noun}; {wanted}: all values are "
            f"whole, so make them {kind.noun}.astype(numpy.int64)"
        )
    first = fractions[0]
    raise BadData(
        f"{name}: non-integer {kind.noun}, value {values[first]} at index {first}; {wanted}"
    )


def kind_of(value: Any) -> str:
    """Return what messages call a value of this type."""
    return "NumPy array" if isinstance(value, np.ndarray) else type(value).__name__

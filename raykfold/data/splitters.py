"""Makes folds by scikit-learn's splitters, or from lists of train and test indices.

A fold is what a split tests on. A run trains each fold on all the others, so the test sets have to
partition the samples, and each train set has to be the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from raykfold.data.labels import GROUPS, Array, Integers, to_array, to_integers
from raykfold.data.made_folds import make_folds
from raykfold.errors import BadData
from raykfold.text import one_line

Indices = tuple[npt.ArrayLike, npt.ArrayLike]  # of train and test samples


class Splitter(Protocol):
    """What scikit-learn calls a splitter or cross-validation generator, like its `KFold`."""

    def split(self, X: Any, y: Any, groups: Any) -> Iterable[Any]:  # noqa: N803
        """Yield the indices of train and test samples of each split."""


FoldRule = int | Splitter | Iterable[Indices]


def is_rule(folds: object) -> TypeGuard[FoldRule]:
    """Return whether `folds` says how to make folds, and is not one label for each sample."""
    if isinstance(folds, int | np.integer):
        return not isinstance(folds, bool)
    # Tensors, and NumPy's arrays of characters, have a method `split` of another meaning.
    if callable(getattr(folds, "split", None)) and not isinstance(folds, str | bytes):
        return isinstance(folds, type) or not hasattr(folds, "__array__")
    return isinstance(folds, Iterator) or _are_pairs(folds)


def makes_folds(folds: object) -> bool:
    """Return whether `folds` is a rule that can use groups: a splitter, or how many to make."""
    return is_rule(folds) and not isinstance(folds, Iterable)


def _are_pairs(folds: object) -> bool:
    return (
        isinstance(folds, list | tuple)
        and len(folds) > 0
        and all(
            isinstance(split, list | tuple)
            and len(split) == 2
            and all(np.ndim(part) > 0 for part in split)
            for split in folds
        )
    )


def folds_by_rule(
    name: str,
    rule: FoldRule,
    features: Array,
    labels: Integers,
    groups: Array | None,
    groups_name: str,
) -> tuple[Integers, dict[int, str], tuple[str, ...]]:
    """Return folds, numbered from 1 in the order of the splits.

    Args:
        name: what messages call the rule.
        rule: a splitter, or the indices of train and test samples of each split; or how many folds
            to make, as ``--make_folds`` does.
        features: (N, ...), for the splitter.
        labels: (N,) class labels, for the splitter.
        groups: (N,) the group of each sample, for the splitter; integers, text or bool. No group
            may be in two folds.
        groups_name: what messages call the groups.

    Returns:
        (N,) folds; fold → name, where each fold has one group; and what the splitter warned of.

    Raises:
        BadData: the rule makes no folds that a cross-validation can use.
    """
    group_numbers, group_names = (
        (None, {}) if groups is None else to_integers(groups_name, GROUPS, groups)
    )
    if isinstance(rule, int | np.integer):
        if rule < 2:
            raise BadData(f"{name}: {rule}; expected at least 2")
        texts = None
        if group_numbers is not None:
            texts = [group_names.get(number, str(number)) for number in group_numbers.tolist()]
        made = make_folds(
            labels,
            int(rule),
            groups=texts,
            grouped_by=None if groups_name == GROUPS.noun else groups_name,
            called=f"{name}: {rule}",
            noun="sample",
        )
        return made.folds, dict(made.names), made.notes
    if isinstance(rule, Iterable):
        if groups is not None:
            raise BadData(
                f"{groups_name}: only a splitter uses them, and {name} are splits already; "
                "expected one of the two"
            )
        with _one_line_errors(name):
            return _partition(name, rule, len(labels)), {}, ()

    if isinstance(rule, type):
        raise BadData(
            f"{name}: {rule.__name__} is a class; expected an object of it, {rule.__name__}(...)"
        )
    called = type(rule).__name__
    where = f"{name}: {called}"
    with warnings.catch_warnings(record=True) as caught, _one_line_errors(where):
        warnings.simplefilter("always")
        folds = _partition(where, rule.split(features, labels, groups), len(labels))
    _check_repeatable(where, rule)
    notes = tuple(
        f"{where}: {one_line(each.message)}"
        for each in caught
        if issubclass(each.category, UserWarning)
    )
    if group_numbers is None:
        return folds, {}, notes
    return folds, _names_by_group(groups_name, called, folds, group_numbers, group_names), notes


def _check_repeatable(where: str, splitter: Splitter) -> None:
    """Refuse a splitter that makes other folds at each call: a run must find its own again."""
    state = getattr(splitter, "random_state", 0)
    if getattr(splitter, "shuffle", True) and not isinstance(state, int | np.integer):
        raise BadData(
            f"{where} with random_state={one_line(state)} makes other folds at each call, and the "
            "run could not be resumed; expected random_state=0, or another integer"
        )


@contextmanager
def _one_line_errors(where: str) -> Iterator[None]:
    try:
        yield
    except BadData:
        raise
    except Exception as error:  # a splitter is anybody's code
        raise BadData(f"{where}: {one_line(error)}") from error


def _partition(where: str, splits: Iterable[Any], count: int) -> Integers:
    """Return (N,) the number of the split that tests each sample, from 1."""
    folds = np.zeros(count, dtype=np.int64)
    for number, split in enumerate(splits, start=1):
        if not isinstance(split, list | tuple) or len(split) != 2:
            raise BadData(f"{where}: split {number} is not a pair; expected (train, test) indices")
        train, test = (
            _indices(f"{where}: the {part} set of split {number}", indices, count)
            for part, indices in zip(("train", "test"), split, strict=True)
        )
        earlier = test[folds[test] > 0]
        if len(earlier):
            raise BadData(
                f"{where}: the test sets of splits {folds[earlier[0]]} and {number} overlap, in "
                f"sample {earlier[0]}; expected each sample in one test set, as KFold makes them "
                "(further seeds are --repeats)"
            )
        folds[test] = number
        rest = folds != number
        trained = np.zeros(count, dtype=bool)
        trained[train] = True
        if (trained & ~rest).any():
            sample = np.flatnonzero(trained & ~rest)[0]
            raise BadData(
                f"{where}: split {number} trains on sample {sample}, which it tests on as well; "
                "expected each sample in one of the two"
            )
        if (rest & ~trained).any():
            left_out = np.flatnonzero(rest & ~trained)
            raise BadData(
                f"{where}: split {number} neither trains nor tests on {len(left_out)} samples, the "
                f"first is {left_out[0]}; expected every sample in one of the two, as KFold has it"
            )
    untested = np.flatnonzero(folds == 0)
    if len(untested):
        raise BadData(
            f"{where}: {len(untested)} of {count} samples are in no test set, the first is "
            f"{untested[0]}; expected each sample in one, as KFold makes them"
        )
    return folds


def _indices(where: str, given: Any, count: int) -> Integers:
    """Return sample numbers, given as such or as a mask of all samples."""
    array = to_array(where, given)
    if array.dtype == bool and array.shape == (count,):
        array = np.flatnonzero(array)
    if array.size == 0:
        raise BadData(f"{where} is empty; expected at least one sample")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise BadData(
            f"{where} has dtype {array.dtype} and shape {array.shape}; expected the numbers of "
            "samples, one-dimensional"
        )
    if array.min() < 0 or array.max() >= count:
        wrong = array.min() if array.min() < 0 else array.max()
        raise BadData(f"{where} has sample {wrong}; expected numbers from 0 to {count - 1}")
    return array.astype(np.int64)


def _names_by_group(
    name: str, called: str, folds: Integers, groups: Integers, group_names: Mapping[int, str]
) -> dict[int, str]:
    """Return fold → name of its group, if every fold has one; refuse a group in two folds."""
    pairs = np.unique(np.stack([groups, folds], axis=1), axis=0)
    texts = [group_names.get(int(group), str(group)) for group, _ in pairs]
    for index in range(len(pairs) - 1):
        if pairs[index, 0] == pairs[index + 1, 0]:
            raise BadData(
                f"{name}: {called} puts the group {one_line(texts[index])} into folds "
                f"{pairs[index, 1]} and {pairs[index + 1, 1]}; expected a splitter that keeps "
                "groups together, such as GroupKFold or StratifiedGroupKFold"
            )
    if len(pairs) > len(np.unique(folds)):
        return {}
    return dict(zip(pairs[:, 1].tolist(), texts, strict=True))

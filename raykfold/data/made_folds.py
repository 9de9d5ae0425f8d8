"""Makes folds for data that has none, stratified by class; what belongs together stays together."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raykfold.errors import BadData, BadInput
from raykfold.text import comma_list, count_of, one_line, with_name

_LOPSIDED = 2  # times as many samples, in all or of a class, as the smallest fold or the mean
_MOST_LISTED = 6  # folds that lack a class, in a note


@dataclass(frozen=True)
class FoldRequest:
    """The folds that a user wants made.

    Attributes:
        folds: how many.
        seed: of the shuffle.
        group_column: the column of a table whose values belong in one fold each.
        group_pattern: a regular expression whose group ``group``, or whose first one, is what
            belongs in one fold. It is searched in a file's name, or, if it has a slash, in the
            file's path below the folder of the recordings.

    Raises:
        BadInput: fewer than two folds, a seed out of range, or no regular expression with a group.
    """

    folds: int
    seed: int = 0
    group_column: str | None = None
    group_pattern: str | None = None

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise BadInput(f"--make_folds {self.folds}: expected at least 2")
        if not 0 <= self.seed < 2**32:
            raise BadInput(f"--seed {self.seed}: expected a whole number from 0 to {2**32 - 1}")
        if self.group_pattern is None:
            return
        expected = "expected a regular expression with a group, like '(?P<group>[^_]+)_'"
        try:
            groups = re.compile(self.group_pattern).groups
        except (re.error, RecursionError, OverflowError) as error:
            raise BadInput(f"{self._flag}: {one_line(error)}; {expected}") from None
        if groups == 0:
            raise BadInput(f"{self._flag}: has no group in parentheses; {expected}")

    @property
    def grouped_by(self) -> str | None:
        """What says which recordings belong together."""
        if self.group_column is not None:
            return f"column {self.group_column}"
        return None if self.group_pattern is None else f"pattern {self.group_pattern}"

    def groups_of_paths(self, paths: Sequence[Path], base: Path) -> list[str]:
        """Return the group of each file by `group_pattern`.

        Raises:
            BadData: the pattern does not match a file.
        """
        assert self.group_pattern is not None
        # In one Unicode form: '.' and [ü] match an accent that macOS writes as two characters.
        pattern = re.compile(unicodedata.normalize("NFC", self.group_pattern))
        which: str | int = "group" if "group" in pattern.groupindex else 1
        groups, missed = [], []
        for path in paths:
            below = os.path.relpath(path, base).replace("\\", "/")
            below = unicodedata.normalize("NFC", below)
            match = pattern.search(below if "/" in self.group_pattern else below.rpartition("/")[2])
            group = match[which] if match else None
            if not group:
                missed.append(below)
            groups.append(group or "")
        if missed:
            raise BadData(
                f"{self._flag}: finds no group in {len(missed)} of {count_of(len(paths), 'file')}, "
                f"such as {missed[0]}; expected one in each"
            )
        return groups

    @property
    def _flag(self) -> str:
        return f"--group_pattern {self.group_pattern!r}"


@dataclass(frozen=True, eq=False)
class MadeFolds:
    """Folds, and how they were made.

    Attributes:
        folds: (N,) numbers from 1, in the order in which folds first appear.
        names: fold → its group, if each fold has exactly one.
        rule: how to make them again, for ``features.json``.
        notes: lines to show the user.
    """

    folds: npt.NDArray[np.int64]
    names: Mapping[int, str]
    rule: Mapping[str, Any]
    notes: tuple[str, ...]


def make_folds(
    labels: npt.ArrayLike,
    k: int,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    *,
    grouped_by: str | None = None,
    class_names: Mapping[int, str] | None = None,
    called: str = "",
    noun: str = "recording",
) -> MadeFolds:
    """Return `k` folds, stratified by class.

    They depend on the arguments alone, by scikit-learn's StratifiedKFold, or StratifiedGroupKFold
    if there are groups. With as many groups as folds, each group is a fold (LeaveOneGroupOut).

    Args:
        labels: (N,) integers.
        k: number of folds, at least 2.
        seed: of the shuffle.
        groups: (N,) the group of each sample, which stays in one fold.
        grouped_by: where groups come from, for messages and the rule.
        class_names: label → name, for messages.
        called: what messages call the request; the flag by default.
        noun: what messages call a sample.

    Raises:
        BadData: there are fewer groups, or fewer samples of a class, than folds.
    """
    called = called or f"--make_folds {k}"
    labels = np.asarray(labels, dtype=np.int64)
    if groups is not None:
        # One group, whichever of its two Unicode forms a name has.
        groups = [unicodedata.normalize("NFC", group) for group in groups]
        if len(present := sorted(set(groups))) < k:
            by = f" by {grouped_by}" if grouped_by else ""
            what = "one group only" if len(present) == 1 else f"{len(present)} groups only"
            more = ", ..." if len(present) > _MOST_LISTED else ""
            raise BadData(
                f"{called}: {what}{by} ({comma_list(present[:_MOST_LISTED])}{more}); "
                "expected at least as many groups as folds"
            )
    classes, counts = np.unique(labels, return_counts=True)
    rare = np.flatnonzero(counts < k)
    if len(rare):
        shown = with_name(int(classes[rare[0]]), class_names or {})
        more = f" ({len(rare)} of {len(classes)} classes are so small)" if len(rare) > 1 else ""
        raise BadData(
            f"{called}: class {shown} has {count_of(int(counts[rare[0]]), noun)}"
            f"{more}; expected at most as many folds as the smallest class has {noun}s"
        )
    rule: dict[str, Any] = {"method": "StratifiedKFold", "folds": k, "seed": seed}
    if groups is None:
        folds = _stratified(labels, k, seed)
    else:
        numbers = np.unique(groups, return_inverse=True)[1]
        if len(present) == k:  # then each group is a fold, and nothing is drawn
            rule, folds = {"method": "LeaveOneGroupOut", "folds": k}, numbers
        else:
            rule["method"] = "StratifiedGroupKFold"
            folds = _stratified_groups(labels, k, seed, numbers)
        rule["groups"] = grouped_by or "given"
    # Number the folds as they appear.
    _, first, inverse = np.unique(folds, return_index=True, return_inverse=True)
    folds = (np.argsort(np.argsort(first)) + 1)[inverse].astype(np.int64)
    names: dict[int, str] = {}
    if groups is not None and len(present) == k:
        names = {int(fold): group for fold, group in zip(folds, groups, strict=True)}
    notes: tuple[str, ...] = (f"folds made: {describe_rule(rule)}",)
    if lopsided := _lopsided(labels, folds, names, class_names or {}, noun):
        notes += (f"the folds are lopsided: {lopsided}",)
    if groups is not None and (alike := _alike(present)):
        notes += (f"groups whose names differ in capitals only are several: {alike}",)
    return MadeFolds(folds, dict(sorted(names.items())), rule, notes)


def describe_rule(rule: Mapping[str, Any]) -> str:
    """Return the rule of made folds in one line: ``StratifiedKFold, folds 5, seed 0``."""
    parts = [f"{key} {one_line(value)}" for key, value in rule.items() if key != "method"]
    return ", ".join([one_line(rule.get("method", "by an unknown method")), *parts])


def _stratified(labels: npt.NDArray[np.int64], k: int, seed: int) -> npt.NDArray[np.int64]:
    from sklearn.model_selection import StratifiedKFold  # takes a second to import

    splitter = StratifiedKFold(k, shuffle=True, random_state=seed)
    return _numbered(splitter.split(labels, labels), len(labels))


def _stratified_groups(
    labels: npt.NDArray[np.int64], k: int, seed: int, groups: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold

    # Shuffled here: scikit-learn's own shuffle differs from version to version, and in older ones
    # it undoes the stratification. It takes groups in the order of their numbers where all else is
    # equal. RandomState, unlike Generator, gives the same numbers in each version of NumPy.
    order = np.random.RandomState(seed).permutation(int(groups.max()) + 1)
    splits = StratifiedGroupKFold(k).split(labels, labels, order[groups])
    return _numbered(splits, len(labels))


def _numbered(splits: Any, count: int) -> npt.NDArray[np.int64]:
    folds = np.empty(count, dtype=np.int64)
    for fold, (_, test) in enumerate(splits):
        folds[test] = fold
    return folds


def _alike(groups: Sequence[str]) -> str:
    """Return the names that differ in capitals only; empty if none do."""
    spellings: dict[str, list[str]] = {}
    for group in groups:
        spellings.setdefault(group.casefold(), []).append(group)
    alike = [" and ".join(names) for names in spellings.values() if len(names) > 1]
    more = len(alike) - _MOST_LISTED
    return comma_list(alike[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _lopsided(
    labels: npt.NDArray[np.int64],
    folds: npt.NDArray[np.int64],
    fold_names: Mapping[int, str],
    class_names: Mapping[int, str],
    noun: str,
) -> str:
    """Return which folds are much smaller than others, or lack a class; empty if none does."""
    k = int(folds.max())
    said = []
    sizes = np.bincount(folds)[1:]
    if sizes.max() > _LOPSIDED * sizes.min():
        ends = (int(place(sizes)) for place in (np.argmin, np.argmax))
        small, large = (f"fold {with_name(n + 1, fold_names)} has {sizes[n]} {noun}s" for n in ends)
        said.append(f"{small}, {large}")
    lacking: list[str] = []
    few: list[str] = []
    for label in np.unique(labels).tolist():
        there = np.bincount(folds[labels == label], minlength=k + 1)[1:]
        for place in np.flatnonzero(there * _LOPSIDED * k < there.sum()):
            text = f"class {with_name(label, class_names)} in fold {place + 1}"
            (few if there[place] else lacking).append(text)
    for what, places in ((f"no {noun}s of", lacking), (f"few {noun}s of", few)):
        if places:
            more = len(places) - _MOST_LISTED
            listed = comma_list(places[:_MOST_LISTED])
            said.append(f"{what} {listed}" + (f" and {more} more" if more > 0 else ""))
    return "; ".join(said)

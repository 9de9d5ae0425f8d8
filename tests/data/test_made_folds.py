"""Folds that are made: what is in one fold, what is not, and what is said and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raykfold.data.made_folds import FoldRequest, MadeFolds, describe_rule, make_folds
from raykfold.errors import BadData, BadInput

LABELS = np.repeat([4, 7, 9], [40, 30, 20])
NAMES = {4: "cat", 7: "dog", 9: "owl"}
# Twelve speakers, who all said something of each class.
SPEAKERS = [f"speaker {n % 12}" for n in range(len(LABELS))]


def counts(made: MadeFolds, labels: np.ndarray = LABELS) -> dict[int, list[int]]:
    """Return how many samples of each class each fold has."""
    return {
        int(label): np.bincount(made.folds[labels == label])[1:].tolist()
        for label in np.unique(labels)
    }


def test_each_fold_has_its_share_of_each_class() -> None:
    made = make_folds(LABELS, 5)
    assert counts(made) == {4: [8] * 5, 7: [6] * 5, 9: [4] * 5}
    assert made.folds.dtype == np.int64 and made.names == {}
    assert made.rule == {"method": "StratifiedKFold", "folds": 5, "seed": 0}
    assert made.notes == ("folds made: StratifiedKFold, folds 5, seed 0",)


def test_folds_are_numbered_in_the_order_in_which_they_appear() -> None:
    for made in (make_folds(LABELS, 5), make_folds(LABELS, 5, groups=SPEAKERS)):
        firsts = [made.folds.tolist().index(fold) for fold in range(1, 6)]
        assert firsts == sorted(firsts)


def test_the_seed_decides_and_nothing_else() -> None:
    for groups in (None, SPEAKERS):
        one, again, other = (make_folds(LABELS, 4, seed, groups).folds for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, again)
        assert (one != other).any()


def test_folds_are_the_same_on_every_machine() -> None:
    """These are those of scikit-learn 1.5.2 and 1.9.1, which shuffle groups differently."""
    labels = np.arange(20) % 2
    folds = [1, 2, 3, 3, 2, 3, 3, 3, 1, 1, 2, 2, 2, 3, 1, 1, 3, 1, 2, 2]
    assert make_folds(labels, 3, 5).folds.tolist() == folds
    groups = [f"g{n * 7 % 10 % 8}" for n in range(20)]
    folds = [1, 1, 2, 3, 1, 2, 3, 3, 3, 2, 1, 1, 2, 3, 1, 2, 3, 3, 3, 2]
    assert make_folds(labels, 3, 5, groups).folds.tolist() == folds


def test_a_group_is_in_one_fold_and_classes_are_still_spread() -> None:
    made = make_folds(LABELS, 4, 3, SPEAKERS, grouped_by="column speaker")
    folds_of = {name: set() for name in SPEAKERS}  # type: dict[str, set[int]]
    for speaker, fold in zip(SPEAKERS, made.folds.tolist(), strict=True):
        folds_of[speaker].add(fold)
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert all(max(each) - min(each) <= 2 for each in counts(made).values())
    assert made.names == {}
    assert made.rule == {
        "method": "StratifiedGroupKFold",
        "folds": 4,
        "seed": 3,
        "groups": "column speaker",
    }


def test_as_many_groups_as_folds_are_the_folds_and_name_them() -> None:
    groups = ["u\u0308da", "ben", "\u00fcda", "cy", "ben", "cy"]
    made = make_folds([0, 0, 1, 1, 1, 0], 3, groups=groups)
    assert made.folds.tolist() == [1, 2, 1, 3, 2, 3]
    assert made.names == {1: "\u00fcda", 2: "ben", 3: "cy"}
    assert made.rule == {"method": "LeaveOneGroupOut", "folds": 3, "groups": "given"}


def test_lopsided_folds_are_said() -> None:
    labels = np.array([4] * 30 + [7] * 12)
    groups = ["large"] * 30 + ["small"] * 3 + ["other"] * 9
    made = make_folds(labels, 3, groups=groups, class_names=NAMES)
    assert made.notes[1] == (
        "the folds are lopsided: fold 2 (small) has 3 recordings, fold 1 (large) has 30 "
        "recordings; no recordings of class 4 (cat) in fold 2, class 4 (cat) in fold 3, "
        "class 7 (dog) in fold 1"
    )
    labels = np.array([4, 7] * 5 + [4] * 4 + [7])
    made = make_folds(labels, 2, groups=["x"] * 10 + ["y"] * 5, class_names=NAMES, noun="sample")
    assert made.notes[1:] == ("the folds are lopsided: few samples of class 7 (dog) in fold 2",)


@pytest.mark.parametrize(
    ("k", "groups", "message"),
    [
        (21, None, "--make_folds 21: class 9 (owl) has 20 recordings; expected at most as many"),
        (31, None, "class 7 (dog) has 30 recordings (2 of 3 classes are so small)"),
        (2, ["a"] * 90, "--make_folds 2: one group only by column who (a); expected at least"),
        (13, SPEAKERS, "12 groups only by column who (speaker 0, speaker 1, speaker 10, "),
    ],
)
def test_folds_that_cannot_be_made(k: int, groups: list[str] | None, message: str) -> None:
    with pytest.raises(BadData) as caught:
        make_folds(LABELS, k, groups=groups, grouped_by="column who", class_names=NAMES)
    assert message in str(caught.value)


def test_groups_that_differ_in_capitals_are_two_and_it_is_said() -> None:
    groups = ["Anna", "anna", "Ben", "cy"] * 20
    made = make_folds(np.arange(80) // 4 % 2, 4, groups=groups)
    assert sorted(made.names.values()) == ["Anna", "Ben", "anna", "cy"]
    expected = "groups whose names differ in capitals only are several: Anna and anna"
    assert made.notes[1:] == (expected,)
    assert make_folds(LABELS, 4, groups=SPEAKERS).notes[1:] == ()


def test_what_a_sample_is_called() -> None:
    with pytest.raises(BadData, match=r"has 20 samples; .* as the smallest class has samples"):
        make_folds(LABELS, 21, noun="sample")


def test_a_rule_of_somebody_else_is_one_line() -> None:
    assert describe_rule({"by": "a\nb", "folds": [1]}) == (
        "by an unknown method, by a b, folds [1]"
    )


# ---- Groups from the names of files


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        ("(?P<group>[^_]+)_", ["ann", "ben"]),
        ("([a-z]+)_(\\d)", ["ann", "ben"]),
        ("([a-z]+)_(?P<group>\\d)", ["1", "2"]),
        ("(\\w+)/", ["yes", "no"]),  # with a slash, of the path
    ],
)
def test_groups_of_a_pattern(pattern: str, groups: list[str]) -> None:
    paths = [Path("/data/yes/ann_1.wav"), Path("/data/no/ben_2.wav")]
    request = FoldRequest(2, group_pattern=pattern)
    assert request.groups_of_paths(paths, Path("/data")) == groups
    assert request.grouped_by == f"pattern {pattern}"


@pytest.mark.parametrize("pattern", ["^(.{4})_", "^([a-zü]+)_", "^([a-zu\u0308]+)_"])
def test_a_pattern_sees_one_unicode_form(pattern: str) -> None:
    paths = [Path("/data/ju\u0308rg_1.wav"), Path("/data/j\u00fcrg_2.wav")]  # macOS, and others
    groups = FoldRequest(2, group_pattern=pattern).groups_of_paths(paths, Path("/data"))
    assert groups == ["j\u00fcrg", "j\u00fcrg"]


@pytest.mark.parametrize("pattern", ["(ann)", "([abc]nn)?.*_"])
def test_a_pattern_that_misses_a_file_is_refused(pattern: str) -> None:
    paths = [Path("/data/yes/ann_1.wav"), Path("/data/no/ben_2.wav")]
    with pytest.raises(BadData) as caught:
        FoldRequest(2, group_pattern=pattern).groups_of_paths(paths, Path("/data"))
    assert str(caught.value) == (
        f"--group_pattern {pattern!r}: finds no group in 1 of 2 files, such as no/ben_2.wav; "
        "expected one in each"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folds": 1}, "--make_folds 1: expected at least 2"),
        ({"folds": 3, "seed": -1}, "--seed -1: expected a whole number from 0"),
        ({"folds": 3, "seed": 2**32}, "--seed 4294967296: expected"),
        ({"folds": 3, "group_pattern": "("}, "--group_pattern '(': missing ), unterminated"),
        ({"folds": 3, "group_pattern": "[^_]+_"}, "has no group in parentheses; expected"),
        ({"folds": 3, "group_pattern": "(?:a)"}, "has no group in parentheses; expected"),
    ],
)
def test_requests_that_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        FoldRequest(**values)  # type: ignore[arg-type]
    assert message in str(caught.value)

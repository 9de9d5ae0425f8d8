"""Folds by scikit-learn's splitters and from lists of indices: which, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import model_selection as sk
from support.data_files import fingerprint

from raykfold.data.feature_set import FeatureSet
from raykfold.data.made_folds import make_folds
from raykfold.errors import BadData

N = 24
FEATURES = np.random.default_rng(0).standard_normal((N, 4, 6)).astype(np.float32)
NAMES = np.array(["dog", "cat", "ant"] * 8)
SPEAKERS = [f"speaker {number}" for number in np.repeat(range(1, 13), 2)]
PAIRS = list(sk.KFold(4).split(FEATURES))
BLOCKS = np.repeat([1, 2, 3, 4], 6)  # the same folds


def of(folds: Any, **others: Any) -> FeatureSet:
    return FeatureSet.from_arrays(FEATURES, NAMES, folds, **others)


def refusal(folds: Any, **others: Any) -> str:
    with pytest.raises(BadData) as caught:
        of(folds, **others)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    "splitter",
    [
        sk.KFold(4),
        sk.KFold(3, shuffle=True, random_state=1),
        sk.StratifiedKFold(4, shuffle=True, random_state=np.int64(2)),
        sk.PredefinedSplit(BLOCKS),
        sk.LeaveOneOut(),
    ],
    ids=range(5),
)
@pytest.mark.filterwarnings("error")
def test_folds_are_numbered_in_the_order_of_the_splits(splitter: Any) -> None:
    data = of(splitter)
    for fold, (train, test) in enumerate(splitter.split(FEATURES, NAMES), start=1):
        split = data.split(fold)
        assert (split.train.tolist(), split.validation.tolist()) == (train.tolist(), test.tolist())
    assert data.fold_labels == tuple(range(1, fold + 1))
    assert data.fold_names == {} and data.notes == ()
    assert data.fingerprint == fingerprint(FEATURES, data.labels, data.folds)


@pytest.mark.parametrize(
    "splitter",
    [
        sk.GroupKFold(5),
        sk.StratifiedGroupKFold(3),
        sk.StratifiedGroupKFold(3, shuffle=True, random_state=7),
    ],
    ids=range(3),
)
def test_groups_stay_together(splitter: Any) -> None:
    data = of(splitter, groups=SPEAKERS)
    for fold, (_, test) in enumerate(splitter.split(FEATURES, NAMES, SPEAKERS), start=1):
        assert data.split(fold).validation.tolist() == test.tolist()
    assert data.fold_names == {}


@pytest.mark.parametrize("groups", [SPEAKERS, np.array(SPEAKERS), np.array(SPEAKERS, dtype=object)])
def test_a_fold_of_one_group_has_its_name(groups: Any) -> None:
    data = of(sk.LeaveOneGroupOut(), groups=groups)
    assert len(data.fold_names) == len(data.fold_labels) == 12
    for sample, speaker in enumerate(SPEAKERS):
        assert data.fold_names[int(data.folds[sample])] == speaker
    numbered = of(sk.LeaveOneGroupOut(), groups=np.repeat([7, 9], 12))
    assert numbered.fold_names == {1: "7", 2: "9"}


def test_a_number_makes_the_folds_that_prepare_makes() -> None:
    labels = of(4).labels
    assert of(4).folds.tolist() == make_folds(labels, 4).folds.tolist()
    rooms = np.repeat(["b", "a", "c"], 8)
    data = of(np.int64(3), groups=rooms)
    assert data.folds.tolist() == np.repeat([1, 2, 3], 8).tolist()
    assert data.fold_names == {1: "b", 2: "a", 3: "c"}
    assert data.notes[0] == "folds made: LeaveOneGroupOut, folds 3, groups given"


@pytest.mark.parametrize(
    "pairs",
    [
        lambda: PAIRS,
        lambda: tuple(PAIRS),
        lambda: iter(PAIRS),
        lambda: sk.KFold(4).split(FEATURES),
        lambda: [(train.tolist(), test.tolist()) for train, test in PAIRS],
        lambda: [tuple(map(torch.from_numpy, pair)) for pair in PAIRS],
        lambda: [[train[::-1], test[::-1]] for train, test in PAIRS],
        lambda: [(block != BLOCKS, block == BLOCKS) for block in (1, 2, 3, 4)],
    ],
    ids=range(8),
)
def test_indices_of_train_and_test_samples(pairs: Callable[[], Any]) -> None:
    assert of(pairs()).fingerprint == of(BLOCKS).fingerprint


def test_what_has_a_method_of_that_name_and_is_labels() -> None:
    assert of(torch.from_numpy(BLOCKS)).fingerprint == of(BLOCKS).fingerprint
    assert of(np.char.array(["b", "a"] * 12)).fold_names == {1: "a", 2: "b"}


class Own:
    """A splitter of one's own, with its train and test sets given."""

    def __init__(self, splits: Any = PAIRS, error: Exception | None = None, **options: Any) -> None:
        self.splits, self.error = splits, error
        vars(self).update(options)

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[Any]:  # noqa: N803
        if self.error is not None:
            raise self.error
        warnings.warn("few samples", stacklevel=1)
        yield from self.splits


def test_what_a_splitter_warns_of_is_a_note() -> None:
    assert of(Own()).notes == ("folds: Own: few samples",)
    rare = np.array(["dog", "cat"] * 11 + ["ant"] * 2)
    (note,) = FeatureSet.from_arrays(FEATURES, rare, sk.StratifiedKFold(3)).notes
    assert note.startswith("folds: StratifiedKFold: The least populated class in y has only 2")


@pytest.mark.parametrize(
    ("splitter", "said"),
    [
        (sk.KFold, "folds: KFold is a class; expected an object of it, KFold(...)"),
        (sk.KFold(3, shuffle=True), "KFold with random_state=None makes other folds at each call"),
        (
            sk.KFold(3, shuffle=True, random_state=np.random.RandomState(0)),
            "expected random_state=0, or another integer",
        ),
        (Own(random_state=None), "Own with random_state=None makes other folds"),
        (sk.ShuffleSplit(9, random_state=0), "folds: ShuffleSplit: the test sets of splits "),
        (sk.ShuffleSplit(2, test_size=2, random_state=3), "20 of 24 samples are in no test set"),
        (sk.RepeatedKFold(n_splits=3, random_state=0), "(further seeds are --repeats)"),
        (sk.LeavePOut(2), "folds: LeavePOut: the test sets of splits 1 and 2 overlap, in sample 0"),
        (sk.TimeSeriesSplit(3), "split 1 neither trains nor tests on 12 samples, the first is 12"),
        (sk.PredefinedSplit(np.maximum(BLOCKS - 2, -1)), "6 of 24 samples are in no test set"),
        (sk.KFold(25), "folds: KFold: Cannot have number of splits n_splits=25 greater than"),
        (
            sk.StratifiedKFold(9),
            "folds: StratifiedKFold: n_splits=9 cannot be greater than the num",
        ),
        (sk.GroupKFold(3), "folds: GroupKFold: The 'groups' parameter should not be None"),
        (Own(error=RuntimeError("a\nb")), "folds: Own: a b"),
        (Own(PAIRS[:3]), "folds: Own: 6 of 24 samples are in no test set, the first is 18"),
        (1, "folds: 1; expected at least 2"),
        (9, "folds: 9: class 0 has 8 samples (3 of 3 classes are so small); expected at most"),
        (True, "or in Python a number of folds or a splitter such as StratifiedKFold(5)"),
        ("kfold", "folds: shape (); folds should be one-dimensional"),
        (sk.GroupKFold(3).split(FEATURES), "folds: The 'groups' parameter should not be None"),
    ],
    ids=range(20),
)
def test_splitters_that_make_no_folds(splitter: Any, said: str) -> None:
    assert said in refusal(splitter)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (PAIRS[:3], "folds: 6 of 24 samples are in no test set, the first is 18; expected each"),
        ([*PAIRS, PAIRS[1]], "the test sets of splits 2 and 5 overlap, in sample 6"),
        (
            [(a[1:], b) for a, b in PAIRS],
            "split 1 neither trains nor tests on 1 samples, the first",
        ),
        ([([*a, b[2]], b) for a, b in PAIRS], "split 1 trains on sample 2, which it tests on as w"),
        ([(a, b - 1) for a, b in PAIRS], "the test set of split 1 has sample -1; expected numbers"),
        (
            [(a + 1, b) for a, b in PAIRS],
            "the train set of split 1 has sample 24; expected numbers",
        ),
        ([(a, b * 1.0) for a, b in PAIRS], "the test set of split 1 has dtype float64"),
        (
            [(a, b[:, None]) for a, b in PAIRS],
            "the test set of split 1 has dtype int64 and shape (6",
        ),
        ([(a, []) for a, _ in PAIRS], "the test set of split 1 is empty"),
        (iter([(a, b, b) for a, b in PAIRS]), "split 1 is not a pair; expected (train, test)"),
        (iter(BLOCKS), "split 1 is not a pair; expected (train, test)"),
        ([(a, b, b) for a, b in PAIRS], "folds: not an array of numbers"),
    ],
    ids=range(12),
)
def test_indices_that_make_no_folds(pairs: Any, said: str) -> None:
    assert said in refusal(pairs)


@pytest.mark.parametrize(
    ("folds", "groups", "said"),
    [
        (BLOCKS, SPEAKERS, "groups: only a splitter uses them, and folds are labels"),
        (PAIRS, SPEAKERS, "groups: only a splitter uses them, and folds are splits already"),
        (
            sk.KFold(8),
            SPEAKERS,
            "groups: KFold puts the group speaker 2 into folds 1 and 2; expected",
        ),
        (sk.GroupKFold(13), SPEAKERS, "n_splits=13 greater than the number of groups: 12"),
        (sk.GroupKFold(2), ["a"] * N, "greater than the number of groups: 1"),
        (
            sk.GroupKFold(3),
            SPEAKERS[:5],
            "features has 24 samples, labels 24 and groups 5; all should have",
        ),
        (
            sk.GroupKFold(3),
            [*SPEAKERS[:5], None, *SPEAKERS[6:]],
            "groups: no value at index 5 (None)",
        ),
        (sk.GroupKFold(3), np.eye(N), "groups: shape (24, 24); groups should be one-dimensional"),
    ],
    ids=range(8),
)
def test_groups_that_no_splitter_can_use(folds: Any, groups: Any, said: str) -> None:
    assert said in refusal(folds, groups=groups)


def test_windows_of_a_recording_stay_in_one_fold_where_folds_are_made() -> None:
    recordings = np.arange(24) // 2
    labels = recordings % 3
    for rule in (2, sk.GroupKFold(2), sk.StratifiedGroupKFold(2)):
        data = FeatureSet.from_arrays(np.ones((24, 4)), labels, rule, recordings=recordings)
        assert (data.folds[::2] == data.folds[1::2]).all()
    with pytest.raises(
        BadData,
        match=r"^recordings: KFold puts the group 2 into folds 1 and 2; expected a splitter that",
    ):
        FeatureSet.from_arrays(np.ones((24, 4)), labels, sk.KFold(5), recordings=recordings)

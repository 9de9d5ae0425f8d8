"""Labels of classes and folds of every kind: text, truth values, one-hot, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.data_files import FEATURES, FOLDS, N, fingerprint

from raykfold.data.feature_set import FeatureSet
from raykfold.errors import BadData

NAMES = ["dog", "cat", "ant"] * 4
NUMBERS = [2, 1, 0] * 4  # in alphabetical order


def of_labels(labels: Any, **others: Any) -> FeatureSet:
    return FeatureSet.from_arrays(FEATURES, labels, FOLDS, **others)


def of_folds(folds: Any, **others: Any) -> FeatureSet:
    return FeatureSet.from_arrays(FEATURES, NUMBERS, folds, **others)


class Column:
    """What a column of pandas is to NumPy: an array of objects."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.values, dtype=object)


class NAType:
    """pandas' missing value, of which nothing can be asked."""

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    def __eq__(self, other: object) -> bool:
        return self  # type: ignore[return-value]

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "<NA>"


class Table:
    """What a table of pandas is to NumPy."""

    columns = ("ant", "cat", "dog")

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.eye(3, dtype=bool)[NUMBERS]


@pytest.mark.parametrize(
    "labels",
    [
        NAMES,
        np.array(NAMES),
        np.array(NAMES, dtype=object),
        np.array(NAMES, dtype="S"),
        np.array(NAMES, dtype=np.dtypes.StringDType()),
        Column(NAMES),
        Table(),
    ],
    ids=range(7),
)
def test_text_is_numbered_in_alphabetical_order(labels: Any) -> None:
    data = of_labels(labels)
    assert data.labels.tolist() == NUMBERS and data.labels.dtype == np.int64
    assert data.class_mapping == {0: "ant", 1: "cat", 2: "dog"}
    assert {type(name) for name in data.class_names} == {str}
    assert data.fingerprint == fingerprint(labels=NUMBERS)


def test_one_name_in_two_unicode_forms_is_one_class() -> None:
    assert of_labels(["cafe\u0301", "b", "caf\u00e9"] * 4).class_names == ("b", "caf\u00e9")


def test_text_that_is_numbers_is_these_numbers() -> None:
    data = of_labels(["10", "2", "2.0"] * 4)
    assert data.labels.tolist() == [10, 2, 2] * 4
    assert data.class_mapping == {2: "2", 10: "10"}


def test_text_is_one_of_the_names_that_are_given() -> None:
    data = of_labels(NAMES, class_mapping={5: "dog", 1: "cat", 7: "ant", 9: "hen"})
    assert data.labels.tolist() == [5, 1, 7] * 4
    assert data.class_mapping == {1: "cat", 5: "dog", 7: "ant", 9: "hen"}
    with pytest.raises(BadData, match=r"^labels: 'ant' at index 2 is missing among the names of c"):
        of_labels(NAMES, class_mapping={5: "dog", 1: "cat"})
    with pytest.raises(BadData, match=r"^class_mapping: 5 and 6 are both 'dog', found in labels"):
        of_labels(NAMES, class_mapping={5: "dog", 6: "dog", 1: "cat", 2: "ant"})


@pytest.mark.parametrize("truths", [[True, False, True] * 4, Column([True, False, True] * 4)])
def test_truth_values_are_0_and_1(truths: Any) -> None:
    data = of_labels(truths)
    assert data.labels.tolist() == [1, 0, 1] * 4
    assert data.class_mapping == {0: "False", 1: "True"}
    named = of_labels(truths, class_mapping={False: "quiet", True: "loud"})
    assert named.class_names == ("quiet", "loud")
    assert of_folds([False] * 6 + [True] * 6).notes == ("folds: 0 (False), 1 (True)",)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint64, np.float16, float])
def test_each_column_of_one_hot_rows_is_a_class(dtype: Any) -> None:
    data = of_labels(np.eye(4, dtype=dtype)[NUMBERS])
    assert data.labels.tolist() == NUMBERS
    assert data.class_mapping == {0: "0", 1: "1", 2: "2", 3: "3"}  # one without samples
    assert data.fingerprint == of_labels(NUMBERS, class_mapping=data.class_mapping).fingerprint


def changed_row(row: int, values: Any) -> np.ndarray:
    rows = np.eye(3)[NUMBERS]
    rows[row] = values
    return rows


@pytest.mark.parametrize("values", [[1, 1, 0], [0, 0, 0], [0.5, 0.5, 0], [1, 0, np.nan], [2, 0, 0]])
def test_rows_that_are_not_one_hot(values: Any) -> None:
    with pytest.raises(
        BadData, match=r"^labels: shape \(12, 3\), and row 7 is not one-hot"
    ) as said:
        of_labels(changed_row(7, values))
    assert "multi-label, are not supported" in str(said.value)


def test_tensors_are_arrays() -> None:
    samples = torch.from_numpy(FEATURES.copy()).requires_grad_()
    numbers, folds = torch.tensor(NUMBERS), torch.from_numpy(FOLDS)
    data = FeatureSet.from_arrays(samples, numbers, folds)
    assert data.fingerprint == fingerprint(labels=NUMBERS)
    halves = FeatureSet.from_arrays(samples.bfloat16(), numbers, folds)
    assert halves.features.dtype == np.float32
    np.testing.assert_array_equal(halves.features, samples.detach().bfloat16().float().numpy())


def test_text_folds_are_numbered_in_natural_order() -> None:
    data = of_folds(["s 10"] * 4 + ["s 2"] * 4 + ["ann"] * 4)
    assert data.folds.tolist() == [3] * 4 + [2] * 4 + [1] * 4
    assert data.fold_names == {1: "ann", 2: "s 2", 3: "s 10"}
    assert data.notes == ("folds: 1 (ann), 2 (s 2), 3 (s 10)",)


@pytest.mark.parametrize("form", ["{}", "{}.0", "fold{}", "Fold_{}"])
def test_text_folds_that_are_numbers_are_these(form: str) -> None:
    data = of_folds([form.format(fold) for fold in FOLDS])
    assert data.fingerprint == fingerprint(labels=NUMBERS)
    assert data.fold_names == {}


def test_text_folds_are_among_the_names_that_are_given() -> None:
    names = {"1": "ann", "2": "ben", "5": "cy"}
    data = of_folds([names[str(fold)] for fold in FOLDS], fold_names=names)
    assert data.folds.tolist() == FOLDS.tolist()
    with pytest.raises(BadData, match=r"^folds: 'dan' at index 11 is missing among the names of f"):
        of_folds(["ann", "ben", "cy"] * 3 + ["ann", "ben", "dan"], fold_names=names)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "None"), (float("nan"), "nan"), ("", "''"), ("  ", "'  '"), (NAType(), "<NA>")],
    ids=range(5),
)
def test_a_missing_value_is_named_by_its_index(value: Any, shown: str) -> None:
    labels = [*NAMES[:5], value, *NAMES[6:]]
    for given in (labels, Column(labels)):
        with pytest.raises(BadData) as said:
            of_labels(given)
        assert str(said.value).startswith(f"labels: no value at index 5 ({shown}); labels should")
    with pytest.raises(BadData, match=r"^folds: no value at index 5"):
        of_folds(Column([*FOLDS[:5], value, *FOLDS[6:]]))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            Column([*NAMES[:11], 3]),
            "Python objects of type int, str; labels should be all integers",
        ),
        (Column([True, 2, 3] * 4), "Python objects of type bool, int"),
        (Column([{}, 2, 3] * 4), "Python objects of type dict, int"),
        (Column([1.0, 2, 3] * 4), "dtype float64, non-integer labels"),
        ([2**70, 1, 1] * 4, "labels should be integers, text or bool"),
        (np.array(["2020-01-01", "2020-01-02"] * 6, dtype="M8[D]"), r"labels\.astype\(str\)"),
        (np.ones(N, complex), "dtype complex128; labels should be integers"),
        ([b"a", b"\xff"] * 6, "text that is not UTF-8"),
        (np.ma.masked_equal(NUMBERS, 1), "4 values are masked"),
        (np.reshape(NAMES, (6, 2)), r"shape \(6, 2\); labels should be one-dimensional"),
        (np.eye(3)[NUMBERS[:11]], "features has 12 samples, labels 11 and folds 12; all should"),
        (7, r"shape \(\); labels should be one-dimensional, one for each sample, or one-hot"),
    ],
    ids=range(12),
)
def test_labels_of_no_kind(labels: Any, said: str) -> None:
    with pytest.raises(BadData, match=said) as caught:
        of_labels(labels)
    assert str(caught.value).isprintable()


def test_texts_that_are_one_number_are_two_labels_and_one_fold() -> None:
    data = of_labels(["1", "01", "7"] * 4)
    assert list(data.class_names) == ["01", "1", "7"]
    assert of_folds(["1", "fold1", "2"] * 4).fold_labels == (1, 2)


def test_a_list_of_tensors_with_gradients() -> None:
    rows = [torch.full((4,), float(number), requires_grad=True) for number in range(N)]
    data = FeatureSet.from_arrays(rows, NUMBERS, FOLDS)
    assert data.features[:, 0].tolist() == list(range(N))

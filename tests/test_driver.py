"""`cross_validate` with arrays: what is refused, and that they are the data of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import PredefinedSplit
from support.outcome import FinishedRun
from support.small_data import CLASSES, small_arrays

import raykfold
from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.driver import cross_validate
from raykfold.errors import BadInput

X, LABELS, FOLDS = small_arrays()
NAMES = np.array([CLASSES[label] for label in LABELS])
OTHERS = ("--processed_dir", "--hf_repo_id", "--demo")


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ({"X": X}, {}, "cross_validate: without y, folds; expected X, y and folds together"),
        ({"y": NAMES, "folds": FOLDS}, {}, "cross_validate: without X; expected X, y and folds"),
        ({"groups": NAMES}, {}, "cross_validate: without X, y, folds; expected X, y and folds"),
        (
            {"class_names": ["a"]},
            {},
            "cross_validate: without X, y, folds; expected X, y and folds",
        ),
        ({"data": None}, {"processed_dir": "mine"}, "both X and --processed_dir name the data"),
        ({"data": None}, {"hf_repo_id": "me/mine"}, "both X and --hf_repo_id name the data"),
        ({"data": None}, {"demo": True}, "both X and --demo name the data; expected one of them"),
        ({"X": X[:9]}, {}, "X has 9 samples, y 240 and folds 240; all should have the same number"),
        ({"y": NAMES[:, None]}, {}, "y: shape (240, 1); labels should be one-dimensional"),
        ({"folds": FOLDS / 2}, {}, "folds: non-integer folds, value 0.5 at index 0"),
        ({"class_names": ["rain", "dog"]}, {}, "is missing among the names of class_names"),
        ({"class_names": {"dog", "rain"}}, {}, "class_names: holds a set; it should be a dict"),
        (
            {"class_names": "dog"},
            {},
            "class_names: holds a str; it should be a dict, label to name",
        ),
    ],
    ids=range(13),
)
def test_arrays_that_are_not_the_data(
    tmp_path: Path, arguments: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    given = {"X": X, "y": NAMES, "folds": FOLDS, **arguments}
    if said.startswith("cross_validate: without"):
        given = arguments
    with pytest.raises(BadInput) as caught:
        cross_validate(RunConfig(model_dir=tmp_path / "out", **options), **given)
    assert said in str(caught.value) and str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_arrays_beside_a_feature_set(tmp_path: Path, small_data: FeatureSet) -> None:
    with pytest.raises(BadInput, match=r"^cross_validate: both data and X, y, folds; expected"):
        cross_validate(RunConfig(model_dir=tmp_path), X=X, y=NAMES, folds=FOLDS, data=small_data)


def test_names_of_classes_beside_a_feature_set(tmp_path: Path, small_data: FeatureSet) -> None:
    with pytest.raises(BadInput, match="both data and class_names; expected data alone"):
        cross_validate(RunConfig(model_dir=tmp_path), data=small_data, class_names=["a", "b"])


def test_arrays_go_on_with_the_run_of_the_same_data(
    undisturbed: FinishedRun, tmp_path: Path
) -> None:
    """Text, a splitter and a list of the same numbers are the data of the files."""
    shutil.copytree(undisturbed.model_dir, tmp_path / "out")
    config = RunConfig(
        model_dir=tmp_path / "out",
        run_name="sounds",
        epochs=6,
        early_stopping_patience=1,
        learning_rate=0.005,
    )
    given = {"X": X.tolist(), "y": NAMES, "folds": PredefinedSplit(FOLDS)}
    with pytest.raises(BadInput, match="--run_name sounds: is taken by a run with data"):
        raykfold.cross_validate(config, **given)  # of 64-bit floats
    summary = raykfold.cross_validate(config, **{**given, "X": X}, class_names=CLASSES)
    before = json.loads((undisturbed.model_dir / "summary.json").read_text())
    assert summary.mean_accuracy == before["mean_accuracy"]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"]["in_memory"] is True
    assert "arrays, given in Python" in (tmp_path / "out" / "report.html").read_text()

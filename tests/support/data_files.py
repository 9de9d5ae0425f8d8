"""A small data set, written as good or as bad files, and how it is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raykfold.data.feature_set import FeatureSet
from raykfold.data.reading import read_feature_set
from raykfold.errors import BadData

N, MELS, FRAMES = 12, 4, 6
FEATURES = np.random.default_rng(0).standard_normal((N, MELS, FRAMES)).astype(np.float32)
LABELS = np.array([3, 7, 9] * 4)
FOLDS = np.repeat([1, 2, 5], 4)


def save(folder: Path, **contents: Any) -> Path:
    """Write good files, but for those in `contents`: name_suffix=array, object, bytes or None."""
    files = {"features_npy": FEATURES, "labels_npy": LABELS, "folds_npy": FOLDS, **contents}
    folder.mkdir(exist_ok=True)
    for key, content in files.items():
        stem, suffix = key.rsplit("_", 1)
        path = folder / f"{stem}.{suffix}"
        if content is None:
            continue
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif suffix == "npy":
            np.save(path, content)
        elif suffix == "pkl":
            path.write_bytes(pickle.dumps(content))
        else:
            path.write_text(json.dumps(content))
    return folder


def refusal(folder: Path, file: str) -> str:
    """The text with which `folder` is refused: one line that names `file`."""
    with pytest.raises(BadData) as caught:
        read_feature_set(folder)
    text = str(caught.value)
    assert str(folder / file) in text
    assert text.isprintable()
    assert len(text) < 700
    return text


def fingerprint(
    features: Any = FEATURES, labels: Any = LABELS, folds: Any = FOLDS, **others: Any
) -> str:
    return FeatureSet.from_arrays(features, labels, folds, **others).fingerprint

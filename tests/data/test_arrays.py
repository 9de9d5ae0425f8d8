"""Arrays in memory: what is checked, and what the fingerprint covers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.data_files import FEATURES, FOLDS, FRAMES, LABELS, MELS, N, fingerprint

from raykfold.data.feature_set import FeatureSet
from raykfold.errors import BadData


def test_of_two_axes_of_length_one_the_second_is_the_channel() -> None:
    data = FeatureSet.from_arrays(np.ones((N, 1, 4, 1), np.float32), LABELS, FOLDS)
    assert data.features.shape == (N, 4, 1)


def test_arrays_in_memory_are_checked_alike_and_named_as_asked() -> None:
    with pytest.raises(BadData, match=r"^labels: shape \(12, 1\)"):
        FeatureSet.from_arrays(FEATURES, LABELS[:, None], FOLDS)
    with pytest.raises(BadData, match=r"^the labels: shape \(12, 1\)"):
        FeatureSet.from_arrays(FEATURES, LABELS[:, None], FOLDS, names={"labels": "the labels"})
    with pytest.raises(BadData, match=r"^features: not an array of numbers"):
        FeatureSet.from_arrays([[[1.0]], [[1.0, 2.0]]], [0, 1], [0, 1])
    with pytest.raises(BadData, match=r"^class_mapping: key 'x'"):
        FeatureSet.from_arrays(FEATURES, LABELS, FOLDS, class_mapping={"x": "a"})
    data = FeatureSet.from_arrays(FEATURES.tolist(), LABELS.tolist(), FOLDS.tolist())
    assert data.features.dtype == np.float64


def changed_bit() -> np.ndarray:
    features = FEATURES.copy()
    features.view(np.uint32)[11, 3, 5] ^= 1
    return features


def swapped_labels() -> np.ndarray:
    labels = LABELS.copy()
    labels[[0, 1]] = labels[[1, 0]]
    return labels


@pytest.mark.parametrize(
    "other",
    [
        {"features": changed_bit()},
        {"features": FEATURES.reshape(N, FRAMES, MELS)},
        {"features": FEATURES.astype(np.float64)},
        {"features": FEATURES.astype(np.float16)},
        {"features": FEATURES.reshape(N, 2, 2, FRAMES)},
        {"features": FEATURES.reshape(N, -1)},
        {"features": FEATURES.view(np.int32)},
        {"features": FEATURES[::-1]},
        {"labels": swapped_labels()},
        {"labels": LABELS + 1},
        {"folds": FOLDS[::-1]},
        {"labels": FOLDS, "folds": LABELS},
        {"class_mapping": {3: "a", 7: "b", 9: "c", 10: "d"}},
        {"recordings": np.arange(N)},
    ],
    ids=range(14),
)
def test_fingerprint_differs(other: dict[str, Any]) -> None:
    assert fingerprint(**other) != fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        {"features": FEATURES[:, None]},
        {"features": FEATURES[..., None]},
        {"features": np.asfortranarray(FEATURES)},
        {"features": FEATURES.astype(">f4")},
        {"labels": LABELS.astype(np.int8)},
        {"labels": LABELS.astype(">i4"), "folds": FOLDS.astype(np.uint16)},
        {"labels": LABELS.tolist()},
        {"class_mapping": {3: "a", 7: "b", 9: "c"}},
        {"class_mapping": {"9": "x", "7": "y", "3": "z"}},
        {"feature_parameters": {"n_fft": 1}},
        {"fold_names": {1: "ann"}},
    ],
    ids=range(11),
)
def test_fingerprint_is_of_the_values(other: dict[str, Any]) -> None:
    assert fingerprint(**other) == fingerprint()


def test_fingerprint_covers_every_part_of_a_large_file() -> None:
    features = np.zeros((40, 512, 512), np.float16)  # 21 MB, in more than one piece
    folds = np.arange(40) % 4
    prints = [fingerprint(features, folds, folds)]
    for sample in (0, 20, 39):
        features[sample, -1, -1] = 1
        prints.append(fingerprint(features, folds, folds))
    assert len(set(prints)) == 4

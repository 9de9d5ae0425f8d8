"""Small, real data: four classes that a network tells apart after some epochs."""

from __future__ import annotations

import numpy as np

from raykfold.data.feature_set import FeatureSet

CLASSES = {2: "dog", 3: "rain", 5: "siren", 7: "<drill>"}


def small_arrays(n: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, 16, 32), labels among `CLASSES`, folds 1 to 5; a class is a louder band."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, len(CLASSES), n)
    features = rng.normal(size=(n, 16, 32)).astype(np.float32)
    features[np.arange(n), index * 4] += rng.uniform(0.2, 1.2, size=(n, 1)).astype(np.float32)
    return features, np.asarray(list(CLASSES))[index], np.arange(n) % 5 + 1


SHAPES = ("embeddings", "images", "waveforms")


def shaped_data(kind: str, n: int = 120) -> FeatureSet:
    """Return easy data of one of `SHAPES`: (n, 64), uint8 (n, 3, 32, 32) or (n, 8000)."""
    rng = np.random.default_rng(0)
    labels, samples = rng.integers(0, 3, n), np.arange(n)
    if kind == "embeddings":
        features = rng.normal(size=(n, 64)).astype(np.float32)
        features.reshape(n, 8, 8)[samples, labels] += 2
    elif kind == "images":  # a class is a colour
        features = rng.integers(0, 160, (n, 3, 32, 32)).astype(np.uint8)
        features[samples, labels] += 60
    else:  # a class is a pitch
        cycles = np.outer(200 * (labels + 1), np.arange(8000) / 8000)
        features = np.sin(2 * np.pi * cycles + rng.uniform(0, 6, (n, 1))).astype(np.float16)
    return FeatureSet.from_arrays(features, labels, samples % 3)

"""Small, real data for tests: four classes that a network can tell apart after some epochs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from support.outcomes import Outcome, Undisturbed, run

from raykfold.config.credentials import SECRETS
from raykfold.data.feature_set import FeatureSet
from raykfold.data.reading import feature_set_from_arrays, write_feature_set

CLASSES = {2: "dog", 3: "rain", 5: "siren", 7: "<drill>"}


def pytest_configure(config: pytest.Config) -> None:
    """Nobody's login and nobody's cache, before the Hub's client reads its settings: on import."""
    home = tempfile.TemporaryDirectory(prefix="hf_home_")
    config.add_cleanup(home.cleanup)
    os.environ["HF_HOME"] = home.name
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    for secret in SECRETS:
        os.environ.pop(secret, None)


def small_arrays(n: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, 16, 32), labels among `CLASSES`, folds 1 to 5; a class is a louder band."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, len(CLASSES), n)
    features = rng.normal(size=(n, 16, 32)).astype(np.float32)
    features[np.arange(n), index * 4] += rng.uniform(0.2, 1.2, size=(n, 1)).astype(np.float32)
    return features, np.asarray(list(CLASSES))[index], np.arange(n) % 5 + 1


@pytest.fixture(scope="session")
def small_data() -> FeatureSet:
    features, labels, folds = small_arrays()
    return feature_set_from_arrays(features, labels, folds, class_mapping=CLASSES)


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `processed_dir` with the same data."""
    folder = tmp_path_factory.mktemp("small")
    write_feature_set(folder, *small_arrays(), CLASSES, {})
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sounds"
    write_feature_set(folder, *small_arrays(), CLASSES, {"kind": "log_mel"})
    return folder


@pytest.fixture(scope="session")
def undisturbed(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The run that the others are held against."""
    model_dir = tmp_path_factory.mktemp("undisturbed") / "out"
    return Undisturbed(model_dir, run(data_dir, model_dir, "--local_cpus", "2"))


@pytest.fixture
def outcome(undisturbed: Undisturbed) -> Outcome:
    assert undisturbed.done.returncode == 0, undisturbed.done.stderr
    return Outcome.of(undisturbed.model_dir)

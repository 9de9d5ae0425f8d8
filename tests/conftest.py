"""Settings and fixtures of all tests: data sets, and a finished run to compare others with."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from support.outcome import FinishedRun, Outcome
from support.shell import run
from support.small_data import CLASSES, small_arrays

from raykfold.config.environment import SECRETS
from raykfold.data.feature_set import FeatureSet
from raykfold.data.reading import feature_set_from_arrays, write_feature_set


def pytest_configure(config: pytest.Config) -> None:
    """Use no one's login and cache of the Hub, whose client reads these settings on import."""
    home = tempfile.TemporaryDirectory(prefix="hf_home_")
    config.add_cleanup(home.cleanup)
    os.environ["HF_HOME"] = home.name
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    for secret in SECRETS:
        os.environ.pop(secret, None)
    # More threads gain nothing with such small networks, and wait for those of other processes.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_data() -> FeatureSet:
    """The data of `small_arrays`, in memory."""
    return feature_set_from_arrays(*small_arrays(), class_mapping=CLASSES)


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of `small_arrays`, as files."""
    folder = tmp_path_factory.mktemp("small")
    write_feature_set(folder, *small_arrays(), CLASSES, {})
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of `small_arrays`, as files that say how the features were made."""
    folder = tmp_path_factory.mktemp("data") / "sounds"
    write_feature_set(folder, *small_arrays(), CLASSES, {"kind": "log_mel"})
    return folder


@pytest.fixture(scope="session")
def undisturbed(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run of all folds on two workers that nothing disturbs."""
    model_dir = tmp_path_factory.mktemp("undisturbed") / "out"
    return FinishedRun(model_dir, run(data_dir, model_dir, "--local_cpus", "2"))


@pytest.fixture
def outcome(undisturbed: FinishedRun) -> Outcome:
    """The results of the undisturbed run."""
    assert undisturbed.done.returncode == 0, undisturbed.done.stderr
    return Outcome.of(undisturbed.model_dir)

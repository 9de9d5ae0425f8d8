"""Settings and fixtures of all tests: data, an S3 server, and a run to compare others with."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fakes.s3_server import CREDENTIALS, S3Server
from support.outcome import FinishedRun, Outcome
from support.shell import run
from support.small_data import CLASSES, small_arrays

from raykfold.config.environment import SECRETS
from raykfold.data.feature_set import FeatureSet
from raykfold.data.reading import write_feature_set


def pytest_configure(config: pytest.Config) -> None:
    """Set up the process: nobody's login and cache of the Hub, and one thread for torch.

    The Hub's client reads these settings on import.
    """
    home = tempfile.TemporaryDirectory(prefix="hf_home_")
    config.add_cleanup(home.cleanup)
    os.environ["HF_HOME"] = home.name
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    for secret in SECRETS:
        os.environ.pop(secret, None)
    # As in a worker. Two threads gain nothing on small data, and wait for each other while a
    # test's other processes take a core.
    torch.set_num_threads(1)
    # A shell that starts the tests in the background has told them to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def small_data() -> FeatureSet:
    """The data of `small_arrays`, in memory."""
    return FeatureSet.from_arrays(*small_arrays(), class_mapping=CLASSES)


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A server that all tests share, for which this process has no credentials yet."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The S3 server with an empty bucket and no faults; credentials are in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    s3_server.clear()
    yield s3_server
    s3_server.faults.clear()

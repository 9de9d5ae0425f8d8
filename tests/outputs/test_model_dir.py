"""The outputs in model_dir, as they come into being."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raykfold.config.run_config import RunConfig
from raykfold.files.atomic import write_file
from raykfold.observers import RunStart
from raykfold.outputs.model_dir import ModelDirWriter
from raykfold.training.results import EpochMetrics, FoldResult


def epoch(number: int, accuracy: float) -> EpochMetrics:
    figures = {"val_balanced_accuracy": 0.6, "val_macro_f1": 0.5}
    return EpochMetrics(number, 1.0, 0.5, 1.0, accuracy, 0.001, 1.0, **figures)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(run_name="run", model_dir=tmp_path, epochs=4)


def trained(config: RunConfig, fold: int, number: int, content: bytes) -> None:
    """What a worker leaves of an epoch."""
    weights = config.run_dir.epoch_weights(fold, number)
    write_file(weights, content)


def state(config: RunConfig, fold: int) -> dict[str, object]:
    rows = json.loads(config.outputs.training_state.read_text())["folds"]
    row: dict[str, object] = rows[str(fold)]
    return row


def test_the_best_weights_are_there_while_the_fold_trains(config: RunConfig) -> None:
    writer = ModelDirWriter(config)
    writer.run_started(RunStart("run", 4, (1,), {}))
    best = []
    for number, accuracy in enumerate((0.5, 0.7, 0.7, 0.6)):
        trained(config, 1, number, f"epoch {number}".encode())
        writer.epoch_committed(1, epoch(number, accuracy))
        assert config.outputs.epoch_weights(1, number).read_text() == f"epoch {number}"
        best.append(config.outputs.best_weights(1).read_text())
    assert best == ["epoch 0", "epoch 1", "epoch 1", "epoch 1"]
    writer.time_passed()
    assert state(config, 1) == {
        "status": "running",
        "epochs_done": 4,
        "best_epoch": 1,
        "best_val_accuracy": 0.7,
        "kept_val_balanced_accuracy": 0.6,
        "kept_val_macro_f1": 0.5,
    }


def test_an_epoch_that_was_trained_again_takes_its_place(config: RunConfig) -> None:
    writer = ModelDirWriter(config)
    writer.run_started(RunStart("run", 4, (1,), {}))
    for number, accuracy, content in ((0, 0.5, b"a"), (1, 0.7, b"b"), (1, 0.4, b"c")):
        trained(config, 1, number, content)
        writer.epoch_committed(1, epoch(number, accuracy))
    assert config.outputs.epoch_weights(1, 1).read_bytes() == b"c"
    assert config.outputs.best_weights(1).read_bytes() == b"a"
    writer.time_passed()
    assert state(config, 1)["epochs_done"] == 2


def test_what_a_kill_kept_from_being_copied_is_copied_on_resume(config: RunConfig) -> None:
    histories = {1: (epoch(0, 0.5), epoch(1, 0.6))}
    finished = FoldResult.of(2, "complete", 8, 2, (epoch(0, 0.9),))
    for fold, number in ((1, 0), (1, 1), (2, 0)):
        trained(config, fold, number, f"{fold} {number}".encode())
    ModelDirWriter(config).run_started(RunStart("run", 4, (1, 2), histories, {2: finished}))
    assert config.outputs.best_weights(1).read_text() == "1 1"
    assert config.outputs.best_weights(2).read_text() == "2 0"
    assert config.outputs.epoch_weights(1, 0).read_text() == "1 0"
    assert (state(config, 1)["status"], state(config, 2)["status"]) == ("running", "complete")


def test_a_failed_fold_says_why_and_keeps_what_it_had(config: RunConfig) -> None:
    writer = ModelDirWriter(config)
    writer.run_started(RunStart("run", 4, (1,), {}))
    trained(config, 1, 0, b"a")
    writer.epoch_committed(1, epoch(0, 0.5))
    failed = FoldResult.of(1, "failed", 8, 2, (epoch(0, 0.5),), error="unplugged")
    writer.fold_finished(failed)
    writer.time_passed()
    assert state(config, 1)["error"] == "unplugged"
    assert config.outputs.best_weights(1).read_bytes() == b"a"

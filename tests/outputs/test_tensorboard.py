"""Event files, read back: each epoch once, whatever came between."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.event_files import events, scalars
from support.run_folder import complete, failed, history

from raykfold.config.run_config import RunConfig
from raykfold.observers import Audience, Observer, RunStart
from raykfold.outputs.tensorboard import TensorBoard
from raykfold.training.results import (
    ByRecording,
    EpochMetrics,
    OutOfFoldMetrics,
    RecordingsOfFold,
    Summary,
)

NAMES = {
    *("train/loss", "train/accuracy", "lr", "epoch_seconds"),
    *("val/loss", "val/accuracy", "val/balanced_accuracy", "val/macro_f1"),
}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(run_name="run", model_dir=tmp_path / "out", epochs=5)


@pytest.fixture
def folder(config: RunConfig) -> Path:
    return config.outputs.tensorboard


def steps(folder: Path, fold: int) -> list[int]:
    return [step for step, _ in scalars(folder / f"fold_{fold}").get("val/accuracy", [])]


def train(board: Observer, fold: int, epochs: range) -> None:
    for metrics in history(epochs.stop)[epochs.start :]:
        board.epoch_committed(fold, metrics)


def test_an_epoch_is_there_as_soon_as_it_is_committed(config: RunConfig, folder: Path) -> None:
    board = TensorBoard(config)
    board.run_started(RunStart("run", 5, (1, 2), {}))
    for number, metrics in enumerate(history(3)):
        board.epoch_committed(1, metrics)
        found = scalars(folder / "fold_1")
        assert found.keys() == NAMES
        assert found["val/accuracy"][-1] == (number, pytest.approx(metrics.val_accuracy))
    assert found["train/loss"] == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert found["lr"][0] == (0, pytest.approx(0.001))
    assert steps(folder, 2) == []
    board.close()


def test_a_later_session_doubles_no_epoch(config: RunConfig, folder: Path) -> None:
    first = TensorBoard(config)
    first.run_started(RunStart("run", 5, (1, 2), {}))
    train(first, 1, range(3))  # and a kill, after which the newest epoch was not on storage
    train(first, 2, range(5))
    second = TensorBoard(config)
    second.run_started(RunStart("run", 5, (1, 2), {1: history(2)}, {2: complete(2)}))
    assert steps(folder, 1) == [0, 1]
    train(second, 1, range(2, 5))
    second.close()
    assert steps(folder, 1) == steps(folder, 2) == [0, 1, 2, 3, 4]
    first.close()


def test_epochs_of_before_lie_as_far_apart_as_they_took(config: RunConfig, folder: Path) -> None:
    board = TensorBoard(config)
    board.run_started(RunStart("run", 5, (1,), {1: history(3)}))
    board.close()
    times = [each.wall_time for each in events(folder / "fold_1") if each.summary.value]
    assert times[-1] - times[-2] == pytest.approx(history(1)[0].seconds)


def test_an_epoch_that_is_trained_again_takes_the_place_of_the_first(
    config: RunConfig, folder: Path
) -> None:
    """TensorBoard forgets what it has read of a step and later ones when a session starts there."""
    board = TensorBoard(config)
    board.run_started(RunStart("run", 5, (1,), {}))
    train(board, 1, range(3))
    train(board, 1, range(1, 3))
    board.close()
    kept: list[int] = []
    for event in events(folder / "fold_1"):
        if event.HasField("session_log"):
            assert event.session_log.status == event.session_log.START
            kept = [step for step in kept if step < event.step]
        elif any(value.tag == "val/loss" for value in event.summary.value):
            kept.append(event.step)
    assert kept == [0, 1, 2]


def test_folds_of_another_session_stay(config: RunConfig, folder: Path) -> None:
    for fold in (1, 2):
        board = TensorBoard(config)
        board.run_started(RunStart("run", 5, (fold,), {}))
        train(board, fold, range(2))
        board.close()
    assert steps(folder, 1) == steps(folder, 2) == [0, 1]


def test_what_a_fold_was_trained_with_is_shown(config: RunConfig, folder: Path) -> None:
    board = TensorBoard(config)
    board.run_started(RunStart("run", 5, (1,), {}))
    board.close()
    tags = {value.tag for event in events(folder / "fold_1") for value in event.summary.value}
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= tags
    written = next((folder / "fold_1").iterdir()).read_bytes()
    assert b"learning_rate" in written and str(config.model_dir).encode() not in written


def test_the_mean_is_there_once_a_run_is_complete(config: RunConfig, folder: Path) -> None:
    board = TensorBoard(config)
    for results in ((complete(1), failed(2, "no")), (complete(1), complete(2))):
        board.run_started(RunStart("run", 5, (1, 2), {}))
        for result in results:
            board.fold_finished(result)
        board.run_finished(Summary("run", results, None, {0: "a"}, 1.0, 2))
        board.close()
        assert (folder / "summary").exists() == (results[1].status == "complete")
    found = scalars(folder / "summary")
    assert found["best/mean_accuracy"] == [(0, pytest.approx(0.54))]
    assert {"best/std_accuracy", "last/mean_accuracy", "last/std_accuracy"} <= found.keys()
    assert found["best/mean_balanced_accuracy"] == [(0, pytest.approx(0.44))]
    assert found["best/mean_macro_f1"] == [(0, pytest.approx(0.34))]
    assert {"best/std_balanced_accuracy", "best/std_macro_f1"} <= found.keys()
    assert "chosen/mean_accuracy" not in found  # there is no inner split
    assert not any(name.startswith("pooled/") or "recording" in name for name in found)


def test_figures_of_all_samples_are_there_if_they_are_known(
    config: RunConfig, folder: Path
) -> None:
    pooled = OutOfFoldMetrics(0.7, (0.6, 0.8), (), ((6, 2), (1, 1)))
    board = TensorBoard(config)
    by_recording = ByRecording((RecordingsOfFold(1, 4, 0.75, 0.7, 0.6),), pooled)
    names = {0: "a", 1: "b"}
    board.run_finished(
        Summary("run", (complete(1),), pooled, names, 1.0, 2, by_recording=by_recording)
    )
    found = {name: rows[0][1] for name, rows in scalars(folder / "summary").items()}
    assert found["best/mean_accuracy_by_recording"] == 0.75
    assert found["pooled/accuracy"] == pytest.approx(0.7)
    assert found["pooled/balanced_accuracy"] == pytest.approx((6 / 8 + 1 / 2) / 2)
    assert found["pooled/macro_f1"] == pytest.approx((12 / 15 + 2 / 5) / 2)


class Notes(Observer):
    def __init__(self) -> None:
        self.told: list[str] = []
        self.epochs = 0

    def noticed(self, text: str) -> None:
        self.told.append(text)

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self.epochs += 1


def test_training_goes_on_without_files_that_cannot_be_written(
    config: RunConfig, folder: Path
) -> None:
    folder.parent.mkdir()
    folder.touch()
    notes = Notes()
    audience = Audience([TensorBoard(config), notes])
    audience.run_started(RunStart("run", 5, (1,), {}))
    train(audience, 1, range(2))
    audience.close()
    assert notes.epochs == 2
    assert len(notes.told) == 1 and "TensorBoard failed and is not told any more" in notes.told[0]

"""What a run knows of its folds, without Ray: rounds come in as values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.files.atomic import write_folder
from raykfold.observers import Observer
from raykfold.state.deaths import Death
from raykfold.state.ledger import Ledger
from raykfold.state.record import EarlierRun, identity
from raykfold.training.results import EpochMetrics, FoldResult, Round


class Notes(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self.told.append((fold, metrics.epoch))

    def fold_finished(self, result: FoldResult) -> None:
        self.told.append((result.fold, result.status, result.error))

    def noticed(self, text: str) -> None:
        self.told.append(text)


def epoch(number: int, accuracy: float = 0.5) -> EpochMetrics:
    return EpochMetrics(number, 1.0, 0.5, 1.0, accuracy, 0.001, 1.0)


def new_ledger(folder: Path, data: FeatureSet, **changes: Any) -> tuple[Ledger, Notes]:
    notes = Notes()
    config = RunConfig(**{"run_name": "run", "model_dir": folder, "epochs": 5, **changes})
    ledger = Ledger(EarlierRun.read(config), data, (1, 2), notes)
    ledger.find_states()
    ledger.begin(identity(config, data.fingerprint, "cpu x1"))
    ledger.waiting = set()  # both are at work
    return ledger, notes


def test_a_committed_round_is_in_the_index_before_anybody_hears_of_it(
    tmp_path: Path, small_data: FeatureSet
) -> None:
    ledger, notes = new_ledger(tmp_path, small_data)
    index = tmp_path / "ray" / "run" / "index.json"

    def look(fold: int, metrics: EpochMetrics) -> None:
        notes.told.append(json.loads(index.read_text())["folds"])

    notes.epoch_committed = look  # type: ignore[method-assign]
    ledger.take_in([(Round(1, epochs={1: epoch(0)}, saved=(1,)), "/storage/checkpoint_1")])
    assert notes.told == [{"1": "/storage/checkpoint_1/fold_1"}]
    assert ledger.origins([1, 2]) == {1: Path("/storage/checkpoint_1/fold_1")}
    assert (ledger.epochs_left(1), ledger.epochs_left(2)) == (4, 5)


def put_state(folder: Path, fold: int, epochs: int) -> Path:
    """A whole checkpoint of a fold, as far as the ledger looks into it."""
    history = tuple(epoch(number) for number in range(epochs))
    result = FoldResult.of(fold, "running", 192, 48, history)
    facts = {"fold": fold, "epochs_run": epochs, "stopped_early": False}
    write_folder(folder, {"history.json": json.dumps(result.to_json()).encode()}, facts)
    return folder.parent


def test_a_round_without_a_checkpoint_leaves_the_newest_state_where_it_is(
    tmp_path: Path, small_data: FeatureSet
) -> None:
    ledger, _ = new_ledger(tmp_path, small_data)
    first = put_state(tmp_path / "ray/run/shares/a/checkpoint_1/fold_1", 1, epochs=1)
    ledger.take_in([(Round(1, epochs={1: epoch(0)}, saved=(1,)), str(first))])
    ledger.take_in([(Round(2, epochs={1: epoch(1)}), None)])
    assert ledger.epochs_left(1) == 3
    ledger.take_back(1, Death("killed"))
    assert ledger.origins([1]) == {1: first / "fold_1"}
    ledger.take_in([(Round(1, epochs={1: epoch(1)}), None)])  # trained again, and counted once
    assert ledger.epochs_left(1) == 3


def test_a_dead_share_can_have_left_more_than_it_could_say(
    tmp_path: Path, small_data: FeatureSet
) -> None:
    ledger, notes = new_ledger(tmp_path, small_data)
    first = put_state(tmp_path / "ray/run/shares/a/checkpoint_1/fold_1", 1, epochs=1)
    ledger.take_in([(Round(1, epochs={1: epoch(0)}, saved=(1,)), str(first))])
    second = put_state(tmp_path / "ray/run/shares/a/checkpoint_2/fold_1", 1, epochs=2)
    ledger.take_back(1, Death("killed"))
    assert ledger.origins([1]) == {1: second / "fold_1"}
    assert ledger.epochs_left(1) == 3
    assert notes.told == [(1, 0), (1, 1)]


def test_a_damaged_state_is_passed_over_when_its_share_has_died(
    tmp_path: Path, small_data: FeatureSet
) -> None:
    ledger, notes = new_ledger(tmp_path, small_data)
    first = put_state(tmp_path / "ray/run/shares/a/checkpoint_1/fold_1", 1, epochs=1)
    second = put_state(tmp_path / "ray/run/shares/a/checkpoint_2/fold_1", 1, epochs=2)
    ledger.take_in([(Round(1, epochs={1: epoch(0)}, saved=(1,)), str(first))])
    ledger.take_in([(Round(2, epochs={1: epoch(1)}, saved=(1,)), str(second))])
    (second / "fold_1" / "history.json").write_bytes(b"")
    ledger.take_back(1, Death("killed"))
    assert ledger.origins([1]) == {1: first / "fold_1"}
    assert any("passed over a damaged checkpoint" in str(note) for note in notes.told)


def test_a_fold_whose_worker_dies_waits_again_until_it_has_died_too_often(
    tmp_path: Path, small_data: FeatureSet
) -> None:
    ledger, notes = new_ledger(tmp_path, small_data, max_failures=2)
    ledger.take_back(1, Death("out of memory"))
    assert ledger.waiting == {1}
    ledger.waiting.clear()
    saved = put_state(tmp_path / "ray/run/shares/a/checkpoint_1/fold_1", 1, epochs=1)
    ledger.take_in([(Round(1, epochs={1: epoch(0)}, saved=(1,)), str(saved))])  # counted anew
    ledger.take_back(1, Death("out of memory"))
    ledger.take_back(1, None)  # no place for it: that is no death
    assert ledger.waiting == {1}
    ledger.waiting.clear()
    ledger.take_back(1, Death("out of memory"))
    assert ledger.waiting == set()
    fold, status, error = notes.told[-1]
    assert (fold, status) == (1, "failed")
    assert "died 2 times in a row" in error and "out of memory" in error


def test_a_fold_whose_worker_dies_twice_in_one_epoch_is_quarantined(
    tmp_path: Path, small_data: FeatureSet
) -> None:
    ledger, notes = new_ledger(tmp_path, small_data, max_failures=9)
    ledger.take_back(1, Death("segfault", epoch=0))
    ledger.take_back(1, None)  # its node died: that is no death of the fold's
    assert ledger.waiting == {1}
    saved = put_state(tmp_path / "ray/run/shares/a/checkpoint_1/fold_1", 1, epochs=1)
    ledger.take_in([(Round(1, epochs={1: epoch(0)}, saved=(1,)), str(saved))])
    ledger.take_back(1, Death("segfault", epoch=1))
    ledger.waiting.clear()
    ledger.take_back(1, Death("segfault", epoch=1))
    assert ledger.waiting == set()
    fold, status, error = notes.told[-1]
    assert (fold, status) == (1, "failed")
    assert error == "quarantined: its worker died 2 times in epoch 2; the last: segfault"


def test_a_fold_given_back_before_its_first_epoch_starts_anew(
    tmp_path: Path, small_data: FeatureSet
) -> None:
    ledger, _ = new_ledger(tmp_path, small_data)
    ledger.take_in([(Round(1, released=(1,)), None)])
    assert ledger.waiting == {1}
    assert ledger.origins([1]) == {}


def test_a_fold_that_is_handed_over_lies_where_ray_deletes_nothing(
    tmp_path: Path, small_data: FeatureSet
) -> None:
    ledger, _ = new_ledger(tmp_path, small_data)
    ledger.take_in([(Round(1, epochs={1: epoch(0)}, released=(1,), handed_over=(1,)), None)])
    assert ledger.origins([1]) == {1: tmp_path / "ray" / "run" / "handed_over" / "fold_1"}
    assert ledger.waiting == {1}


def test_released_folds_wait_and_failed_ones_do_not(tmp_path: Path, small_data: FeatureSet) -> None:
    ledger, notes = new_ledger(tmp_path, small_data)
    ledger.take_in([(Round(1, failed={1: "loss became nan"}, released=(2,)), None)])
    assert ledger.waiting == {2}
    assert notes.told == [(1, "failed", "loss became nan")]


def test_a_failed_fold_keeps_its_history_and_its_best_epoch(
    tmp_path: Path, small_data: FeatureSet
) -> None:
    ledger, _ = new_ledger(tmp_path, small_data)
    for number, accuracy in enumerate((0.4, 0.6, 0.6)):
        ledger.take_in([(Round(number + 1, epochs={1: epoch(number, accuracy)}), None)])
    ledger.fail(1, "no")
    ledger.fail(2, "nor this")
    summary = ledger.conclude()
    assert summary.status == "partial"
    assert summary.folds[0].best_epoch == 1
    assert summary.folds[0].best_val_accuracy == 0.6
    assert summary.folds[1].best_val_accuracy is None
    assert summary.oof_accuracy is None
    assert (summary.folds[0].n_train, summary.folds[0].n_val) == (192, 48)


def test_sessions_are_counted(tmp_path: Path, small_data: FeatureSet) -> None:
    new_ledger(tmp_path, small_data)
    ledger, _ = new_ledger(tmp_path, small_data)
    for fold in (1, 2):
        ledger.fail(fold, "no")
    assert ledger.conclude().sessions == 2


def test_a_summary_of_before_does_not_stand_for_a_run_that_goes_on(
    tmp_path: Path, small_data: FeatureSet
) -> None:
    (tmp_path / "summary.json").write_text("{}")
    new_ledger(tmp_path, small_data)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("content", [b"", b"not json"])
def test_a_state_that_cannot_be_read_is_said_and_its_fold_starts_anew(
    tmp_path: Path, small_data: FeatureSet, content: bytes
) -> None:
    folder = tmp_path / "ray" / "run" / "shares" / "a" / "checkpoint_1" / "fold_1"
    put_state(folder, 1, epochs=1)
    (folder / "manifest.json").write_bytes(content)
    ledger, notes = new_ledger(tmp_path, small_data)
    assert any("fold 1: passed over a damaged checkpoint" in str(note) for note in notes.told)
    assert ledger.origins([1]) == {}

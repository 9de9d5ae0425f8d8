"""The outputs in `model_dir`: weights and the state of training, while the run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raykfold.config.run_config import RunConfig
from raykfold.files.atomic import is_linked, link_file, write_json
from raykfold.files.remote import Place
from raykfold.observers import Observer, RunStart
from raykfold.training.results import EpochMetrics, FoldResult, Summary


class ModelDirWriter(Observer):
    """Copies weights from storage to `model_dir`, and keeps ``training_state.json`` up to date.

    Raises `StorageError` from any call when the disk is full. That ends the run, because a missing
    output would be noticed too late.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._results: dict[int, FoldResult] = {}  # so far
        self._written: dict[int, FoldResult] = {}

    def run_started(self, start: RunStart) -> None:
        for fold in start.folds:
            result = start.finished.get(fold) or _running(fold, start.histories.get(fold, ()))
            self._copy(result, result.history)
        self._write_state()

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        # An epoch trained again after a worker died replaces what it was before.
        before = self._results[fold].history if fold in self._results else ()
        self._copy(_running(fold, [*before[: metrics.epoch], metrics]), [metrics])

    def fold_finished(self, result: FoldResult) -> None:
        self._copy(result, result.history)

    def time_passed(self) -> None:
        """Write the state once for all epochs since the last call: many folds end one at once."""
        if self._results != self._written:
            self._write_state()

    def close(self) -> None:
        self.time_passed()

    def run_finished(self, summary: Summary) -> None:
        # Again, in case of a kill between the last epoch and its copy.
        for result in summary.folds:
            self._copy(result, result.history)
        self._write_state()

    def _copy(self, result: FoldResult, epochs: Iterable[EpochMetrics]) -> None:
        """Copy the weights of `epochs`; the best weights are those of the kept epoch so far."""
        storage, outputs, fold = self._config.run_dir, self._config.outputs, result.fold
        for each in epochs:
            _link(storage.epoch_weights(fold, each.epoch), outputs.epoch_weights(fold, each.epoch))
        if result.kept_epoch is not None:
            _link(outputs.epoch_weights(fold, result.kept_epoch), outputs.best_weights(fold))
        self._results[fold] = result

    def _write_state(self) -> None:
        write_json(
            self._config.outputs.training_state,
            {
                "run_name": self._config.run_name,
                "epochs": self._config.epochs,
                "folds": {str(fold): _row(self._results[fold]) for fold in sorted(self._results)},
            },
        )
        self._written = dict(self._results)


def _running(fold: int, history: Sequence[EpochMetrics]) -> FoldResult:
    return FoldResult.of(fold, "running", n_train=0, n_val=0, history=history)


def _row(result: FoldResult) -> dict[str, Any]:
    """Return the fold's row in ``training_state.json``."""
    row: dict[str, Any] = {
        "status": result.status,
        "epochs_done": result.epochs_run,
        "best_epoch": result.best_epoch,
        "best_val_accuracy": result.best_val_accuracy,
    }
    if result.chosen_epoch is not None:
        row |= {name: getattr(result, name) for name in ("chosen_epoch", "chosen_val_accuracy")}
    if result.kept_epoch is not None:
        kept = ("kept_val_balanced_accuracy", "kept_val_macro_f1")
        row |= {name: getattr(result, name) for name in kept}
    return row | ({"error": result.error} if result.error else {})


def _link(source: Place, target: Path) -> None:
    with suppress(FileNotFoundError):
        if not is_linked(source, target):
            link_file(source, target)

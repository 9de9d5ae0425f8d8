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
from raykfold.training.results import (
    EpochMetrics,
    FoldResult,
    FoldStatus,
    Summary,
    best_of,
    kept_of,
)


class ModelDirWriter(Observer):
    """Copies weights from storage to `model_dir`, and keeps ``training_state.json`` up to date.

    Raises `StorageError` from any call when the disk is full. That ends the run, because a missing
    output would be noticed too late.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._histories: dict[int, list[EpochMetrics]] = {}
        self._state: dict[int, dict[str, Any]] = {}
        self._written: dict[int, dict[str, Any]] = {}

    def run_started(self, start: RunStart) -> None:
        for fold in start.folds:
            if fold in start.finished:
                self._copy_fold(start.finished[fold])
            else:
                history = start.histories.get(fold, ())
                self._copy(fold, history, [metrics.epoch for metrics in history])
        self._write_state()

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        # An epoch trained again after a worker died replaces what it was before.
        history = [*self._histories.get(fold, [])[: metrics.epoch], metrics]
        self._copy(fold, history, [metrics.epoch])

    def fold_finished(self, result: FoldResult) -> None:
        self._copy_fold(result)

    def time_passed(self) -> None:
        """Write the state once for all epochs since the last call: many folds end one at once."""
        if self._state != self._written:
            self._write_state()

    def close(self) -> None:
        self.time_passed()

    def run_finished(self, summary: Summary) -> None:
        # Again, in case of a kill between the last epoch and its copy.
        for result in summary.folds:
            self._copy_fold(result)
        self._write_state()

    def _copy_fold(self, result: FoldResult) -> None:
        epochs = [metrics.epoch for metrics in result.history]
        self._copy(result.fold, result.history, epochs, result.status, result.error)

    def _copy(
        self,
        fold: int,
        history: Sequence[EpochMetrics],
        epochs: Iterable[int],
        status: FoldStatus = "running",
        error: str | None = None,
    ) -> None:
        """Copy the weights of `epochs`; the best weights are those of the kept epoch so far."""
        storage, outputs = self._config.run_dir, self._config.outputs
        for epoch in epochs:
            _link(storage.epoch_weights(fold, epoch), outputs.epoch_weights(fold, epoch))
        best, kept = best_of(history), kept_of(history)
        if kept is not None:
            _link(outputs.epoch_weights(fold, kept.epoch), outputs.best_weights(fold))
        state: dict[str, Any] = {
            "status": status,
            "epochs_done": len(history),
            "best_epoch": None if best is None else best.epoch,
            "best_val_accuracy": None if best is None else best.val_accuracy,
        }
        if kept is not None and kept.inner_accuracy is not None:
            state |= {"chosen_epoch": kept.epoch, "chosen_val_accuracy": kept.val_accuracy}
        if error:
            state["error"] = error
        self._histories[fold], self._state[fold] = list(history), state

    def _write_state(self) -> None:
        write_json(
            self._config.outputs.training_state,
            {
                "run_name": self._config.run_name,
                "epochs": self._config.epochs,
                "folds": {str(fold): row for fold, row in sorted(self._state.items())},
            },
        )
        self._written = dict(self._state)


def _link(source: Place, target: Path) -> None:
    with suppress(FileNotFoundError):
        if not is_linked(source, target):
            link_file(source, target)

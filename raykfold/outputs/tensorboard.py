"""An observer: TensorBoard's event files, one folder a fold.

    tensorboard --logdir MODEL_DIR/tensorboard

At the start of a session each fold's file is written anew from its history, so that no epoch is
there twice, whatever a kill has left. The names are those that W&B shows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raykfold.files.atomic import remove_tree
from raykfold.files.paths import ModelDir, fold_name
from raykfold.observers import Observer, RunStart
from raykfold.outputs.wandb_runs import scalars
from raykfold.training.results import EpochMetrics, FoldResult, Summary

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

# Of what a run is told: what its results depend on.
_SHOWN = (
    *("epochs", "batch_size", "learning_rate", "early_stopping_patience"),
    *("seed", "model", "precision"),
)
_SUMMARY = "summary"


class TensorBoard(Observer):
    """Writes each fold's epochs below `outputs.tensorboard`, where TensorBoard sees them at once.

    Raises `OSError` when a file cannot be written, as observers may: the run goes on without.

    Args:
        outputs: the run's.
        config: plain values; shown with each fold, as far as results depend on them.
    """

    def __init__(self, outputs: ModelDir, config: Mapping[str, Any]) -> None:
        self._folder = outputs.tensorboard
        shown = {name: config[name] for name in _SHOWN if name in config}
        self._parameters = {name: value for name, value in shown.items() if value is not None}
        self._files: dict[int, EventsWriter] = {}
        self._steps: dict[int, int] = {}  # fold → epochs that its file holds

    def run_started(self, start: RunStart) -> None:
        remove_tree(self._folder / _SUMMARY)
        for fold in start.folds:
            remove_tree(self._folder / fold_name(fold))
            finished = start.finished.get(fold)
            self._begin(fold, finished.history if finished else start.histories.get(fold, ()))
            if finished:
                self._end(fold)

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        if metrics.epoch < self._steps[fold]:  # trained again after a death
            self._write(fold, step=metrics.epoch, session_log=_start_of_session())
        self._add(fold, metrics, time.time())
        self._files[fold].flush()

    def fold_finished(self, result: FoldResult) -> None:
        self._end(result.fold)

    def run_finished(self, summary: Summary) -> None:
        estimates = {"chosen": summary.chosen, "best": summary.best, "last": summary.last}
        known = {
            f"{which}/{name}_accuracy": value
            for which, each in estimates.items()
            if each is not None
            for name, value in (("mean", each.mean), ("std", each.std))
            if name == "mean" or len(summary.folds) > 1
        }
        if known:
            file = self._new_file(_SUMMARY)
            file.write_event(_event(time.time(), 0, summary=_summary(known)))
            file.close()

    def close(self) -> None:
        for fold in list(self._files):
            self._end(fold)

    def _begin(self, fold: int, history: Sequence[EpochMetrics]) -> None:
        from tensorboardX.summary import hparams

        self._files[fold], self._steps[fold] = self._new_file(fold_name(fold)), 0
        # One that has read the file of an earlier session forgets it.
        self._write(fold, step=0, session_log=_start_of_session())
        compared = dict.fromkeys(("val/accuracy", "val/loss"), 0.0)
        for part in hparams({**self._parameters, "fold": fold}, compared)[:2]:
            self._write(fold, step=0, summary=part)
        # When an epoch ended is not in a history, but how long it took.
        ended = time.time() - sum(metrics.seconds for metrics in history)
        for metrics in history:
            ended += metrics.seconds
            self._add(fold, metrics, ended)
        self._files[fold].flush()

    def _add(self, fold: int, metrics: EpochMetrics, when: float) -> None:
        self._write(fold, metrics.epoch, when, summary=_summary(scalars(metrics)))
        self._steps[fold] = metrics.epoch + 1

    def _write(self, fold: int, step: int, when: float | None = None, **what: Any) -> None:
        self._files[fold].write_event(_event(when or time.time(), step, **what))

    def _end(self, fold: int) -> None:
        if fold in self._files:
            self._files.pop(fold).close()

    def _new_file(self, name: str) -> EventsWriter:
        # Not its SummaryWriter: that has a thread and a queue for each file, and its `flush`
        # leaves behind what is still queued.
        from tensorboardX.event_file_writer import EventsWriter

        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return EventsWriter(str(folder / "events"))


def _event(when: float, step: int, **what: Any) -> Any:
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=when, step=step, **what)


def _summary(values: Mapping[str, float]) -> Any:
    from tensorboardX.proto.summary_pb2 import Summary

    return Summary(
        value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    )


def _start_of_session() -> Any:
    """Tells TensorBoard to forget what it has read of this step and later ones."""
    from tensorboardX.proto.event_pb2 import SessionLog

    return SessionLog(status=SessionLog.START)

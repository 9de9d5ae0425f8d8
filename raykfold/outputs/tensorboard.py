"""TensorBoard event files of a run, in one folder for each fold.

    tensorboard --logdir MODEL_DIR/tensorboard

Each session rewrites the file of a fold from its history, so no epoch appears twice after a kill.
Metrics have the same names as in W&B.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raykfold.config.run_config import RunConfig
from raykfold.files.atomic import remove_tree
from raykfold.files.paths import fold_name
from raykfold.observers import Observer, RunStart
from raykfold.outputs.wandb_runs import scalars
from raykfold.training.results import FIGURES, EpochMetrics, FoldResult, Summary

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

_SUMMARY = "summary"


class TensorBoard(Observer):
    """Writes each epoch below `config.outputs.tensorboard`, where TensorBoard sees it at once.

    Raises `OSError` if a file cannot be written; the run then continues without this observer.
    """

    def __init__(self, config: RunConfig) -> None:
        self._folder = config.outputs.tensorboard
        known = config.hyperparameters().items()
        self._hyperparameters = {name: value for name, value in known if value is not None}
        self._files: dict[int, EventsWriter] = {}
        self._epochs: dict[int, int] = {}  # fold → epochs in its file

    def run_started(self, start: RunStart) -> None:
        remove_tree(self._folder / _SUMMARY)
        for fold in start.folds:
            remove_tree(self._folder / fold_name(fold))
            finished = start.finished.get(fold)
            self._begin(fold, finished.history if finished else start.histories.get(fold, ()))
            if finished:
                self._end(fold)

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        if metrics.epoch < self._epochs[fold]:  # trained again after a worker died
            self._write(fold, metrics.epoch, session_log=_session_start())
        self._add(fold, metrics, time.time())
        self._files[fold].flush()

    def fold_finished(self, result: FoldResult) -> None:
        self._end(result.fold)

    def run_finished(self, summary: Summary) -> None:
        estimates = {"chosen": summary.chosen, "best": summary.best, "last": summary.last}
        values = {}
        for epochs, estimate in estimates.items():
            if estimate is not None:
                values[f"{epochs}/mean_accuracy"] = estimate.mean
                if len(summary.folds) > 1:
                    values[f"{epochs}/std_accuracy"] = estimate.std
        for figure in FIGURES:
            estimate, kept = summary.over_folds(figure), summary.kept_epochs
            if figure != "accuracy" and estimate is not None:
                values[f"{kept}/mean_{figure}"] = estimate.mean
                if len(summary.folds) > 1:
                    values[f"{kept}/std_{figure}"] = estimate.std
            pooled = summary.out_of_fold
            if pooled is not None and (value := pooled.figure(figure)) is not None:
                values[f"pooled/{figure}"] = value
        if (by_recording := summary.recordings_over_folds()) is not None:
            values[f"{summary.kept_epochs}/mean_accuracy_by_recording"] = by_recording.mean
        if values:
            file = self._new_file(_SUMMARY)
            file.write_event(_event(time.time(), 0, summary=_scalar_summary(values)))
            file.close()

    def close(self) -> None:
        for fold in list(self._files):
            self._end(fold)

    def _begin(self, fold: int, history: Sequence[EpochMetrics]) -> None:
        from tensorboardX.summary import hparams

        self._files[fold], self._epochs[fold] = self._new_file(fold_name(fold)), 0
        # A TensorBoard that has read the file of an earlier session forgets it.
        self._write(fold, 0, session_log=_session_start())
        metrics_to_compare = {f"val/{name}": 0.0 for name in (*FIGURES, "loss")}
        for part in hparams({**self._hyperparameters, "fold": fold}, metrics_to_compare)[:2]:
            self._write(fold, 0, summary=part)
        # A history does not say when an epoch ended, only how long it took.
        ended = time.time() - sum(metrics.seconds for metrics in history)
        for metrics in history:
            ended += metrics.seconds
            self._add(fold, metrics, ended)
        self._files[fold].flush()

    def _add(self, fold: int, metrics: EpochMetrics, when: float) -> None:
        self._write(fold, metrics.epoch, when, summary=_scalar_summary(scalars(metrics)))
        self._epochs[fold] = metrics.epoch + 1

    def _write(self, fold: int, step: int, when: float | None = None, **content: Any) -> None:
        self._files[fold].write_event(_event(when or time.time(), step, **content))

    def _end(self, fold: int) -> None:
        if fold in self._files:
            self._files.pop(fold).close()

    def _new_file(self, name: str) -> EventsWriter:
        # Not SummaryWriter, which has a thread and a queue for each file, and whose `flush` does
        # not write what is still in the queue.
        from tensorboardX.event_file_writer import EventsWriter

        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return EventsWriter(str(folder / "events"))


def _event(when: float, step: int, **content: Any) -> Any:
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=when, step=step, **content)


def _scalar_summary(values: Mapping[str, float]) -> Any:
    from tensorboardX.proto.summary_pb2 import Summary

    return Summary(
        value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    )


def _session_start() -> Any:
    """Return what makes TensorBoard forget what it has read of this step and later ones."""
    from tensorboardX.proto.event_pb2 import SessionLog

    return SessionLog(status=SessionLog.START)

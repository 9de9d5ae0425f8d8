"""Scores of a trial: the mean over its folds at equal epochs. Without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raykfold.observers import Observer, RunStart
from raykfold.training.results import EpochMetrics, Figure, FoldResult, kept_of
from raykfold.training.statistics import mean_accuracy


@dataclass(frozen=True)
class Score:
    """What a trial has reached once each of its folds has completed `epoch` epochs.

    Attributes:
        epoch: from 1; a fold that stopped early counts with its last epoch.
        folds: fold → accuracy, or the figure that is monitored, on the held-out samples, of the
            epoch whose weights it would keep by then.
    """

    epoch: int
    folds: Mapping[int, float]

    @property
    def mean(self) -> float:
        return mean_accuracy(list(self.folds.values()))


class ScoreKeeper(Observer):
    """Reports a trial's score each time that all of its folds have completed one more epoch.

    Folds train at different times and speeds. A mean over whichever folds have reached an epoch
    would compare one trial's easy folds with another's hard ones.

    Args:
        report: called with each score, also of epochs that an earlier session trained.
        figure: what the score is the mean of.
    """

    def __init__(self, report: Callable[[Score], None], figure: Figure = "accuracy") -> None:
        self._report = report
        self._figure = figure
        self._histories: dict[int, list[EpochMetrics]] = {}
        self._complete: set[int] = set()
        self._reported = 0
        self.failure: FoldResult | None = None

    @property
    def epochs_run(self) -> int:
        """Summed over the folds."""
        return sum(map(len, self._histories.values()))

    def run_started(self, start: RunStart) -> None:
        self._histories = {fold: list(start.histories.get(fold, ())) for fold in start.folds}
        self._complete = {f for f, each in start.finished.items() if each.status == "complete"}
        self._report_new()

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        history = self._histories[fold]
        del history[metrics.epoch :]  # after a death, epochs are trained again
        history.append(metrics)
        self._report_new()

    def fold_finished(self, result: FoldResult) -> None:
        if result.status == "failed":
            self.failure = self.failure or result
            return
        self._complete.add(result.fold)
        self._report_new()

    def _report_new(self) -> None:
        # The epoch that every fold has completed, if it has not ended earlier, and one has.
        lengths = {fold: len(history) for fold, history in self._histories.items()}
        under_way = [n for fold, n in lengths.items() if not n or fold not in self._complete]
        reached = min([max(lengths.values()), *under_way])
        while self._reported < reached:
            self._reported += 1
            kept = {fold: kept_of(rows[: self._reported]) for fold, rows in self._histories.items()}
            known = {fold: each.figure(self._figure) for fold, each in kept.items() if each}
            values = {fold: value for fold, value in known.items() if value is not None}
            self._report(Score(self._reported, values))

"""The ledger: what a run knows of each of its folds, written to storage as it learns it. No Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raykfold.data.feature_set import FeatureSet, Split
from raykfold.data.leakage import Leakage
from raykfold.files.atomic import remove_tree
from raykfold.files.paths import fold_name
from raykfold.files.remote import Place, same_store
from raykfold.observers import Observer, RunStart
from raykfold.state.archive import write_results
from raykfold.state.checkpoint import FinishedFold, load_finished_fold
from raykfold.state.deaths import Death, verdict
from raykfold.state.record import EarlierRun, RunRecord, versions
from raykfold.state.states import FoldState, Index, load_result, newest_states, read_index, sweep
from raykfold.text import fold_names
from raykfold.training.predictions import out_of_fold
from raykfold.training.recipe import Precision
from raykfold.training.results import (
    EpochMetrics,
    FoldResult,
    Repeats,
    Round,
    Summary,
    monitor_of,
)


class Ledger:
    """Knows which folds wait, are being trained or are over, and where the newest state of each is.

    Everything it learns is written to the index before observers hear of it.

    Args:
        earlier: what lies in the run's folders, with the run's configuration.
        data: the run's.
        folds: labels of the folds that are held out, in order.
        observer: told of everything that happens to them.
        name: how messages call this run among several; empty for a run by itself.

    Attributes:
        config: the run's.
        waiting: folds that no worker has.
        precision: of training steps, once the run has begun.
    """

    def __init__(
        self,
        earlier: EarlierRun,
        data: FeatureSet,
        folds: tuple[int, ...],
        observer: Observer,
        name: str = "",
    ) -> None:
        self.earlier = earlier
        self.config = earlier.config
        self.observer = observer
        self.waiting: set[int] = set()
        self.precision: Precision = "fp32"
        self._data = data
        self._folds = folds
        self._name = name
        self._histories: dict[int, list[EpochMetrics]] = {fold: [] for fold in folds}
        self._results: dict[int, FoldResult] = {}
        self._origins: dict[int, Place] = {}
        self._deaths: dict[int, list[Death]] = {fold: [] for fold in folds}
        self._index = Index()
        self._began: float | None = None
        self._seconds_before = 0.0

    # --- the start of a session ------------------------------------------------------------------

    def find_states(self) -> None:
        """Learn from storage what earlier sessions have done, and report it."""
        run_dir = self.config.run_dir
        sweep(run_dir)
        index, notes = read_index(run_dir)
        states, damage = newest_states(run_dir, index, self._folds)
        newest = {fold: state.folder for fold, state in states.items()}
        elsewhere = {f: path for f, path in index.folds.items() if f not in self._folds}
        self._index = replace(index, folds={**elsewhere, **newest})
        for fold, state in states.items():
            self._take_up(fold, state)
        self.waiting = {fold for fold in self._folds if fold not in self._results}

        for line in (*notes, *damage):
            self.observer.noticed(line)
        if self._results:
            done = "" if self.waiting else "; nothing is left to train"
            complete = fold_names(sorted(self._results))
            self.observer.noticed(f"complete already, skipped: {complete}{done}")
        for fold in sorted(self.waiting & states.keys()):
            self.observer.noticed(f"fold {fold}: resumes after epoch {states[fold].epochs_run}")

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Write the run's record and start its clock.

        Raises:
            StorageError: the record cannot be written.
        """
        self.precision = "bf16" if identity.get("precision") == "bf16" else "fp32"
        self._began, self._seconds_before = time.monotonic(), self._index.wall_seconds
        self._index.sessions += 1
        # These stand for a run that is over, and this one has something left to do.
        for stale in (self.config.outputs.summary, self.config.outputs.report):
            if stale.is_file():
                stale.unlink()
        record = RunRecord.of(self.config, identity, self.earlier.created, self._folds)
        record.write(self.config)
        self._write_index()
        self._announce()

    def announce_again(self) -> None:
        """Tell observers of a run with nothing left to train: they may have outputs to make.

        Raises:
            StorageError: the record of the run cannot be written.
        """
        self.earlier.renew()
        self._announce()

    def _announce(self) -> None:
        self.observer.run_started(
            RunStart(
                run_name=self.config.run_name,
                epochs=self.config.epochs,
                folds=self._folds,
                histories={fold: tuple(rows) for fold, rows in self._histories.items()},
                finished=dict(self._results),
            )
        )

    # --- what the dealer asks --------------------------------------------------------------------

    def fold_names(self, folds: Sequence[int]) -> str:
        """Return ``fold 3`` or ``folds 1, 2``; among several runs, ``folds 1, 2 of seed 4``."""
        return fold_names(folds) + (f" of {self._name}" if self._name else "")

    def origins(self, folds: Sequence[int]) -> dict[int, Place]:
        """Return the folders of the states from which those of `folds` that have one resume."""
        return {fold: self._origins[fold] for fold in folds if fold in self._origins}

    def split(self, fold: int) -> Split:
        """Return a fold's samples, split as the run trains and evaluates them."""
        config = self.config
        return self._data.split(fold, inner=config.select == "inner", seed=config.seed)

    def epochs_left(self, fold: int) -> int:
        """Return how many epochs a fold still has at most; patience can end it sooner."""
        return self.config.epochs - len(self._histories[fold])

    def unfinished(self) -> int:
        """Return how many folds are not over."""
        return len(self._folds) - len(self._results)

    def has_died(self, folds: Iterable[int]) -> bool:
        """Return whether a worker of one of them died since that fold last completed a round."""
        return any(self._deaths[fold] for fold in folds)

    # --- what the dealer tells -------------------------------------------------------------------

    def workers(self, count: int) -> None:
        """Note how many workers are at work at once."""
        self._index.num_workers = max(self._index.num_workers, count)

    def take_in(self, committed: Sequence[tuple[Round, str | None]]) -> None:
        """Take in committed rounds of several shares: the index is written once, and first.

        Args:
            committed: rounds, each with the path, as Ray has it, of the checkpoint with its saved
                folds; None if none was saved.

        Raises:
            StorageError: the index, or an output, cannot be written.
        """
        run_dir = self.config.run_dir
        for round_, checkpoint in committed:
            for fold in round_.saved:
                assert checkpoint is not None
                folder = same_store(run_dir.root, checkpoint)
                self._note_state(fold, folder / fold_name(fold))
            for fold in round_.finished:
                self._note_state(fold, run_dir.finished(fold))
            for fold in round_.handed_over:
                self._note_state(fold, run_dir.handed_over(fold))
        if committed:
            self._write_index()
        for round_, _ in committed:
            for fold, metrics in round_.epochs.items():
                history = self._histories[fold]
                del history[metrics.epoch :]  # an epoch that was trained again after a death
                history.append(metrics)
                if fold in round_.histograms:
                    self.observer.weights_watched(fold, metrics.epoch, round_.histograms[fold])
                self.observer.epoch_committed(fold, metrics)
            for result in round_.finished.values():
                self._end(result)
            for fold, message in round_.failed.items():
                self.fail(fold, message)
            self.waiting |= set(round_.released)

    def take_back(self, fold: int, death: Death | None) -> None:
        """Let a fold whose share has ended wait again; or fail it, if its worker died too often.

        Args:
            fold: the fold.
            death: of the worker, if the fold can have caused it.
        """
        # Storage may have a newer state than a dead share could tell of.
        states, notes = newest_states(self.config.run_dir, self._index, [fold])
        for line in notes:
            self.observer.noticed(line)
        if fold in states:
            known = len(self._histories[fold])
            self._take_up(fold, states[fold])
            for metrics in self._histories[fold][known:]:
                self.observer.epoch_committed(fold, metrics)
            if fold in self._results:
                self._end(self._results[fold])
        else:
            self._origins.pop(fold, None)
            self._histories[fold] = []
        if fold in self._results:
            return
        if death is not None:
            self._deaths[fold].append(death)
        wrong = verdict(self._deaths[fold], self.config.max_failures)
        if wrong is None:
            self.waiting.add(fold)
        else:
            self.fail(fold, wrong)

    def fail(self, fold: int, message: str) -> None:
        """Mark a fold as failed."""
        split = self.split(fold)
        sizes = len(split.train), len(split.validation)
        self._end(FoldResult.of(fold, "failed", *sizes, self._histories[fold], error=message))

    # --- the end ---------------------------------------------------------------------------------

    def conclude(self, leakage: Leakage | None = None, repeats: Sequence[Summary] = ()) -> Summary:
        """Put the folds together, and write the outputs.

        Args:
            leakage: what folds have in common and should not.
            repeats: summaries of the run's repeats.

        Raises:
            StorageError: the outputs cannot be written.
        """
        config, data = self.config, self._data
        finished: dict[int, FinishedFold] = {
            fold: load_finished_fold(config.run_dir.finished(fold))
            for fold in self._folds
            if self._results[fold].status == "complete"
        }
        predictions = out_of_fold(
            {fold: (each.index, each.probabilities) for fold, each in finished.items()}, data
        )
        metrics = by_recording = None
        if predictions is not None:
            by_recording = predictions.by_recording(data.class_mapping, self._folds)
        if predictions and len(finished) == len(self._folds):
            metrics = predictions.metrics(data.class_mapping)
        folds = tuple(self._results[fold] for fold in self._folds)
        seeds = tuple(range(config.seed, config.seed + 1 + len(repeats)))
        of_seeds = (folds, *(repeat.folds for repeat in repeats))
        self._write_index()
        summary = Summary(
            run_name=config.run_name,
            folds=folds,
            out_of_fold=metrics,
            classes=data.class_mapping,
            wall_seconds=self._index.wall_seconds,
            num_workers=self._index.num_workers,
            sessions=self._index.sessions,
            select=config.select,
            repeats=Repeats(seeds, of_seeds) if repeats else None,
            leakage=leakage,
            monitor=monitor_of(config.monitor, folds),
            versions=versions(),
            by_recording=by_recording,
        )
        weights = {fold: each.weights for fold, each in finished.items()}
        write_results(config.outputs, summary, weights, predictions)
        if summary.status == "complete" and self._folds == data.fold_labels:
            self.remove_rounds()
        self.observer.run_finished(summary)
        return summary

    def remove_rounds(self) -> None:
        """Delete the checkpoints of rounds, once the last state of every fold is a finished one."""
        for left in (self.config.run_dir.shares, self.config.run_dir.handed_over_folds):
            remove_tree(left)

    # --- both ------------------------------------------------------------------------------------

    def _take_up(self, fold: int, state: FoldState) -> None:
        result = load_result(state.folder)
        self._histories[fold] = list(result.history)
        if state.done(self.config.epochs):
            self._results[fold] = result
        else:
            self._origins[fold] = state.folder

    def _note_state(self, fold: int, folder: Place) -> None:
        self._deaths[fold] = []  # what is on storage is not trained again
        self._origins[fold] = folder
        self._index.folds[fold] = folder

    def _write_index(self) -> None:
        if self._began is not None:  # a session with nothing to train takes no time
            self._index.wall_seconds = self._seconds_before + time.monotonic() - self._began
        self._index.write(self.config.run_dir)

    def _end(self, result: FoldResult) -> None:
        self._results[result.fold] = result
        self.observer.fold_finished(result)

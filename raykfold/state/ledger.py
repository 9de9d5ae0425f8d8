"""What a run knows of each of its folds, kept on storage as it learns it. No Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet, Split
from raykfold.data.leakage import Leakage
from raykfold.files.atomic import remove_tree
from raykfold.files.paths import fold_name
from raykfold.files.remote import Place, same_store
from raykfold.observers import Observer, RunStart
from raykfold.state.archive import write_results
from raykfold.state.checkpoint import FinishedFold, load_finished_fold, load_result
from raykfold.state.deaths import Death, verdict
from raykfold.state.record import (
    FoldState,
    Index,
    newest_states,
    read_index,
    renew_record,
    sweep,
    versions,
    write_record,
)
from raykfold.text import named
from raykfold.training.fold import Precision
from raykfold.training.predictions import out_of_fold
from raykfold.training.results import EpochMetrics, FoldResult, Repeats, Round, Summary


class Ledger:
    """Which folds wait, are at work, are over; where the newest state of each lies.

    Everything that is learnt is written to the index before observers hear of it.

    Args:
        config: the run's.
        data: the run's.
        folds: the folds that are held out, in order.
        observer: told of what becomes of them.
        created: when the run was first started, as `storage.created` says.
        name: what to call it among several; empty for a run by itself.
    """

    def __init__(
        self,
        config: RunConfig,
        data: FeatureSet,
        folds: tuple[int, ...],
        observer: Observer,
        created: str,
        name: str = "",
    ) -> None:
        self.waiting: set[int] = set()
        self.config = config
        self._data = data
        self._folds = folds
        self.observer = observer
        self._created = created
        self._name = name
        self._histories: dict[int, list[EpochMetrics]] = {fold: [] for fold in folds}
        self._results: dict[int, FoldResult] = {}
        self._origins: dict[int, Place] = {}
        self._deaths: dict[int, list[Death]] = {fold: [] for fold in folds}
        self._index = Index()
        self._began: float | None = None
        self.precision: Precision = "fp32"  # of training steps, once it has begun
        self._seconds_before = 0.0

    def find_states(self) -> None:
        """Learn from storage what an earlier session has done."""
        sweep(self.config.run_dir)
        index, notes = read_index(self.config.run_dir)
        states, damage = newest_states(self.config.run_dir, index, self._folds)
        newest = {fold: state.folder for fold, state in states.items()}
        elsewhere = {f: path for f, path in index.folds.items() if f not in self._folds}
        self._index = replace(index, folds={**elsewhere, **newest})
        for fold, state in states.items():
            self._take_up(fold, state)
        self.waiting = {fold for fold in self._folds if fold not in self._results}
        for line in (*notes, *damage, *self._resume_lines(states)):
            self.observer.noticed(line)

    def _take_up(self, fold: int, state: FoldState) -> None:
        result = load_result(state.folder)
        self._histories[fold] = list(result.history)
        if state.done(self.config.epochs):
            self._results[fold] = result
        else:
            self._origins[fold] = state.folder

    def named(self, folds: Sequence[int]) -> str:
        """``fold 3``, ``folds 1, 2``; among several, ``folds 1, 2 of seed 4``."""
        return named(folds) + (f" of {self._name}" if self._name else "")

    def _resume_lines(self, states: Mapping[int, FoldState]) -> Iterator[str]:
        complete = sorted(self._results)
        if complete:
            done = "" if self.waiting else "; nothing is left to train"
            yield f"complete already, skipped: {named(complete)}{done}"
        for fold in sorted(self.waiting & states.keys()):
            yield f"fold {fold}: resumes after epoch {states[fold].epochs_run}"

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Put down what this run is; from here on its time counts.

        Raises:
            StorageError: it cannot be written.
        """
        self.precision = "bf16" if identity.get("precision") == "bf16" else "fp32"
        self._began, self._seconds_before = time.monotonic(), self._index.wall_seconds
        self._index.sessions += 1
        # These stand for a run that is over, and this one has something left to do.
        for stale in (self.config.outputs.summary, self.config.outputs.report):
            if stale.is_file():
                stale.unlink()
        write_record(self.config, identity, self._created, self._folds)
        self._write_index()
        self.announce()

    def announce(self) -> None:
        """Tell the observers what is there already, and so what is still to do."""
        self.observer.run_started(
            RunStart(
                run_name=self.config.run_name,
                epochs=self.config.epochs,
                folds=self._folds,
                histories={fold: tuple(rows) for fold, rows in self._histories.items()},
                finished=dict(self._results),
            )
        )

    def announce_again(self) -> None:
        """The same where nothing is left to train: outputs may still be asked for that are new.

        Raises:
            StorageError: the record of the run cannot be written.
        """
        renew_record(self.config)
        self.announce()

    def origins(self, folds: Sequence[int]) -> dict[int, Place]:
        """Where those of `folds` that do not start anew go on from."""
        return {fold: self._origins[fold] for fold in folds if fold in self._origins}

    def epochs_left(self, fold: int) -> int:
        """At most; patience can end it sooner."""
        return self.config.epochs - len(self._histories[fold])

    def unfinished(self) -> int:
        """Folds that are not over."""
        return len(self._folds) - len(self._results)

    def workers(self, count: int) -> None:
        """So many workers are at work at once."""
        self._index.num_workers = max(self._index.num_workers, count)

    def take_in(self, round_: Round, checkpoint: str | None) -> None:
        """A round is committed, with the states of its saved folds in `checkpoint`, as Ray says it.

        Raises:
            StorageError: the index, or an output, cannot be written.
        """
        self.take_in_all([(round_, checkpoint)])

    def take_in_all(self, committed: Sequence[tuple[Round, str | None]]) -> None:
        """`take_in` for rounds of many shares, with one writing of the index.

        Raises:
            StorageError: the index, or an output, cannot be written.
        """
        for round_, checkpoint in committed:
            self._note_states(round_, checkpoint)
        if committed:
            self._write_index()
        for round_, _ in committed:
            self._tell(round_)

    def _note_states(self, round_: Round, checkpoint: str | None) -> None:
        for fold in round_.saved:
            assert checkpoint is not None
            folder = same_store(self.config.run_dir.root, checkpoint)
            self._note_state(fold, folder / fold_name(fold))
        for fold in round_.finished:
            self._note_state(fold, self.config.run_dir.finished(fold))
        for fold in round_.kept:
            self._note_state(fold, self.config.run_dir.handed_over(fold))

    def _tell(self, round_: Round) -> None:
        for fold, metrics in round_.epochs.items():
            history = self._histories[fold]
            del history[metrics.epoch :]  # an epoch that was trained again after a death
            history.append(metrics)
            if fold in round_.histograms:
                self.observer.weights_watched(fold, metrics.epoch, round_.histograms[fold])
            self.observer.epoch_committed(fold, metrics)
        for result in round_.finished.values():
            self._is_over(result)
        for fold, message in round_.failed.items():
            self.fail(fold, message)
        self.waiting |= set(round_.released)

    def take_back(self, fold: int, death: Death | None) -> None:
        """The share of a fold has ended: the fold waits again, or its worker died too often.

        Args:
            death: of the worker, where it can be the fold's fault.
        """
        self._look_again(fold)
        if fold in self._results:
            return
        if death is not None:
            self._deaths[fold].append(death)
        wrong = verdict(self._deaths[fold], self.config.max_failures)
        if wrong is None:
            self.waiting.add(fold)
        else:
            self.fail(fold, wrong)

    def has_died(self, folds: Iterable[int]) -> bool:
        """Whether a worker of one of them has died since that fold last completed a round."""
        return any(self._deaths[fold] for fold in folds)

    def _look_again(self, fold: int) -> None:
        """Take the newest whole state of a fold: more may be there than a dead share could say."""
        states, notes = newest_states(self.config.run_dir, self._index, [fold])
        for line in notes:
            self.observer.noticed(line)
        known = len(self._histories[fold])
        if fold not in states:
            self._origins.pop(fold, None)
            self._histories[fold] = []
            return
        self._take_up(fold, states[fold])
        for metrics in self._histories[fold][known:]:
            self.observer.epoch_committed(fold, metrics)
        if fold in self._results:
            self._is_over(self._results[fold])

    def fail(self, fold: int, message: str) -> None:
        """A fold cannot go on."""
        split = self.split(fold)
        sizes = len(split.train), len(split.validation)
        self._is_over(FoldResult.of(fold, "failed", *sizes, self._histories[fold], error=message))

    def split(self, fold: int) -> Split:
        """Its samples, as the run is to train it."""
        config = self.config
        return self._data.split(fold, inner=config.select == "inner", seed=config.seed)

    def conclude(self, leakage: Leakage | None = None, repeats: Sequence[Summary] = ()) -> Summary:
        """Put the folds together, and write the outputs.

        Args:
            leakage: samples that are in more than one fold.
            repeats: what has become of the run's repeats.

        Raises:
            StorageError: they cannot be written.
        """
        finished: dict[int, FinishedFold] = {
            fold: load_finished_fold(self.config.run_dir.finished(fold))
            for fold in self._folds
            if self._results[fold].status == "complete"
        }
        predictions = out_of_fold(
            {fold: (each.index, each.probabilities) for fold, each in finished.items()},
            self._data,
        )
        whole = len(finished) == len(self._folds)
        folds = tuple(self._results[fold] for fold in self._folds)
        self._write_index()
        summary = Summary(
            run_name=self.config.run_name,
            folds=folds,
            out_of_fold=predictions.metrics(self._data.class_mapping)
            if predictions and whole
            else None,
            classes=self._data.class_mapping,
            wall_seconds=self._index.wall_seconds,
            num_workers=self._index.num_workers,
            sessions=self._index.sessions,
            select=self.config.select,
            repeats=self._with(folds, repeats),
            leakage=leakage,
            versions=versions(),
        )
        weights = {fold: each.weights for fold, each in finished.items()}
        write_results(self.config.outputs, summary, weights, predictions)
        if summary.status == "complete" and self._folds == self._data.fold_labels:
            self.remove_rounds()
        self.observer.run_finished(summary)
        return summary

    def remove_rounds(self) -> None:
        """Remove the checkpoints of rounds: of no more use once every fold's last state is among
        those of finished folds.
        """
        for left in (self.config.run_dir.shares, self.config.run_dir.handed_over_folds):
            remove_tree(left)

    def _with(self, folds: tuple[FoldResult, ...], repeats: Sequence[Summary]) -> Repeats | None:
        if not repeats:
            return None
        seeds = range(self.config.seed, self.config.seed + 1 + len(repeats))
        return Repeats(tuple(seeds), (folds, *(repeat.folds for repeat in repeats)))

    def _note_state(self, fold: int, folder: Place) -> None:
        self._deaths[fold] = []  # what is on storage need not be done again
        self._origins[fold] = folder
        self._index.folds[fold] = folder

    def _write_index(self) -> None:
        if self._began is not None:  # a session that found nothing to train takes no time
            self._index.wall_seconds = self._seconds_before + time.monotonic() - self._began
        self._index.write(self.config.run_dir)

    def _is_over(self, result: FoldResult) -> None:
        self._results[result.fold] = result
        self.observer.fold_finished(result)

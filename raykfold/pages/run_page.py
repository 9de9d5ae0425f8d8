"""The page of a run, while it trains or afterwards, from the run's files alone.

The page is one HTML file that loads nothing from the network; its pictures are PNGs beside it.
"""

from __future__ import annotations

import base64
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from raykfold.config.presets import PLAIN, is_plain
from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput, RaykfoldError
from raykfold.files.paths import ModelDir
from raykfold.observers import Observer
from raykfold.pages import remarks, run_figures
from raykfold.pages.drawing import FOLD_COLOURS, Picture
from raykfold.pages.frame import Shown, cell, render, write_page
from raykfold.pages.remarks import Remark
from raykfold.state.archive import Archive
from raykfold.state.claim import is_dead
from raykfold.state.heartbeat import Beat, read_heartbeat
from raykfold.state.record import read_record
from raykfold.state.states import read_index
from raykfold.text import (
    NOTHING,
    RUN_AGAIN,
    accuracy_text,
    capital,
    comma_list,
    count_of,
    duration,
    epoch_text,
    figure_text,
    fold_with_seed,
    interval_text,
    one_line,
    plus_minus,
    times,
)
from raykfold.training.results import FoldResult, Summary, headline_of, kept_epochs, monitor_of
from raykfold.training.statistics import ClassMetrics

if TYPE_CHECKING:
    from raykfold.data.feature_set import FeatureSet

MOST_MISTAKES = 12
_TEMPLATE = "run_page.html.j2"

Values: TypeAlias = dict[str, Any]  # of a part of the template


class Reporter(Observer):
    """Writes the page of a run when it is over.

    Args:
        config: configuration of the run.
        data: data of the run, for pictures of samples.
    """

    def __init__(self, config: RunConfig, data: FeatureSet) -> None:
        self._config = config
        self._data = data

    def run_finished(self, summary: Summary) -> None:
        outputs = self._config.outputs
        try:
            record = read_record(outputs.run_record)
            assert record is not None, "a run that is over has a record"
            archive = Archive(outputs.root, record, self._config.run_dir)
            write_report(archive, outputs, self._data)
        except RaykfoldError as error:  # which would end the run
            raise RuntimeError(str(error)) from error


def report(archive: Archive, data: FeatureSet | None = None) -> str:
    """Return the page as HTML.

    Args:
        archive: the run, whether or not it is over.
        data: data of the run, for pictures of samples; without it the page says that there are
            none.
    """
    run = _Run(archive)
    return render(
        _TEMPLATE,
        {
            "run_name": one_line(archive.run_name),
            "made_from": "the run's files",
            **_introduction(run),
            "remarks": list(_remarks(run, data)),
            **_folds(run),
            "repeats": _repeats(run),
            "pictures": list(_pictures(run)),
            "classes": _classes(run),
            "mistakes": _mistakes(run, data),
            "facts": list(_facts(run, data)),
            **_settings(run),
        },
    )


def plots(archive: Archive) -> dict[str, bytes]:
    """Return name → PNG of the pictures: ``curves``, ``folds``, ``classes``, ``confusion``."""
    run = _Run(archive)
    drawn = (run.curves, run.fold_picture, run.class_picture, run.confusion)
    return {picture.name: picture.png() for picture in drawn if picture is not None}


def write_report(archive: Archive, outputs: ModelDir, data: FeatureSet | None = None) -> Path:
    """Write the page and its pictures to `outputs`, and remove pictures of an earlier page.

    Returns:
        The path of the page.

    Raises:
        StorageError: a file cannot be written.
    """
    return write_page(outputs, report(archive, data), plots(archive))


# --- the run -------------------------------------------------------------------------------------


class _Run:
    """What the page shows of a run.

    Attributes:
        summary: results of the run; None while it is not over.
        folds: result of each fold so far, with its history where that is at hand.
        beat: what the run's driver said last; None once nothing is left to train.
        is_stopped: whether the run is not over, and its driver is known to be gone.
        repeats: the repeats that have begun, while the run is not over.
        monitor: what chooses the epochs.
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.record = archive.record
        self.summary = archive.summary
        is_complete = self.summary is not None and self.summary.status == "complete"
        self.beat: Beat | None = None if is_complete else read_heartbeat(archive.run_dir)
        self.is_stopped = False
        if self.summary is None and self.beat is not None:
            self.is_stopped = self.beat.phase == "stopped" or is_dead(self.beat.to_json())
        self.folds = _results(archive, self.beat)
        self.repeats = [] if self.summary else list(map(_Run, archive.repeats()))
        self.kept = kept_epochs(self.record.config["select"])
        if self.summary is not None:
            self.monitor = self.summary.monitor
        else:
            self.monitor = monitor_of(self.record.config.get("monitor", "accuracy"), self.folds)

    @property
    def all_folds(self) -> list[tuple[str, FoldResult]]:
        """Name and result of each fold, those of repeats too."""
        if self.summary is not None:
            by_seed = self.summary.by_seed
        elif self.record.repeats > 1:
            by_seed = [(each.record.seed, each.folds) for each in (self, *self.repeats)]
        else:
            by_seed = [(None, self.folds)]
        return [(fold_with_seed(fold.fold, s), fold) for s, folds in by_seed for fold in folds]

    @property
    def total(self) -> int:
        """Number of folds of all seeds."""
        if self.summary is not None:
            return len(self.all_folds)
        return len(self.folds) * self.record.repeats

    @property
    def of_seed(self) -> str:
        """``, seed 0`` for numbers of one of several seeds."""
        if self.summary is not None:
            return remarks.of_seed(self.summary)
        return f", seed {self.record.seed}" if self.record.repeats > 1 else ""

    def status(self, result: FoldResult) -> str:
        """Return the status of a fold, with what is known of those that are not over."""
        if result.status == "running":
            now = "stopped" if self.is_stopped else "running"
            return now if result.epochs_run else "waiting"
        return result.status

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its label while the run is not over."""
        return one_line((self.summary and self.summary.classes.get(label)) or label)

    @cached_property
    def scores(self) -> Sequence[ClassMetrics]:
        """Metrics of each class; of a partial run, over the folds that are complete."""
        if self.summary is not None and self.summary.out_of_fold is not None:
            return self.summary.out_of_fold.classes
        if self.archive.predictions is None:
            return []
        labels = self.archive.predictions.classes.tolist()
        names = {label: self.class_name(label) for label in labels}
        return self.archive.predictions.metrics(names).classes

    @property
    def trained(self) -> list[FoldResult]:
        """The folds that have a history."""
        return [result for result in self.folds if result.history]

    @property
    def curves(self) -> Picture | None:
        return run_figures.curves(self.trained) if self.trained else None

    @property
    def fold_picture(self) -> Picture | None:
        if all(each.best_epoch is None for each in self.folds):
            return None
        known = [each.accuracy(self.kept) for each in self.folds]
        mean = _mean(known) if len(known) > 1 else None
        return run_figures.folds(self.folds, mean, f"{self.kept} epoch{self.of_seed}")

    @property
    def class_picture(self) -> Picture | None:
        shown = [each for each in self.scores if each.support or each.precision is not None]
        return run_figures.classes(shown) if shown else None

    @property
    def confusion(self) -> Picture | None:
        predictions = self.archive.predictions
        if predictions is None:
            return None
        names = [self.class_name(label) for label in predictions.classes.tolist()]
        return run_figures.confusion(predictions.confusion, names)


def _results(archive: Archive, beat: Beat | None) -> tuple[FoldResult, ...]:
    """Return the result of each fold so far."""
    known = archive.folds
    if archive.summary is not None:
        histories = {fold: result.history for fold, result in known.items()}
        results = archive.summary.folds
        return tuple(replace(each, history=histories.get(each.fold, ())) for each in results)
    # While a run trains, its storage has the histories. Where that is out of reach,
    # training_state.json has at least the best epochs. It and the driver say which folds failed.
    states = (archive.state or {}).get("folds", {})
    failed = {name: row.get("error") for name, row in states.items() if row["status"] == "failed"}
    failed |= {str(fold): error for fold, error in (beat.failed if beat else {}).items()}
    found = []
    for fold in archive.record.folds:
        state = states.get(str(fold), {})
        result = known.get(fold) or FoldResult(
            fold,
            state.get("status", "running"),
            n_train=0,
            n_val=0,
            epochs_run=state.get("epochs_done", 0),
            best_epoch=state.get("best_epoch"),
            best_val_accuracy=state.get("best_val_accuracy"),
            kept_val_balanced_accuracy=state.get("kept_val_balanced_accuracy"),
            kept_val_macro_f1=state.get("kept_val_macro_f1"),
        )
        if str(fold) in failed:
            result = replace(result, status="failed", error=failed[str(fold)])
        found.append(result)
    return tuple(found)


# --- the parts of the page -----------------------------------------------------------------------


def _introduction(run: _Run) -> Values:
    """Return what the page opens with: the mean, or why there is none, and other key figures."""
    summary, folds = run.summary, len(run.folds)
    estimate = summary.over_folds(summary.headline) if summary else None
    complete = sum(result.status == "complete" for _, result in run.all_folds)
    failed = sum(result.status == "failed" for _, result in run.all_folds)
    headline = state = None
    if summary is not None and estimate is not None:
        where = {
            "best": "at its best epoch",
            "chosen": "at the epoch that its inner validation split chose",
        }[run.kept]
        repeats = summary.repeats
        seeds = f" with each of {len(repeats.seeds)} seeds" if repeats else ""
        figure = capital(figure_text(summary.headline))
        if summary.by_recording is not None:
            figure += " by window"
        if folds == 1:
            what = f"{figure} on the one fold held out{seeds}, {where}."
        else:
            over = f"{folds} folds{seeds}, each {where}"
            what = f"{figure} on the folds held out: mean ± standard deviation over {over}."
        std = None if folds == 1 else accuracy_text(estimate.std)
        headline = {"mean": accuracy_text(estimate.mean), "std": std, "badge": None, "what": what}
    elif summary is not None:
        what = f"{remarks.on_partial(summary)} “What was run”, below, says how to go on."
        state = {"title": "Partial", "what": what}
    else:
        verb = "is" if run.total == 1 else "are"
        epochs = sum(result.epochs_run for _, result in run.all_folds)
        what = (
            f"As of {time.strftime('%Y-%m-%d %H:%M:%S')}: {complete} of "
            f"{count_of(run.total, 'fold')} {verb} complete; {count_of(epochs, 'epoch')} trained, "
            f"of at most {run.record.epochs} a fold. There is no mean yet."
        )
        if run.is_stopped:
            what += " “What was run”, below, says how to resume it."
        state = {"title": "Stopped" if run.is_stopped else "In training", "what": what}

    tiles = []  # name, value, note
    if estimate is not None and estimate.interval is not None:
        note = "of the mean, corrected for folds that share training samples"
        tiles.append(("95 % interval, approximate", interval_text(estimate.interval), note))
    beside = summary.recordings_over_folds(summary.headline) if summary else None
    if summary is not None and summary.by_recording is not None and beside is not None:
        count = count_of(summary.by_recording.recordings, "recording")
        note = f"{count}, each by its windows' mean probabilities; {run.kept} epochs"
        if beside.interval is not None:
            note += f"; 95 %, approximate: {interval_text(beside.interval)}"
        name = f"{capital(figure_text(summary.headline))} by recording{run.of_seed}"
        tiles.append((name, plus_minus(beside.mean, beside.std, folds), note))
    if summary is not None:
        for each in summary.other_figures:
            if (beside := summary.over_folds(each)) is not None:
                value = plus_minus(beside.mean, beside.std, folds)
                tiles.append((capital(figure_text(each)), value, f"at the {run.kept} epochs"))
        others = {
            "best": (summary.best, "chosen on the held-out samples: optimistic"),
            "last": (summary.last, "where training ended"),
        }
        for name, (other, note) in others.items():
            if other is not None and name != run.kept:
                if other.interval is not None:
                    note += f"; 95 %, approximate: {interval_text(other.interval)}"
                value = plus_minus(other.mean, other.std, folds)
                tiles.append((f"Accuracy at the {name} epoch", value, note))
        if (pooled := summary.out_of_fold) is not None:
            of_epochs = f"{run.kept} epochs{run.of_seed}"
            note = f"{of_epochs}; 95 % interval (Wilson): {interval_text(pooled.interval)}"
            name = f"Accuracy out of fold, all {summary.samples} pooled"
            tiles.append((name, accuracy_text(pooled.accuracy), note))
            if summary.by_recording is not None and summary.by_recording.pooled is not None:
                whole = summary.by_recording.pooled
                note = f"{of_epochs}; 95 % interval (Wilson): {interval_text(whole.interval)}"
                name = "Accuracy out of fold, all recordings pooled"
                tiles.append((name, accuracy_text(whole.accuracy), note))
            means = {"balanced_accuracy": "mean recall", "macro_f1": "mean F1"}
            for figure, note in means.items():
                value = accuracy_text(getattr(pooled, figure))
                note = f"{note} of the classes, {of_epochs}"
                tiles.append((f"{capital(figure_text(figure))} out of fold", value, note))
    done = f"{complete} of {run.total}"
    tiles.append(("Folds complete", done, f"{failed} failed" if failed else ""))
    if summary is not None:
        notes = []
        if summary.num_workers:
            notes.append(f"at most {count_of(summary.num_workers, 'worker')} at once")
        if summary.sessions > 1:
            notes.append(f"resumed {times(summary.sessions - 1)}")
        tiles.append(("Time", duration(summary.wall_seconds), ", ".join(notes)))
    model = one_line(run.record.config["model"])
    return {
        "about": f"cross-validation of {model}, {count_of(folds, 'fold')}",
        "headline": headline,
        "state": state,
        "tiles": tiles,
    }


def _remarks(run: _Run, data: FeatureSet | None) -> Iterator[Remark]:
    """Yield what a reader should know of the numbers, failures first."""
    for each in (run, *run.repeats) if run.summary is None else ():
        failure = each.beat.last_failure if each.beat else None
        # A fold that failed is named below, with its error.
        if failure and not any(fold.error and fold.error in failure for fold in each.folds):
            yield Remark(f"Last failure{each.of_seed}: {one_line(failure, longest=600)}", True)
    for name, fold in run.all_folds:
        if fold.status == "failed":
            error = one_line(fold.error or "unknown", longest=600)
            yield Remark(f"{capital(name)} failed: {error}", True)
    if run.summary is not None:
        yield from remarks.on_summary(run.summary)
    # The data tells which classes are missing; without it, the metrics of the classes do.
    if data is not None:
        labels, seed = [fold.fold for fold in run.folds], run.record.seed
        for line in data.warnings(labels, inner=run.record.inner, seed=seed):
            yield Remark(f"{capital(line)}.", True)
    elif missing := [each.name for each in run.scores if not each.support]:
        yield Remark(f"No held-out sample is of {comma_list(missing)}.", True)
    if never := [each.name for each in run.scores if each.support and not each.recall]:
        yield Remark(f"Never recognised: {comma_list(never)}.", True)
    if run.record.config["folds"]:
        yield Remark(remarks.SOME_FOLDS)


def _folds(run: _Run) -> Values:
    """Return the table of the folds, and their picture."""
    summary = run.summary
    inner = any(each.chosen_epoch is not None for each in run.folds)
    epochs = ("chosen", "best") if inner else ("best",)
    # The accuracies come first, where a phone shows them without scrolling.
    columns = ["fold", *epochs, "last", "balanced", "macro F1"]
    columns += [*(f"{each} epoch" for each in epochs), "epochs", "status"]
    by_recording = None if summary is None else summary.by_recording
    columns += ["training", "held out"]
    if by_recording is not None:
        columns.insert(len(epochs) + 2, "by recording")
        columns.append("recordings")
    columns.append("time")
    marked: list[tuple[Sequence[int | None], str, str]] = []  # folds, kind and text of a badge
    if summary is not None:
        marked = [
            ([summary.best_fold], "good", "best"),
            ([summary.worst_fold], "bad", "worst"),
            (summary.outlier_folds, "bad", "outlier"),
        ]
    rows = []
    for each in run.folds:
        numbers = {"best": each.best_epoch, "chosen": each.chosen_epoch}
        badges = [(kind, text) for of, kind, text in marked if each.fold in of]
        recordings = by_recording.of_fold(each.fold) if by_recording else None
        beside = [accuracy_text(recordings.accuracy if recordings else None)]
        count = [recordings.recordings if recordings else NOTHING]
        rows.append(
            [
                cell(each.fold, badges),
                *(accuracy_text(each.accuracy(epoch)) for epoch in (*epochs, "last")),
                *(beside if by_recording else ()),
                accuracy_text(each.kept_val_balanced_accuracy),
                accuracy_text(each.kept_val_macro_f1),
                *(epoch_text(numbers[epoch]) for epoch in epochs),
                each.epochs_run,
                run.status(each) + (", stopped early" if each.stopped_early else ""),
                *(samples or NOTHING for samples in (each.n_train, each.n_val)),
                *(count if by_recording else ()),
                duration(each.seconds) if each.history else NOTHING,
            ]
        )

    caption = (
        f"Accuracy on the held-out samples{run.of_seed}, at the best epoch, that of the "
        f"{remarks.CHOSEN_BY[run.monitor]}, and at the last one{'' if summary else ' so far'}. "
        f"Balanced accuracy and macro F1 are of the {run.kept} epoch."
    )
    if inner:
        caption += (
            " The chosen epoch, whose weights are kept, is the best on the inner validation split, "
            "whose samples are not used for training."
        )
    if by_recording is not None:
        caption += (
            f" By recording is of the {run.kept} epoch. All else is by window: training and held "
            "out count windows."
        )
    if headline_of(run.monitor) != "accuracy":
        caption += " The badges go by the accuracy."
    if run.of_seed:
        caption += " The badges best and worst go by the means over the seeds."
    shown = None
    if run.fold_picture is not None:
        label = "Accuracy of each fold at its best and its last epoch"
        below = "The further apart best and last are, the more optimistic the best epoch may be."
        shown = run.fold_picture, label, below
    table = {"columns": columns, "rows": rows, "caption": f"{caption} Epochs count from 1."}
    return {"table": table, "fold_picture": shown}


def _repeats(run: _Run) -> Values | None:
    """Return the table of the accuracies with each seed."""
    if run.summary is None or run.summary.repeats is None:
        return None
    rows = []
    for seed, folds in run.summary.by_seed:
        kept = [fold.accuracy(run.kept) for fold in folds]
        rows.append([seed, *map(accuracy_text, [*kept, _mean(kept)])])
    what = (
        f"The cross-validation was run with {count_of(len(rows), 'seed')}; the table above, pooled "
        f"numbers and pictures are of seed {rows[0][0]}. {remarks.on_seeds(run.summary)} "
        f"Below are the accuracies at the {run.kept} epochs."
    )
    columns = ["seed", *(f"fold {each.fold}" for each in run.folds), "mean"]
    caption = "Accuracy of each fold, with each seed."
    return {"what": what, "caption": caption, "columns": columns, "rows": rows}


def _pictures(run: _Run) -> Iterator[Shown]:
    """Yield the learning curves, the confusion matrix and the metrics of the classes."""
    if run.trained:
        # The mean of an epoch is over the folds that have trained that long.
        lengths = [each.epochs_run for each in run.trained]
        shortest, longest = min(lengths), max(lengths)
        mean = f"The mean, bold and with one standard deviation, is over {len(lengths)} folds"
        if len(lengths) == 1:
            mean = "With one fold there is no mean."
        elif shortest == longest:
            mean += " throughout."
        else:
            later, latest = sum(n > shortest for n in lengths), lengths.count(longest)
            count = f"{later}" if later == latest else f"{later} to {latest}"
            why = "as folds end" if run.summary else "as others have not got that far"
            mean += f" up to epoch {shortest} and over {count} after that, {why}"
            mean += " (a mean of one is not drawn)." if latest < 2 else "."
        dot = " The dot is the epoch whose weights are kept."
        caption = f"One line a fold. {mean}{dot if len(lengths) <= FOLD_COLOURS else ''}"
        drawn = ["accuracy", "loss"]
        headline = headline_of(run.monitor)
        if all(
            epoch.figure(headline) is not None for each in run.trained for epoch in each.history
        ):
            drawn = list(dict.fromkeys([headline, *drawn]))
        for what in drawn:
            label = f"Validation {figure_text(what)} after each epoch, of each fold and on average"
            yield run_figures.curve(run.trained, what), label, caption

    complete = [each for each in run.folds if each.status == "complete"]
    held_out = sum(each.n_val for each in complete)
    over = f"over {held_out} held-out {run.summary.samples if run.summary else 'samples'}"
    if len(complete) < len(run.folds):
        over += f" of the complete folds alone ({comma_list(each.fold for each in complete)})"
    over += f", {run.kept} epochs{run.of_seed}"
    if (picture := run.confusion) is not None:
        caption = (
            f"Predictions {over}: one row for each true class, one column for each prediction. "
            "Blue is right, orange is wrong, and the colour is the stronger, the larger a cell's "
            "share of its row."
        )
        yield picture, "Confusion matrix", caption
    if (picture := run.class_picture) is not None:
        label = "Precision, recall and F1 of each class"
        yield picture, label, f"{label}, {over}; the best is on top."


def _classes(run: _Run) -> Values | None:
    """Return the table of the classes."""
    rows = [
        [one_line(c.name), *map(accuracy_text, (c.precision, c.recall, c.f1)), c.support]
        for c in run.scores
    ]
    samples = run.summary.samples if run.summary else "samples"
    columns = ["class", "precision", "recall", "F1", samples]
    return {"caption": None, "columns": columns, "rows": rows} if rows else None


def _mistakes(run: _Run, data: FeatureSet | None) -> Values | None:
    """Return the wrong predictions of the highest probabilities."""
    predictions = run.archive.predictions
    if predictions is None:
        return None
    wrong = np.flatnonzero(predictions.label != predictions.prediction)
    confidence = predictions.probabilities.max(axis=1)
    first = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    if not len(first):
        return {"what": "There are none: every held-out sample was recognised.", "samples": []}
    kind = (
        run_figures.sample_kind(data.sample_shape, data.features.dtype)
        if data is not None
        else None
    )
    samples = []
    for each in first:
        image = None
        if kind is not None and data is not None:
            picture = run_figures.sample_picture(data.features[predictions.index[each]])
            image = base64.b64encode(picture).decode("ascii") if picture else None
        samples.append(
            {
                "image": image,
                "true": run.class_name(int(predictions.label[each])),
                "predicted": run.class_name(int(predictions.prediction[each])),
                "probability": accuracy_text(float(confidence[each])),
                "fold": int(predictions.fold[each]),
                "sample": int(predictions.index[each]),
            }
        )
    noun = "window" if predictions.recording is not None else "sample"
    what = f"{count_of(len(wrong), f'held-out {noun}')} {'was' if len(wrong) == 1 else 'were'} "
    what += "taken for something else. "
    if len(wrong) > 1:
        what += f"These are the {len(first)} that the networks were surest of. "
    what += "Sometimes it is the label that is wrong. "
    if data is None:
        what += (
            "Pictures of them are left out: the data was not at hand (--processed_dir of "
            "raykfold.report says where it is)."
        )
    elif kind == "spectrogram":
        what += "Spectrograms have low frequencies at the bottom, and each is scaled by itself."
    elif kind == "waveform":
        what += "Each waveform is scaled by itself."
    return {"what": what, "samples": samples, "kind": kind}


def _facts(run: _Run, data: FeatureSet | None) -> Iterator[tuple[str, str]]:
    """Yield name and value of what is known of the run besides its settings."""
    record, summary = run.record, run.summary
    yield "started", _date(record.created)
    if summary is not None:
        yield "status", summary.status
        yield "wall time", duration(summary.wall_seconds)
        yield "resumed", times(summary.sessions - 1)
        yield "workers at once, at most", str(summary.num_workers)
    else:
        yield "status", "stopped" if run.is_stopped else "in training"
        sessions = read_index(run.archive.run_dir)[0].sessions
        if sessions:
            yield "resumed", times(sessions - 1)
    seconds = [each.seconds for each in run.folds if each.status == "complete" and each.history]
    if seconds:
        shortest, longest = duration(min(seconds)), duration(max(seconds))
        yield "time per fold", shortest if shortest == longest else f"{shortest} to {longest}"
    for name in ("device", "precision"):
        if name in record.identity:
            yield name, one_line(record.identity[name])
    source = one_line(record.config["processed_dir"], longest=None)
    if record.config["demo"]:
        source = "built in (--demo)"
    elif record.config.get("in_memory"):
        source = "arrays, given in Python"
    elif hub := record.config["hf_repo_id"]:
        source += f" (from {one_line(hub)} on the Hub)"
    yield "data", source
    yield "fingerprint of the data", one_line(record.fingerprint)
    if data is not None:
        if data.recordings is not None:
            yield "recordings", str(len(np.unique(data.recordings)))
        yield "samples", str(len(data))
        yield "features of a sample", f"{data.sample_shape}, {data.features.dtype.name}"
        if data.fold_names:
            yield "names of folds", comma_list(data.folds_shown)
    if summary is not None:
        yield "classes", str(len(summary.classes))
        if (found := summary.leakage) is not None:
            yield (
                "twins in other folds",
                (
                    f"{found.identical.samples} identical, {found.constant.samples} constant, of "
                    f"{count_of(found.samples, 'sample')}; {found.near.samples} near-identical, of "
                    f"{found.looked_at} compared"
                ),
            )
            yield "twins with another label", str(found.contradictions.samples)
    yield "outputs", one_line(record.config["model_dir"], longest=None)
    for package, version in (summary.versions if summary else record.versions).items():
        yield one_line(package), one_line(version)


def _settings(run: _Run) -> Values:
    """Return the command that starts or resumes the run, and its settings."""
    config, command = None, None
    try:
        config = RunConfig(**run.record.config)
        command = shlex.join(config.command())
    except (BadInput, TypeError, ValueError):
        pass  # another version of raykfold has settings that this one does not know
    if run.beat is not None and run.beat.resume:
        command = run.beat.resume
    options = run.record.config
    changed = set(options) if config is None else set(config.changed())
    # A preset is shown with what it stands for.
    changed |= {name for name in PLAIN if name in options and not is_plain(options, name)}
    rows = [(name, _setting_text(value)) for name, value in options.items()]
    return {
        "command": one_line(command, longest=None) if command else None,
        "run_again": RUN_AGAIN if command == "" else None,
        "own_settings": [row for row in rows if row[0] in changed],
        "other_settings": [row for row in rows if row[0] not in changed],
    }


def _setting_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return comma_list(value)
    return NOTHING if value in (None, "") else one_line(value, longest=None)


def _date(created: Any) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.strptime(str(created), "%Y%m%d-%H%M%S"))
    except ValueError:
        return one_line(created)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None

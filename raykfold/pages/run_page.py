"""The page of a run, while it trains or afterwards, from the run's files alone.

The page is one HTML file that loads nothing from the network; its pictures are PNGs beside it.
"""

from __future__ import annotations

import base64
import json
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput, RaykfoldError
from raykfold.files.paths import ModelDir
from raykfold.observers import Observer
from raykfold.pages.frame import (
    NOTHING,
    between,
    capital,
    figure,
    four,
    listed,
    render,
    times,
    write_page,
)
from raykfold.state.archive import Archive
from raykfold.state.heartbeat import Beat, read_pulse
from raykfold.state.lease import is_dead
from raykfold.state.record import read_index
from raykfold.text import counted, duration, named, one_line, plus_minus
from raykfold.training.predictions import OutOfFold
from raykfold.training.results import FoldResult, Summary, kept_epochs, rows_of_seeds
from raykfold.training.statistics import ClassMetrics

if TYPE_CHECKING:
    from raykfold.data.feature_set import FeatureSet
    from raykfold.pages.drawing import Picture
    from raykfold.pages.run_figures import Curve, FoldAccuracy

MOST_MISTAKES = 12
_TEMPLATE = "run_page.html.j2"

Row: TypeAlias = Mapping[str, Any]


class Reporter(Observer):
    """Leaves the page in `model_dir` when the run is over; one that cannot be made ends no run.

    Args:
        config: the run's.
        data: the run's, for the spectrograms.
    """

    def __init__(self, config: RunConfig, data: FeatureSet) -> None:
        self._config = config
        self._data = data

    def run_finished(self, summary: Summary) -> None:
        outputs = self._config.outputs
        try:
            record = json.loads(outputs.run_record.read_bytes())
            archive = Archive(outputs.root, record, self._config.run_dir)
            write_report(archive, outputs, self._data)
        except RaykfoldError as error:  # one of these would end the run
            raise RuntimeError(str(error)) from error


def report(archive: Archive, data: FeatureSet | None = None) -> str:
    """The page, as HTML.

    Args:
        archive: the run, finished or under way.
        data: the run's, for the spectrograms; None leaves them out, and the page says so.
    """
    return render(_TEMPLATE, _page(_Run(archive), data))


def plots(archive: Archive) -> dict[str, bytes]:
    """Name → PNG, of what there is to draw: ``curves``, ``folds``, ``classes``, ``confusion``."""
    run = _Run(archive)
    drawn = (run.curves(), run.fold_picture(), run.class_picture(), run.confusion())
    return {picture.name: picture.png() for picture in drawn if picture is not None}


def write_report(archive: Archive, outputs: ModelDir, data: FeatureSet | None = None) -> Path:
    """Write the page and its pictures into `outputs`; pictures of an earlier page go.

    Returns:
        Where the page is.

    Raises:
        StorageError: it cannot be written.
    """
    return write_page(outputs, report(archive, data), plots(archive))


# --- what is known of a run ----------------------------------------------------------------------


class _Run:
    """A run in plain values, and in pictures."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.config: Row = archive.record["config"]
        self.identity: Row = archive.record["identity"]
        self.is_over = archive.summary is not None
        self.summary: Row = archive.summary or {}

    @cached_property
    def rows(self) -> list[Row]:
        """Each fold, with the names that its values have in ``summary.json``."""
        results = self.archive.folds
        if self.is_over:
            return [_with_seconds(row, results.get(row["fold"])) for row in self.summary["folds"]]
        states = (self.archive.state or {}).get("folds", {})
        # Of a repeat nothing else says what has failed.
        for fold, error in (self.beat.failed if self.beat else {}).items():
            known = states.get(str(fold), {})
            states = {**states, str(fold): {**known, "status": "failed", "error": error}}
        rows = (
            _row_so_far(fold, results.get(fold), states.get(str(fold), {}))
            for fold in self.archive.record.get("folds") or map(int, states)
        )
        now = {"running": "stopped"} if self.is_stopped else {}
        return [{**row, "status": now.get(row["status"], row["status"])} for row in rows]

    @cached_property
    def beat(self) -> Beat | None:
        """What its driver has said last; None once nothing is left to go on with."""
        if self.summary.get("status") == "complete":
            return None
        return read_pulse(self.archive.run_dir)

    @property
    def is_stopped(self) -> bool:
        """Whether it is known that no driver is at work on what is not over."""
        if self.is_over or self.beat is None:
            return False
        return self.beat.phase == "stopped" or is_dead(self.beat.to_json())

    @cached_property
    def begun(self) -> list[_Run]:
        """The run and its repeats, as far as they have begun; the run alone when it is over."""
        return [self, *([] if self.is_over else map(_Run, self.archive.repeats()))]

    @property
    def total(self) -> int:
        """Folds, of all seeds."""
        if self.is_over:
            return len(self.all_rows)
        return len(self.rows) * int(self.config.get("repeats", 1))

    @cached_property
    def all_rows(self) -> list[tuple[str, Row]]:
        """Name and row of each fold, with those of the run's repeats."""
        of_seeds: Sequence[tuple[int | None, Sequence[Row]]]
        if self.summary.get("repeats"):
            of_seeds = rows_of_seeds(self.summary)
        else:
            of_seeds = [(each.config.get("seed", 0), each.rows) for each in self.begun]
        if len(of_seeds) == 1:
            return [(f"fold {row['fold']}", row) for row in self.rows]
        return [(f"fold {row['fold']} with seed {s}", row) for s, rows in of_seeds for row in rows]

    def folds_that_are(self, status: str) -> list[tuple[str, Row]]:
        return [(name, row) for name, row in self.all_rows if row["status"] == status]

    @property
    def select(self) -> str:
        """``best``; or ``inner``, where an inner validation split chose each fold's epoch."""
        return str(self.summary.get("select") or self.config.get("select") or "best")

    @property
    def of_seed(self) -> str:
        """Which seed it is that figures of one are of, where there are several."""
        if self.total == len(self.rows):
            return ""
        repeats = self.summary.get("repeats") or {"seeds": [self.config.get("seed", 0)]}
        return f", seed {repeats['seeds'][0]}"

    @property
    def headline(self) -> str:
        """Of which epochs the estimate is that comes first: ``best`` or ``chosen``."""
        return kept_epochs({"select": self.select})

    def estimate(self, which: str) -> Row | None:
        """``mean``, ``std`` and ``interval`` (or None) over the folds; None if there is no mean.

        Args:
            which: ``best``, ``last`` or ``chosen`` epoch of each fold.
        """
        prefix = {"best": "", "last": "last_"}.get(which)
        plain = {}
        if prefix is not None:
            plain = {what: self.summary.get(f"{prefix}{what}_accuracy") for what in ("mean", "std")}
        found = {"interval": None, **plain, **(self.summary.get("estimates") or {}).get(which, {})}
        return found if found.get("mean") is not None else None

    @cached_property
    def predictions(self) -> OutOfFold | None:
        return self.archive.predictions

    @cached_property
    def matrix(self) -> np.ndarray | None:
        """(classes, classes) counts: true classes in rows, predicted ones in columns."""
        return None if self.predictions is None else self.predictions.confusion

    @cached_property
    def names(self) -> list[str]:
        """Of the classes, in the order of the predictions' columns."""
        if self.predictions is None:
            return []
        return [self.name_of(label) for label in self.predictions.classes]

    def name_of(self, label: int) -> str:
        return one_line(self.summary.get("classes", {}).get(str(label)) or label)

    @cached_property
    def scores(self) -> Sequence[ClassMetrics]:
        """Of each class, by ``summary.json``, or of a partial run by its predictions."""
        if rows := self.summary.get("per_class"):
            return [ClassMetrics(**row) for row in rows]
        if self.predictions is None:
            return []
        labels = self.predictions.classes.tolist()
        return self.predictions.metrics(dict(zip(labels, self.names, strict=True))).classes

    def learnt(self) -> list[Curve]:
        from raykfold.pages.run_figures import Curve

        return [
            Curve(
                fold=fold,
                accuracy=[metrics.val_accuracy for metrics in result.history],
                loss=[metrics.val_loss for metrics in result.history],
                kept=result.kept_epoch,
            )
            for fold, result in self.archive.folds.items()
            if result.history
        ]

    def curves(self) -> Picture | None:
        from raykfold.pages import run_figures

        return run_figures.curves(self.learnt()) if self.learnt() else None

    def fold_picture(self) -> Picture | None:
        from raykfold.pages import run_figures

        accuracies = [_accuracies(row) for row in self.rows]
        if all(each.best is None for each in accuracies):
            return None
        known = [getattr(each, self.headline) for each in accuracies]
        mean = _mean(known) if len(known) > 1 else None
        return run_figures.folds(accuracies, mean, f"{self.headline} epoch{self.of_seed}")

    def class_picture(self) -> Picture | None:
        from raykfold.pages import run_figures

        shown = [each for each in self.scores if each.support or each.precision is not None]
        return run_figures.classes(shown) if shown else None

    def confusion(self) -> Picture | None:
        from raykfold.pages import run_figures

        return None if self.matrix is None else run_figures.confusion(self.matrix, self.names)


def _row_so_far(fold: int, result: FoldResult | None, state: Row) -> Row:
    """Of a fold of a run that goes on, by what it has left on storage, or else in `model_dir`."""
    row: dict[str, Any] = {
        "fold": fold,
        "status": "waiting",
        "error": None,
        "epochs_run": state.get("epochs_done", 0),
        "best_epoch": state.get("best_epoch"),
        "best_val_accuracy": state.get("best_val_accuracy"),
    }
    if state.get("epochs_done") or state.get("status") == "failed":
        row |= {"status": state["status"], "error": state.get("error")}
    if result is None:
        return row
    status = row["status"] if row["status"] == "failed" else result.status
    known = {
        **result.to_json(),
        "epochs_run": result.epochs_run,
        "best_val_accuracy": result.best_val_accuracy,
        "last_val_accuracy": result.last_val_accuracy,
    }
    return _with_seconds({**row, **known, "status": status, "error": row["error"]}, result)


def _with_seconds(row: Row, result: FoldResult | None) -> Row:
    return {**row, "seconds": None if result is None else result.seconds}


def _accuracies(row: Row) -> FoldAccuracy:
    from raykfold.pages.run_figures import FoldAccuracy

    names = ("best_val_accuracy", "last_val_accuracy", "chosen_val_accuracy")
    return FoldAccuracy(row["fold"], *(row.get(name) for name in names))


# --- what the page says --------------------------------------------------------------------------


def _page(run: _Run, data: FeatureSet | None) -> dict[str, Any]:
    """The template's values."""
    own, other = _settings(run)
    return {
        "run_name": one_line(run.archive.run_name),
        "made_from": "the run's files",
        "about": _about(run),
        "headline": _headline(run),
        "state": _state(run),
        "tiles": [{"name": n, "value": v, "note": note} for n, v, note in _tiles(run)],
        "doubts": [{"text": text, "serious": serious} for serious, text in _doubts(run, data)],
        "table": _table(run),
        "repeats": _repeats(run),
        "fold_picture": _fold_picture(run),
        "pictures": list(_pictures(run)),
        "classes": [_class_row(each) for each in run.scores],
        "mistakes": _mistakes(run, data),
        "command": _command(run),
        "facts": list(_facts(run, data)),
        "own_settings": own,
        "other_settings": other,
    }


def _about(run: _Run) -> str:
    return f"cross-validation of {one_line(run.config['model'])}, {counted(len(run.rows), 'fold')}"


def _headline(run: _Run) -> Row | None:
    estimate = run.estimate(run.headline)
    if estimate is None:
        return None
    where = {
        "best": "at its best epoch",
        "chosen": "at the epoch that its inner validation split chose",
    }[run.headline]
    repeats = run.summary.get("repeats")
    seeds = f" with each of {counted(len(repeats['seeds']), 'seed')}" if repeats else ""
    mean = four(estimate["mean"])
    if len(run.rows) == 1:
        what = f"Accuracy on the one fold held out{seeds}, {where}: of other folds it says nothing."
        return {"mean": mean, "std": None, "badge": None, "what": what}
    over = f"{counted(len(run.rows), 'fold')}{seeds}, each {where}"
    what = f"Accuracy on the folds held out: mean ± standard deviation over {over}."
    return {"mean": mean, "std": four(estimate["std"]), "badge": None, "what": what}


def _state(run: _Run) -> Row:
    """What stands in place of a mean where there is none."""
    complete = len(run.folds_that_are("complete"))
    verb = "is" if run.total == 1 else "are"
    done = f"{complete} of {counted(run.total, 'fold')} {verb} complete"
    if not run.is_over:
        epochs = sum(row["epochs_run"] for _, row in run.all_rows)
        most = run.config["epochs"]
        so_far = f"{counted(epochs, 'epoch')} behind them, of at most {most} a fold"
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return {
            "title": "Stopped" if run.is_stopped else "In training",
            "what": f"As of {now}: {done}; {so_far}. There is no mean yet."
            + (" The command below goes on with it." if run.is_stopped else ""),
        }
    partial = run.summary.get("partial_mean_accuracy") or {}
    alone = ""
    if partial.get("mean") is not None:
        alone = (
            f" Over the complete ones alone (folds {', '.join(map(str, partial['folds']))}) it "
            f"would be {four(partial['mean'])} at their {partial.get('epochs', 'best')} epochs, "
            "which is not the mean of the whole cross-validation."
        )
    again = " The command below tries the others again."
    return {"title": "Partial", "what": f"{done}, so there is no mean.{alone}{again}"}


def _tiles(run: _Run) -> Iterator[tuple[str, str, str]]:
    """Name, value and note."""
    headline = run.estimate(run.headline)
    if headline is not None and headline["interval"]:
        yield (
            "95 % interval, approximate",
            between(headline["interval"]),
            ("of the mean, corrected for folds that share training samples"),
        )
    notes = {
        "best": "chosen by the held-out fold itself: optimistic",
        "last": "where training ended",
    }
    for which, note in notes.items():
        estimate = run.estimate(which)
        if estimate is not None and which != run.headline:
            interval = estimate["interval"]
            more = f"; 95 %, approximate: {between(interval)}" if interval else ""
            yield (
                f"At the {which} epoch",
                _mean_and_spread(run, estimate),
                (f"{note}{more}"),
            )
    pooled = run.summary.get("oof_accuracy")
    if pooled is not None:
        interval = run.summary.get("oof_interval")
        note = f"{run.headline} epochs{run.of_seed}"
        if interval:
            note += f"; 95 %, Wilson, as if samples were independent: {between(interval)}"
        yield "Out of fold, all samples pooled", four(pooled), note
    if run.summary.get("macro_f1") is not None:
        note = f"mean over classes, out of fold, {run.headline} epochs{run.of_seed}"
        yield "Macro F1", four(run.summary["macro_f1"]), note
    complete = len(run.folds_that_are("complete"))
    failed = len(run.folds_that_are("failed"))
    of = f"{complete} of {run.total}"
    yield "Folds complete", of, f"{failed} failed" if failed else ""
    if run.is_over:
        yield "Time", duration(run.summary["wall_seconds"]), _sessions(run)


def _sessions(run: _Run) -> str:
    resumes = run.summary.get("sessions", 1) - 1
    workers = run.summary["num_workers"]
    worked = f"at most {counted(workers, 'worker')} at once" if workers else ""
    resumed = f"resumed {'once' if resumes == 1 else f'{resumes} times'}" if resumes > 0 else ""
    return ", ".join(part for part in (worked, resumed) if part)


def _doubts(run: _Run, data: FeatureSet | None) -> Iterator[tuple[bool, str]]:
    """What a reader of the figures should know, and whether it may change what they are worth."""
    for each in () if run.is_over else run.begun:
        failure = each.beat.last_failure if each.beat else None
        if failure and not any(row["error"] and row["error"] in failure for row in each.rows):
            yield True, f"Last failure{each.of_seed}: {one_line(failure, longest=600)}"
    for name, row in run.folds_that_are("failed"):
        yield True, f"{capital(name)} failed: {one_line(row['error'] or 'unknown', longest=600)}"
    yield from _doubts_of_the_epoch(run)
    if (run.estimate(run.headline) or {}).get("interval"):
        yield (
            False,
            (
                "The interval of the mean is approximate: folds share training samples, which the "
                "correction by Nadeau and Bengio allows for, and nobody has an exact one."
            ),
        )
    outliers = run.summary.get("outlier_folds") or []
    if outliers:
        yield (
            True,
            (
                f"{capital(named(outliers))} stand{'s' * (len(outliers) == 1)} apart from the "
                "others: look at what is in there before you trust the mean."
            ),
        )
    for line in (run.summary.get("leakage") or {}).get("warnings", []):
        yield True, f"Leakage: {one_line(line, longest=600)}."
    if data is not None:
        inner, seed = run.select == "inner", int(run.config["seed"])
        lines = data.warnings([row["fold"] for row in run.rows], inner=inner, seed=seed)
        yield from ((True, f"{capital(line)}.") for line in lines)
    elif missing := [each.name for each in run.scores if not each.support]:
        yield True, f"No held-out sample is of {listed(missing)}."
    if never := [each.name for each in run.scores if each.support and not each.recall]:
        yield True, f"Never recognised: {listed(never)}."
    if run.config.get("folds"):
        yield False, "Not every fold of the data was held out: the run was told which (--folds)."


def _doubts_of_the_epoch(run: _Run) -> Iterator[tuple[bool, str]]:
    """Which epoch's accuracy is which, with those at the last epoch beside the best."""
    if not run.is_over:
        return
    last, best = run.estimate("last"), run.estimate("best")
    if run.headline == "chosen":
        text = (
            "The epoch of each fold was chosen on an inner validation split, in which the samples "
            "held out have no part: the figure is not flattered by the choice."
        )
        if best is not None:
            text += (
                f" The best-epoch figure, {_mean_and_spread(run, best)}, is "
                "optimistic: the samples that chose it are those that it is measured on."
            )
    else:
        text = (
            "The best-epoch figure is optimistic: the held-out samples that each epoch is "
            "measured on also chose the best one."
        )
    if last is not None:
        text += f" The last epoch, where training ended, gives {_mean_and_spread(run, last)}."
    yield False, text


def _table(run: _Run) -> dict[str, Any]:
    inner = any(row.get("chosen_epoch") is not None for row in run.rows)
    chosen = ("chosen", "best") if inner else ("best",)
    # What is looked for stands where a phone shows it.
    columns = ["fold", *chosen, "last", *(f"{each} epoch" for each in chosen), "epochs", "status"]
    columns += ["training", "held out", "time"]
    return {
        "columns": columns,
        "rows": [
            {
                "fold": row["fold"],
                "badges": list(_badges(run, row["fold"])),
                "cells": list(_cells(row, chosen)),
            }
            for row in run.rows
        ],
        "caption": _table_caption(run, inner),
    }


def _table_caption(run: _Run, inner: bool) -> str:
    text = (
        f"Accuracy on the samples held out{run.of_seed}: at the best epoch, where it was highest, "
        f"and at the last one{', where training ended' if run.is_over else ' so far'}"
    )
    if inner:
        text += (
            ". The chosen epoch, whose weights are kept, is the best one on the inner validation "
            "split, whose samples are not among those of training"
        )
    if run.of_seed:
        text += ". Best and worst are told by the means over the seeds"
    return f"{text}. Epochs count from 1."


def _badges(run: _Run, fold: int) -> Iterator[dict[str, str]]:
    if len(run.rows) == 1:
        return
    if fold == run.summary.get("best_fold"):
        yield {"kind": "good", "text": "best"}
    if fold == run.summary.get("worst_fold"):
        yield {"kind": "bad", "text": "worst"}
    if fold in (run.summary.get("outlier_folds") or []):
        yield {"kind": "bad", "text": "outlier"}


def _cells(row: Row, chosen: Sequence[str]) -> Iterator[str]:
    for which in (*chosen, "last"):
        yield four(row.get(f"{which}_val_accuracy"))
    for which in chosen:
        yield _shown(_from_1(row.get(f"{which}_epoch")))
    yield _shown(row.get("epochs_run"))
    yield row["status"] + (", stopped early" if row.get("stopped_early") else "")
    for name in ("n_train", "n_val"):
        yield _shown(row.get(name))
    yield _shown(None if row.get("seconds") is None else duration(row["seconds"]))


def _repeats(run: _Run) -> dict[str, Any] | None:
    repeats = run.summary.get("repeats")
    if not repeats:
        return None
    first, count = repeats["seeds"][0], counted(len(repeats["seeds"]), "seed")
    what = (
        f"The cross-validation was run with {count}; the table above, what is pooled and the "
        f"pictures are of seed {first}."
    )
    if spread := repeats.get("spread"):
        what += (
            f" From seed to seed one fold's accuracy varies by {four(spread['over_seeds'])} "
            "(standard deviation)"
        )
        if spread["over_folds"] is not None:
            what += (
                f", and the mean over folds by {four(spread['of_means'])}; from fold to fold the "
                f"accuracy varies by {four(spread['over_folds'])}, what seeds add taken off"
            )
        what += "."
    what += f" Below, the accuracies at the {run.headline} epochs."
    rows = []
    for seed, folds in zip(repeats["seeds"], repeats["folds"], strict=True):
        kept = [row.get(f"{run.headline}_val_accuracy") for row in folds]
        rows.append({"seed": seed, "cells": map(four, kept), "mean": four(_mean(kept))})
    return {"what": what, "folds": [row["fold"] for row in run.rows], "rows": rows}


def _pictures(run: _Run) -> Iterator[dict[str, Any]]:
    from raykfold.pages import run_figures

    learnt = run.learnt()
    if learnt:
        caption = f"A line a fold. {_reach(run, learnt)}"
        dot = " The dot is the epoch whose weights are kept." if _few(learnt) else ""
        for what in ("accuracy", "loss"):
            label = f"Validation {what} after each epoch, of each fold and on average"
            yield figure(run_figures.curve(learnt, what), label, f"{caption}{dot}")
    if picture := run.confusion():
        caption = (
            f"Which class was taken for which, {_samples(run)}: a row for each true class, a "
            "column for each prediction. Blue is right, orange is not, and the stronger, the "
            "larger a cell's share of its row."
        )
        yield figure(picture, "Confusion matrix", caption)
    if picture := run.class_picture():
        caption = f"Precision, recall and F1 of each class, {_samples(run)}; the best is on top."
        yield figure(picture, "Precision, recall and F1 of each class", caption)


def _class_row(each: ClassMetrics) -> Row:
    cells = [four(each.precision), four(each.recall), four(each.f1), str(each.support)]
    return {"name": one_line(each.name), "cells": cells}


def _fold_picture(run: _Run) -> dict[str, Any] | None:
    picture = run.fold_picture()
    if picture is None:
        return None
    caption = (
        "The further apart best and last are, the more it matters that the held-out samples have "
        "chosen the epoch."
    )
    return figure(picture, "Accuracy of each fold at its best and its last epoch", caption)


def _few(learnt: Sequence[Curve]) -> bool:
    from raykfold.pages.drawing import FOLD_COLOURS

    return len(learnt) <= FOLD_COLOURS


def _reach(run: _Run, learnt: Sequence[Curve]) -> str:
    """Over how many folds the mean is, where they do not all train for as long."""
    lengths = [len(each.accuracy) for each in learnt]
    if len(learnt) < 2:
        return "With one fold there is no mean."
    mean = "The mean, bold and with one standard deviation, is over"
    if min(lengths) == max(lengths):
        return f"{mean} {len(learnt)} folds throughout."
    still = sum(length > min(lengths) for length in lengths)
    longest = sum(length == max(lengths) for length in lengths)
    count = f"{still}" if still == longest else f"{still} to {longest}"
    why = "as folds end" if run.is_over else "as others have not got that far"
    tail = " (a mean of one is not drawn)" if longest < 2 else ""
    return (
        f"{mean} {len(learnt)} folds up to epoch {min(lengths)} and over {count} after that, "
        f"{why}{tail}."
    )


def _samples(run: _Run) -> str:
    complete = [row for row in run.rows if row["status"] == "complete"]
    over = f"over {sum(row['n_val'] for row in complete)} held-out samples"
    if len(complete) < len(run.rows):
        names = ", ".join(str(row["fold"]) for row in complete)
        over += f" of the complete folds alone ({names})"
    return f"{over}, {run.headline} epochs{run.of_seed}"


def _mistakes(run: _Run, data: FeatureSet | None) -> dict[str, Any] | None:
    predictions = run.predictions
    if predictions is None:
        return None
    wrong = np.flatnonzero(predictions.label != predictions.prediction)
    confidence = predictions.probabilities.max(axis=1)
    first = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    if not len(first):
        return {"what": "There is none: every held-out sample was recognised.", "samples": []}
    verb = "was" if len(wrong) == 1 else "were"
    what = f"{counted(len(wrong), 'held-out sample')} {verb} taken for something else. "
    if len(wrong) > 1:
        what += f"These are the {len(first)} that the networks were surest of. "
    what += "Sometimes it is the label that is wrong. "
    what += (
        "Spectrograms have low frequencies at the bottom, and each is scaled by itself."
        if data is not None
        else "Spectrograms are left out: the data was not at hand (--processed_dir of "
        "raykfold.report says where it is)."
    )
    samples = [
        {
            "image": None if data is None else _spectrogram(data, predictions.index[each]),
            "true": run.name_of(predictions.label[each]),
            "predicted": run.name_of(predictions.prediction[each]),
            "probability": four(float(confidence[each])),
            "fold": int(predictions.fold[each]),
            "sample": int(predictions.index[each]),
        }
        for each in first
    ]
    return {"what": what, "samples": samples}


def _spectrogram(data: FeatureSet, index: int) -> str:
    from raykfold.pages.run_figures import spectrogram

    return base64.b64encode(spectrogram(data.features[index])).decode("ascii")


def _facts(run: _Run, data: FeatureSet | None) -> Iterator[tuple[str, str]]:
    record = run.archive.record
    yield "started", _started(record.get("created"))
    now = "stopped" if run.is_stopped else "in training"
    yield "status", str(run.summary.get("status") or now)
    sessions = 0 if run.is_over else read_index(run.archive.run_dir)[0].sessions
    if sessions:
        yield "resumed", times(sessions - 1)
    if run.is_over:
        yield "wall time", duration(run.summary["wall_seconds"])
        yield "resumed", times(run.summary.get("sessions", 1) - 1)
        yield "workers at once, at most", str(run.summary["num_workers"])
    complete = [row for row in run.rows if row["status"] == "complete"]
    seconds = [row["seconds"] for row in complete if row.get("seconds") is not None]
    if seconds:
        shortest, longest = duration(min(seconds)), duration(max(seconds))
        yield "time per fold", shortest if shortest == longest else f"{shortest} to {longest}"
    for name in ("device", "precision"):
        if name in run.identity:
            yield name, one_line(run.identity[name])
    yield "data", "built in (--demo)" if run.config.get("demo") else _source(run)
    yield "fingerprint of the data", one_line(run.identity["data"])
    if data is not None:
        yield "samples", f"{len(data)}, of {data.n_mels} mel bands and {data.time} frames"
    if run.summary:
        yield "classes", str(len(run.summary["classes"]))
    if leakage := run.summary.get("leakage"):
        yield "twins in other folds", _twins(leakage)
    yield "outputs", one_line(run.config["model_dir"], longest=None)
    for package, version in (run.summary.get("versions") or record["versions"]).items():
        yield one_line(package), one_line(version)


def _twins(leakage: Row) -> str:
    identical, constant, near = (
        leakage[kind]["samples"] for kind in ("identical", "constant", "near")
    )
    return (
        f"{identical} identical, {constant} constant, of {counted(leakage['samples'], 'sample')}; "
        f"{near} near-identical, of {leakage['looked_at']} compared"
    )


def _source(run: _Run) -> str:
    hub = run.config.get("hf_repo_id")
    folder = one_line(run.config["processed_dir"], longest=None)
    return f"{folder} (from {one_line(hub)} on the Hub)" if hub else folder


def _started(created: Any) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.strptime(str(created), "%Y%m%d-%H%M%S"))
    except ValueError:
        return one_line(created)


def _told(run: _Run) -> RunConfig | None:
    """What the run was told; None if this version of raykfold does not know all of it."""
    try:
        return RunConfig(**run.config)
    except (BadInput, TypeError, ValueError):
        return None


def _command(run: _Run) -> str | None:
    """What has started it, as its driver knew; or else as its settings say."""
    if run.beat is not None and run.beat.resume:
        return one_line(run.beat.resume, longest=None)
    config = _told(run)
    return None if config is None else one_line(shlex.join(config.command()), longest=None)


def _settings(run: _Run) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Settings that are not the default, and the others."""
    config = _told(run)
    changed = set(run.config) if config is None else set(config.changed())
    rows = [(name, _setting(value)) for name, value in run.config.items()]
    return [row for row in rows if row[0] in changed], [r for r in rows if r[0] not in changed]


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(one_line, value))
    return NOTHING if value in (None, "") else one_line(value, longest=None)


def _mean_and_spread(run: _Run, estimate: Row) -> str:
    return plus_minus(estimate["mean"], estimate["std"], len(run.rows))


def _shown(value: Any) -> str:
    return NOTHING if value is None else str(value)


def _from_1(epoch: int | None) -> int | None:
    return None if epoch is None else epoch + 1


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None

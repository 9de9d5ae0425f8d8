"""The summary of a run as text, which is printed at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raykfold.pages import remarks
from raykfold.text import (
    accuracy_text,
    aligned,
    count_of,
    epoch_text,
    figure_text,
    interval_text,
    mean_text,
    one_line,
)
from raykfold.training.results import FIGURES, Figure, FoldResult, KeptEpochs, Summary
from raykfold.training.statistics import mean

SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 25


def fold_line(result: FoldResult) -> str:
    """Return one line on a fold that is over."""
    if result.status == "failed" or result.kept_epoch is None:
        return f"fold {result.fold}: failed: {one_line(result.error)}"
    ended = "stopped early" if result.stopped_early else "ran to the end"
    kept = "best" if result.chosen_epoch is None else "chosen"
    accuracy = accuracy_text(result.kept_val_accuracy)
    return (
        f"fold {result.fold}: accuracy of the {kept} epoch {accuracy} at epoch "
        f"{epoch_text(result.kept_epoch)} of {result.epochs_run}, {ended}"
    )


def summary_lines(summary: Summary, *, sparks: bool = True) -> list[str]:
    """Return the tables of folds and of seeds, the means, and remarks on them.

    Args:
        summary: results of the run.
        sparks: draw each fold's validation accuracy, epoch by epoch, with Unicode block elements.
    """
    return [
        *_fold_table(summary, sparks),
        *_seed_table(summary),
        "",
        *_means(summary),
        *filter(None, [remarks.on_seeds(summary)]),
        *(remark.text for remark in remarks.on_summary(summary)),
    ]


def _fold_table(summary: Summary, sparks: bool) -> Iterator[str]:
    inner = summary.select == "inner"
    kept = ["chosen epoch", "accuracy", "best epoch", "of best"]
    header = [f"fold{remarks.of_seed(summary)}", "status", "train", "val", "epochs"]
    rows = [[*header, *(kept if inner else ["best epoch", "accuracy"]), "of last"]]
    rows[0] += ["balanced", "macro F1"]
    by_recording = summary.by_recording
    if by_recording is not None:
        rows[0].append("by recording")
    for result in summary.folds:
        chosen = [epoch_text(result.chosen_epoch), accuracy_text(result.chosen_val_accuracy)]
        rows.append(
            [
                str(result.fold),
                result.status + (" (early)" if result.stopped_early else ""),
                str(result.n_train),
                str(result.n_val),
                str(result.epochs_run),
                *(chosen if inner else ()),
                epoch_text(result.best_epoch),
                accuracy_text(result.best_val_accuracy),
                accuracy_text(result.last_val_accuracy),
                accuracy_text(result.kept_val_balanced_accuracy),
                accuracy_text(result.kept_val_macro_f1),
            ]
        )
        if by_recording is not None:
            of_fold = by_recording.of_fold(result.fold)
            rows[-1].append(accuracy_text(of_fold.accuracy if of_fold else None))
    drawn = ["", *_sparklines(summary.folds)] if sparks else [""] * len(rows)
    for row, spark in zip(aligned(rows), drawn, strict=True):
        yield f"{row}  {spark}".rstrip()
    yield from (fold_line(result) for result in summary.folds if result.status == "failed")


def _sparklines(folds: Sequence[FoldResult]) -> list[str]:
    """Draw the validation accuracy of each fold, all on one scale."""
    series = [[metrics.val_accuracy for metrics in result.history] for result in folds]
    values = [value for each in series for value in each]
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    span = highest - lowest or 1.0
    return [
        "".join(SPARKS[round((value - lowest) / span * (len(SPARKS) - 1))] for value in shown)
        for shown in map(_thin, series)
    ]


def _thin(values: Sequence[float]) -> Sequence[float]:
    """Return at most `_SPARK_WIDTH` of the values, evenly spaced, with the first and the last."""
    if len(values) <= _SPARK_WIDTH:
        return values
    step = (len(values) - 1) / (_SPARK_WIDTH - 1)
    return [values[round(number * step)] for number in range(_SPARK_WIDTH)]


def _seed_table(summary: Summary) -> Iterator[str]:
    if summary.repeats is None:
        return
    yield ""
    yield f"seed    mean  folds, {summary.kept_epochs} epochs"
    for seed, folds in summary.by_seed:
        known = [fold.kept_val_accuracy for fold in folds if fold.status == "complete"]
        accuracies = [value for value in known if value is not None]
        shown = accuracy_text(mean(accuracies) if len(accuracies) == len(folds) else None)
        each = "  ".join(accuracy_text(fold.kept_val_accuracy) for fold in folds)
        yield f"{seed:4}  {shown:>6}  {each}"
    for seed, folds in summary.by_seed[1:]:
        failed = (fold for fold in folds if fold.status == "failed")
        yield from (f"seed {seed}, {fold_line(fold)}" for fold in failed)


def _means(summary: Summary) -> Iterator[str]:
    if summary.status == "partial":
        yield f"Partial run: {remarks.on_partial(summary)}"
    kept, by_accuracy = summary.kept_epochs, summary.monitor == "accuracy"
    headline = figure_text(summary.headline)
    of_best = "Average Best Validation Accuracy" if by_accuracy else _title("accuracy", "best")
    estimates = [
        ("chosen", _title("accuracy", "chosen"), summary.chosen),
        ("best", of_best, summary.best),
        ("last", "Average Last Validation Accuracy", summary.last),
    ]
    for figure in FIGURES:
        if figure != "accuracy":
            row = figure_text(figure), _title(figure, kept), summary.over_folds(figure)
            # The figure that the run is summed up by comes first.
            estimates.insert(0 if figure == summary.headline else len(estimates), row)
    intervals = []
    for name, title, each in estimates:
        if each is not None:
            yield f"{title}: {mean_text(each.mean, each.std, len(summary.folds))}"
            if each.interval is not None and name not in map(figure_text, summary.other_figures):
                of = "" if headline == "accuracy" or name == headline else "accuracy of "
                intervals.append(f"{of}{name} {interval_text(each.interval)}")
    by_recording = summary.by_recording
    beside = summary.recordings_over_folds(summary.headline)
    if by_recording is not None and beside is not None:
        value = mean_text(beside.mean, beside.std, len(summary.folds))
        count = count_of(by_recording.recordings, "recording")
        yield (
            f"{_title(summary.headline, kept)} by Recording, {count}"
            f"{remarks.of_seed(summary)}: {value}"
        )
        if beside.interval is not None:
            intervals.append(f"by recording {interval_text(beside.interval)}")
    if (pooled := summary.out_of_fold) is not None:
        samples = sum(result.n_val for result in summary.folds)
        others = [
            f"{figure_text(name)} {accuracy_text(pooled.figure(name))}"
            for name in FIGURES
            if name != "accuracy" and pooled.figure(name) is not None
        ]
        yield (
            f"Out-of-fold accuracy, {samples} {summary.samples} pooled, {kept} epochs"
            f"{remarks.of_seed(summary)}: {', '.join([accuracy_text(pooled.accuracy), *others])}"
        )
    if intervals:
        yield f"95 % intervals of the mean, approximate: {', '.join(intervals)}"
    if pooled is not None:
        wilson = interval_text(pooled.interval)
        if by_recording is not None and by_recording.pooled is not None:
            whole = by_recording.pooled
            wilson = (
                f"{wilson} by window; {accuracy_text(whole.accuracy)} by recording, "
                f"{interval_text(whole.interval)}"
            )
        yield f"95 % interval of the pooled accuracy: {wilson}"
    if summary.folds_differ:
        (worst, lowest), (best, highest) = summary.ranked[0], summary.ranked[-1]
        over = ", means over the seeds" if summary.repeats else ""
        by = "" if summary.headline == "accuracy" else " by accuracy"
        yield f"Worst{by}: fold {worst} ({lowest:.4f}), best: fold {best} ({highest:.4f}){over}"


def _title(figure: Figure, epoch: KeptEpochs) -> str:
    """``Average Accuracy of the Chosen Epoch``."""
    return f"Average {figure_text(figure).title()} of the {epoch.title()} Epoch"

"""The summary of a run as text: what a run prints at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raykfold.text import mean_text, one_line
from raykfold.training.results import FoldResult, Summary
from raykfold.training.statistics import mean

SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 25


def fold_line(result: FoldResult) -> str:
    """One line on a fold that is over."""
    if result.status == "failed" or result.kept_epoch is None:
        return f"fold {result.fold}: failed: {one_line(result.error)}"
    ended = "stopped early" if result.stopped_early else "ran to the end"
    kept = "best accuracy" if result.chosen_epoch is None else "accuracy of the chosen epoch"
    return (
        f"fold {result.fold}: {kept} {result.kept_val_accuracy:.4f} at epoch "
        f"{result.kept_epoch + 1} of {result.epochs_run}, {ended}"
    )


def summary_lines(summary: Summary, *, sparks: bool = True) -> list[str]:
    """The table of folds and what they say together, as printed at the end of a run.

    Args:
        sparks: draw each fold's validation accuracy, epoch by epoch, in characters of Unicode.
    """
    inner = summary.select == "inner"
    accuracies = ["best epoch", "accuracy"]
    if inner:
        accuracies = ["chosen epoch", "accuracy", "best epoch", "of best"]
    header = [
        f"fold{_of_seed(summary)}",
        "status",
        "train",
        "val",
        "epochs",
        *accuracies,
        "of last",
    ]
    rows = [header, *(_row(result, inner) for result in summary.folds)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    if sparks:
        drawn = ["", *_sparklines(summary.folds)]
        lines = [f"{line}  {spark}".rstrip() for line, spark in zip(lines, drawn, strict=True)]
    lines += [fold_line(result) for result in summary.folds if result.status == "failed"]
    return [*lines, *_repeat_lines(summary), "", *_mean_lines(summary), *_doubts(summary)]


def _repeat_lines(summary: Summary) -> Iterator[str]:
    """A table of the seeds: each with its mean over folds, and its folds."""
    if summary.repeats is None:
        return
    yield ""
    yield f"seed    mean  folds, {summary.kept_epochs} epochs"
    for seed, folds in zip(summary.repeats.seeds, summary.repeats.folds, strict=True):
        accuracies = [result.kept_val_accuracy for result in folds]
        known = [x for x in accuracies if x is not None]
        whole = all(result.status == "complete" for result in folds)
        shown = _accuracy(mean(known) if whole else None)
        yield f"{seed:4}  {shown:>6}  {'  '.join(map(_accuracy, accuracies))}"
    for seed, folds in zip(summary.repeats.seeds[1:], summary.repeats.folds[1:], strict=True):
        for result in folds:
            if result.status == "failed":
                yield f"seed {seed}, {fold_line(result)}"


def _mean_lines(summary: Summary) -> list[str]:
    partial = summary.partial_mean_accuracy
    if partial is not None:
        seeds = " with every seed" if summary.repeats else ""
        if partial["mean"] is None:
            return [f"Partial run: no fold is complete{seeds}"]
        folds = ", ".join(map(str, partial["folds"]))
        return [
            f"Partial run: mean {partial['mean']:.4f} over the complete folds only (folds {folds}"
            f"{seeds}), {partial['epochs']} epochs"
        ]
    estimates = {
        "Average Accuracy of the Chosen Epoch": summary.chosen,
        "Average Best Validation Accuracy": summary.best,
        "Average Last Validation Accuracy": summary.last,
    }
    lines = [
        f"{name}: {mean_text(each.mean, each.std, len(summary.folds))}"
        for name, each in estimates.items()
        if each
    ]
    if summary.oof_accuracy is not None:
        samples = sum(result.n_val for result in summary.folds)
        lines.append(
            f"Out-of-fold accuracy, {samples} samples pooled, {summary.kept_epochs} epochs"
            f"{_of_seed(summary)}: {summary.oof_accuracy:.4f}"
        )
    return lines


def _of_seed(summary: Summary) -> str:
    """Which seed it is that figures of one are of, where there are several."""
    return f", seed {summary.repeats.seeds[0]}" if summary.repeats else ""


def _doubts(summary: Summary) -> Iterator[str]:
    """How far to trust the numbers above."""
    estimates = {"chosen": summary.chosen, "best": summary.best, "last": summary.last}
    intervals = [
        f"{name} {_interval(each.interval)}"
        for name, each in estimates.items()
        if each and each.interval
    ]
    if intervals:
        yield (
            f"95 % intervals of the mean, approximate (Nadeau and Bengio): {', '.join(intervals)}"
        )
    if summary.out_of_fold is not None:
        yield (
            "95 % interval of the pooled accuracy, as if samples were independent (Wilson): "
            f"{_interval(summary.out_of_fold.interval)}"
        )
    yield from _apart(summary)
    yield from _spread(summary)
    if not summary.ranked:
        return
    if summary.kept_epochs == "chosen":
        yield (
            "Chosen: on an inner validation split. Best: by the samples that are held out, and "
            "so optimistic"
        )
    else:
        yield (
            "The best epoch is chosen by the samples that it is measured on, and so optimistic; "
            "the last is where training ended; --select inner chooses on other samples"
        )


def _spread(summary: Summary) -> Iterator[str]:
    if summary.spread is None or summary.repeats is None:
        return
    apart = summary.spread
    line = f"Standard deviation from seed to seed: {apart.over_seeds:.4f} of a fold"
    if apart.over_folds is not None:
        line += f", {apart.of_means:.4f} of the mean; from fold to fold: {apart.over_folds:.4f}"
    yield f"Each fold's accuracy is the mean over {len(summary.repeats.seeds)} seeds. {line}"


def _apart(summary: Summary) -> Iterator[str]:
    ranked = summary.ranked
    if not summary.folds_differ:
        return
    (worst, lowest), (best, highest) = ranked[0], ranked[-1]
    line = f"Worst: fold {worst} ({lowest:.4f}), best: fold {best} ({highest:.4f})"
    if summary.repeats is not None:
        line += ", means over the seeds"
    outlying = summary.outlier_folds
    if outlying:
        line += f"; apart from the others: fold {', '.join(map(str, outlying))}"
    yield line


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _sparklines(folds: Sequence[FoldResult]) -> list[str]:
    """Validation accuracy of each fold, all on one scale, at most so many epochs wide."""
    series = [[metrics.val_accuracy for metrics in result.history] for result in folds]
    values = [value for each in series for value in each]
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    span = highest - lowest or 1.0
    return [
        "".join(SPARKS[round((value - lowest) / span * (len(SPARKS) - 1))] for value in shown)
        for shown in map(_thinned, series)
    ]


def _thinned(values: Sequence[float]) -> Sequence[float]:
    """At most `_SPARK_WIDTH` of them, evenly spread, the first and the last among them."""
    if len(values) <= _SPARK_WIDTH:
        return values
    step = (len(values) - 1) / (_SPARK_WIDTH - 1)
    return [values[round(number * step)] for number in range(_SPARK_WIDTH)]


def _row(result: FoldResult, inner: bool) -> list[str]:
    best = [_from_1(result.best_epoch), _accuracy(result.best_val_accuracy)]
    chosen = [_from_1(result.chosen_epoch), _accuracy(result.chosen_val_accuracy)]
    return [
        str(result.fold),
        result.status + (" (early)" if result.stopped_early else ""),
        str(result.n_train),
        str(result.n_val),
        str(result.epochs_run),
        *(chosen if inner else ()),
        *best,
        _accuracy(result.last_val_accuracy),
    ]


def _from_1(epoch: int | None) -> str:
    return "-" if epoch is None else str(epoch + 1)


def _accuracy(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

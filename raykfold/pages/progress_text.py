"""The progress of a run as lines for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from raykfold.state.progress import FoldProgress, Progress
from raykfold.text import RUN_AGAIN, aligned, count_of, duration, figure_text, mean_text, one_line

_HEADER = ("status", "epoch", "val acc", "kept (epoch)", "s/epoch")


def progress_lines(progress: Progress, room: int | None = None) -> list[str]:
    """Return lines that say how a run is doing.

    Args:
        progress: the run's.
        room: most lines; folds that are not at work are counted if there is no room for them.
    """
    seeds = progress.total // max(len(progress.folds), 1)
    folds = f"{progress.complete} of {progress.total} folds complete"
    head = f"{progress.run_name}: {folds}, {_driver(progress)}"
    foot = list(_foot(progress, seeds))
    left = None if room is None else max(0, room - 1 - len(foot))
    label = f"fold, seed {progress.seed}" if seeds > 1 else "fold"
    return [head, *_table(progress.folds, left, label), *foot]


def _driver(progress: Progress) -> str:
    driver = progress.driver
    if driver is None:
        return "over" if progress.state == "over" else "nothing is known of its driver"
    ago = duration(driver["seconds_ago"])
    who = f"on {driver['host']} (pid {driver['pid']})"
    return {
        "at work": f"at work {who}, last heard from {ago} ago",
        "silent": f"nothing heard for {ago}: the driver {who} may be dead",
        "stopped": f"stopped: last heard from {ago} ago",
        "sending": f"over; the driver {who} still sends files, last heard from {ago} ago",
        "over": "over",
        "unknown": "",
    }[progress.state]


def _foot(progress: Progress, seeds: int) -> Iterator[str]:
    """Yield what stands below the table: other seeds, time left, failures, uploads, the mean."""
    state = progress.state
    for repeat in progress.repeats:
        unfinished = [row for row in repeat.folds if not row.is_over]
        done = sum(row.epochs_run for row in unfinished)
        most = sum(row.epochs for row in unfinished)
        epochs = f"; {done} of at most {most} epochs of these" if unfinished else ""
        yield f"seed {repeat.seed}: {_counts(repeat.folds)}{epochs}"

    pace, left = progress.seconds_an_epoch, progress.epochs_left
    if progress.seconds_left is not None and pace is not None and left:
        epochs = f"{pace:.1f} s an epoch, {count_of(left, 'epoch')} left at most"
        yield f"about {duration(progress.seconds_left)} to go ({epochs})"
    elif state == "at work" and left:
        yield f"starting: no epoch yet in this session, {left} left at most"
    elif state == "at work":
        yield "putting the folds together"

    for each, of in ((progress, ""), *((r, f"seed {r.seed}, ") for r in progress.repeats)):
        for row in each.folds:
            if row.status == "failed":
                yield f"{of}fold {row.fold}: failed: {one_line(row.error)}"
    if progress.last_failure is not None and state != "over":
        ago = duration(progress.last_failure["seconds_ago"])
        yield f"last failure, {ago} ago: {progress.last_failure['text']}"
    if progress.uploads_pending:
        files = [f"{to} {count_of(n, 'file')}" for to, n in progress.uploads_pending.items()]
        then = "" if state in ("at work", "sending") else " when last heard from"
        yield f"uploads pending{then}: {', '.join(files)}"

    # The figure that the run is summed up by, and the accuracy, unless that is it.
    means = {progress.headline: (progress.headline_mean, progress.headline_std)}
    means["accuracy"] = progress.mean_accuracy, progress.std_accuracy
    if progress.headline_mean is not None:
        over = f", over {seeds} seeds" if seeds > 1 else ""
        for figure, (mean, std) in means.items():
            if figure is not None and mean is not None and std is not None:
                name = f"mean {figure_text(figure)} of the {progress.kept_epochs} epochs{over}"
                yield f"{name}: {mean_text(mean, std, len(progress.folds))}"
    elif state in ("over", "sending"):
        yield "partial: no mean over all folds"
    if progress.resume is not None:
        verb = "try what failed again" if state == "over" else "resume"
        yield f"to {verb}: {progress.resume or RUN_AGAIN}"


def _table(rows: Sequence[FoldProgress], room: int | None, label: str) -> list[str]:
    """Return a line a fold; without room for all, of those that run, have stopped or failed."""
    shown = list(rows)
    if room is not None and len(rows) + 1 > room:
        shown = [row for row in rows if row.status in ("running", "failed", "stopped")]
        shown = shown[: max(0, room - 2)]
    table = aligned([(label, *_HEADER), *map(_cells, shown)])
    hidden = [row for row in rows if row not in shown]
    return [*table, f"and {len(hidden)} more folds: {_counts(hidden)}"] if hidden else table


def _counts(rows: Sequence[FoldProgress]) -> str:
    counts = Counter(row.status for row in rows)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _cells(row: FoldProgress) -> tuple[str, ...]:
    kept = ""
    if row.kept_val_accuracy is not None and row.kept_epoch is not None:
        kept = f"{row.kept_val_accuracy:.4f} ({row.kept_epoch + 1})"
    return (
        str(row.fold),
        row.status,
        f"{row.epochs_run}/{row.epochs}" if row.epochs_run else "",
        "" if row.val_accuracy is None else f"{row.val_accuracy:.4f}",
        kept,
        "" if row.epoch_seconds is None else f"{row.epoch_seconds:.1f}",
    )

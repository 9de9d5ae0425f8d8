"""``python -m raykfold.status``: how a run is doing, from what lies on its storage.

python -m raykfold.status runs/demo
python -m raykfold.status s3://bucket/runs/demo --watch
python -m raykfold.status runs/demo --json

It may run anywhere that sees the storage, and touches nothing. With ``--json`` it prints one
object, with ``--watch`` one a line; times are in seconds, epochs count from 0:

run_name          text
seed              number
state             at work; silent (nothing was heard of the driver for long: it may be dead);
                  stopped; sending (all folds are over, and files still go up); over; unknown (by
                  an earlier version of raykfold, which said nothing of its driver)
repeats           the same of each repeat with a further seed; what is said of the time left, the
                  last failure and uploads is of the run with all of them
folds             of the first seed, a list of: fold, status (waiting, running, stopped, complete,
                  failed), epochs_run, epochs (at most), val_accuracy (of the last epoch),
                  kept_epoch (whose weights are kept: the best, or the one that an inner
                  validation split chose), kept_val_accuracy, epoch_seconds, error
complete          folds that are, of all seeds
total             folds that there are, of all seeds
driver            host, pid, seconds_ago (that it was heard of); or null
seconds_left      at most, early stopping aside; null until an epoch of this session is committed
seconds_an_epoch  from one to the next, over all folds; or null
epochs_left       at most
last_failure      text, seconds_ago; or null
uploads_pending   where to → files
resume            the command that goes on, or tries failed folds again; else null
mean_accuracy     with std_accuracy: over the kept epochs of all folds; null until all are complete
kept_epochs       which these are: best; or chosen, by an inner validation split
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from raykfold.config.command import Parser, add_flag, exit_code
from raykfold.errors import RaykfoldError
from raykfold.state.archive import Archive, Known, open_run
from raykfold.state.claim import is_dead
from raykfold.state.heartbeat import Beat, read_heartbeat
from raykfold.text import counted, duration, mean_text, one_line
from raykfold.training.results import FoldResult, Summary, kept_epochs

Status = Literal["waiting", "running", "stopped", "complete", "failed"]
State = Literal["at work", "silent", "stopped", "sending", "over", "unknown"]

_BEATS = 3  # that are missed before a driver counts as silent
_HEADER = ("status", "epoch", "val acc", "kept (epoch)", "s/epoch")


@dataclass(frozen=True)
class FoldRow:
    """A fold, as ``--json`` shows it."""

    fold: int
    status: Status
    epochs_run: int
    epochs: int
    val_accuracy: float | None = None
    kept_val_accuracy: float | None = None
    kept_epoch: int | None = None
    epoch_seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Look:
    """A run at one moment; the fields are those of ``--json``, and `stays` what is no age.

    Attributes:
        stays: equal in two looks between which nothing has happened but time.
        folds: of the run's own seed.
        complete, total: folds, of all seeds.
        kept_epochs: which ones `mean_accuracy` is of, ``best`` or ``chosen``.
    """

    run_name: str
    seed: int
    state: State
    folds: tuple[FoldRow, ...]
    complete: int
    total: int
    driver: Mapping[str, Any] | None
    seconds_left: float | None
    seconds_an_epoch: float | None
    epochs_left: int
    last_failure: Mapping[str, Any] | None
    uploads_pending: Mapping[str, int]
    resume: str | None
    mean_accuracy: float | None
    std_accuracy: float | None
    kept_epochs: str
    repeats: tuple[Look, ...] = ()

    @property
    def stays(self) -> tuple[Any, ...]:
        failure = self.last_failure and self.last_failure["text"]
        repeats = [(repeat.state, repeat.folds) for repeat in self.repeats]
        pending = dict(self.uploads_pending)
        return self.state, self.folds, failure, pending, self.mean_accuracy, repeats

    @property
    def is_last(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.state == "over"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Watcher:
    """Looks at a run, again and again.

    Clocks of two machines differ. What one look cannot tell from that, a second one can: that the
    driver's time has gone on since.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._known: Known = {}
        self._beat_time: float | None = None
        self._changed = -math.inf

    def look(self) -> Look:
        """
        Raises:
            BadInput: no run is there, or it cannot be read.
            StorageError: the store cannot be reached.
        """
        archive = open_run(self._run, self._known)
        beat = read_heartbeat(archive.run_dir)
        age = self._age(beat)
        repeats = [_look(each, read_heartbeat(each.run_dir), age) for each in archive.repeats()]
        look = _with(_look(archive, beat, age), repeats, archive.summary)
        return look if _can_go_on(look) else dataclasses.replace(look, resume=None)

    def _age(self, beat: Beat | None) -> float:
        if beat is None:
            return math.inf
        now = time.monotonic()
        if self._beat_time is not None and beat.time != self._beat_time:
            self._changed = now
        self._beat_time = beat.time
        return min(_seconds_since(beat.time), now - self._changed)


def _seconds_since(moment: float) -> float:
    """By the clock of this machine; nothing happens later than now."""
    return max(0.0, time.time() - moment)


def _look(archive: Archive, beat: Beat | None, age: float) -> Look:
    state = _state(archive, beat, age)
    rows = tuple(_rows(archive, beat, state))
    lefts = {row.fold: row.epochs - row.epochs_run for row in rows if not _is_over(row)}
    pace = beat.epoch_seconds if beat and state == "at work" else None
    driver = None
    if beat is not None:
        driver = {"host": beat.host, "pid": beat.pid, "seconds_ago": age}
    summary = archive.summary
    mean = std = None
    if summary is not None and summary.kept is not None:
        mean, std = summary.kept.mean, summary.kept.std
    elif beat is not None and beat.result and state in ("sending", "over"):
        mean, std = beat.result["mean_accuracy"], beat.result["std_accuracy"]
    return Look(
        run_name=archive.run_name,
        seed=archive.record.seed,
        state=state,
        folds=rows,
        complete=sum(row.status == "complete" for row in rows),
        total=len(rows) * archive.record.repeats,
        driver=driver,
        seconds_left=None if pace is None else _seconds_left(rows, lefts, pace),
        seconds_an_epoch=pace,
        epochs_left=sum(lefts.values()),
        last_failure=_last_failure(beat),
        uploads_pending=dict(beat.pending) if beat else {},
        resume=beat.resume if beat else None,
        mean_accuracy=mean,
        std_accuracy=std,
        kept_epochs=kept_epochs(archive.record.config["select"]),
    )


def _can_go_on(look: Look) -> bool:
    """Whether the command that started the run has something to do now."""
    failed = any(row.status == "failed" for each in (look, *look.repeats) for row in each.folds)
    return look.state in ("silent", "stopped") or (look.state == "over" and failed)


def _with(look: Look, repeats: Sequence[Look], summary: Summary | None) -> Look:
    """The run with its repeats, which one driver trains together, and one command resumes."""
    all_ = [look, *repeats]
    complete = sum(each.complete for each in all_)
    if summary is not None:  # also where the repeats themselves are out of reach
        complete = sum(len(folds) for _, folds in summary.by_seed) - len(summary.incomplete)
    if not repeats:
        return dataclasses.replace(look, complete=complete)
    paces = [each.seconds_an_epoch for each in all_ if each.seconds_an_epoch]
    pace = 1 / sum(1 / each for each in paces) if paces else None
    epochs_left = sum(each.epochs_left for each in all_)
    alone = [each.seconds_left for each in all_ if each.seconds_left is not None]
    failures = [each.last_failure for each in all_ if each.last_failure is not None]
    pending = sum((Counter(each.uploads_pending) for each in all_), Counter[str]())
    return dataclasses.replace(
        look,
        complete=complete,
        seconds_left=None if pace is None else max([pace * epochs_left, *alone]),
        seconds_an_epoch=pace,
        epochs_left=epochs_left,
        last_failure=min(failures, key=lambda failure: failure["seconds_ago"], default=None),
        uploads_pending=dict(pending),
        repeats=tuple(dataclasses.replace(each, resume=None) for each in repeats),
    )


def _state(archive: Archive, beat: Beat | None, age: float) -> State:
    """What is on storage for good counts for more than what the driver has said of itself."""
    if beat is None:
        return "unknown" if archive.summary is None else "over"
    lives = beat.phase in ("at work", "sending") and not is_dead(dataclasses.asdict(beat))
    heard = age <= _BEATS * beat.every
    if archive.summary is not None or beat.phase in ("sending", "over"):
        return "sending" if lives and heard and beat.pending else "over"
    if not lives:
        return "stopped"
    return "at work" if heard else "silent"


def _rows(archive: Archive, beat: Beat | None, state: State) -> Iterator[FoldRow]:
    epochs = archive.record.epochs
    results = archive.folds
    failed = dict(beat.failed) if beat else {}
    at_work = {fold for folds in beat.workers for fold in folds} if beat else set()
    for fold in sorted({*archive.record.folds, *results}):
        result = results.get(fold, FoldResult(fold, "running", 0, 0))
        if fold in failed and result.status == "running":
            result = dataclasses.replace(result, status="failed", error=failed[fold])
        yield _row(result, epochs, _status(result, state, fold in at_work))


def _status(result: FoldResult, state: State, at_work: bool) -> Status:
    if result.status == "complete" or result.status == "failed":
        return result.status
    if state == "unknown":  # what is known is that it has begun, or not
        return "running" if result.history else "waiting"
    if state in ("at work", "silent"):
        return "running" if at_work else "waiting"
    return "stopped" if result.history else "waiting"


def _row(result: FoldResult, epochs: int, status: Status) -> FoldRow:
    history = result.history
    return FoldRow(
        fold=result.fold,
        status=status,
        epochs_run=len(history),
        epochs=epochs,
        val_accuracy=result.last_val_accuracy,
        kept_val_accuracy=result.kept_val_accuracy,
        kept_epoch=result.kept_epoch,
        epoch_seconds=sum(each.seconds for each in history) / len(history) if history else None,
        error=result.error,
    )


def _is_over(row: FoldRow) -> bool:
    return row.status in ("complete", "failed")


def _seconds_left(rows: Sequence[FoldRow], lefts: Mapping[int, int], pace: float) -> float:
    """As fast as until now; but no fold is faster than its own epochs, one after the other."""
    alone = [lefts[row.fold] * (row.epoch_seconds or 0.0) for row in rows if row.fold in lefts]
    return max([pace * sum(lefts.values()), *alone])


def _last_failure(beat: Beat | None) -> Mapping[str, Any] | None:
    if beat is None or beat.last_failure is None or beat.failure_time is None:
        return None
    # Both moments by the driver's clock, and the rest by this one.
    before = max(0.0, beat.time - beat.failure_time)
    return {"text": beat.last_failure, "seconds_ago": before + _seconds_since(beat.time)}


# --- for people --------------------------------------------------------------------------------


def lines(look: Look, room: int | None = None) -> list[str]:
    """What people see.

    Args:
        room: most lines; folds with nothing to tell are counted where they find none.
    """
    head, foot = [_headline(look)], list(_foot(look))
    left = None if room is None else max(0, room - len(head) - len(foot))
    table = _table(look.folds, left, f"fold, seed {look.seed}" if _seeds(look) > 1 else "fold")
    return [*head, *table, *foot]


def _headline(look: Look) -> str:
    folds = f"{look.complete} of {look.total} folds complete"
    return f"{look.run_name}: {folds}, {_of_driver(look)}"


def _of_driver(look: Look) -> str:
    if look.driver is None:
        return "over" if look.state == "over" else "nothing is known of its driver"
    ago = duration(look.driver["seconds_ago"])
    who = f"on {look.driver['host']} (pid {look.driver['pid']})"
    return {
        "at work": f"at work {who}, heard of {ago} ago",
        "silent": f"nothing heard of for {ago}: the driver {who} may be dead",
        "stopped": f"stopped: last heard of {ago} ago",
        "sending": f"over; the driver {who} still sends files, heard of {ago} ago",
        "over": "over",
        "unknown": "",
    }[look.state]


def _foot(look: Look) -> Iterator[str]:
    for repeat in look.repeats:
        yield f"seed {repeat.seed}: {_counts(repeat.folds)}{_epochs(repeat.folds)}"
    if look.seconds_left is not None and look.seconds_an_epoch is not None and look.epochs_left:
        pace, left = look.seconds_an_epoch, look.epochs_left
        epochs = f"{pace:.1f} s an epoch, {counted(left, 'epoch')} left at most"
        yield f"about {duration(look.seconds_left)} to go ({epochs})"
    elif look.state == "at work" and look.epochs_left:
        yield f"starting: no epoch yet in this session, {look.epochs_left} left at most"
    elif look.state == "at work":
        yield "putting the folds together"
    yield from _failed(look.folds)
    for repeat in look.repeats:
        yield from _failed(repeat.folds, f"seed {repeat.seed}, ")
    if look.last_failure is not None and look.state != "over":
        ago = duration(look.last_failure["seconds_ago"])
        yield f"last failure, {ago} ago: {look.last_failure['text']}"
    if look.uploads_pending:
        files = [f"{place} {n} file{'s' * (n != 1)}" for place, n in look.uploads_pending.items()]
        then = "" if look.state in ("at work", "sending") else " when last heard of"
        yield f"uploads pending{then}: {', '.join(files)}"
    if look.mean_accuracy is not None and look.std_accuracy is not None:
        mean = mean_text(look.mean_accuracy, look.std_accuracy, len(look.folds))
        seeds = f", over {_seeds(look)} seeds" if _seeds(look) > 1 else ""
        yield f"mean accuracy of the {look.kept_epochs} epochs{seeds}: {mean}"
    elif look.state in ("over", "sending"):
        yield "partial: no mean over all folds"
    if look.resume is not None:
        verb = "try what failed again" if look.state == "over" else "go on"
        yield f"to {verb}: {look.resume}"


def _seeds(look: Look) -> int:
    return look.total // max(len(look.folds), 1)


def _failed(rows: Sequence[FoldRow], of: str = "") -> Iterator[str]:
    for row in rows:
        if row.status == "failed":
            yield f"{of}fold {row.fold}: failed: {one_line(row.error)}"


def _table(rows: Sequence[FoldRow], room: int | None, fold: str) -> list[str]:
    """A line a fold; without room for all, of those that are at work or have failed.

    Args:
        fold: what stands above their labels.
    """
    shown = list(rows)
    if room is not None and len(rows) + 1 > room:
        shown = [row for row in rows if row.status in ("running", "failed", "stopped")]
        shown = shown[: max(0, room - 2)]
    cells = [(fold, *_HEADER), *map(_cells, shown)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in cells]
    hidden = [row for row in rows if row not in shown]
    return [*table, f"and {len(hidden)} more folds: {_counts(hidden)}"] if hidden else table


def _epochs(rows: Sequence[FoldRow]) -> str:
    """Of folds that are not over."""
    rest = [row for row in rows if not _is_over(row)]
    done, most = sum(row.epochs_run for row in rest), sum(row.epochs for row in rest)
    return f"; {done} of at most {most} epochs of these" if rest else ""


def _counts(rows: Sequence[FoldRow]) -> str:
    counts = Counter(row.status for row in rows)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _cells(row: FoldRow) -> tuple[str, ...]:
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


# --- the command -------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Look, print, and return the exit code: 0, 1, 2 or 130 (see `raykfold.errors`)."""
    arguments = sys.argv[1:] if argv is None else argv
    return exit_code(
        lambda: _status_of(_parser().parse_args(arguments)), stopped="raykfold: interrupted"
    )


def _parser() -> Parser:
    parser = Parser(
        prog="python -m raykfold.status",
        description="Tell how a run is doing, from its storage alone; nothing is touched.",
        epilog="Exit codes: 0 done, 2 bad input, 130 interrupted, 1 anything else.",
    )
    parser.add_argument(
        "run", metavar="RUN_DIR", help="Its --model_dir, or its folder on storage; path or URI."
    )
    add_flag(parser, "watch", action="store_true", help="Look again and again until it is over.")
    add_flag(
        parser,
        "interval",
        metavar="SECONDS",
        type=_positive,
        default=2.0,
        help="From one look to the next.",
    )
    add_flag(parser, "json", action="store_true", help="One JSON object, with --watch a line.")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: want a number above 0")
    return value


def _status_of(options: argparse.Namespace) -> int:
    watcher = Watcher(options.run)
    if options.json:
        _print_json(watcher, options, sys.stdout)
    elif options.watch and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _watch_in_place(watcher, options.interval, sys.stdout)
    elif options.watch:
        _watch_in_blocks(watcher, options.interval, sys.stdout)
    else:
        print("\n".join(lines(watcher.look())))
    return 0


def _print_json(watcher: Watcher, options: argparse.Namespace, stream: TextIO) -> None:
    if not options.watch:
        print(json.dumps(watcher.look().to_json(), indent=2), file=stream)
        return
    for look in _looks(watcher, options.interval):
        if isinstance(look, Look):
            print(json.dumps(look.to_json()), file=stream, flush=True)
        else:
            print(f"raykfold: {one_line(look)}", file=sys.stderr, flush=True)


def _looks(watcher: Watcher, interval: float) -> Iterator[Look | RaykfoldError]:
    """Looks until the run is over, or why one failed; the first has to succeed."""
    look: Look | RaykfoldError = watcher.look()
    while True:
        yield look
        if isinstance(look, Look) and look.is_last:
            return
        time.sleep(interval)
        try:
            look = watcher.look()
        except RaykfoldError as error:  # an outage; a run that is just set aside
            look = error


def _watch_in_place(watcher: Watcher, interval: float, stream: TextIO) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        last: list[str] = []
        for look in _looks(watcher, interval):
            if isinstance(look, Look):
                last, note = lines(look, room=console.height - 2), []
            else:
                note = [f"raykfold: {one_line(look)}"]
            shown = Text("\n".join([*last, *note]), no_wrap=True, overflow="ellipsis")
            live.update(shown, refresh=True)


def _watch_in_blocks(watcher: Watcher, interval: float, stream: TextIO) -> None:
    """A block when something has changed: what a log wants."""
    before: Any = None
    for look in _looks(watcher, interval):
        if isinstance(look, Look):
            now: Any = look.stays
            block = [*lines(look), ""]
        else:
            now, block = str(look), [f"raykfold: {one_line(look)}", ""]
        if now != before:
            print("\n".join(block), file=stream, flush=True)
        before = now


if __name__ == "__main__":
    sys.exit(main())

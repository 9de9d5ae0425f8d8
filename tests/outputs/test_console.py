"""Progress as people see it: a live line a fold on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import threading

from raykfold.observers import Audience, Observer, RunStart
from raykfold.outputs.console import LineProgress, LiveProgress, Terminal, console
from raykfold.training.results import EpochMetrics, FoldResult, OutOfFoldMetrics, Summary

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(number, 1.5, 0.25, 1.25, 0.5 + number / 10, 0.001, 2.0)


def complete(fold: int) -> FoldResult:
    history = (epoch(0), epoch(1))
    return FoldResult.of(fold, "complete", 8, 2, history, stopped_early=True)


def tell(observer: Observer) -> None:
    """A short run: fold 1 goes on from an earlier session, fold 2 fails."""
    observer.noticed("fold 1: resumes after epoch 1")
    observer.run_started(RunStart("run", 5, (1, 2), {1: (epoch(0),)}))
    observer.epoch_committed(1, epoch(1))
    observer.fold_finished(complete(1))
    observer.fold_finished(FoldResult.of(2, "failed", 8, 2, error="loss became [nan]"))
    observer.close()


def test_a_log_gets_plain_lines() -> None:
    stream = io.StringIO()
    tell(console(stream))
    assert stream.getvalue().splitlines() == [
        "fold 1: resumes after epoch 1",
        "run run: training folds 1, 2, at most 5 epochs each",
        "fold 1  epoch 2/5  loss 1.5000  acc 0.2500  val_loss 1.2500  val_acc 0.6000  2.0s",
        "fold 1: accuracy of the best epoch 0.6000 at epoch 2 of 2, stopped early",
        "fold 2: failed: loss became [nan]",
    ]


def test_a_terminal_gets_a_line_a_fold_that_changes_in_place() -> None:
    shown = on_a_terminal(tell)
    assert CONTROL.search(shown)
    text = CONTROL.sub("", shown)
    assert "fold 1: resumes after epoch 1" in text
    last = [line.strip() for line in text.replace("\r", "").splitlines() if line.strip()][-3:]
    assert last[0].startswith("fold 1")
    assert "accuracy of the best epoch 0.6000 at epoch 2 of 2, stopped early" in last[0]
    assert last[1].startswith("fold 2") and "failed: loss became [nan]" in last[1]
    assert last[2] == "putting the folds together"


def test_a_terminal_shows_the_time_that_is_left() -> None:
    def halfway(observer: Observer) -> None:
        observer.run_started(RunStart("run", 5, (1, 2), {}))
        observer.epoch_committed(1, epoch(0))
        observer.close()

    text = CONTROL.sub("", on_a_terminal(halfway))
    assert re.search(r"fold 1 +epoch 1/5 +loss 1\.5000", text)
    assert re.search(r"fold 2 +waiting", text)
    assert re.search(r"about \d+ s to go", text)


def test_a_terminal_shows_repeats_below_the_run_and_one_time_for_all() -> None:
    def with_a_repeat(observer: Observer) -> None:
        repeat = observer.of_repeat(4)
        observer.run_started(RunStart("run", 5, (1,), {}))
        repeat.run_started(RunStart("run-seed-4", 5, (1,), {}))
        repeat.noticed("a slot is free")
        repeat.epoch_committed(1, epoch(0))
        repeat.close()  # the run's display goes on
        observer.epoch_committed(1, epoch(1))
        observer.close()

    text = CONTROL.sub("", on_a_terminal(with_a_repeat)).replace("\r", "")
    assert "seed 4  a slot is free" in text
    shown = " ".join(text.split())  # lines are longer than the terminal is wide
    last = shown[shown.rindex("fold 1 epoch 2/5") :]
    assert re.search(r"seed 4 fold 1 epoch 1/5 .* about \d+ s to go$", last)


def on_a_terminal(tell_to: object) -> str:
    """What a pseudo-terminal receives while an observer on it is told something."""
    ours, theirs = pty.openpty()
    received: list[bytes] = []

    def read() -> None:
        while True:
            try:
                content = os.read(ours, 4096)
            except OSError:  # how Linux says that the other side is closed
                return
            if not content:
                return
            received.append(content)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream:
        tell_to(console(stream))  # type: ignore[operator]
    reader.join(timeout=10)
    os.close(ours)
    return b"".join(received).decode()


def summary(*folds: FoldResult) -> Summary:
    return Summary(
        "run",
        folds,
        OutOfFoldMetrics(0.55, (0.4, 0.7), ()),
        {0: "a"},
        wall_seconds=1.0,
        num_workers=2,
    )


def test_a_stream_that_cannot_show_blocks_gets_none() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console(stream).run_finished(summary(complete(1)))
    stream.seek(0)
    assert "fold            status  train" in stream.read()


def test_repeats_have_lines_of_their_own() -> None:
    stream = io.StringIO()
    audience = Audience([console(stream)])
    repeat = audience.of_repeat(4)
    audience.epoch_committed(1, epoch(0))
    repeat.epoch_committed(1, epoch(0))
    repeat.run_finished(summary(complete(1)))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1] == f"seed 4  {lines[0]}"


def test_a_run_with_nothing_left_to_train_starts_no_display() -> None:
    done = complete(1)
    stream = io.StringIO()
    for observer in (LineProgress(stream), LiveProgress(Terminal(stream))):
        observer.run_started(RunStart("run", 3, (1,), {}, {1: done}))
    assert stream.getvalue() == ""

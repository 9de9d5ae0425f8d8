"""Progress as people see it: a live line a fold on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from raykfold.errors import StorageError
from raykfold.observers import Audience, Observer, RunStart
from raykfold.outputs.console import LineProgress, LiveProgress, console
from raykfold.pages.remarks import BEST_EPOCHS, CHOSEN_EPOCHS, POOLED
from raykfold.pages.summary_text import summary_lines
from raykfold.text import duration
from raykfold.training.results import EpochMetrics, FoldResult, OutOfFoldMetrics, Repeats, Summary

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
        "fold 1: best accuracy 0.6000 at epoch 2 of 2, stopped early",
        "fold 2: failed: loss became [nan]",
    ]


def test_a_terminal_gets_a_line_a_fold_that_changes_in_place() -> None:
    shown = on_a_terminal(tell)
    assert CONTROL.search(shown)
    text = CONTROL.sub("", shown)
    assert "fold 1: resumes after epoch 1" in text
    last = [line.strip() for line in text.replace("\r", "").splitlines() if line.strip()][-3:]
    assert last[0].startswith("fold 1")
    assert "best accuracy 0.6000 at epoch 2 of 2, stopped early" in last[0]
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def summary(*folds: FoldResult) -> Summary:
    return Summary(
        "run",
        folds,
        OutOfFoldMetrics(0.55, (0.4, 0.7), ()),
        {0: "a"},
        wall_seconds=1.0,
        num_workers=2,
    )


def test_the_summary_has_the_line_that_people_know() -> None:
    lines = summary_lines(summary(complete(1), complete(2)))
    assert "Average Best Validation Accuracy: 0.6000 (+/- 0.0000)" in lines
    assert "Out-of-fold accuracy, 4 samples pooled, best epochs: 0.5500" in lines
    assert [line.split()[0] for line in lines[:3]] == ["fold", "1", "2"]


def test_the_table_draws_each_fold_on_one_scale() -> None:
    lines = summary_lines(summary(complete(1), complete(2)))
    assert [line.split()[-1] for line in lines[1:3]] == ["▁█", "▁█"]
    plain = summary_lines(summary(complete(1), complete(2)), sparks=False)
    assert not any("█" in line for line in plain)


def test_a_long_history_is_drawn_from_its_first_to_its_last_epoch() -> None:
    history = [replace(epoch(n), val_accuracy=n / 200) for n in range(200)]
    (_, row, *_) = summary_lines(summary(FoldResult.of(1, "complete", 8, 2, history)))
    drawn = row.split()[-1]
    assert len(drawn) == 25
    assert (drawn[0], drawn[-1]) == ("▁", "█") and list(drawn) == sorted(drawn)


def test_a_stream_that_cannot_show_blocks_gets_none() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console(stream).run_finished(summary(complete(1)))
    stream.seek(0)
    assert "fold            status  train" in stream.read()


def test_what_was_chosen_by_held_out_samples_is_called_optimistic() -> None:
    lines = summary_lines(summary(complete(1), complete(2)))
    assert BEST_EPOCHS in lines and POOLED in lines
    assert "95 % interval of the pooled accuracy: 0.4000 to 0.7000" in lines


def test_with_an_inner_split_the_table_says_which_accuracy_is_which() -> None:
    history = [replace(epoch(n), inner_loss=1.0, inner_accuracy=0.5 - n / 10) for n in range(2)]
    fold = FoldResult.of(1, "complete", 8, 2, history)
    lines = summary_lines(replace(summary(fold, replace(fold, fold=2)), select="inner"))
    assert lines[0].split() == [
        *("fold", "status", "train", "val", "epochs", "chosen", "epoch"),
        *("accuracy", "best", "epoch", "of", "best", "of", "last"),
    ]
    assert lines[1].split()[:9] == [
        *("1", "complete", "8", "2", "2", "1", "0.5000", "2", "0.6000"),
    ]
    assert "Average Accuracy of the Chosen Epoch: 0.5000 (+/- 0.0000)" in lines


def test_a_partial_run_with_an_inner_split_has_the_mean_of_the_epochs_that_are_kept() -> None:
    history = [replace(epoch(n), inner_loss=1.0, inner_accuracy=0.5 - n / 10) for n in range(2)]
    fold = FoldResult.of(1, "complete", 8, 2, history)
    lines = summary_lines(replace(summary(fold, FoldResult.of(2, "failed", 8, 2)), select="inner"))
    assert (
        "Partial run: 1 of 2 folds are complete, so there is no mean. Over fold 1 alone it would "
        "be 0.5000 at the chosen epochs, which is not the mean of the whole cross-validation."
    ) in lines
    assert CHOSEN_EPOCHS in lines and BEST_EPOCHS in lines


def test_one_fold_has_no_spread_but_that_of_its_seeds() -> None:
    lines = summary_lines(summary(complete(1)))
    assert "Average Best Validation Accuracy: 0.6000" in lines
    better = FoldResult.of(1, "complete", 8, 2, [replace(epoch(0), val_accuracy=0.8)])
    seeds = Repeats((3, 4), ((complete(1),), (better,)))
    lines = summary_lines(replace(summary(complete(1)), repeats=seeds))
    assert "Average Best Validation Accuracy: 0.7000" in lines
    assert (
        "The accuracy of a fold is its mean over 2 seeds. From seed to seed it varies by 0.1414 "
        "(standard deviation)." in lines
    )


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


def test_an_observer_that_does_not_know_of_repeats_is_not_told_of_them() -> None:
    failing = Failing(OSError("told"))
    Audience([failing]).of_repeat(4).epoch_committed(1, epoch(0))
    assert failing.heard == 0


def test_repeats_are_in_the_table_of_seeds() -> None:
    first, second = (complete(1), complete(2)), (complete(1), FoldResult.of(2, "failed", 8, 2))
    repeated = replace(summary(*first), repeats=Repeats((3, 4), (first, second)))
    lines = summary_lines(repeated)
    assert "   3  0.6000  0.6000  0.6000" in lines
    assert "   4       -  0.6000  -" in lines
    assert "seed 4, fold 2: failed: None" in lines
    assert not any("Average" in line for line in lines)
    assert any(
        "3 of 4 folds are complete, so there is no mean. Over fold 1, complete with every seed, "
        "alone it would be 0.6000 at the best epochs" in line
        for line in lines
    )
    assert lines[0].split()[:3] == ["fold,", "seed", "3"]


def test_the_summary_of_a_partial_run_has_no_mean_of_the_whole() -> None:
    lines = summary_lines(summary(complete(1), FoldResult.of(2, "failed", 8, 2, error="died")))
    assert not any("Average" in line for line in lines)
    assert "fold 2: failed: died" in lines
    assert any("Over fold 1 alone it would be 0.6000 at the best epochs" in x for x in lines)


class Failing(Observer):
    """Fails each time that it hears of an epoch."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.heard = 0

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self.heard += 1
        raise self.error


def test_an_observer_that_fails_is_told_no_more_and_the_others_are() -> None:
    failing, stream = Failing(OSError("service\nis down")), io.StringIO()
    audience = Audience([failing, console(stream)])
    audience.epoch_committed(1, epoch(0))
    audience.epoch_committed(1, epoch(1))
    assert failing.heard == 1
    assert stream.getvalue().count("fold 1  epoch") == 2
    assert "Failing failed and is not told any more: service is down" in stream.getvalue()


class Sending(Observer):
    """Has files to send, also while it is closed."""

    def __init__(self, place: str, count: int | Exception) -> None:
        self.place = place
        self.count = count
        self.asks: object = None

    def pending(self) -> dict[str, int]:
        if isinstance(self.count, Exception):
            raise self.count
        return {self.place: self.count}

    def close(self) -> None:
        assert isinstance(self.asks, Audience)
        assert self.asks.pending() == {"Hub": 3, "s3": 4}


def test_what_is_pending_is_summed_also_while_observers_are_closed() -> None:
    sending = [Sending("Hub", 1), Sending("Hub", 2), Sending("s3", 4)]
    failing = Sending("Hub", OSError("gone"))
    audience = Audience([Observer(), sending[0]])
    for observer in (*sending[1:], failing):
        audience.add(observer)
    for observer in (*sending, failing):
        observer.asks = audience
    audience.close()
    assert audience.pending() == {"Hub": 3, "s3": 4}


def test_all_hear_of_workers() -> None:
    class Hearing(Observer):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def workers_changed(self, at_work: Sequence[Sequence[int]]) -> None:
            self.heard.append(at_work)

        def worker_lost(self, folds: Sequence[int], reason: str) -> None:
            self.heard.append((folds, reason))

    both = [Hearing(), Hearing()]
    audience = Audience(both)
    audience.workers_changed([(1, 2)])
    audience.worker_lost((1, 2), "killed")
    assert both[0].heard == both[1].heard == [[(1, 2)], ((1, 2), "killed")]


def test_an_observer_can_end_the_run() -> None:
    with pytest.raises(StorageError, match="disk"):
        Audience([Failing(StorageError("the disk is full"))]).epoch_committed(1, epoch(0))


class Closing(Observer):
    """Says its name when it is closed, and can be interrupted at that."""

    def __init__(self, name: str, said: list[str], *, interrupted: bool = False) -> None:
        self.name = name
        self.said = said
        self.interrupted = interrupted

    def close(self) -> None:
        self.said.append(self.name)
        if self.interrupted:
            raise KeyboardInterrupt


def test_the_last_observer_is_closed_first_and_each_once_even_if_interrupted() -> None:
    said: list[str] = []
    audience = Audience([Closing("a", said), Closing("b", said, interrupted=True)])
    audience.add(Closing("c", said))
    with pytest.raises(KeyboardInterrupt):
        audience.close()
    audience.close()
    assert said == ["c", "b", "a"]


def test_a_run_with_nothing_left_to_train_starts_no_display() -> None:
    done = complete(1)
    stream = io.StringIO()
    for observer in (LineProgress(stream), LiveProgress(stream)):
        observer.run_started(RunStart("run", 3, (1,), {}, {1: done}))
    assert stream.getvalue() == ""

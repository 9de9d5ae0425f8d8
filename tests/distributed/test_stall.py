"""When a worker counts as stalled, on a clock of the test's own."""

from __future__ import annotations

import math

import pytest

from raykfold.distributed.stall import AwakeClock, StallWatch, stall_of


class Worker:
    """A training thread and its watch, which look at the same clock."""

    def __init__(self, timeout: float | None = None) -> None:
        self.now = 0.0
        self.told: list[tuple[float, float]] = []
        self.watch = StallWatch(
            lambda *told: self.told.append(told), timeout, AwakeClock(lambda: self.now)
        )

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.now += 1.0
            self.watch.look()

    def epoch(self, *, first: bool, batch_seconds: float = 1.0) -> None:
        with self.watch.computing(first=first):
            for _ in range(3):
                self.wait(batch_seconds)
                self.watch.count()
        self.watch.look()

    @property
    def stall(self) -> str | None:
        still, limit = self.told[-1]
        return stall_of(still, limit, silent=0.0, timeout=None)


def test_a_batch_that_never_ends_is_a_stall_after_a_minute() -> None:
    worker = Worker()
    worker.epoch(first=True)
    worker.epoch(first=False)
    with worker.watch.computing(first=False):
        worker.wait(60)
        assert worker.stall is None
        worker.wait(2)
        assert worker.stall == "it stalled: no batch was finished for 61 s"


def test_long_batches_may_take_twenty_times_as_long() -> None:
    worker = Worker()
    worker.epoch(first=True, batch_seconds=200)  # says nothing about later ones
    worker.epoch(first=False, batch_seconds=10)
    with worker.watch.computing(first=False):
        worker.wait(199)
        assert worker.stall is None
        worker.wait(30)
        assert worker.stall is not None


def test_the_first_epoch_has_ten_minutes_for_a_batch() -> None:
    worker = Worker()
    with worker.watch.computing(first=True):
        worker.wait(599)
        assert worker.stall is None
        worker.wait(3)
        assert worker.stall is not None


def test_what_is_no_batch_may_take_any_time() -> None:
    worker = Worker()
    worker.epoch(first=True)
    worker.epoch(first=False)
    worker.wait(10_000)  # for storage
    assert worker.stall is None
    worker.epoch(first=False)
    assert worker.stall is None


def test_a_timeout_of_the_user_holds_from_the_first_batch() -> None:
    worker = Worker(timeout=15.0)
    with worker.watch.computing(first=True):
        worker.wait(14)
        assert worker.stall is None
        worker.wait(3)
        assert worker.stall is not None


@pytest.mark.parametrize(("timeout", "allowed"), [(None, 60.0), (12.0, 12.0)])
def test_a_process_that_says_nothing_is_a_stall(timeout: float | None, allowed: float) -> None:
    def stall(silent: float, limit: float = 600.0) -> str | None:
        return stall_of(0.0, limit, silent, timeout)

    assert stall(allowed) is None
    assert stall(allowed + 1.0) == f"it stalled: its process said nothing for {allowed + 1:.0f} s"
    assert stall(allowed + 1.0, math.inf) is None  # it has said nothing yet


def test_time_in_which_the_process_was_suspended_does_not_count() -> None:
    now = 0.0
    clock = AwakeClock(lambda: now)
    now = 1.0
    assert clock.tick() == 1.0
    now = 3601.0
    assert clock.tick() == 3.0

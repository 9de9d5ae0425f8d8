"""When a worker counts as stalled, on a clock of the test's own."""

from __future__ import annotations

from raykfold.distributed.stall import NO_PULSE, AwakeClock, Pulse, Stage, StallWatch, stall_of


class Worker:
    """A training thread and its watch, which look at the same clock."""

    def __init__(self, timeout: float | None = None) -> None:
        self.now = 0.0
        self.pulse = NO_PULSE
        self.stalls: list[str] = []
        self.watch = StallWatch(self.hear, timeout, AwakeClock(lambda: self.now))

    def hear(self, pulse: Pulse) -> None:
        self.pulse = pulse
        stall = stall_of(pulse, silent=0.0)
        if stall:
            self.stalls.append(stall)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.now += 1.0
            self.watch.look()

    def hang(self, stage: Stage, allowed: float) -> None:
        """Compute one batch for longer than is allowed, and see it called a stall only then."""
        with self.watch.expect(stage):
            self.wait(allowed)
            assert not self.stalls
            self.wait(2)
            assert self.stalls[0] == (f"it stalled: no batch was finished for {allowed + 1:.0f} s")

    def epoch(self, stage: Stage, batch_seconds: float = 1.0, last_seconds: float = 1.0) -> None:
        with self.watch.expect(stage):
            for _ in range(30):
                self.wait(batch_seconds)
                self.watch.count()
            self.wait(last_seconds)  # evaluation, or a GPU that has the epoch in its queue
            self.watch.count()
        self.wait(1)


def test_a_batch_that_never_ends_is_a_stall_after_a_minute() -> None:
    worker = Worker()
    worker.epoch("first")
    worker.epoch("later")
    worker.hang("later", allowed=60)


def test_long_batches_may_take_twenty_times_as_long() -> None:
    worker = Worker()
    worker.epoch("first", batch_seconds=20)
    worker.epoch("later", batch_seconds=10)
    worker.hang("later", allowed=20 * 10)


def test_what_comes_last_in_an_epoch_may_take_long() -> None:
    worker = Worker()
    worker.epoch("first", last_seconds=90)
    worker.epoch("later", last_seconds=90)
    worker.epoch("later", last_seconds=90)
    assert not worker.stalls


def test_the_first_epoch_has_five_minutes_for_a_batch() -> None:
    worker = Worker()
    worker.hang("first", allowed=300)


def test_what_a_first_epoch_takes_says_little_about_later_ones() -> None:
    worker = Worker()
    worker.epoch("first", last_seconds=200)
    assert worker.pulse.idle_limit == 5 * 200
    worker.epoch("later")
    assert worker.pulse.idle_limit == 60


def test_between_epochs_a_worker_may_wait_for_ever() -> None:
    worker = Worker()
    worker.epoch("first")
    worker.epoch("later")
    worker.wait(10_000)  # for storage
    worker.epoch("later")
    assert not worker.stalls


def test_a_timeout_of_the_user_holds_from_the_first_batch() -> None:
    worker = Worker(timeout=15.0)
    with worker.watch.expect("start"):  # which no batch is
        worker.wait(100)
    worker.hang("first", allowed=15)


def test_a_process_that_reports_nothing_is_a_stall() -> None:
    worker = Worker()
    worker.epoch("first")
    assert stall_of(worker.pulse, silent=60.0) is None
    assert (
        stall_of(worker.pulse, silent=61.0) == "it stalled: its process reported nothing for 61 s"
    )
    with worker.watch.expect("start"):
        worker.wait(1)
        assert stall_of(worker.pulse, silent=299.0) is None
    assert stall_of(NO_PULSE, silent=10_000.0) is None  # it has not started


def test_a_watch_that_is_turned_off_reports_nothing() -> None:
    worker = Worker(timeout=0.0)
    with worker.watch, worker.watch.expect("first"):
        pass
    assert worker.pulse is NO_PULSE


def test_time_in_which_the_process_was_suspended_does_not_count() -> None:
    now = 0.0
    clock = AwakeClock(lambda: now)
    now = 1.0
    assert clock.tick() == 1.0
    now = 3601.0
    assert clock.tick() == 3.0

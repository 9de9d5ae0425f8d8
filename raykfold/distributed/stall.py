"""Notices workers that hang: in their network, on their device, or as a whole process.

A worker's training thread counts the batches that it has finished. Another thread of the worker
looks at that count every second, and reports to the driver for how long it has stood still. The
driver judges: a worker has stalled if a batch takes too long, and also if its process reports
nothing for a minute, because a process that is stopped cannot tell of itself.

What a worker does between epochs is not watched, as long as its process reports: it waits for
storage, which has a patience of its own, and for its Ray Train controller.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

# No batch for longer than both is a stall, once an epoch has shown how long its batches take.
_LEAST_SECONDS = 60.0
_TIMES_LONGEST = 20
# Before that, libraries set themselves up and build kernels.
_FIRST_LEAST_SECONDS = 300.0
_FIRST_TIMES_LONGEST = 5
_LOOK_SECONDS = 1.0

# Folds are built and loaded; they are trained for the first time in this process; or again.
Stage = Literal["start", "first", "later"]


class AwakeClock:
    """Measures time without the time in which this process was suspended.

    A process that was stopped for minutes, or whose machine slept, must not take that for the
    silence of others. So no tick counts for more than two seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 0.0
        self._now = now
        self._last = now()

    def tick(self) -> float:
        """Return the seconds so far; call it at least every second."""
        now = self._now()
        self.seconds += min(now - self._last, 2 * _LOOK_SECONDS)
        self._last = now
        return self.seconds


@dataclass(frozen=True)
class Pulse:
    """What a worker's process reports of itself.

    Attributes:
        idle: seconds since its last batch; 0 between epochs.
        idle_limit: the most seconds of these that are allowed.
        silence_limit: the most seconds until the next report.
    """

    idle: float
    idle_limit: float
    silence_limit: float


class StallWatch:
    """Watches a worker's training thread from another one, from enter to exit.

    Args:
        report: takes a pulse, about once a second.
        timeout: seconds without a batch that are allowed; 0 for no watch. None for 60, or 20 times
            the longest batch if that is more; and until an epoch of each fold has shown that, for
            300, or 5 times the longest batch.
        clock: measures the time.
    """

    def __init__(
        self,
        report: Callable[[Pulse], object],
        timeout: float | None,
        clock: AwakeClock | None = None,
    ) -> None:
        self._report = report
        self._timeout = timeout
        self._clock = clock or AwakeClock()
        self._batches = 0
        self._blocks = 0
        self._stage: Stage | None = None  # None outside of a block
        self._seen: tuple[int, int, Stage | None] = (0, 0, None)
        self._since = 0.0
        self._longest_in_block = 0.0
        self._longest: dict[Stage | None, float] = {"first": 0.0, "later": 0.0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> StallWatch:
        if self._timeout != 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._timeout != 0:
            self._thread.join()

    def count(self) -> None:
        """Note that a batch is finished. It takes 0.1 µs, and does not wait for a GPU."""
        self._batches += 1

    @contextmanager
    def expect(self, stage: Stage) -> Iterator[None]:
        """Expect batches within this block."""
        self._blocks += 1
        self._stage = stage
        try:
            yield
        finally:
            self._stage = None

    def look(self) -> None:
        """Look at the number of batches, and report."""
        now = self._clock.tick()
        block, stage = self._blocks, self._stage
        seen = block, self._batches, stage
        if seen != self._seen or stage is None:
            before, _, stage_before = self._seen
            if stage_before is not None:
                self._longest_in_block = max(self._longest_in_block, now - self._since)
            # Evaluation, and a wait for the GPU, come last in an epoch: only whole ones tell.
            if (block, stage) != (before, stage_before):
                longest = max(self._longest.get(stage_before, 0.0), self._longest_in_block)
                self._longest[stage_before], self._longest_in_block = longest, 0.0
            self._seen, self._since = seen, now
        self._report(Pulse(now - self._since, self._idle_limit(stage), self._silence_limit(stage)))

    def _idle_limit(self, stage: Stage | None) -> float:
        if stage == "start":
            return max(_FIRST_LEAST_SECONDS, self._timeout or 0.0)
        if self._timeout is not None:
            return self._timeout
        if stage == "first" or not self._longest["later"]:
            return max(_FIRST_LEAST_SECONDS, _FIRST_TIMES_LONGEST * self._longest["first"])
        return max(_LEAST_SECONDS, _TIMES_LONGEST * self._longest["later"])

    def _silence_limit(self, stage: Stage | None) -> float:
        # Reading a library from a slow disk can keep all of Python waiting.
        least = _FIRST_LEAST_SECONDS if stage == "start" else 0.0
        return max(least, self._timeout or _LEAST_SECONDS)

    def _run(self) -> None:
        while True:
            self.look()
            if self._stop.wait(_LOOK_SECONDS):
                return


# What a worker counts for that has reported nothing yet.
NO_PULSE = Pulse(0.0, math.inf, math.inf)


def stall_of(pulse: Pulse, silent: float) -> str | None:
    """Return how a worker has stalled, or None if it has not.

    Args:
        pulse: what it has reported last.
        silent: seconds since then.
    """
    if pulse.idle > pulse.idle_limit:
        return f"it stalled: no batch was finished for {pulse.idle:.0f} s"
    if silent > pulse.silence_limit:
        return f"it stalled: its process reported nothing for {silent:.0f} s"
    return None

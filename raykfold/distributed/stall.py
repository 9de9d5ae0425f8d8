"""Notices workers that hang: in their network, on their device, or as a whole process.

A worker's training thread counts the batches that it has finished. Another thread of the worker
looks at that count every second, and tells the driver for how long it has stood still. The driver
judges: a worker has stalled if a batch takes too long, and also if its process says nothing for a
minute, because a process that is stopped cannot tell of itself.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# No batch for longer than both is a stall.
_LEAST_SECONDS = 60.0
_LONGEST_BATCHES = 20
# While folds are trained for the first time in a process, libraries set themselves up and build
# kernels. What that takes says nothing about later batches.
_FIRST_SECONDS = 600.0
_LOOK_SECONDS = 1.0


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


class StallWatch:
    """Watches a worker's training thread from another one, from enter to exit.

    Args:
        tell: takes the seconds since the last batch, 0 while no batch is computed, and the most
            seconds that are allowed.
        timeout: the most seconds that are allowed; None for 60, or 20 times the longest batch so
            far, and for 600 as long as folds are trained for the first time in this process.
        clock: measures the time.
    """

    def __init__(
        self,
        tell: Callable[[float, float], object],
        timeout: float | None,
        clock: AwakeClock | None = None,
    ) -> None:
        self._tell = tell
        self._timeout = timeout
        self._clock = clock or AwakeClock()
        self._batches = 0
        self._computing = 0  # blocks so far, negative outside of one
        self._is_first = False
        self._seen = (0, 0, False)
        self._since = 0.0
        self._longest = {True: 0.0, False: 0.0}  # for the first time, later
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> StallWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def count(self) -> None:
        """Note that a batch is finished. It takes 0.1 µs, and does not wait for a GPU."""
        self._batches += 1

    @contextmanager
    def computing(self, *, first: bool) -> Iterator[None]:
        """Expect batches within this block. Outside of it a worker may wait for storage.

        Args:
            first: whether a fold is trained here for the first time in this process.
        """
        self._is_first, self._computing = first, abs(self._computing) + 1
        try:
            yield
        finally:
            self._computing = -self._computing

    def look(self) -> None:
        """Look at the number of batches, and tell."""
        now = self._clock.tick()
        seen = self._computing, self._batches, self._is_first
        if seen != self._seen or self._computing <= 0:
            computing, _, first = self._seen
            if computing > 0:
                self._longest[first] = max(self._longest[first], now - self._since)
            self._seen, self._since = seen, now
        limit = self._timeout
        if limit is None:
            first = self._is_first or not self._longest[False]
            least = _FIRST_SECONDS if first else _LEAST_SECONDS
            limit = max(least, _LONGEST_BATCHES * self._longest[first])
        self._tell(now - self._since, limit)

    def _run(self) -> None:
        while True:
            self.look()
            if self._stop.wait(_LOOK_SECONDS):
                return


def stall_of(still: float, limit: float, silent: float, timeout: float | None) -> str | None:
    """Return how a worker has stalled, or None if it has not.

    Args:
        still: seconds since its last batch, as it last said.
        limit: the most seconds of these, as it last said; infinite if it has said nothing yet.
        silent: seconds since then.
        timeout: the most seconds of these; None for 60.
    """
    if still > limit:
        return f"it stalled: no batch was finished for {still:.0f} s"
    if math.isfinite(limit) and silent > (timeout or _LEAST_SECONDS):
        return f"it stalled: its process said nothing for {silent:.0f} s"
    return None

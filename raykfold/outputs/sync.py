"""Bring another place up to date with local files, from a background thread.

What has to be sent is the difference between the files here and those there. There is no queue,
so a kill loses nothing: the next session, or the next command, sends what is missing.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue

from raykfold.observers import Observer, RunStart
from raykfold.text import count_of, duration, one_line
from raykfold.training.results import EpochMetrics, FoldResult

FIRST_PAUSE = 5.0  # seconds from a failure to the second try; doubled after each further failure
LONGEST_PAUSE = 300.0
LONGEST_WAIT_AT_END = 60.0  # seconds between two tries or requests once the user waits for the end
_SECONDS_TO_FIRST_LINE = 1.0  # of `wait`: most often there is nothing left to wait for
_SECONDS_BETWEEN_LINES = 30.0


class Unavailable(Exception):
    """The place cannot be reached, or not now: a later try can succeed.

    Attributes:
        retry_after: seconds for which the service asked to be left alone; None if it did not ask.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Mirror(Observer, ABC):
    """Sends files in a background thread, and waits for it at the end of a run.

    Outages never stop training: the thread tries again, with growing pauses. Any other error ends
    the uploads with one line for the user. Subclasses implement `missing` and `send`.

    Args:
        name: of the place, as messages call it.
        say: takes lines for the user; only called from the methods that the driver calls.
        timeout: most seconds to wait at the end of a run.
        first_pause: seconds from a failure to the second try.
        longest_pause: most seconds from one try to the next.
    """

    def __init__(
        self,
        name: str,
        say: Callable[[str], None],
        *,
        timeout: float,
        first_pause: float = FIRST_PAUSE,
        longest_pause: float = LONGEST_PAUSE,
    ) -> None:
        self._name = name
        self._say = say
        self._timeout = timeout
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._thread = threading.Thread(target=self._work, name=f"mirror {name}", daemon=True)
        self._notices: SimpleQueue[str] = SimpleQueue()
        self._changed = threading.Condition()  # of the three flags below
        self._news = False
        self._final = False
        self._stopped = False
        self._broken = False  # by what no further try would mend
        self._failures = 0  # since the place was last reached

    @abstractmethod
    def missing(self) -> Sequence[str]:
        """Return the names of the files that are not known to be there, in the order they go."""

    @abstractmethod
    def send(self, final: bool) -> Iterator[float]:
        """Send what is missing; runs in the thread.

        Args:
            final: whether `finish` was called, so that no further files will come.

        Yields:
            Seconds to wait before it goes on. After any of them it may be stopped, or called
            anew because `final` has become true.

        Raises:
            Unavailable: the place could not be reached.
        """

    # --- for the driver --------------------------------------------------------------------

    def run_started(self, start: RunStart) -> None:
        self.start()

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self.wake()

    def fold_finished(self, result: FoldResult) -> None:
        self.wake()

    def time_passed(self) -> None:
        while not self._notices.empty():
            self._say(self._notices.get())

    def start(self) -> None:
        self._thread.start()

    @property
    def started(self) -> bool:
        return self._thread.ident is not None

    def wake(self) -> None:
        """Tell the thread that there are new files."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def finish(self) -> None:
        """Have the thread end once everything is there; no further files will come."""
        with self._changed:
            self._final = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Have the thread end after the request under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self.time_passed()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the thread to end, at most `seconds`, and tell the user about it.

        Returns:
            Whether it has ended.
        """
        now = time.monotonic()
        ends = now + (self._timeout if seconds is None else seconds)
        next_line = now + _SECONDS_TO_FIRST_LINE
        while self._thread.is_alive() and (now := time.monotonic()) < ends:
            self._thread.join(0.1)
            self.time_passed()
            if now >= next_line and (missing := self.missing()):
                next_line = now + _SECONDS_BETWEEN_LINES
                files, left = count_of(len(missing), "file"), duration(ends - now)
                self._say(f"{self._name}: waiting for {files} to be sent, at most {left}")
        self.time_passed()
        return not self._thread.is_alive()

    # --- in the thread ---------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopped:
            # Read before `send` looks at the files: what comes after that is news.
            final, self._news = self._final, False
            try:
                if not self._send(final):
                    continue
                if final:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._news or self._final or self._stopped)
            except Unavailable as unavailable:
                self._note_outage(unavailable, final)
            except Exception as error:  # a refusal, a full disk, a bug: training goes on
                self._broken = True
                self._notice(f"{one_line(error, 500)}; uploads stop here, nothing else does")
                return

    def _send(self, final: bool) -> bool:
        """Send what is missing; return whether that came to its end."""
        for pause in self.send(final):
            self._note_answer()
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._final != final, pause)
            if self._stopped or self._final != final:
                return False
        self._note_answer()
        return True

    def _note_answer(self) -> None:
        if self._failures:
            self._notice("reached again")
        self._failures = 0

    def _note_outage(self, unavailable: Unavailable, final: bool) -> None:
        """Wait before the next try."""
        if not self._failures:
            self._notice(f"cannot be reached now ({unavailable}); uploads are tried again")
        pause = min(self._first_pause * 2 ** min(self._failures, 10), self._longest_pause)
        if final:
            pause = min(pause, LONGEST_WAIT_AT_END)
        self._failures += 1
        asked = unavailable.retry_after or 0.0
        with self._changed:
            # Once the run is over the user waits: try at once, unless the service asked to wait.
            self._changed.wait_for(
                lambda: self._stopped or (self._final != final and not asked), max(pause, asked)
            )

    def _notice(self, text: str) -> None:
        self._notices.put(f"{self._name}: {text}")


Version = tuple[int, int, int]


def version_of(file: Path) -> Version:
    """Return what changes when a file is replaced or written to: its size, time and inode."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def some_of(names: Sequence[str]) -> str:
    """Return the first of many names, and how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{len(names)} files ({shown}, …)"

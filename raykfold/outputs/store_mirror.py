"""An observer: sends the outputs to a `model_dir` on an object store, from their working copy.

There is no queue that a kill could lose: what has to go is the difference between the working
copy and what lies there. The summary goes last, so where one is, all is.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from raykfold.errors import StorageError
from raykfold.files.atomic import remove_tree
from raykfold.files.paths import ModelDir
from raykfold.files.remote import RemotePath, reason
from raykfold.observers import Observer, RunStart
from raykfold.text import duration, one_line
from raykfold.training.results import EpochMetrics, FoldResult, Summary

WAIT_SECONDS = 600.0  # at the end, for what has still to go
_PAUSE_SECONDS = 5.0  # after a failure, beyond what the store's own retries have bridged
_SAY_SECONDS = 30.0

_Version = tuple[int, int, int]


class Outbox(Observer):
    """Sends what is new from `outputs` to `target`, in a thread of its own.

    An outage is never felt by training, and is outlasted. At the end of the run `close` waits.

    Args:
        outputs: the working copy.
        target: where the outputs are to be.
        say: takes lines for the user.
        keep: leave the working copy when all is sent: others have a use for it.
        wait_seconds: most to wait at the end.
    """

    def __init__(
        self,
        outputs: ModelDir,
        target: RemotePath,
        say: Callable[[str], None],
        *,
        keep: bool = False,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._outputs = outputs
        self._target = target
        self._say = say
        self._keep = keep
        self._wait_seconds = wait_seconds
        self._notices: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._changed = threading.Condition()
        self._started = False
        self._news = True
        self._over = False
        self._last = False
        self._stopped = False
        self._there: dict[RemotePath, int] | None = None  # epochs' weights, and their sizes
        self._sent: dict[Path, _Version] = {}
        self._complete = False
        self._failing = False

    def run_started(self, start: RunStart) -> None:
        self._thread.start()
        self._started = True

    def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
        self._wake()

    def fold_finished(self, result: FoldResult) -> None:
        self._wake()

    def run_finished(self, summary: Summary) -> None:
        self._over, self._complete = True, summary.status == "complete"

    def time_passed(self) -> None:
        while not self._notices.empty():
            self._say(self._notices.get())

    def pending(self) -> Mapping[str, int]:
        return {self._target.scheme: len(self._missing())}

    def close(self) -> None:
        """Wait, at the end of a run, until all is there; else end after the file under way.

        Raises:
            StorageError: some of it could not be sent in time.
        """
        if not self._started:
            return
        try:
            if self._over:
                self._last = True  # others, closed before, may have written until now
                self._wake()
                self._wait()
        finally:
            self._stopped = True
            self._wake()
            self.time_passed()
        left = self._missing()
        if left:
            names = [file.name for file in left]
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            text = f"{self._target}: not there yet: {shown}; the same command sends what is left"
            if self._over:
                raise StorageError(text)
            self._say(text)
        elif self._over and self._complete and not self._keep:
            for path in self._outputs.outputs():
                remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                self._outputs.root.rmdir()

    def _wait(self) -> None:
        ends = time.monotonic() + self._wait_seconds
        says = time.monotonic() + 2.0
        while self._thread.is_alive() and time.monotonic() < ends:
            self._thread.join(0.1)
            self.time_passed()
            if time.monotonic() >= says and (left := len(self._missing())):
                says = time.monotonic() + _SAY_SECONDS
                patience = duration(ends - time.monotonic())
                self._say(
                    f"{self._target}: {left} file{'s' * (left != 1)} on the way, {patience} at most"
                )

    def _wake(self) -> None:
        with self._changed:
            self._news = True
            self._changed.notify_all()

    # --- in the thread ---------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopped:
            try:
                last = self._last  # before the look at the files
                self._news = False
                self._send_all()
                if last:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._news or self._stopped)
            except StorageError as error:
                if not self._failing:
                    self._notices.put(f"{self._target}: {reason(error)}; sent again later")
                self._failing = True
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, _PAUSE_SECONDS)
            except Exception as error:  # a fault of ours: training must not feel it
                self._notices.put(f"{self._target}: nothing more is sent: {one_line(error)}")
                return

    def _send_all(self) -> None:
        if self._there is None:
            self._there = (self._target / self._outputs.checkpoints.name).files()
            self._remove_former_events()
            if not self._outputs.summary.exists():
                # It says that all is there, and the run goes on.
                (self._target / self._outputs.summary.name).unlink(missing_ok=True)
        for file in self._missing():
            if self._stopped:
                return
            try:
                version = _version(file)
                self._place_of(file).send(file)
                self._sent[file] = version
            except FileNotFoundError:
                continue  # the run took it back meanwhile
        if self._failing:
            self._notices.put(f"{self._target}: reached again")
            self._failing = False

    def _remove_former_events(self) -> None:
        """Of an earlier session: they have other names, and each epoch would be there twice."""
        folder = self._outputs.tensorboard
        if folder.exists():
            here = {self._place_of(file) for file in self._outputs.all_event_files()}
            for file in (self._target / folder.name).files():
                if file not in here:
                    file.unlink(missing_ok=True)

    def _missing(self) -> list[Path]:
        """What is not there yet, in the order in which it goes."""
        return [file for file in self._files() if not self._is_there(file)]

    def _files(self) -> list[Path]:
        outputs = self._outputs
        others = [outputs.histories, outputs.fold_results, outputs.predictions, outputs.card]
        others += [*outputs.all_plots(), outputs.report]
        last = [outputs.run_record, outputs.training_state]
        events = outputs.all_event_files()
        files = [*outputs.all_epoch_weights(), *outputs.all_best_weights(), *events, *others, *last]
        summary = [outputs.summary] if self._last else []
        return [file for file in (*files, *summary) if file.exists()]

    def _is_there(self, file: Path) -> bool:
        try:
            version = _version(file)
        except FileNotFoundError:
            return True
        if file in self._sent:
            return self._sent[file] == version
        # An epoch's weights never differ from one session to the next. The best do, at one size.
        return (self._there or {}).get(self._place_of(file)) == version[0]

    def _place_of(self, file: Path) -> RemotePath:
        return self._target / file.relative_to(self._outputs.root).as_posix()


def _version(file: Path) -> _Version:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino

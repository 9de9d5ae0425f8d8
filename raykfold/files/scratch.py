"""Temporary folders that a killed process does not leave behind for ever.

A folder belongs to the process that holds the lock on the file inside it. The kernel drops that
lock however the process ends, so the next raykfold on the machine can tell a dead owner's folder
from a living one's (a pid could not: pids come round again, and containers share `/tmp`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "rkf-"  # short: Ray puts UNIX sockets below, and their paths end at 107 bytes
_LOCK = ".owner"


@contextmanager
def scratch_dir(parent: Path | None = None) -> Iterator[Path]:
    """A folder below `parent` (the system's temporary one by default), removed at the end.

    Folders there whose owners died are removed first.

    Raises:
        OSError: the folder cannot be made.
    """
    parent = parent or _short_temporary_dir()
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    with open(folder / f"{_LOCK}.new", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(lock.name, folder / _LOCK)  # locked before anybody who sweeps can see it
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _short_temporary_dir() -> Path:
    parent = Path(tempfile.gettempdir())
    return parent if len(str(parent)) < 20 else Path("/tmp")


def _sweep(parent: Path) -> None:
    for lock_file in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with open(lock_file) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
        except OSError:
            continue  # its owner lives, or it is another user's, or it went away by itself

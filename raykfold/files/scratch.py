"""Temporary folders that do not outlive their process, even a killed one.

A folder belongs to the process that holds the lock on the file inside it. The kernel drops the lock
however the process ends, so the next raykfold on the machine removes folders of dead owners. A pid
would not do: pids are reused, and containers may share `/tmp`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_PREFIX = "rkf-"  # short: Ray puts UNIX sockets below, whose paths have at most 107 bytes
_LOCK = ".owner"


@contextmanager
def scratch_dir(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder below `parent` (the system's temporary one by default); remove it at the end.

    First remove folders there whose owners have died.

    Raises:
        OSError: the folder cannot be made.
    """
    parent = parent or Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < 20 else "/tmp")
    _remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    with open(folder / f"{_LOCK}.new", "w") as lock:
        with suppress(OSError):  # without locks nobody removes the folder if this process is killed
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(lock.name, folder / _LOCK)  # locked before other processes see it
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Let this user's processes on this machine through the block one after the other.

    Where the file system has no locks, they are let through together.

    Args:
        name: of the block, for a file name.
    """
    path = Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getuid()}-{name}.lock"
    with ExitStack() as stack:
        with suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_abandoned(parent: Path) -> None:
    for lock_file in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with open(lock_file) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
        except OSError:
            continue  # the owner lives, the folder is another user's, or it has just gone

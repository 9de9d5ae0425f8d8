"""Temporary folders that do not outlive their processes, even killed ones.

A folder belongs to the processes that hold the lock on the file inside it: one, or several that
share a file. The kernel drops a lock however its process ends, so the next raykfold on the machine
removes folders of dead owners. A pid would not do: pids are reused, and containers may share
`/tmp`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

_PREFIX = "rkf-"  # short: Ray puts UNIX sockets below, whose paths have at most 107 bytes
_LOCK = ".owner"
_SHARED, _PART = "shared", "part-"
_LOOK_SECONDS = 0.1
_UNWRITTEN_SECONDS = 60.0  # until a file that nobody writes is no longer waited for


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
def shared_file(
    parent: Path, name: str, write: Callable[[Path], object], wait: Callable[[], object]
) -> Iterator[Path]:
    """Yield a file that this machine's processes share by its name; the first of them writes it.

    The others wait. The file is there whole or not at all: a process that is killed while it writes
    leaves a part, and the next one begins anew. The file stays when nobody uses it, for a process
    that may come: remove it with `remove_shared`. If nobody does, the next raykfold that makes a
    folder in `parent` does, as soon as no process uses the file.

    Args:
        parent: the folder to put it in; it is made if there is none.
        name: no other file has it.
        write: writes the file at the path that it is given, where there is nothing.
        wait: called several times a second while another process writes.

    Raises:
        OSError: the folder cannot be made or locked, it is another user's, or others use a file
            that has been removed from it; or what `write` raises.
    """
    file = shared_path(parent, name)
    written_at = time.monotonic()
    while True:
        with _lock(file.parent) as lock:
            # The folder may have been removed before it was locked.
            if lock is not None and _try_lock(lock, fcntl.LOCK_SH) and _is_current(lock):
                if file.exists():
                    _remove_abandoned(parent)
                    yield file
                    return
                # The kernel drops the shared lock first: another process may come in between.
                if _try_lock(lock, fcntl.LOCK_EX) and _is_current(lock) and not file.exists():
                    _remove_abandoned(parent)
                    _write_shared(file, write)
                    continue  # to a shared lock
        wait()
        if any(file.parent.glob(f"{_PART}*")):
            written_at = time.monotonic()
        elif time.monotonic() - written_at >= _UNWRITTEN_SECONDS:
            raise OSError(f"{file} is missing, and other processes have its lock")
        time.sleep(_LOOK_SECONDS)


def _write_shared(file: Path, write: Callable[[Path], object]) -> None:
    """Write the file of a folder that this process has the only lock on, whole or not at all."""
    try:
        for part in file.parent.glob(f"{_PART}*"):  # of a process that was killed
            part.unlink()
        # A name of its own: where machines share the folder and not its locks, two may write.
        part = file.with_name(f"{_PART}{secrets.token_hex(4)}")
        write(part)
        os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            _remove_locked(file.parent)
        raise


def shared_path(parent: Path, name: str) -> Path:
    """Return where `shared_file` puts a file."""
    return parent / f"{_PREFIX}{name}" / _SHARED


def shared_bytes(parent: Path, name: str) -> int:
    """Return how many bytes a file of `shared_file`, whole or in part, takes of the disk now."""
    taken = 0
    for path in shared_path(parent, name).parent.glob("*"):
        with suppress(OSError):  # it is being moved or removed
            taken += path.stat().st_blocks * 512
    return taken


def remove_shared(parent: Path, name: str) -> None:
    """Remove a file of `shared_file`, if there is one. Who has it open or mapped keeps it so."""
    shutil.rmtree(shared_path(parent, name).parent, ignore_errors=True)


def temporary_folder() -> Path:
    """Return the system's folder for temporary files, whether it can be written now or not.

    That of `tempfile` is another one while the disk is full: a node's processes would differ.
    """
    return Path(os.environ.get("TMPDIR") or "/tmp")


def free_bytes(folder: Path) -> int:
    """Return how much fits on the disk of `folder`, or of the first of its parents that exists.

    It is `sys.maxsize` where the file system does not say.
    """
    for existing in (folder, *folder.parents):
        with suppress(OSError):
            total, _, free = shutil.disk_usage(existing)
            return free if total else sys.maxsize  # some file systems say 0 for all
    return sys.maxsize


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


@contextmanager
def _lock(folder: Path) -> Iterator[IO[bytes] | None]:
    """Make a folder and open its lock, not locked yet; None if the folder is being removed.

    Raises:
        OSError: the folder cannot be made, or it is another user's.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        lock = None
        with suppress(FileNotFoundError):
            if not _is_own(folder):
                raise OSError(f"{folder} is another user's, or a link")
            lock = stack.enter_context(_open_lock(folder / _LOCK, "a+b"))
        yield lock


def _is_own(folder: Path) -> bool:
    """Return whether this is a folder of this user's, and not a link to one."""
    status = os.lstat(folder)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _open_lock(path: Path, mode: Literal["a+b", "r+b"]) -> IO[bytes]:
    """Open a lock, for NFS both to read and to write. What is no file is refused at once."""
    more = os.O_NOFOLLOW | os.O_NONBLOCK
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | more, 0o600))


def _try_lock(lock: IO[bytes], kind: int) -> bool:
    """Lock a file, in place of a lock that it has; return whether nobody else's is in the way.

    Raises:
        OSError: the file system has no locks. The folder is removed, if it holds nothing else.
    """
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        with suppress(OSError):
            _remove_lock(Path(lock.name).parent)
        raise OSError(f"its files cannot be locked: {error.strerror or error}") from error
    return True


def _is_current(lock: IO[bytes]) -> bool:
    """Return whether a lock is still at its path."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
    except FileNotFoundError:
        return False


def _remove_abandoned(parent: Path) -> None:
    for lock_file in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            if not _is_own(lock_file.parent):
                continue
            with _open_lock(lock_file, "r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_locked(lock_file.parent)
        except OSError:
            continue  # the owner lives, or the folder has just gone


def _remove_locked(folder: Path) -> None:
    """Remove a folder that this process has the only lock on.

    The lock goes last. Until then nobody else begins to use the folder, and should this process be
    killed, the next one goes on.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink(missing_ok=True)
    _remove_lock(folder)


def _remove_lock(folder: Path) -> None:
    """Remove a folder if it holds a lock and nothing else."""
    lock = folder / _LOCK
    if list(folder.iterdir()) == [lock]:
        lock.unlink()
        folder.rmdir()  # not if another process has just made its lock there

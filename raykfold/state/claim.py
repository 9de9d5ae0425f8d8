"""The claim on a run: one driver works on it at a time, on a file system or on an object store.

A file system has locks, which go with their process however it ends. An object store has none:
there the claim is a lease, an object that its owner keeps renewing. Another process that sees the
object change knows that its owner lives; no clock is compared with another's. A process that sees
it unchanged for three periods takes it over, and an owner that finds another's lease in place of
its own ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput, StorageError
from raykfold.files.remote import RemotePath

PERIOD_SECONDS = 5.0
_PERIODS = 3  # without a renewal, after which a lease is taken over
_SETTLE_SECONDS = 0.5  # of two processes that take a lease at once, the later one has written then
_LOST_MACHINE_SECONDS = 120.0  # a lease of NFS takes 90


@contextmanager
def claim(
    config: RunConfig, say: Callable[[str], None] = lambda line: None
) -> Iterator[Callable[[], None]]:
    """Keep other drivers out of a run while the context lasts.

    Args:
        config: the run's.
        say: takes a line for the user, if there is something to wait for.

    Yields:
        A function that raises `StorageError` once another process has taken the run over, as can
        happen to a process that an object store has not heard from.

    Raises:
        BadInput: another driver works on the run; or the file system has no locks.
        StorageError: the store fails.
    """
    path = config.run_dir.lock
    if isinstance(path, RemotePath):
        try:
            with hold_lease(path, say) as lease:
                yield lease.check
        except Held as held:
            raise _in_use(config, str(held)) from None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "a+") as lock:
        ends = time.monotonic() + _LOST_MACHINE_SECONDS
        said = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read().strip() or "unknown"
            except OSError as error:
                if is_new:  # else another process may hold it
                    path.unlink(missing_ok=True)
                raise BadInput(
                    f"--storage_path {config.storage_path}: has no locks ({error.strerror}); "
                    "expected another file system, or a URI like s3://bucket/folder"
                ) from None
            # A file server takes a while to notice that a machine which held a lock is gone.
            if owner.endswith(f" on {platform.node()}") or time.monotonic() >= ends:
                raise _in_use(config, owner)
            if not said:
                said = True
                how_long = f"up to {_LOST_MACHINE_SECONDS:.0f} s"
                say(_waiting_text(config.run_dir.root, owner, how_long))
            time.sleep(1)
        lock.truncate(0)
        lock.write(_this_process())
        lock.flush()
        yield lambda: None


def _in_use(config: RunConfig, owner: str) -> BadInput:
    return BadInput(
        f"--run_name {config.run_name}: is being worked on by another process "
        f"({owner}) in {config.run_dir.root}"
    )


def _waiting_text(folder: Path | RemotePath, owner: str, how_long: str) -> str:
    return (
        f"{folder}: was last worked on by another process ({owner}); waiting {how_long} to see "
        "whether it still lives"
    )


def _this_process() -> str:
    return f"pid {os.getpid()} on {platform.node()}"


# --- leases --------------------------------------------------------------------------------------


class Held(Exception):
    """Another process holds the lease and renews it; the text names it."""


class Lease:
    """A lease that this process holds; a thread renews it.

    Args:
        path: the object.
        period: seconds from one renewal to the next.
    """

    def __init__(self, path: RemotePath, period: float) -> None:
        self._path = path
        self._period = period
        self._count = 0
        self._token = secrets.token_hex(8)
        self._taken_by: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def check(self) -> None:
        """Raise `StorageError` if another process has taken the lease."""
        if self._taken_by is not None:
            raise StorageError(
                f"{self._path}: another process ({self._taken_by}) has taken this run over, "
                "because the store had not heard from this one; what was complete is safe"
            )

    def take(self) -> None:
        """Write the lease and start renewing it.

        Raises:
            Held: another process was faster.
            StorageError: the store fails.
        """
        self._put()
        time.sleep(_SETTLE_SECONDS)
        there = _read(self._path)
        if there.get("token") != self._token:
            raise Held(_owner(there))
        self._thread.start()

    def give_back(self) -> None:
        """Stop renewing the lease, and delete it if it is still this process's."""
        self._over.set()
        self._thread.join(self._period)
        with suppress(StorageError):
            if _read(self._path.impatient()).get("token") == self._token:
                self._path.impatient().unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._over.wait(self._period):
            with suppress(StorageError):  # tried again at the next turn
                there = _read(self._path)
                if there.get("token", self._token) != self._token:
                    self._taken_by = _owner(there)
                    return
                if not self._over.is_set():
                    self._put()

    def _put(self) -> None:
        self._count += 1
        content = {
            "owner": _this_process(),
            "pid": os.getpid(),
            "machine": machine(),
            "token": self._token,
            "count": self._count,
        }
        self._path.write_bytes(json.dumps(content).encode())


@contextmanager
def hold_lease(
    path: RemotePath, say: Callable[[str], None], *, period: float = PERIOD_SECONDS
) -> Iterator[Lease]:
    """Hold the lease at `path` while the context lasts.

    Args:
        path: the object.
        say: takes a line for the user.
        period: seconds from one renewal to the next; the same for all who want the lease.

    Raises:
        Held: another process holds the lease, and renews it.
        StorageError: the store fails.
    """
    # The lease of a process that is not known to have ended is watched for some periods.
    first = _read(path)
    if first and not is_dead(first):
        say(_waiting_text(path.parent, _owner(first), f"{_PERIODS * period:.0f} s"))
        ends = time.monotonic() + _PERIODS * period
        while time.monotonic() < ends:
            time.sleep(period / 5)
            now = _read(path)
            if not now:
                break
            if now != first:
                raise Held(_owner(now))
    lease = Lease(path, period)
    lease.take()
    try:
        yield lease
    finally:
        lease.give_back()


def _read(path: RemotePath) -> dict[str, Any]:
    """Return the content of a lease; {} if there is none, or none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _owner(content: Mapping[str, Any]) -> str:
    return str(content.get("owner", "unknown"))


def is_dead(content: Mapping[str, Any]) -> bool:
    """Return whether the process with this ``pid`` and ``machine`` is known to have ended.

    That can be known only of a process of this machine, and of the same container.
    """
    pid = content.get("pid")
    if content.get("machine") != machine() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def machine() -> str:
    """Return a name of the machine, and of the container, within which a process id is unique."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not a Linux
        return platform.node()

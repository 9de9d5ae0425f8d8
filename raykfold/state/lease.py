"""A lock on an object store, which has none: an object that its owner keeps renewing.

Whoever sees it change knows that its owner lives; no clock is compared with another's. Whoever
sees it stand still for three periods takes it over, and an owner that finds another's lease in
place of its own ends.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from raykfold.errors import StorageError
from raykfold.files.remote import RemotePath

PERIOD_SECONDS = 5.0
_PERIODS = 3  # without a renewal, until it is taken over
_SETTLE_SECONDS = 0.5  # in which of two who take it at once the later one has written


class Held(Exception):
    """Somebody else holds the lease, and renews it; the text names them."""


class Lease:
    """A lease that this process holds, renewed in a thread of its own."""

    def __init__(self, path: RemotePath, period: float) -> None:
        self._path = path
        self._period = period
        self._count = 0
        self._token = secrets.token_hex(8)
        self._taken_by: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def check(self) -> None:
        """
        Raises:
            StorageError: another process has taken the lease.
        """
        if self._taken_by is not None:
            raise StorageError(
                f"{self._path}: another process ({self._taken_by}) has taken this run over, "
                "because for some time nothing was heard from here; what was complete is safe"
            )

    def take(self) -> None:
        """
        Raises:
            Held: somebody else was faster.
            StorageError: the store fails.
        """
        self._put()
        time.sleep(_SETTLE_SECONDS)
        there = _read(self._path)
        if there.get("token") != self._token:
            raise Held(_owner(there))
        self._thread.start()

    def give_back(self) -> None:
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
            "owner": f"pid {os.getpid()} on {platform.node()}",
            "pid": os.getpid(),
            "machine": machine(),
            "token": self._token,
            "count": self._count,
        }
        self._path.write_bytes(json.dumps(content).encode())


@contextmanager
def leased(
    path: RemotePath, say: Callable[[str], None], *, period: float = PERIOD_SECONDS
) -> Iterator[Lease]:
    """Hold the lease at `path`.

    Args:
        path: the object.
        say: takes a line for the user.
        period: seconds from one renewal to the next; the same for all who want the lease.

    Raises:
        Held: another process holds it, and renews it.
        StorageError: the store fails.
    """
    _wait_for_a_dead_owner(path, say, period)
    lease = Lease(path, period)
    lease.take()
    try:
        yield lease
    finally:
        lease.give_back()


def _wait_for_a_dead_owner(path: RemotePath, say: Callable[[str], None], period: float) -> None:
    first = _read(path)
    if not first or is_dead(first):
        return
    say(
        f"{path.parent}: was last worked on by another process ({_owner(first)}); waiting "
        f"{_PERIODS * period:.0f} s to see whether it still lives"
    )
    ends = time.monotonic() + _PERIODS * period
    while time.monotonic() < ends:
        time.sleep(period / 5)
        now = _read(path)
        if not now:
            return
        if now != first:
            raise Held(_owner(now))


def _read(path: RemotePath) -> dict[str, Any]:
    """{} where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _owner(content: dict[str, Any]) -> str:
    return str(content.get("owner", "unknown"))


def is_dead(content: Mapping[str, Any]) -> bool:
    """Whether the process of this ``pid`` and ``machine`` is known to have ended.

    Only of a process of this machine, and this container of it, can that be known.
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
    """Where a process id means the same process."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not a Linux
        return platform.node()

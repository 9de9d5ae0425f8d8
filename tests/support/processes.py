"""The processes of a run: who descends from whom, and what Ray calls them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path


def worker_pid(driver: int) -> int:
    """The Ray Train worker below a driver, found by the name that Ray gives its process."""
    return find_process("TrainWorker", driver)


def find_process(name: str, ancestor: int) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for pid, title in processes():
            if name in title and descends(pid, ancestor):
                return pid
        time.sleep(0.1)
    raise AssertionError(f"no {name} found")


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} outlived its driver"
        time.sleep(0.2)


def processes() -> Iterator[tuple[int, str]]:
    """Process ids, and what each is called."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                yield int(entry.name), (entry / "cmdline").read_text(errors="replace")


def descends(pid: int, ancestor: int) -> bool:
    """Whether `ancestor` is this process, or started it, or started who started it."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False  # it has just ended
        pid = int(stat.rpartition(")")[2].split()[1])
    return False

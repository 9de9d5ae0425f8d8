"""Find the processes of a run by the names that Ray gives them, and by their ancestors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path


def worker_pid(driver: int) -> int:
    """Return the process id of a driver's Ray Train worker."""
    return find_process("TrainWorker", driver)


def find_process(name: str, ancestor: int) -> int:
    """Wait for a process with `name` in its title below `ancestor`, and return its id."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for pid, title in processes():
            if name in title and descends(pid, ancestor):
                return pid
        time.sleep(0.05)
    raise AssertionError(f"no {name} found")


def wait_until_gone(pid: int) -> None:
    """Wait for a process to end."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


def processes() -> Iterator[tuple[int, str]]:
    """Yield the id and the command line of each process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                yield int(entry.name), (entry / "cmdline").read_text(errors="replace")


def descends(pid: int, ancestor: int) -> bool:
    """Return whether `ancestor` is this process, its parent, or a parent further up."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False  # it has just ended
        pid = int(stat.rpartition(")")[2].split()[1])
    return False

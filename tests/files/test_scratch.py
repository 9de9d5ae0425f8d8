from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raykfold.files.scratch import one_at_a_time, scratch_dir

OWNER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from raykfold.files.scratch import scratch_dir\n"
    "with scratch_dir(Path(sys.argv[1])) as folder:\n"
    "    (folder / 'big').write_bytes(b'x')\n"
    "    print(folder, flush=True)\n"
    "    time.sleep(60)\n"
)


def test_a_folder_goes_with_its_use(tmp_path: Path) -> None:
    with scratch_dir(tmp_path) as folder:
        (folder / "deep").mkdir()
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_dead_owners_folder_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    owners = [
        subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        folders = []
        for owner in owners:
            assert owner.stdout is not None
            folders.append(Path(owner.stdout.readline().strip()))
        owners[0].kill()
        owners[0].wait()
        assert (folders[0] / "big").exists()
        with scratch_dir(tmp_path) as own:
            assert not folders[0].exists()
            assert (folders[1] / "big").exists()
            assert own.exists()
    finally:
        for owner in owners:
            owner.kill()
            owner.wait()


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rkf-mine").mkdir()
    (tmp_path / "other").mkdir()
    with scratch_dir(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"rkf-mine", "other"}


def test_the_path_is_short_enough_for_sockets_below_it() -> None:
    with scratch_dir() as folder:
        # As Ray names its longest socket; a UNIX socket's path has at most 107 bytes.
        session = "session_2026-01-01_00-00-00_000000_1000000"
        assert len(str(folder / session / "sockets" / "plasma_store")) <= 107


def test_a_temporary_folder_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with scratch_dir(tmp_path) as folder, scratch_dir(tmp_path) as other:
        assert folder.is_dir() and other.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_processes_pass_a_block_one_after_the_other(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from raykfold.files.scratch import one_at_a_time\n"
        "with one_at_a_time('test'), open(sys.argv[1], 'a') as file:\n"
        "    print('in', file=file, flush=True)\n"
        "    time.sleep(0.2)\n"
        "    print('out', file=file, flush=True)\n"
    )
    env, log = {**os.environ, "TMPDIR": str(tmp_path)}, tmp_path / "log"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(log)], env=env) for _ in range(3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert log.read_text().split() == ["in", "out"] * 3


def test_without_locks_a_block_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with one_at_a_time("test"), one_at_a_time("test"):
        pass

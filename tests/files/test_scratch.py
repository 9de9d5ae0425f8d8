from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raykfold.files import scratch
from raykfold.files.scratch import (
    free_bytes,
    one_at_a_time,
    remove_shared,
    scratch_dir,
    shared_bytes,
    shared_file,
    temporary_folder,
)

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


def abandoned(parent: Path, name: str = "rkf-dead") -> Path:
    """A folder as a killed process leaves it."""
    folder = parent / name
    folder.mkdir()
    (folder / ".owner").touch()
    (folder / "big").write_bytes(b"x")
    return folder


def test_what_is_another_users_or_no_file_is_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "rkf-pipe"
    pipe.mkdir()
    os.mkfifo(pipe / ".owner")  # to open it would take for ever
    with scratch_dir(tmp_path):
        pass
    folder, me = abandoned(tmp_path), os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with scratch_dir(tmp_path):
        pass
    assert folder.exists()
    with (
        pytest.raises(OSError, match="rkf-dead is another user's"),
        shared_file(tmp_path, "dead", refuse, never),
    ):
        pass
    monkeypatch.undo()
    (tmp_path / "rkf-link").symlink_to(folder)
    with pytest.raises(OSError, match="a link"), shared_file(tmp_path, "link", refuse, never):
        pass
    with scratch_dir(tmp_path):
        assert not folder.exists()


def test_locks_are_opened_as_nfs_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, flock = [], fcntl.flock

    def lock(file: Any, operation: int) -> None:
        modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    abandoned(tmp_path)
    with shared_file(tmp_path, "run", lambda path: path.touch(), never):
        assert not (tmp_path / "rkf-dead").exists()
    assert set(modes) == {os.O_RDWR}


def test_a_sweep_removes_the_lock_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = abandoned(tmp_path)
    (folder / "deep").mkdir()
    removed, unlink, rmtree = [], Path.unlink, shutil.rmtree

    def note_file(path: Path, missing_ok: bool = False) -> None:
        removed.append(path.name)
        unlink(path, missing_ok)

    def note_folder(path: Path, ignore_errors: bool = False) -> None:
        removed.append(path.name)
        rmtree(path, ignore_errors)

    monkeypatch.setattr(Path, "unlink", note_file)
    monkeypatch.setattr(shutil, "rmtree", note_folder)
    with scratch_dir(tmp_path):
        assert not folder.exists()
        assert sorted(removed[:2]) == ["big", "deep"] and removed[2:] == [".owner"]


def test_room_where_it_cannot_be_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = free_bytes(tmp_path)
    assert free_bytes(tmp_path / ("x" * 300) / "y") == pytest.approx(there, abs=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (0, 0, 0))
    assert free_bytes(tmp_path) == sys.maxsize


def test_the_temporary_folder_stays_where_it_is_on_a_full_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert temporary_folder() == Path("/nowhere")
    monkeypatch.setenv("TMPDIR", "")
    assert temporary_folder() == Path("/tmp")


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


# --- a file that processes share -----------------------------------------------------------------

# Each opens the lock for itself, as a process does.
WRITER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from raykfold.files.scratch import shared_file\n"
    "def write(path):\n"
    "    path.write_bytes(b'half')\n"
    "    print('writes', flush=True)\n"
    "    time.sleep(60 if sys.argv[2] == 'half' else 0)\n"
    "with shared_file(Path(sys.argv[1]), 'run', write, lambda: None):\n"
    "    print('uses', flush=True)\n"
    "    time.sleep(60)\n"
)


def never() -> None:
    raise AssertionError("nobody else writes")


def refuse(path: Path) -> None:
    raise AssertionError(f"{path.parent} has the file")


def test_one_of_many_writes_a_shared_file(tmp_path: Path) -> None:
    waited = threading.Event()
    written = []

    def write(path: Path) -> None:
        path.write_bytes(b"part")
        assert shared_bytes(tmp_path / "disk", "run") > 0
        assert waited.wait(20)
        path.write_bytes(b"whole")
        written.append(path)

    def use(_: int) -> bytes:
        with shared_file(tmp_path / "disk", "run", write, waited.set) as file:
            return file.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(use, range(4))) == {b"whole"}
    assert len(written) == 1
    with shared_file(tmp_path / "disk", "run", refuse, never) as file:
        assert file.read_bytes() == b"whole"


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"), shared_file(tmp_path, "run", fail, never):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["half", "whole"])
def test_a_writer_that_is_killed_leaves_no_half_of_a_file(tmp_path: Path, when: str) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), when], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writes\n"
        if when == "whole":
            assert writer.stdout.readline() == "uses\n"
            with scratch_dir(tmp_path):  # another raykfold leaves alone what is in use
                assert len(list(tmp_path.glob("*/shared"))) == 1
    finally:
        writer.kill()
        writer.wait()
    again: Any = refuse if when == "whole" else lambda path: path.write_bytes(b"new")
    with shared_file(tmp_path, "run", again, never) as file:
        assert file.read_bytes() == (b"half" if when == "whole" else b"new")
        assert sorted(path.name for path in file.parent.iterdir()) == [".owner", "shared"]
    with scratch_dir(tmp_path) as own:  # nobody uses it any more
        assert list(tmp_path.iterdir()) == [own]


def test_a_shared_file_that_is_removed_is_written_anew(tmp_path: Path) -> None:
    with shared_file(tmp_path, "run", lambda path: path.write_bytes(b"old"), never) as file:
        with open(file, "rb") as held:
            remove_shared(tmp_path, "run")
            assert held.read() == b"old"
        with shared_file(tmp_path, "run", lambda path: path.write_bytes(b"new"), never) as file:
            assert file.read_bytes() == b"new"
    remove_shared(tmp_path, "run")
    remove_shared(tmp_path, "run")
    assert list(tmp_path.iterdir()) == [] and shared_bytes(tmp_path, "run") == 0


def test_a_shared_file_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lack)
    with (
        pytest.raises(OSError, match="its files cannot be locked: No locks available"),
        shared_file(tmp_path, "run", refuse, never),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_shared_file_that_nobody_writes_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_UNWRITTEN_SECONDS", 0.0)
    with shared_file(tmp_path, "run", lambda path: path.touch(), never) as file:
        file.unlink()  # by hand
        with (
            pytest.raises(OSError, match=r"shared is missing, and other processes have its lock"),
            shared_file(tmp_path, "run", refuse, lambda: None),
        ):
            pass

"""One driver at a time. Leases of an object store: see tests/files/test_remote.py."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raykfold.config.run_config import RunConfig
from raykfold.driver import claim_run
from raykfold.errors import BadInput
from raykfold.observers import Audience
from raykfold.state.claim import claim


def config(folder: Path, **changes: Any) -> RunConfig:
    return RunConfig(**{"run_name": "run", "model_dir": folder / "out", **changes})


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = config(tmp_path)
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from raykfold.config.run_config import RunConfig\n"
        "from raykfold.state.claim import claim\n"
        "with claim(RunConfig(run_name='run', model_dir=Path(sys.argv[1]))):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", script, str(run.model_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(BadInput, match=f"another process .pid {first.pid} on"), claim(run):
            raise AssertionError("locked twice")
    finally:
        first.kill()
        first.wait()
    with claim(run):
        assert str(os.getpid()) in run.run_dir.lock.read_bytes().decode()


def test_a_file_system_without_locks_is_refused_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = RunConfig(demo=True, model_dir=tmp_path / "out")
    with pytest.raises(BadInput, match="has no locks") as refused, claim_run(run, Audience([])):
        raise AssertionError("claimed without a lock")
    assert str(refused.value).startswith(f"--storage_path {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_process_may_hold_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunConfig(demo=True, model_dir=tmp_path / "out")

    def fail(file: Any, operation: int) -> None:  # as a server's lock daemon that has hiccups
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with claim(run):
        monkeypatch.setattr(fcntl, "flock", fail)
        with pytest.raises(BadInput, match="has no locks"), claim(run):
            raise AssertionError("locked twice")
        assert run.run_dir.lock.exists()

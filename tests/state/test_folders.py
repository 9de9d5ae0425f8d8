"""Folders that cannot be written, and earlier runs that are set aside."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput
from raykfold.files.atomic import write_folder
from raykfold.state.claim import claim
from raykfold.state.folders import check_writable, set_aside
from raykfold.state.record import EarlierRun, RunRecord, identity
from raykfold.state.states import Index, newest_states


def config(folder: Path, **changes: Any) -> RunConfig:
    return RunConfig(**{"run_name": "run", "model_dir": folder / "out", **changes})


@pytest.mark.parametrize("flag", ["model_dir", "storage_path"])
def test_a_path_that_is_a_file_is_refused(tmp_path: Path, flag: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=f"--{flag} .*file is not a folder"):
        check_writable(config(tmp_path, **{flag: tmp_path / "file" / "below"}))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize("flag", ["model_dir", "storage_path"])
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, flag: str) -> None:
    with pytest.raises(BadInput, match=f"--{flag} /proc/.*cannot be written"):
        check_writable(config(tmp_path, **{flag: Path("/proc/raykfold")}))


def test_a_file_system_that_lacks_what_a_run_needs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(BadInput) as refused:
        check_writable(config(tmp_path))
    assert str(refused.value) == (
        f"--model_dir {tmp_path / 'out'}: its file system does not flush a file to the disk "
        "(Invalid argument); expected another folder"
    )
    assert list(tmp_path.iterdir()) == []


def test_checking_writes_nothing(tmp_path: Path) -> None:
    check_writable(config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_fresh_sets_outputs_and_checkpoints_aside_and_nothing_else(tmp_path: Path) -> None:
    run = config(tmp_path, storage_path=tmp_path / "ray")
    RunRecord.of(run, identity(run, "f"), "20261124-120000", (1, 2)).write(run)
    write_folder(run.run_dir.finished(1), {"state.pt": b"s"}, {"fold": 1, "epochs_run": 3})
    run.outputs.best_weights(1).write_bytes(b"w")
    (run.model_path / "my_notes.txt").write_text("keep")
    with claim(run):
        outputs, state = set_aside(run)
    assert {path.name for path in run.model_path.iterdir()} == {"my_notes.txt", outputs.name}
    assert {path.name for path in outputs.iterdir()} == {
        "run.json",
        "model_fold_1_best.safetensors",
    }
    assert (state / "folds" / "fold_1" / "manifest.json").exists()
    EarlierRun.read(config(tmp_path, storage_path=tmp_path / "ray", seed=9)).check(
        identity(run, "g")
    )
    assert newest_states(run.run_dir, Index(), [1])[0] == {}

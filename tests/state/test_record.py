"""What a run resumes from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput
from raykfold.files.atomic import write_file, write_folder
from raykfold.files.paths import RunDir
from raykfold.files.remote import Place
from raykfold.state.record import (
    Index,
    check_identity,
    check_writable,
    identity,
    locked,
    newest_states,
    read_index,
    recorded,
    set_aside,
    sweep,
    write_record,
)


def config(folder: Path, **changes: Any) -> RunConfig:
    return RunConfig(**{"run_name": "run", "model_dir": folder / "out", **changes})


def put_state(folder: Place, fold: int, epochs_run: int, *, early: bool = False) -> Path:
    facts = {"fold": fold, "epochs_run": epochs_run, "stopped_early": early}
    assert isinstance(folder, Path)
    write_folder(folder, {"state.pt": bytes(epochs_run + 1)}, facts)
    return folder


def put_checkpoint(run_dir: RunDir, share: str, number: int, fold: int, epochs: int) -> Path:
    return put_state(run_dir.shares / share / f"checkpoint_{number}" / f"fold_{fold}", fold, epochs)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "ray" / "run")


# --- newest states -----------------------------------------------------------------------------


def test_the_newest_state_counts_wherever_it_lies(run_dir: RunDir) -> None:
    put_checkpoint(run_dir, "a", 1, fold=1, epochs=1)
    newest = put_checkpoint(run_dir, "b", 1, fold=1, epochs=3)
    put_checkpoint(run_dir, "a", 2, fold=1, epochs=2)
    other = put_checkpoint(run_dir, "a", 2, fold=2, epochs=2)
    states, notes = newest_states(run_dir, Index(), [1, 2, 3])
    assert {fold: state.folder for fold, state in states.items()} == {1: newest, 2: other}
    assert states[1].epochs_run == 3
    assert not states[1].done(3)  # it goes on: what a stopped fold leaves is not there yet
    assert notes == []


def test_an_index_that_is_a_moment_behind_does_no_harm(run_dir: RunDir) -> None:
    old = put_checkpoint(run_dir, "a", 1, fold=1, epochs=1)
    new = put_checkpoint(run_dir, "a", 2, fold=1, epochs=2)
    states, notes = newest_states(run_dir, Index(folds={1: old}), [1])
    assert states[1].folder == new
    assert notes == []


def test_a_state_elsewhere_that_the_index_names_is_found(run_dir: RunDir, tmp_path: Path) -> None:
    elsewhere = put_state(tmp_path / "elsewhere" / "fold_1", 1, 4)
    states, _ = newest_states(run_dir, Index(folds={1: elsewhere}), [1])
    assert states[1].folder == elsewhere


@pytest.mark.parametrize("victim", ["state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_a_damaged_newest_state_is_passed_over_and_said(
    run_dir: RunDir, victim: str, damage: str
) -> None:
    whole = put_checkpoint(run_dir, "a", 1, fold=1, epochs=1)
    newest = put_checkpoint(run_dir, "a", 2, fold=1, epochs=2)
    if damage == "removed":
        (newest / victim).unlink()
    else:
        os.truncate(newest / victim, 1)
    states, notes = newest_states(run_dir, Index(folds={1: newest}), [1])
    assert states[1].folder == whole
    assert len(notes) == 1
    assert "fold 1" in notes[0] and str(newest) in notes[0]


def test_a_fold_without_a_whole_state_starts_anew(run_dir: RunDir) -> None:
    (put_checkpoint(run_dir, "a", 1, fold=1, epochs=1) / "state.pt").unlink()
    states, notes = newest_states(run_dir, Index(), [1])
    assert states == {}
    assert len(notes) == 1


def test_a_finished_fold_is_done_until_epochs_are_raised(run_dir: RunDir) -> None:
    put_checkpoint(run_dir, "a", 1, fold=1, epochs=3)
    put_state(run_dir.finished(1), 1, 3)
    put_state(run_dir.finished(2), 2, 2, early=True)
    states, _ = newest_states(run_dir, Index(), [1, 2])
    assert states[1].finished and states[1].folder == run_dir.finished(1)
    assert states[1].done(3) and not states[1].done(4)
    assert states[2].done(50)


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(run_dir: RunDir) -> None:
    finished = put_state(run_dir.finished(1), 1, 3)
    finished.rename(finished.with_name("fold_1.replaced"))
    sweep(run_dir)
    states, _ = newest_states(run_dir, Index(), [1])
    assert states[1].epochs_run == 3


# --- index ---------------------------------------------------------------------------------------


def test_the_index_comes_back(run_dir: RunDir) -> None:
    folds: dict[int, Place] = {1: Path("/a"), 10: Path("/b")}
    index = Index(wall_seconds=12.5, num_workers=3, folds=folds, sessions=2)
    index.write(run_dir)
    assert read_index(run_dir) == (index, [])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"folds": 3}', '{"folds": {"x": "y"}}'])
def test_an_unreadable_index_is_said_and_made_anew(run_dir: RunDir, content: str) -> None:
    write_file(run_dir.index, content.encode())
    index, notes = read_index(run_dir)
    assert index == Index()
    assert len(notes) == 1 and str(run_dir.index) in notes[0]


# --- identity ----------------------------------------------------------------------------------


def test_a_precision_that_is_left_open_becomes_the_run_s_own(tmp_path: Path) -> None:
    run = config(tmp_path)
    assert "precision" not in identity(run, "f")
    write_record(run, identity(run, "f", "gpu", "bf16"), "20261124-120000", (1, 2))
    assert recorded(run, "precision") == "bf16"
    check_identity(run, identity(run, "f"))
    check_identity(config(tmp_path, precision="bf16"), identity(run, "f"))
    exact = config(tmp_path, precision="fp32")
    with pytest.raises(BadInput, match="precision bf16, and this one has fp32"):
        check_identity(exact, identity(exact, "f"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 16),
        ("learning_rate", 0.01),
        ("early_stopping_patience", 3),
        ("seed", 1),
        ("model", "other:Model"),
    ],
)
@pytest.mark.parametrize("lost", ["nothing", "storage", "model_dir"])
def test_another_config_under_the_same_name_is_refused(
    tmp_path: Path, name: str, value: object, lost: str
) -> None:
    before = config(tmp_path, storage_path=tmp_path / "ray")
    write_record(before, identity(before, "f", "cpu x1"), "20261124-120000", (1, 2))
    if lost != "nothing":
        shutil.rmtree(tmp_path / ("ray" if lost == "storage" else "out"))
    now = config(tmp_path, storage_path=tmp_path / "ray", **{name: value})
    with pytest.raises(BadInput) as error:
        check_identity(now, identity(now, "f"))
    assert name in str(error.value) and str(value) in str(error.value)
    assert "--fresh" in str(error.value)


def test_other_data_another_device_and_fewer_epochs_are_refused(tmp_path: Path) -> None:
    run = config(tmp_path)
    write_record(run, identity(run, "f", "cpu x1"), "20261124-120000", (1, 2))
    with pytest.raises(BadInput, match="data"):
        check_identity(run, identity(run, "g"))
    with pytest.raises(BadInput, match="device cpu x1, and this one has cpu x2"):
        check_identity(run, identity(run, "f", "cpu x2"))
    with pytest.raises(BadInput, match="--epochs 49"):
        check_identity(config(tmp_path, epochs=49), identity(run, "f"))
    check_identity(config(tmp_path, epochs=51), identity(run, "f", "cpu x1"))
    check_identity(config(tmp_path, folds=(1,), num_workers=7), identity(run, "f"))


def test_a_model_dir_of_another_run_is_refused(tmp_path: Path) -> None:
    run = config(tmp_path)
    write_record(run, identity(run, "f"), "20261124-120000", (1, 2))
    with pytest.raises(BadInput, match=r"--model_dir .* belongs to the run 'run'"):
        check_identity(config(tmp_path, run_name="other"), identity(run, "f"))


@pytest.mark.parametrize("content", ["", "[]", '{"run_name": "run"}'])
def test_an_unreadable_record_is_named(tmp_path: Path, content: str) -> None:
    run = config(tmp_path)
    write_file(run.run_dir.run_record, content.encode())
    with pytest.raises(BadInput, match=r"run\.json.*--fresh"):
        check_identity(run, identity(run, "f"))


def test_a_record_holds_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run = config(tmp_path)
    write_record(run, identity(run, "f"), "20261124-120000", (1, 2))
    record = run.run_dir.run_record.read_bytes().decode()
    assert "hf_secret" not in record
    assert json.loads(record)["config"]["epochs"] == 50


# --- the folders themselves ----------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["model_dir", "storage_path"])
def test_a_path_that_is_a_file_is_refused(tmp_path: Path, flag: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=f"--{flag} .*file is no folder"):
        check_writable(config(tmp_path, **{flag: tmp_path / "file" / "below"}))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize("flag", ["model_dir", "storage_path"])
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, flag: str) -> None:
    with pytest.raises(BadInput, match=f"--{flag} /proc/.*cannot be written"):
        check_writable(config(tmp_path, **{flag: Path("/proc/raykfold")}))


def test_checking_writes_nothing(tmp_path: Path) -> None:
    check_writable(config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = config(tmp_path)
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from raykfold.config.run_config import RunConfig\n"
        "from raykfold.state.record import locked\n"
        "with locked(RunConfig(run_name='run', model_dir=Path(sys.argv[1]))):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", script, str(run.model_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(BadInput, match=f"another process .pid {first.pid} on"), locked(run):
            raise AssertionError("locked twice")
    finally:
        first.kill()
        first.wait()
    with locked(run):
        assert str(os.getpid()) in run.run_dir.lock.read_bytes().decode()


def test_fresh_sets_outputs_and_checkpoints_aside_and_nothing_else(tmp_path: Path) -> None:
    run = config(tmp_path, storage_path=tmp_path / "ray")
    write_record(run, identity(run, "f"), "20261124-120000", (1, 2))
    put_state(run.run_dir.finished(1), 1, 3)
    run.outputs.best_weights(1).write_bytes(b"w")
    (run.model_path / "my_notes.txt").write_text("keep")
    with locked(run):
        outputs, state = set_aside(run)
    assert {path.name for path in run.model_path.iterdir()} == {"my_notes.txt", outputs.name}
    assert {path.name for path in outputs.iterdir()} == {
        "run.json",
        "model_fold_1_best.safetensors",
    }
    assert (state / "folds" / "fold_1" / "manifest.json").exists()
    check_identity(config(tmp_path, storage_path=tmp_path / "ray", seed=9), identity(run, "g"))
    assert newest_states(run.run_dir, Index(), [1])[0] == {}


def test_sweeping_takes_what_a_kill_left_half_written(run_dir: RunDir) -> None:
    whole = put_state(run_dir.finished(1), 1, 3)
    Path(str(run_dir.root), "folds", ".fold_2.abc").mkdir()
    Path(str(run_dir.weights(1))).mkdir(parents=True)
    (run_dir.weights(1) / ".epoch_3.safetensors.xyz").write_bytes(b"")
    (run_dir.weights(1) / "epoch_2.safetensors").write_bytes(b"")
    sweep(run_dir)
    assert [path.name for path in (run_dir.root / "folds").iterdir()] == [whole.name]
    assert [path.name for path in run_dir.weights(1).iterdir()] == ["epoch_2.safetensors"]

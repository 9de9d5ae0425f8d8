"""Newest states, the index that names them, and what a kill leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raykfold.files.atomic import write_file, write_folder
from raykfold.files.paths import RunDir
from raykfold.files.remote import Place
from raykfold.state.states import Index, newest_states, read_index, sweep


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


def test_sweeping_takes_what_a_kill_left_half_written(run_dir: RunDir) -> None:
    whole = put_state(run_dir.finished(1), 1, 3)
    Path(str(run_dir.root), "folds", ".fold_2.abc").mkdir()
    Path(str(run_dir.weights(1))).mkdir(parents=True)
    (run_dir.weights(1) / ".epoch_3.safetensors.xyz").write_bytes(b"")
    (run_dir.weights(1) / "epoch_2.safetensors").write_bytes(b"")
    sweep(run_dir)
    assert [path.name for path in (run_dir.root / "folds").iterdir()] == [whole.name]
    assert [path.name for path in run_dir.weights(1).iterdir()] == ["epoch_2.safetensors"]

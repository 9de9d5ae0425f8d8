"""The command, as a user types it, on a Ray of its own.

What a run leaves, with folds 1 to 5 and E epochs run by a fold:

    model_dir/
      all_fold_histories_pytorch.pkl
      checkpoints/fold_<n>/epoch_<0 … E-1>.safetensors
      model_fold_<n>_best.safetensors
      oof_predictions.npz
      run.json
      summary.json
      training_state.json
      ray/<run_name>/
        folds/fold_<n>/{state.pt, model.safetensors, history.json, predictions.npz, manifest.json}
        index.json
        run.json
        shares/…                                    Ray Train's own, until the run is complete
        weights/fold_<n>/epoch_<0 … E-1>.safetensors
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import CLASSES, small_arrays
from safetensors import safe_open

from raykfold.data import read_feature_set, write_feature_set
from raykfold.run import main
from raykfold.training import FoldTrainer, TrainingSettings

FOLDS = (1, 2, 3, 4, 5)
# Patience of one epoch and a high rate: folds stop early, and at different epochs.
ARGUMENTS = ("--epochs", "6", "--early_stopping_patience", "1", "--learning_rate", "0.003")
EPOCH_LINE = re.compile(r"^fold (\d) {2}epoch (\d+)/6 ")


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the tests' folder on the Python path for networks that live there."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAYKFOLD_")}
    here.pop("RAY_ADDRESS", None)
    return {**here, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def command(processed_dir: Path, model_dir: Path, *arguments: str) -> list[str]:
    base = [sys.executable, "-m", "raykfold.run", "--processed_dir", str(processed_dir)]
    return [*base, "--model_dir", str(model_dir), *ARGUMENTS, *arguments]


def run(
    processed_dir: Path, model_dir: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(processed_dir, model_dir, *arguments),
        capture_output=True,
        text=True,
        timeout=280,
        env=environment(**env),
    )


def start(processed_dir: Path, model_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """As `run`, but alive: lines can be read as they come."""
    return subprocess.Popen(
        command(processed_dir, model_dir, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"no {pattern!r} in: {''.join(lines)}")


@dataclass(frozen=True)
class Outcome:
    """All that must not depend on how a run went."""

    folds: list[dict[str, Any]]
    histories: list[dict[str, list[float]]]
    weights: dict[str, bytes]
    predictions: dict[str, np.ndarray]

    @classmethod
    def of(cls, model_dir: Path) -> Outcome:
        with np.load(model_dir / "oof_predictions.npz") as file:
            predictions = {name: file[name] for name in file.files}
        return cls(
            folds=json.loads((model_dir / "summary.json").read_text())["folds"],
            histories=pickle.loads((model_dir / "all_fold_histories_pytorch.pkl").read_bytes()),
            weights={
                str(path.relative_to(model_dir)): path.read_bytes()
                for path in sorted(model_dir.glob("**/*.safetensors"))
                if "ray" not in path.relative_to(model_dir).parts
            },
            predictions=predictions,
        )


def assert_same(first: Outcome, second: Outcome) -> None:
    assert first.folds == second.folds
    assert first.histories == second.histories
    assert first.weights.keys() == second.weights.keys()
    for name, content in first.weights.items():
        assert content == second.weights[name], name
    for name, values in first.predictions.items():
        np.testing.assert_array_equal(values, second.predictions[name], err_msg=name)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sounds"
    write_feature_set(folder, *small_arrays(), CLASSES, {"kind": "log_mel"})
    return folder


@dataclass(frozen=True)
class Undisturbed:
    model_dir: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def undisturbed(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The run that the others are held against."""
    model_dir = tmp_path_factory.mktemp("undisturbed") / "out"
    return Undisturbed(model_dir, run(data_dir, model_dir, "--local_cpus", "2"))


@pytest.fixture
def outcome(undisturbed: Undisturbed) -> Outcome:
    assert undisturbed.done.returncode == 0, undisturbed.done.stderr
    return Outcome.of(undisturbed.model_dir)


# --- an undisturbed run --------------------------------------------------------------------------


def test_it_leaves_the_files_of_the_contract(undisturbed: Undisturbed, outcome: Outcome) -> None:
    root = undisturbed.model_dir
    epochs = {row["fold"]: row["epochs_run"] for row in outcome.folds}
    expected = {
        "all_fold_histories_pytorch.pkl",
        "oof_predictions.npz",
        "run.json",
        "summary.json",
        "training_state.json",
        "ray/sounds/.lock",
        "ray/sounds/index.json",
        "ray/sounds/run.json",
    }
    for fold in FOLDS:
        expected.add(f"model_fold_{fold}_best.safetensors")
        for name in (
            "state.pt", "model.safetensors", "history.json", "predictions.npz", "manifest.json"
        ):  # fmt: skip
            expected.add(f"ray/sounds/folds/fold_{fold}/{name}")
        for epoch in range(epochs[fold]):
            expected.add(f"checkpoints/fold_{fold}/epoch_{epoch}.safetensors")
            expected.add(f"ray/sounds/weights/fold_{fold}/epoch_{epoch}.safetensors")
    found = {str(path.relative_to(root)) for path in root.glob("**/*") if path.is_file()}
    assert found == expected


def test_its_folds_stop_early_at_different_epochs(outcome: Outcome) -> None:
    assert {row["stopped_early"] for row in outcome.folds} >= {True}
    assert len({row["epochs_run"] for row in outcome.folds}) > 1


def test_its_summary_is_what_its_files_say(undisturbed: Undisturbed, outcome: Outcome) -> None:
    summary = json.loads((undisturbed.model_dir / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert summary["num_workers"] == 2
    assert summary["classes"] == {str(label): name for label, name in CLASSES.items()}
    best = [row["best_val_accuracy"] for row in outcome.folds]
    assert best == [max(history["val_accuracy"]) for history in outcome.histories]
    assert summary["mean_accuracy"] == pytest.approx(np.mean(best))
    assert summary["std_accuracy"] == pytest.approx(np.std(best))
    last = [history["val_accuracy"][-1] for history in outcome.histories]
    assert summary["last_mean_accuracy"] == pytest.approx(np.mean(last))
    assert [len(history["loss"]) for history in outcome.histories] == [
        row["epochs_run"] for row in outcome.folds
    ]
    text = undisturbed.done.stdout
    assert f"Accuracy: {np.mean(best):.4f} (+/- {np.std(best):.4f})" in text
    assert summary["partial_mean_accuracy"] is None


def test_every_sample_is_predicted_once_by_the_fold_that_held_it_out(outcome: Outcome) -> None:
    _, labels, folds = small_arrays()
    held = outcome.predictions
    np.testing.assert_array_equal(held["index"], np.arange(len(labels)))
    np.testing.assert_array_equal(held["label"], labels)
    np.testing.assert_array_equal(held["fold"], folds)
    right = held["prediction"] == held["label"]
    for row in outcome.folds:
        assert right[held["fold"] == row["fold"]].mean() == row["best_val_accuracy"]
    np.testing.assert_array_equal(
        held["classes"][held["probabilities"].argmax(axis=1)], held["prediction"]
    )


def test_best_weights_are_those_of_the_best_epoch(
    undisturbed: Undisturbed, outcome: Outcome
) -> None:
    for row in outcome.folds:
        fold, epoch = row["fold"], row["best_epoch"]
        path = undisturbed.model_dir / f"model_fold_{fold}_best.safetensors"
        best = safetensors.numpy.load_file(path)
        then = safetensors.numpy.load_file(
            undisturbed.model_dir / f"checkpoints/fold_{fold}/epoch_{epoch}.safetensors"
        )
        for name, value in then.items():
            np.testing.assert_array_equal(best[name], value)
        with safe_open(path, framework="np") as file:
            assert file.metadata()["fold"] == str(fold)


def test_a_log_has_one_plain_line_a_fold_and_epoch(
    undisturbed: Undisturbed, outcome: Outcome
) -> None:
    text = undisturbed.done.stdout
    assert undisturbed.done.stderr == ""
    assert all(character.isprintable() or character == "\n" for character in text)
    seen = [match.groups() for line in text.splitlines() if (match := EPOCH_LINE.match(line))]
    expected = [
        (str(row["fold"]), str(epoch + 1))
        for row in outcome.folds
        for epoch in range(row["epochs_run"])
    ]
    assert sorted(seen) == expected
    for row in outcome.folds:
        assert f"fold {row['fold']}: best accuracy {row['best_val_accuracy']:.4f}" in text


def test_the_same_command_again_says_that_nothing_is_left(
    undisturbed: Undisturbed, outcome: Outcome, data_dir: Path
) -> None:
    summary = (undisturbed.model_dir / "summary.json").read_bytes()
    again = run(data_dir, undisturbed.model_dir, "--local_cpus", "2")
    assert again.returncode == 0
    assert "complete already, skipped: folds 1, 2, 3, 4, 5; nothing is left" in again.stdout
    assert not EPOCH_LINE.search(again.stdout)
    assert "Average Best Validation Accuracy" in again.stdout
    assert (undisturbed.model_dir / "summary.json").read_bytes() == summary
    assert_same(outcome, Outcome.of(undisturbed.model_dir))


@pytest.mark.parametrize("change", [("--seed", "1"), ("--epochs", "5"), ("--batch_size", "16")])
def test_its_name_is_taken_for_another_configuration(
    undisturbed: Undisturbed,
    outcome: Outcome,
    data_dir: Path,
    change: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = command(data_dir, undisturbed.model_dir, *change)[3:]
    assert main(arguments) == 2
    assert change[0].strip("-") in capsys.readouterr().err
    assert_same(outcome, Outcome.of(undisturbed.model_dir))


# --- the same results however it went -----------------------------------------------------------


def test_five_workers_give_the_same_bits_as_two(
    outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    done = run(data_dir, tmp_path, "--local_cpus", "5")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["num_workers"] == 5
    assert_same(outcome, Outcome.of(tmp_path))


def test_killed_workers_and_a_killed_driver_give_the_same_bits_on_one_worker(
    outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    """SIGKILL of the worker, then of the driver; then the newest checkpoint and index are cut."""
    arguments = ("--local_cpus", "1", "--num_workers", "1")
    process = start(data_dir, tmp_path, *arguments)
    try:
        read_until(process, r"epoch 1/6")
        os.kill(worker_pid(process.pid), signal.SIGKILL)
        lines = read_until(process, r"worker of folds .* ended")
        read_until(process, r"fold 1 +epoch 3/6")
        second = worker_pid(process.pid)
    finally:
        process.kill()
        process.wait()
    wait_until_gone(second)  # Ray's processes end themselves when the driver is gone
    assert "worker of folds 1, 2, 3, 4, 5 ended" in lines[-1]

    storage = tmp_path / "ray" / "sounds"
    for folder in newest_states(storage, fold=1):
        os.truncate(folder / "state.pt", 100)
    os.truncate(storage / "index.json", 5)
    done = run(data_dir, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "index.json cannot be read" in done.stdout
    assert "fold 1: passed over a damaged checkpoint" in done.stdout
    assert re.search(r"fold 1: resumes after epoch [1-9]", done.stdout)
    assert_same(outcome, Outcome.of(tmp_path))


def newest_states(storage: Path, fold: int) -> list[Path]:
    """The checkpoints that hold most epochs of a fold: one, or two after an untimely kill."""
    epochs = {
        manifest.parent: json.loads(manifest.read_text())["epochs_run"]
        for manifest in storage.glob(f"shares/*/*/fold_{fold}/manifest.json")
    }
    return [folder for folder, number in epochs.items() if number == max(epochs.values())]


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
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False  # it has just ended
        pid = int(stat.rpartition(")")[2].split()[1])
    return False


# --- folds that fail, runs that are stopped ------------------------------------------------------


def test_a_fold_that_fails_leaves_the_others_alone_and_a_stopped_run_resumes(
    outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    """Fold 4's network raises in its third epoch; SIGINT comes before, and the command resumes."""
    arguments = ("--local_cpus", "2", "--model", "networks:FailsInFold4")
    process = start(data_dir, tmp_path, *arguments)
    try:
        read_until(process, r"epoch 1/6")
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert time.monotonic() - began < 10
    resume = re.search(r"to go on: (.*)", output)
    assert resume and "--model networks:FailsInFold4" in resume[1]

    done = subprocess.run(
        [sys.executable, *resume[1].split()[1:]],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
    )
    assert done.returncode == 3, done.stderr
    assert "resumes after epoch" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "partial"
    assert summary["mean_accuracy"] is None
    rows = {row["fold"]: row for row in summary["folds"]}
    assert rows[4]["status"] == "failed"
    assert "epoch 3: RuntimeError: sensor unplugged" in rows[4]["error"]
    for row in outcome.folds:
        if row["fold"] != 4:
            assert rows[row["fold"]] == row
    assert summary["partial_mean_accuracy"]["folds"] == [1, 2, 3, 5]
    assert "Partial run: mean" in done.stdout
    with np.load(tmp_path / "oof_predictions.npz") as held:
        assert set(held["fold"].tolist()) == {1, 2, 3, 5}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--num_workers", "9"), ("--num_workers 9", "has 2 slots of 1 CPU")),
        (("--use_gpu", "true"), ("--use_gpu true", "no GPU")),
    ],
)
def test_more_than_ray_has_is_refused_and_nothing_is_written(
    data_dir: Path, tmp_path: Path, arguments: tuple[str, str], parts: tuple[str, str]
) -> None:
    done = run(data_dir, tmp_path / "out", "--local_cpus", "2", *arguments)
    assert done.returncode == 2
    assert all(part in done.stderr for part in parts)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_while_ray_starts_ends_the_run_in_order(data_dir: Path, tmp_path: Path) -> None:
    process = start(data_dir, tmp_path, "--local_cpus", "1")
    try:
        ray = find_process("gcs_server", process.pid)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, output
    assert "to go on: python -m raykfold.run" in output
    wait_until_gone(ray)


# --- slow ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_runs_on_a_host_leave_each_other_alone(
    outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    arguments = ("--local_cpus", "1")
    both = [start(data_dir, tmp_path / name, *arguments) for name in ("a", "b")]
    try:
        for process in both:
            output, _ = process.communicate(timeout=280)
            assert process.returncode == 0, output
    finally:
        for process in both:
            process.kill()
            process.wait()
    for name in ("a", "b"):
        assert_same(outcome, Outcome.of(tmp_path / name))


@pytest.mark.slow
def test_epochs_can_be_raised_and_checkpoints_can_be_rare(
    outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    """Two epochs, then six with a checkpoint every third round; the driver is killed in between."""
    short = run(data_dir, tmp_path, "--epochs", "2")
    assert short.returncode == 0, short.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "complete"
    process = start(data_dir, tmp_path, "--checkpoint_every", "3")
    try:
        read_until(process, r"epoch 4/6")
        assert not (tmp_path / "summary.json").exists()
        pid = worker_pid(process.pid)
    finally:
        process.kill()
        process.wait()
    wait_until_gone(pid)
    done = run(data_dir, tmp_path, "--checkpoint_every", "3")
    assert done.returncode == 0, done.stderr
    assert_same(outcome, Outcome.of(tmp_path))


@pytest.mark.slow
def test_a_share_hands_a_fold_over_when_a_slot_comes_free(data_dir: Path, tmp_path: Path) -> None:
    """Folds 1 and 3 share a slot, and 2 has one; when 2 is done, 3 moves there."""
    arguments = ("--local_cpus", "2", "--folds", "1,2,3", "--model", "networks:Slow")
    done = run(data_dir, tmp_path, *arguments, "--early_stopping_patience", "6")
    assert done.returncode == 0, done.stderr
    assert "a slot is free: fold 3 will move there" in done.stdout
    histories = pickle.loads((tmp_path / "all_fold_histories_pytorch.pkl").read_bytes())
    assert histories == [history_without_ray(data_dir, fold) for fold in (1, 2, 3)]


def history_without_ray(data_dir: Path, fold: int) -> dict[str, list[float]]:
    """Six epochs of a fold in this process, with one thread as a worker has."""
    data = read_feature_set(data_dir)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = FoldTrainer(
            fold,
            torch.from_numpy(np.array(data.features)),
            torch.from_numpy(data.class_indices),
            data.split(fold),
            data.num_classes,
            TrainingSettings("raykfold.models:AudioCNN", 32, 0.003, patience=6, seed=0),
        )
        for _ in range(6):
            trainer.run_epoch()
    finally:
        torch.set_num_threads(threads)
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    return {name: [getattr(metrics, name) for metrics in trainer.history] for name in names}

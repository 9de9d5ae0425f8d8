"""`python -m raykfold.run` from the shell, on a Ray of its own.

A run of folds 1 to 5, where a fold trains for E epochs, leaves these files:

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
        heartbeat.json
        run.json
        shares/…                                    Ray Train's own, until the run is complete
        weights/fold_<n>/epoch_<0 … E-1>.safetensors
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import sklearn.metrics
from fakes.hub_server import Fault, HubServer
from safetensors import safe_open
from support.event_files import scalars
from support.outcome import (
    FOLDS,
    FinishedRun,
    Outcome,
    assert_as_without_ray,
    assert_same,
    assert_same_folds,
    files_that_hold,
)
from support.processes import find_process, wait_until_gone, worker_pid
from support.recipes import ALL_ON
from support.shell import (
    command,
    read_until,
    run,
    run_command,
    start,
    start_command,
)
from support.small_data import CLASSES, small_arrays
from support.wandb_files import newest

from raykfold.config.run_config import RunConfig
from raykfold.run import main
from raykfold.state.claim import claim
from raykfold.state.progress import Progress, Watcher

PICTURES = tuple(f"plots/{name}.png" for name in ("classes", "confusion", "curves", "folds"))
EPOCH_LINE = re.compile(r"^fold (\d) {2}epoch (\d+)/6 ")


# --- a run that nothing disturbs -----------------------------------------------------------------


def test_a_run_leaves_exactly_the_documented_files(
    undisturbed: FinishedRun, outcome: Outcome
) -> None:
    root = undisturbed.model_dir
    epochs = {row["fold"]: row["epochs_run"] for row in outcome.folds}
    expected = {
        "all_fold_histories_pytorch.pkl",
        "fold_results.json",
        "oof_predictions.npz",
        *PICTURES,
        "report.html",
        "run.json",
        "summary.json",
        "training_state.json",
        "ray/sounds/.lock",
        "ray/sounds/index.json",
        "ray/sounds/heartbeat.json",
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


def test_folds_stop_early_at_different_epochs(outcome: Outcome) -> None:
    assert {row["stopped_early"] for row in outcome.folds} >= {True}
    assert len({row["epochs_run"] for row in outcome.folds}) > 1


def test_the_summary_agrees_with_the_other_files(
    undisturbed: FinishedRun, outcome: Outcome
) -> None:
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
    held = outcome.predictions
    order = list(CLASSES)
    confusion = sklearn.metrics.confusion_matrix(held["label"], held["prediction"], labels=order)
    assert summary["confusion_matrix"] == confusion.tolist()
    assert [row["recall"] for row in summary["per_class"]] == pytest.approx(
        sklearn.metrics.recall_score(held["label"], held["prediction"], labels=order, average=None)
    )
    text = undisturbed.done.stdout
    assert text.splitlines()[-1] == f"page: {undisturbed.model_dir}/report.html"
    assert (undisturbed.model_dir / "report.html").exists()
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


def test_the_best_weights_are_those_of_the_best_epoch(
    undisturbed: FinishedRun, outcome: Outcome
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


def test_a_log_has_one_plain_line_for_each_epoch_of_a_fold(
    undisturbed: FinishedRun, outcome: Outcome
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
        assert (
            f"fold {row['fold']}: accuracy of the best epoch {row['best_val_accuracy']:.4f}" in text
        )


def test_the_same_command_again_trains_nothing(
    undisturbed: FinishedRun,
    outcome: Outcome,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = (undisturbed.model_dir / "summary.json").read_bytes()
    assert main(command(data_dir, undisturbed.model_dir)[3:]) == 0
    printed = capsys.readouterr().out
    assert "complete already, skipped: folds 1, 2, 3, 4, 5; nothing is left" in printed
    assert not EPOCH_LINE.search(printed)
    assert "Average Best Validation Accuracy" in printed
    assert (undisturbed.model_dir / "summary.json").read_bytes() == summary
    assert_same(outcome, Outcome.of(undisturbed.model_dir))


@pytest.mark.parametrize("change", [("--seed", "1"), ("--epochs", "5"), ("--batch_size", "16")])
def test_a_name_cannot_be_used_for_another_configuration(
    undisturbed: FinishedRun,
    outcome: Outcome,
    data_dir: Path,
    change: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = command(data_dir, undisturbed.model_dir, *change)[3:]
    assert main(arguments) == 2
    assert change[0].strip("-") in capsys.readouterr().err
    assert_same(outcome, Outcome.of(undisturbed.model_dir))


# --- a run whose worker and driver are killed ---------------------------------------------------

REPOSITORY = "tester/sounds"
API_KEY = "0123456789" * 4


@dataclass(frozen=True)
class Disturbed:
    """A run that was killed and resumed, mirrored to the Hub and tracked by W&B and TensorBoard.

    Attributes:
        model_dir: its outputs.
        environments: the folder where the network reports the environment of its processes.
        hub: the service that the run was mirrored to.
        driver: process id of the driver that was killed.
        lost: the line that reports the killed worker.
        alive: what `status` found before the driver was killed.
        dead: what `status` found after that.
        done: how the resumed command ended.
    """

    model_dir: Path
    environments: Path
    hub: HubServer
    driver: int
    lost: str
    alive: Progress
    dead: Progress
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def disturbed(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    """Three folds on one worker, which is killed; then the driver is, while it uploads.

    Before the run is resumed, the newest checkpoint of fold 1 and the index are truncated.
    """
    folder = tmp_path_factory.mktemp("disturbed")
    model_dir, environments = folder / "out", folder / "environments"
    environments.mkdir()
    with HubServer() as hub:
        env = {
            "ENVIRONMENTS": str(environments),
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": HubServer.token,
            "WANDB_API_KEY": API_KEY,
            "WANDB_BASE_URL": "http://127.0.0.1:9",  # nobody answers there
        }
        words = command(
            data_dir,
            model_dir,
            *("--local_cpus", "1", "--folds", "1,2,3"),
            *("--model", "support.networks:ReportsEnvironment"),
            *("--hf_model_repo_id", REPOSITORY, "--hub_interval", "0.5"),
            *("--wandb_project", "sounds", "--wandb_watch", "--tensorboard"),
        )
        hub.fault("commit", Fault("lost_reply", times=1))
        hub.fault("commit", Fault("slow", seconds=60, times=1))
        process = start_command(words, env)
        try:
            read_until(process, r"epoch 1/6")
            os.kill(worker_pid(process.pid), signal.SIGKILL)
            lost = read_until(process, r"worker of folds .* ended")[-1]
            read_until(process, r"fold 1 +epoch 3/6")
            wait_until_seen(hub, "commit", 2)  # the second of them hangs
            worker = worker_pid(process.pid)
            alive = Watcher(str(model_dir)).look()
        finally:
            process.kill()
            process.wait()
        dead = Watcher(str(model_dir)).look()
        wait_until_gone(worker)

        storage = model_dir / "ray" / "sounds"
        for state in newest_states(storage, fold=1):
            os.truncate(state / "state.pt", 100)
        os.truncate(storage / "index.json", 5)
        done = run_command(words, env)
        assert done.returncode == 0, done.stderr
        yield Disturbed(model_dir, environments, hub, process.pid, lost, alive, dead, done)


def wait_until_seen(hub: HubServer, endpoint: str, times: int) -> None:
    """Wait until the Hub has seen so many requests for an endpoint."""
    deadline = time.monotonic() + 60
    while sum(request.endpoint == endpoint for request in hub.requests) < times:
        assert time.monotonic() < deadline, f"no {times} requests for {endpoint}"
        time.sleep(0.02)


def newest_states(storage: Path, fold: int) -> list[Path]:
    """Return the states with most epochs of a fold: one, or two after an untimely kill.

    On a fast machine the fold may be over before its worker knows that the driver is gone.
    """
    name = f"fold_{fold}/manifest.json"
    epochs = {
        manifest.parent: json.loads(manifest.read_text())["epochs_run"]
        for manifest in (*storage.glob(f"shares/*/*/{name}"), *storage.glob(f"folds/{name}"))
    }
    return [folder for folder, number in epochs.items() if number == max(epochs.values())]


def test_a_killed_worker_and_a_killed_driver_give_the_same_bits(
    disturbed: Disturbed, outcome: Outcome
) -> None:
    assert_same_folds(outcome, disturbed.model_dir)


def test_a_killed_run_resumes_from_the_newest_state_that_is_whole(disturbed: Disturbed) -> None:
    printed = disturbed.done.stdout
    assert disturbed.done.stderr == ""
    assert "index.json cannot be read" in printed
    assert "fold 1: passed over a damaged checkpoint" in printed
    assert re.search(r"fold 1: resumes after epoch [1-9]", printed)


def test_status_reports_a_killed_worker_and_then_a_killed_driver(disturbed: Disturbed) -> None:
    alive, dead = disturbed.alive, disturbed.dead
    assert "worker of folds 1, 2, 3 ended" in disturbed.lost
    assert (alive.state, dead.state) == ("at work", "stopped")
    assert alive.driver is not None and alive.driver["pid"] == disturbed.driver
    assert {row.status for row in alive.folds} == {"running"}
    assert alive.folds[0].epochs_run >= 3
    for look in (alive, dead):
        assert look.last_failure is not None
        assert look.last_failure["text"].startswith("the worker of folds 1, 2, 3 ended: ")
    assert dead.resume is not None and f"--model_dir {disturbed.model_dir}" in dead.resume
    assert Watcher(str(disturbed.model_dir)).look().state == "over"


def test_event_files_of_a_killed_run_hold_each_epoch_once(
    disturbed: Disturbed, outcome: Outcome
) -> None:
    for fold, history in zip((1, 2, 3), outcome.histories, strict=False):
        drawn = scalars(disturbed.model_dir / "tensorboard" / f"fold_{fold}")["val/accuracy"]
        assert drawn == [(e, pytest.approx(x)) for e, x in enumerate(history["val_accuracy"])]


def test_a_driver_that_is_killed_while_it_uploads_loses_nothing(disturbed: Disturbed) -> None:
    assert_is_mirrored(disturbed.hub, disturbed.model_dir)
    assert "Hub: everything is up" in disturbed.done.stdout


def test_wandb_has_every_epoch_of_a_killed_run(disturbed: Disturbed, outcome: Outcome) -> None:
    assert re.search(r"W&B: .*; metrics go to .*/wandb, .*wandb sync ", disturbed.done.stdout)
    logged = newest(disturbed.model_dir)
    assert logged.keys() == {"fold_1", "fold_2", "fold_3", "summary"}
    for fold, history in zip((1, 2, 3), outcome.histories, strict=False):
        of_fold = logged[f"fold_{fold}"]
        assert of_fold.run["run_group"] == "sounds"
        assert of_fold.column("val/accuracy") == pytest.approx(history["val_accuracy"])
        assert "weights/fc1.bias.values" in of_fold.rows[-1]
    assert logged["summary"].summary["mean_accuracy"] == pytest.approx(
        np.mean([row["best_val_accuracy"] for row in outcome.folds[:3]])
    )


def test_a_run_shows_its_secrets_to_no_worker_and_writes_them_nowhere(disturbed: Disturbed) -> None:
    for secret in (HubServer.token, API_KEY):
        assert secret not in disturbed.done.stdout
        assert files_that_hold(secret, disturbed.model_dir.parent) == []
    # Of two drivers, a worker that was killed, and the two after it.
    assert len(list(disturbed.environments.iterdir())) == 5


# --- repeats ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_repeats_are_runs_with_the_next_seeds_and_resume_after_ctrl_c(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train two folds with two seeds, and choose epochs on inner splits.

    The run is stopped by SIGINT, and resumed by the command that it prints.
    """
    arguments = ("--local_cpus", "2", "--repeats", "2", "--select", "inner", "--folds", "1,3")
    process = start(data_dir, tmp_path, *arguments)
    try:
        read_until(process, r"^fold \d  epoch 1/6")  # most of seed 1 has still to be dealt
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    resume = re.search(r"to resume: (.*)", output)
    assert resume and "--repeats 2" in resume[1]

    done = run_command([sys.executable, *resume[1].split()[1:]])
    assert done.returncode == 0, done.stderr
    for seed, folder in ((0, tmp_path), (1, tmp_path / "seed_1")):
        assert_as_without_ray(
            folder, data_dir, folds=(1, 3), epochs=6, patience=1, seed=seed, inner=True
        )

    summary = json.loads((tmp_path / "summary.json").read_text())
    repeat = json.loads((tmp_path / "seed_1/summary.json").read_text())
    assert summary["repeats"]["seeds"] == [0, 1]
    assert summary["repeats"]["folds"] == [summary["folds"], repeat["folds"]]
    for name in ("chosen", "best", "last"):
        of_seeds = [[row[f"{name}_val_accuracy"] for row in s["folds"]] for s in (summary, repeat)]
        values = np.mean(of_seeds, axis=0)
        assert summary["estimates"][name]["mean"] == pytest.approx(np.mean(values))
        assert f" {np.mean(values):.4f} (+/- {np.std(values):.4f})" in done.stdout
    assert (summary["select"], repeat["select"]) == ("inner", "inner")
    assert summary["sessions"] == 2
    assert re.search(r"^seed 1  fold \d: accuracy of the chosen epoch", done.stdout, re.MULTILINE)
    assert re.search(rf"^   1  {repeat['estimates']['chosen']['mean']:.4f}  ", done.stdout, re.M)

    words = command(data_dir, tmp_path, *arguments)[3:]
    assert main([*words, "--repeats", "1"]) == 2
    assert "--repeats 1: the run 'sounds' was started with 2" in capsys.readouterr().err
    with claim(RunConfig(model_dir=tmp_path, run_name="sounds").repeat(1)):
        assert main([*words, "--fresh"]) == 2
    assert "is being worked on by another process" in capsys.readouterr().err
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


# --- folds that fail, runs that are stopped ------------------------------------------------------


@pytest.mark.slow
def test_failing_folds_stop_no_other(outcome: Outcome, data_dir: Path, tmp_path: Path) -> None:
    """Fold 4's network raises in epoch 3, and fold 2's kills its worker; one share trains both."""
    network = ("--model", "support.networks:Troubled")
    arguments = ("--local_cpus", "2", "--folds", "1,2,3,4", "--folds_per_slot", "3", *network)
    done = run(data_dir, tmp_path, *arguments)
    assert done.returncode == 3, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "partial"
    assert summary["mean_accuracy"] is None
    rows = {row["fold"]: row for row in summary["folds"]}
    assert rows[4]["status"] == "failed"
    assert "epoch 3: RuntimeError: sensor unplugged" in rows[4]["error"]
    assert rows[2]["status"] == "failed"
    assert rows[2]["error"].startswith("quarantined: its worker died 2 times in epoch 3; the last:")
    for row in outcome.folds:
        if row["fold"] in (1, 3):
            assert rows[row["fold"]] == row
    assert summary["partial_mean_accuracy"]["folds"] == [1, 3]
    assert "Partial run: " in done.stdout
    with np.load(tmp_path / "oof_predictions.npz") as held:
        assert set(held["fold"].tolist()) == {1, 3}


@pytest.mark.slow
def test_a_worker_that_is_stopped_is_replaced(
    outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    driver = start(data_dir, tmp_path, "--local_cpus", "2", "--stall_timeout", "10")
    try:
        lines = read_until(driver, r"fold 1  epoch 2/")
        stopped = worker_pid(driver.pid)
        os.kill(stopped, signal.SIGSTOP)
        output = "".join([*lines, driver.communicate(timeout=120)[0]])
    finally:
        driver.kill()
    assert driver.returncode == 0, output
    assert re.search(
        r"the worker of .* ended: it stalled: its process reported nothing for", output
    )
    assert_same(Outcome.of(tmp_path), outcome)
    wait_until_gone(stopped)


@pytest.mark.slow
def test_a_network_that_hangs_fails_its_own_fold(
    outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    arguments = ("--local_cpus", "2", "--folds", "1,3,4", "--stall_timeout", "10")
    done = run(data_dir, tmp_path, *arguments, "--model", "support.networks:Hanging")
    assert done.returncode == 3, done.stderr
    rows = {
        row["fold"]: row for row in json.loads((tmp_path / "summary.json").read_text())["folds"]
    }
    assert re.match(
        r"quarantined: its worker died 2 times in epoch 3; the last: it stalled: no batch was "
        r"finished for 1\d s$",
        rows[4]["error"],
    )
    for row in outcome.folds:
        if row["fold"] in (1, 3):
            assert rows[row["fold"]] == row


@pytest.mark.slow
def test_a_run_ends_when_a_state_cannot_be_written_and_keeps_the_weights_before_it(
    data_dir: Path, tmp_path: Path
) -> None:
    """A file stands where the states of finished folds go; with one epoch the first is written."""
    root = tmp_path / "ray" / "sounds"
    root.mkdir(parents=True)
    (root / "folds").touch()
    done = run(data_dir, tmp_path, "--local_cpus", "1", "--folds", "1", "--epochs", "1")
    assert done.returncode == 1
    assert f"{root / 'folds' / 'fold_1'}: cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (root / "weights" / "fold_1" / "epoch_0.safetensors").exists()
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.slow
def test_more_workers_than_slots_are_refused_before_anything_is_written(
    data_dir: Path, tmp_path: Path
) -> None:
    done = run(data_dir, tmp_path / "out", "--local_cpus", "2", "--num_workers", "9")
    assert done.returncode == 2
    assert "--num_workers 9" in done.stderr and "has 2 slots of 1 CPU" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_while_ray_starts_stops_ray_and_says_how_to_resume(
    data_dir: Path, tmp_path: Path
) -> None:
    process = start(data_dir, tmp_path, "--local_cpus", "1")
    try:
        ray = find_process("gcs_server", process.pid)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, output
    assert "to resume: python -m raykfold.run" in output
    wait_until_gone(ray)


# --- the Hub -------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", HubServer.token)
        yield server


def mirrored(*arguments: str) -> tuple[str, ...]:
    """Return the flags of a run of three folds on two slots that is mirrored to the Hub."""
    where = ("--hf_model_repo_id", REPOSITORY, "--hub_interval", "0.5")
    return ("--local_cpus", "2", "--folds", "1,2,3", *where, *arguments)


def assert_is_mirrored(hub: HubServer, model_dir: Path) -> None:
    """Assert that the repository has the bytes of these outputs, and got each epoch once:

    .gitattributes, README.md, summary.json, fold_results.json, all_fold_histories_pytorch.pkl,
    oof_predictions.npz, report.html, plots/<name>.png
    model_fold_<n>_best.safetensors
    fold_<n>/epoch_<e>.safetensors
    """
    repository = hub.repository(REPOSITORY)
    expected = {
        "README.md": model_dir / "model_card.md",
        **{
            name: model_dir / name
            for name in (
                *("summary.json", "fold_results.json", "all_fold_histories_pytorch.pkl"),
                *("oof_predictions.npz", "report.html", *PICTURES),
            )
        },
        **{path.name: path for path in model_dir.glob("model_fold_*_best.safetensors")},
        **{
            f"{path.parent.name}/{path.name}": path
            for path in model_dir.glob("checkpoints/fold_*/epoch_*.safetensors")
        },
    }
    found = {name: data for name, data in repository.files.items() if name != ".gitattributes"}
    assert found == {name: path.read_bytes() for name, path in expected.items()}
    assert "summary.json" in repository.commits[-1].paths
    epochs = [path for commit in repository.commits for path in commit.paths if "/epoch_" in path]
    assert len(epochs) == len(set(epochs))


@pytest.mark.slow
def test_files_that_the_hub_refuses_can_be_sent_later(
    outcome: Outcome, hub: HubServer, data_dir: Path, tmp_path: Path
) -> None:
    hub.fault("commit", Fault("status", status=403))
    done = run(data_dir, tmp_path, *mirrored())
    assert done.returncode == 0, done.stderr
    assert_same_folds(outcome, tmp_path)
    assert done.stdout.count("HTTP 403") == 1
    again = re.search(r"Hub: not sent yet: .*; to send them: (.*)", done.stdout)
    assert again
    hub.clear_faults()
    sent = run_command([sys.executable, *again[1].split()[1:]])
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert_is_mirrored(hub, tmp_path)


# --- slow ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_every_option_of_a_recipe_workers_and_kills_change_no_bit(
    data_dir: Path, tmp_path: Path
) -> None:
    """Two workers, of which one is killed, then the driver; and five workers."""
    recipe = {**ALL_ON, "recipe": "support.recipes:Counting(start=1)"}
    flags = [word for name, value in recipe.items() for word in (f"--{name}", str(value))]
    flags += ["--early_stopping_patience", "6"]
    for workers in (2, 5):
        words = command(data_dir, tmp_path / f"{workers}", "--local_cpus", str(workers), *flags)
        if workers == 2:
            process = start_command(words)
            try:
                read_until(process, r"epoch 1/6")
                os.kill(worker_pid(process.pid), signal.SIGKILL)
                read_until(process, r"worker of folds? .* ended")
                read_until(process, r"epoch 3/6")
                worker = worker_pid(process.pid)
            finally:
                process.kill()
                process.wait()
            wait_until_gone(worker)
        done = run_command(words)
        assert done.returncode == 0, done.stderr
        assert_as_without_ray(
            tmp_path / f"{workers}", data_dir, folds=FOLDS, epochs=6, patience=6, **recipe
        )
    other = command(
        data_dir, tmp_path / "5", *flags, "--recipe", "support.recipes:Counting(start=2)"
    )
    refused = run_command(other)
    assert refused.returncode == 2 and "with recipe.start 1, and this one has 2" in refused.stderr


@pytest.mark.slow
def test_five_workers_give_the_same_bits_as_two(
    outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    done = run(data_dir, tmp_path, "--local_cpus", "5")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["num_workers"] == 5
    assert_same(outcome, Outcome.of(tmp_path))


FAULTS = {
    "a service that fails and loses replies": [
        ("create", Fault("lost_reply", times=1)),
        ("commit", Fault("status", status=429, retry_after=1, times=1)),
        ("commit", Fault("lost_reply", times=1)),
        ("lfs_put", Fault("lost_reply", times=1)),
        ("preupload", Fault("reset", times=1)),
    ],
    "a service that is slow": [("*", Fault("slow", seconds=2.0))],
}


@pytest.mark.slow
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_faults_of_the_hub_change_no_result_and_lose_no_file(
    outcome: Outcome,
    hub: HubServer,
    data_dir: Path,
    tmp_path: Path,
    faults: list[tuple[str, Fault]],
) -> None:
    for endpoint, fault in faults:
        hub.fault(endpoint, fault)
    done = run(data_dir, tmp_path, *mirrored())
    assert done.returncode == 0, done.stderr
    assert_same_folds(outcome, tmp_path)
    assert_is_mirrored(hub, tmp_path)


@pytest.mark.slow
def test_two_runs_on_one_host_do_not_disturb_each_other(
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
def test_a_run_can_be_extended_with_more_epochs_and_rarer_checkpoints(
    outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    """Run two epochs, then six with a checkpoint every third round; kill the driver in between."""
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
def test_a_fold_moves_to_a_slot_that_becomes_free(data_dir: Path, tmp_path: Path) -> None:
    """Folds 1 and 3 share a slot, and 2 has one; when 2 has ended, 3 moves there."""
    arguments = ("--local_cpus", "2", "--folds", "1,2,3", "--model", "support.networks:Slow")
    done = run(data_dir, tmp_path, *arguments, "--early_stopping_patience", "6")
    assert done.returncode == 0, done.stderr
    assert "a slot is free: fold 3 will move there" in done.stdout
    assert_as_without_ray(tmp_path, data_dir, folds=(1, 2, 3), epochs=6, patience=6)

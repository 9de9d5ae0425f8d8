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
        pulse.json
        run.json
        shares/…                                    Ray Train's own, until the run is complete
        weights/fold_<n>/epoch_<0 … E-1>.safetensors
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import sklearn.metrics
from fakes.hub_server import Fault, HubServer
from safetensors import safe_open
from support.event_files import scalars
from support.outcome import FOLDS, FinishedRun, Outcome, assert_as_without_ray, assert_same
from support.processes import find_process, wait_until_gone, worker_pid
from support.shell import command, environment, read_until, run, start
from support.small_data import CLASSES, small_arrays
from support.wandb_files import newest

from raykfold.config.run_config import RunConfig
from raykfold.run import main
from raykfold.state.claim import claim
from raykfold.state.progress import Watcher

PICTURES = tuple(f"plots/{name}.png" for name in ("classes", "confusion", "curves", "folds"))
EPOCH_LINE = re.compile(r"^fold (\d) {2}epoch (\d+)/6 ")


# --- an undisturbed run --------------------------------------------------------------------------


def test_it_leaves_the_files_of_the_contract(undisturbed: FinishedRun, outcome: Outcome) -> None:
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
        "ray/sounds/pulse.json",
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


def test_its_summary_is_what_its_files_say(undisturbed: FinishedRun, outcome: Outcome) -> None:
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


def test_best_weights_are_those_of_the_best_epoch(
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


def test_a_log_has_one_plain_line_a_fold_and_epoch(
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
        assert f"fold {row['fold']}: best accuracy {row['best_val_accuracy']:.4f}" in text


def test_the_same_command_again_says_that_nothing_is_left(
    undisturbed: FinishedRun, outcome: Outcome, data_dir: Path
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


# --- the same results however it went -----------------------------------------------------------


@pytest.mark.slow
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
    """SIGKILL of the worker, then of the driver; then the newest checkpoint and index are cut.

    Whoever asks from outside is told of each, and event files hold each epoch once.
    """
    arguments = ("--local_cpus", "1", "--num_workers", "1", "--tensorboard")
    process = start(data_dir, tmp_path, *arguments)
    try:
        read_until(process, r"epoch 1/6")
        os.kill(worker_pid(process.pid), signal.SIGKILL)
        lines = read_until(process, r"worker of folds .* ended")
        read_until(process, r"fold 1 +epoch 3/6")
        second = worker_pid(process.pid)
        alive = Watcher(str(tmp_path)).look()
    finally:
        process.kill()
        process.wait()
    dead = Watcher(str(tmp_path)).look()
    wait_until_gone(second)  # Ray's processes end themselves when the driver is gone
    assert "worker of folds 1, 2, 3, 4, 5 ended" in lines[-1]
    assert (alive.state, dead.state) == ("at work", "stopped")
    assert alive.driver is not None and alive.driver["pid"] == process.pid
    assert {row.status for row in alive.folds} == {"running"}
    assert alive.folds[0].epochs_run >= 3
    for look in (alive, dead):
        assert look.last_failure is not None
        assert look.last_failure["text"].startswith("the worker of folds 1, 2, 3, 4, 5 ended: ")
    assert dead.resume is not None and f"--model_dir {tmp_path}" in dead.resume

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
    assert Watcher(str(tmp_path)).look().state == "over"
    for row, history in zip(outcome.folds, outcome.histories, strict=True):
        drawn = scalars(tmp_path / "tensorboard" / f"fold_{row['fold']}")["val/accuracy"]
        assert drawn == [(e, pytest.approx(x)) for e, x in enumerate(history["val_accuracy"])]


def test_repeats_are_runs_with_the_next_seeds_whatever_strikes(
    data_dir: Path, tmp_path: Path
) -> None:
    """Two seeds, two folds of each, epochs chosen on inner splits; the driver is killed once."""
    arguments = ("--local_cpus", "2", "--repeats", "2", "--select", "inner", "--folds", "1,3")
    process = start(data_dir, tmp_path, *arguments)
    try:
        read_until(process, r"^fold \d  epoch 1/6")  # what of seed 1 is left has still to be dealt
    finally:
        process.kill()
        process.wait()
    done = run(data_dir, tmp_path, *arguments)
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

    fewer = run(data_dir, tmp_path, *arguments, "--repeats", "1")
    assert fewer.returncode == 2
    assert "--repeats 1: the run 'sounds' was started with 2" in fewer.stderr
    alone = RunConfig(model_dir=tmp_path, run_name="sounds").repeat(1)
    with claim(alone):
        busy = run(data_dir, tmp_path, *arguments, "--fresh")
    assert busy.returncode == 2
    assert "is being worked on by another process" in busy.stderr
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def newest_states(storage: Path, fold: int) -> list[Path]:
    """The states with most epochs of a fold: one, or two after an untimely kill.

    On a fast machine the fold may be over before its worker knows that the driver is gone.
    """
    name = f"fold_{fold}/manifest.json"
    epochs = {
        manifest.parent: json.loads(manifest.read_text())["epochs_run"]
        for manifest in (*storage.glob(f"shares/*/*/{name}"), *storage.glob(f"folds/{name}"))
    }
    return [folder for folder, number in epochs.items() if number == max(epochs.values())]


# --- folds that fail, runs that are stopped ------------------------------------------------------


def test_folds_that_fail_leave_the_others_alone_and_a_stopped_run_resumes(
    outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    """In the third epoch, fold 4's network raises, and fold 2's kills the worker of both, which are
    stepped together at first.

    SIGINT comes before, and the command resumes.
    """
    network = ("--model", "support.networks:Troubled")
    arguments = ("--local_cpus", "2", "--folds_per_slot", "3", *network)
    process = start(data_dir, tmp_path, *arguments)
    try:
        read_until(process, r"epoch 1/6")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    resume = re.search(r"to go on: (.*)", output)
    assert resume and "--model support.networks:Troubled" in resume[1]

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
    assert rows[2]["status"] == "failed"
    assert rows[2]["error"].startswith("quarantined: its worker died 2 times in epoch 3; the last:")
    for row in outcome.folds:
        if row["fold"] not in (2, 4):
            assert rows[row["fold"]] == row
    assert summary["partial_mean_accuracy"]["folds"] == [1, 3, 5]
    assert "Partial run: mean" in done.stdout
    with np.load(tmp_path / "oof_predictions.npz") as held:
        assert set(held["fold"].tolist()) == {1, 3, 5}


def test_a_state_that_cannot_be_written_ends_the_run_after_the_weights_before_it(
    data_dir: Path, tmp_path: Path
) -> None:
    """A file is where folds that are over go; with one epoch, that is the first round."""
    root = tmp_path / "ray" / "sounds"
    root.mkdir(parents=True)
    (root / "folds").touch()
    done = run(data_dir, tmp_path, "--local_cpus", "1", "--folds", "1", "--epochs", "1")
    assert done.returncode == 1
    assert f"{root / 'folds' / 'fold_1'}: cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (root / "weights" / "fold_1" / "epoch_0.safetensors").exists()
    assert not (tmp_path / "summary.json").exists()


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


# --- the Hub and W&B -----------------------------------------------------------------------------

TOKEN = HubServer.token
REPOSITORY = "tester/sounds"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def mirrored(*arguments: str) -> tuple[str, ...]:
    """Of a run of three folds on two slots."""
    where = ("--hf_model_repo_id", REPOSITORY, "--hub_interval", "0.5")
    return ("--local_cpus", "2", "--folds", "1,2,3", *where, *arguments)


def assert_same_folds(
    outcome: Outcome, model_dir: Path, folds: tuple[int, ...] = (1, 2, 3)
) -> None:
    """What a run of three folds has of these is what the run of all has."""
    folds = (1, 2, 3)
    some = Outcome.of(model_dir)
    assert some.folds == [row for row in outcome.folds if row["fold"] in folds]
    assert some.histories == [outcome.histories[FOLDS.index(fold)] for fold in folds]
    mine = {name: content for name, content in outcome.weights.items() if _is_of(name, folds)}
    assert some.weights.keys() == mine.keys()
    for name, content in mine.items():
        # Not the bytes: the metadata name the network, which can be a derived one.
        tensors = safetensors.numpy.load(some.weights[name])
        for tensor, values in safetensors.numpy.load(content).items():
            np.testing.assert_array_equal(tensors[tensor], values, err_msg=f"{name} {tensor}")


def _is_of(name: str, folds: tuple[int, ...]) -> bool:
    match = re.search(r"fold_(\d+)", name)
    assert match, name
    return int(match[1]) in folds


def assert_is_mirrored(hub: HubServer, model_dir: Path) -> None:
    """The repository holds what `model_dir` does, byte for byte, and each file came up once.

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


def files_that_hold(secret: str, folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


def test_a_run_is_mirrored_and_tracked_and_tells_nobody_the_token(
    outcome: Outcome, hub: HubServer, data_dir: Path, tmp_path: Path
) -> None:
    model_dir, told = tmp_path / "out", tmp_path / "told"
    told.mkdir()
    tracked = ("--wandb_project", "sounds", "--wandb_watch")
    done = run(
        data_dir,
        model_dir,
        *mirrored("--model", "support.networks:ReportsEnvironment", *tracked),
        ENVIRONMENTS=str(told),
        WANDB_API_KEY="0123456789" * 4,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_same_folds(outcome, model_dir)
    assert_is_mirrored(hub, model_dir)
    assert "is open, and takes the weights" in done.stdout
    assert "Hub: everything is up" in done.stdout
    times = [commit.time for commit in hub.repository(REPOSITORY).commits[1:]]
    assert all(later - earlier > 0.45 for earlier, later in itertools.pairwise(times))

    assert re.search(r"W&B: .*; metrics go to .*/wandb, .*wandb sync ", done.stdout)
    logged = newest(model_dir)
    assert logged.keys() == {"fold_1", "fold_2", "fold_3", "summary"}
    for row, history in zip(outcome.folds, outcome.histories, strict=True):
        if row["fold"] in (1, 2, 3):
            of_fold = logged[f"fold_{row['fold']}"]
            assert of_fold.run["run_group"] == "sounds"
            assert of_fold.column("val/accuracy") == pytest.approx(history["val_accuracy"])
            assert all("weights/fc1.bias.values" in each for each in of_fold.rows)
    assert logged["summary"].summary["mean_accuracy"] == pytest.approx(
        np.mean([row["best_val_accuracy"] for row in outcome.folds[:3]])
    )

    for secret in (TOKEN, "0123456789" * 4):
        assert secret not in done.stdout
        assert files_that_hold(secret, tmp_path) == []
    assert len(list(told.iterdir())) == 3  # of the driver and two workers


@pytest.mark.slow
def test_what_the_hub_refuses_is_sent_later(
    outcome: Outcome, hub: HubServer, data_dir: Path, tmp_path: Path
) -> None:
    hub.fault("commit", Fault("status", status=403))
    done = run(data_dir, tmp_path, *mirrored())
    assert done.returncode == 0, done.stderr
    assert_same_folds(outcome, tmp_path)
    assert done.stdout.count("HTTP 403") == 1
    again = re.search(r"Hub: not up yet: .*; to send them: (.*)", done.stdout)
    assert again
    hub.clear_faults()
    sent = subprocess.run(
        [sys.executable, *again[1].split()[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert_is_mirrored(hub, tmp_path)


def test_a_driver_that_is_killed_while_it_uploads_loses_nothing(
    outcome: Outcome, hub: HubServer, data_dir: Path, tmp_path: Path
) -> None:
    hub.fault("commit", Fault("lost_reply", times=1))
    hub.fault("commit", Fault("slow", seconds=60, times=1))
    process = start(data_dir, tmp_path, *mirrored())
    try:
        read_until(process, r"epoch 3/6")
        wait_until_seen(hub, "commit", 2)  # the second of them hangs
    finally:
        process.kill()
        process.wait()
    done = run(data_dir, tmp_path, *mirrored())
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumes after epoch|complete already", done.stdout)
    assert_same_folds(outcome, tmp_path)
    assert_is_mirrored(hub, tmp_path)


def wait_until_seen(hub: HubServer, endpoint: str, times: int) -> None:
    deadline = time.monotonic() + 60
    while sum(request.endpoint == endpoint for request in hub.requests) < times:
        assert time.monotonic() < deadline, f"no {times} requests for {endpoint}"
        time.sleep(0.1)


# --- slow ----------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A cluster of two CPUs that was started by somebody who has a token for the Hub too."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(32)
    # Short: Ray puts UNIX sockets below, and their paths end at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="rkt-", dir="/tmp") as folder:
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--port", str(port), "--num-cpus", "2", "--temp-dir", folder),
                *("--include-dashboard", "false", "--disable-usage-stats"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(
                RAY_AUTH_MODE="token",
                RAY_AUTH_TOKEN=token,
                HF_TOKEN=TOKEN,
                ENVIRONMENTS=str(tmp_path / "told"),
            ),
        )
        try:
            address = re.search(r"\d+(?:\.\d+){3}", read_until(head, "Local node")[-1])
            assert address
            read_until(head, "Ray runtime started")
            yield f"{address[0]}:{port}", token
        finally:
            head.terminate()
            head.communicate(timeout=60)


@pytest.mark.slow
def test_on_a_named_cluster_workers_have_no_secrets_and_a_token_is_needed(
    outcome: Outcome, cluster: tuple[str, str], data_dir: Path, tmp_path: Path
) -> None:
    address, token = cluster
    model_dir, told = tmp_path / "out", tmp_path / "told"
    told.mkdir()
    network = ("--model", "support.networks:ReportsEnvironment")
    arguments = ("--address", address, "--folds", "1,2,3", *network)
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "ENVIRONMENTS": str(told)}
    refused = run(data_dir, model_dir, *arguments, **wrong)
    assert refused.returncode == 2
    assert "the cluster refuses this token" in refused.stderr.splitlines()[-1]
    assert not model_dir.exists()

    right = {**wrong, "RAY_AUTH_TOKEN": token, "HF_TOKEN": TOKEN}
    done = run(data_dir, model_dir, *arguments, **right)
    assert done.returncode == 0, done.stderr
    assert_same_folds(outcome, model_dir)
    assert files_that_hold(TOKEN, told) == []


FAULTS = {
    "replies that are lost": [
        ("create", Fault("lost_reply", times=1)),
        ("commit", Fault("lost_reply", times=2)),
        ("lfs_put", Fault("lost_reply", times=1)),
        ("tree", Fault("lost_reply", times=1)),
    ],
    "a service that fails": [
        ("create", Fault("status", status=503, times=1)),
        ("commit", Fault("status", status=429, retry_after=1, times=1)),
        ("commit", Fault("status", status=412, times=1)),
        ("commit", Fault("reset", times=1)),
        ("commit", Fault("status", status=500, times=1)),
        ("preupload", Fault("reset", times=1)),
    ],
    "a service that is slow": [("*", Fault("slow", seconds=2.0))],
}


@pytest.mark.slow
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_a_bad_day_of_the_hub_changes_nothing(
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
    arguments = ("--local_cpus", "2", "--folds", "1,2,3", "--model", "support.networks:Slow")
    done = run(data_dir, tmp_path, *arguments, "--early_stopping_patience", "6")
    assert done.returncode == 0, done.stderr
    assert "a slot is free: fold 3 will move there" in done.stdout
    assert_as_without_ray(tmp_path, data_dir, folds=(1, 2, 3), epochs=6, patience=6)

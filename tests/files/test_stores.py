"""Runs whose data, checkpoints and outputs lie in a bucket of a real S3 server process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.s3_server import CREDENTIALS, S3Server
from support.outcome import Outcome, assert_same
from support.processes import wait_until_gone, worker_pid
from support.shell import command as local_command
from support.shell import environment, read_until
from support.small_data import CLASSES

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.errors import BadInput
from raykfold.files.atomic import read_folder, write_folder, write_json
from raykfold.files.paths import RunDir
from raykfold.files.remote import RemotePath, place
from raykfold.hub import main as hub
from raykfold.outputs.weights import load_fold
from raykfold.predict import main as predict
from raykfold.prepare import main as prepare
from raykfold.run import main
from raykfold.state.checkpoint import WeightsContext, weights_bytes
from raykfold.state.claim import claim, hold_lease
from raykfold.state.folders import set_aside
from raykfold.state.states import Index, newest_states, read_index
from raykfold.training.fold import FoldTrainer, TrainingSettings

ARGUMENTS = ("--local_cpus", "2")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(server: S3Server, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """With the data in ``bucket/sounds``."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    server.clear()
    for file in data_dir.iterdir():
        remote(server.uri(f"bucket/sounds/{file.name}")).send(file)
    return server


def remote(uri: str) -> RemotePath:
    found = place(uri)
    assert isinstance(found, RemotePath)
    return found


def command(data: str, model_dir: str, *arguments: str) -> list[str]:
    words = local_command(Path("data"), Path("out"), *ARGUMENTS, *arguments)
    words[words.index("data")] = data
    words[words.index("out")] = model_dir
    return words


def environment_of(cache: Path) -> dict[str, str]:
    return environment(**CREDENTIALS, XDG_CACHE_HOME=str(cache))


def run(words: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, capture_output=True, text=True, timeout=280, env=environment_of(cache)
    )


def start(words: list[str], cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment_of(cache),
        start_new_session=True,
    )


def outputs_in(bucket: RemotePath, folder: Path) -> Outcome:
    for file in bucket.files():
        path = file.path_below(bucket)
        if not path.startswith("ray/"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            file.fetch(folder / path)
    return Outcome.of(folder)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_run_in_a_bucket_gives_the_same_bits(
    outcome: Outcome, s3: S3Server, tmp_path: Path
) -> None:
    out = remote(s3.uri("bucket/out"))
    words = command(s3.uri("bucket/sounds"), str(out))
    done = run(words, tmp_path / "first")
    assert done.returncode == 0, done.stdout + done.stderr
    check_bucket(outcome, out, done.stdout, tmp_path / "first")

    again = run(words, tmp_path / "second")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing is left to train" in again.stdout
    assert_same(outcome, outputs_in(out, tmp_path / "outputs"))


def check_bucket(outcome: Outcome, out: RemotePath, output: str, cache: Path) -> None:
    """A run that is over has left all in the bucket, and nothing here."""
    assert f"outputs in {out}" in output
    assert_same(outcome, outputs_in(out, cache / "outputs"))
    assert files_in(cache / "raykfold") == []  # matplotlib's cache of fonts stays
    assert (out / "report.html").exists() and (out / "plots" / "curves.png").exists()
    left = {path.path_below(out / "ray" / "sounds") for path in (out / "ray" / "sounds").files()}
    assert {"run.json", "index.json"} <= left
    assert ".lock" not in left
    record = json.loads((out / "run.json").read_bytes())
    assert record["config"]["model_dir"] == str(out)
    assert "testing" not in json.dumps(record)


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_and_resumed_with_the_same_bits(
    outcome: Outcome, s3: S3Server, tmp_path: Path
) -> None:
    """SIGKILL of the driver and of the worker, which would go on for a moment on its own.

    What the working copy held is gone too, as on another machine.
    """
    out = remote(s3.uri("bucket/out"))
    words = command(s3.uri("bucket/sounds"), str(out))
    process = start([*words, "--num_workers", "1"], tmp_path / "first")
    try:
        read_until(process, r"fold 1 +epoch 2/6")
        worker = worker_pid(process.pid)
        process.kill()
        os.kill(worker, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    wait_until_gone(worker)
    assert (out / "checkpoints" / "fold_1" / "epoch_0.safetensors").exists()
    assert not (out / "summary.json").exists()

    done = run(words, tmp_path / "second")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fold 1: resumes after epoch" in done.stdout
    check_bucket(outcome, out, done.stdout, tmp_path / "second")


@pytest.mark.slow
def test_a_store_that_fails_for_ten_seconds_is_not_felt(
    outcome: Outcome, s3: S3Server, tmp_path: Path
) -> None:
    out = remote(s3.uri("bucket/out"))
    through = s3.uri("bucket/out", through_faults=True)
    process = start(command(s3.uri("bucket/sounds"), through), tmp_path / "cache")
    try:
        read_until(process, r"fold 1 +epoch 2/6")
        s3.fault("internal", for_seconds=4)
        s3.fault("slow_down", for_seconds=7)
        s3.fault("reset", for_seconds=10)
        output, _ = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    assert s3.disturbed > 10
    assert_same(outcome, outputs_in(out, tmp_path / "outputs"))


def test_a_run_that_another_driver_works_on_is_refused(
    s3: S3Server, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = s3.uri("bucket/ray")
    arguments = ("--processed_dir", str(data_dir), "--model_dir", str(tmp_path / "out"))
    with hold_lease(remote(storage) / "sounds" / ".lock", print):
        assert main([*arguments, "--storage_path", storage]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"raykfold: --run_name sounds: is being worked on by .*\n", error)
    assert f"pid {os.getpid()} on " in error


def test_a_fresh_run_sets_what_is_in_the_bucket_aside(s3: S3Server, tmp_path: Path) -> None:
    out = s3.uri("bucket/out")
    run = RunConfig(run_name="r", model_dir=out, storage_path=s3.uri("bucket/ray"))  # type: ignore[arg-type]
    names = ("run.json", "summary.json", "checkpoints/fold_1/epoch_0.safetensors", "notes.txt")
    for name in names:
        (remote(out) / name).write_bytes(name.encode())
    write_folder(run.run_dir.finished(1), {"a": b"1"}, {"fold": 1})
    write_json(run.run_dir.run_record, {"run_name": "r", "identity": {}, "config": {}})
    with claim(run):
        outputs, state = set_aside(run)
        assert isinstance(run.run_dir.root, RemotePath)
        assert list(run.run_dir.root.files()) == [run.run_dir.lock]
    assert isinstance(outputs, RemotePath) and isinstance(state, RemotePath)
    assert {path.path_below(remote(out)) for path in remote(out).files()} == {
        "notes.txt",
        *(f"{outputs.name}/{name}" for name in names[:3]),
    }
    assert (outputs / "run.json").read_bytes() == b"run.json"
    assert read_folder(state / "folds" / "fold_1") == {"a": b"1"}
    assert set_aside(run) == []


def test_an_index_is_of_its_bucket_under_whatever_address(s3: S3Server) -> None:
    run_dir = RunDir(remote(s3.uri("bucket/ray/run")))
    newest = run_dir.shares / "a" / "checkpoint_1" / "fold_1"
    facts = {"fold": 1, "epochs_run": 1, "stopped_early": False}
    write_folder(newest, {"a": b"1"}, facts)
    cut = remote(s3.uri("bucket/ray/run/shares/a/checkpoint_2/fold_1"))
    write_folder(cut, {"a": b"2"}, {**facts, "epochs_run": 2})
    next(file for file in cut.files() if file.name.endswith("-a")).write_bytes(b"cut")
    Index(1.0, 1, {1: newest}).write(run_dir)
    elsewhere = RunDir(remote(s3.uri("bucket/ray/run", through_faults=True)))
    index, notes = read_index(elsewhere)
    assert notes == []
    states, notes = newest_states(elsewhere, index, [1, 2])
    assert {fold: state.folder for fold, state in states.items()} == {
        1: elsewhere.shares / "a" / "checkpoint_1" / "fold_1"
    }
    assert len(notes) == 1 and "not what was written" in notes[0]
    assert index.folds == {1: states[1].folder}


def test_weights_are_read_from_a_bucket(
    s3: S3Server, small_data: FeatureSet, capsys: pytest.CaptureFixture[str]
) -> None:
    out = remote(s3.uri("bucket/out"))
    settings = TrainingSettings("raykfold.models:AudioCNN", 32, 0.003, 1, 0)
    features = torch.from_numpy(small_data.features)
    labels = torch.from_numpy(small_data.class_indices)
    trainer = FoldTrainer(1, features, labels, small_data.split(1), 4, settings)
    trainer.run_epoch()
    context = WeightsContext("raykfold.models:AudioCNN", CLASSES, (16, 32), {})
    (out / "model_fold_1_best.safetensors").write_bytes(weights_bytes(trainer.snapshot(), context))
    fold = load_fold(str(out), 1)
    assert fold.classes == CLASSES
    assert fold.probabilities(small_data.features[:3]).shape == (3, 4)
    with pytest.raises(BadInput, match=r"s3://bucket/out\?.*: no weights of fold 2"):
        load_fold(out, 2)
    assert predict(["a.wav", "--model_dir", str(out)]) == 2
    assert "do not say how their features were made" in capsys.readouterr().err
    assert predict(["a.wav", "--model_dir", s3.uri("bucket/nothing")]) == 2
    assert "s3://bucket/nothing?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        (hub, "upload", "--model_dir", "s3://bucket/out"),
        (prepare, "csv", "--audio_dir", ".", "--processed_dir", "s3://bucket/out"),
    ],
)
def test_a_command_that_wants_a_folder_says_so(
    arguments: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command, *words = arguments
    assert command(words) == 2
    assert capsys.readouterr().err == (
        "raykfold: s3://bucket/out: expected a local path, not a URI\n"
    )


def test_damaged_data_is_named_by_its_uri(
    s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (remote(s3.uri("bucket/sounds")) / "labels.npy").write_bytes(b"damaged")
    words = ["--processed_dir", s3.uri("bucket/sounds"), "--model_dir", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"raykfold: {s3.uri('bucket/sounds/labels.npy')}: damaged")


@pytest.mark.parametrize(
    ("flag", "uri", "part"),
    [
        ("--storage_path", "bucket-that-is-not-there/ray", "NO_SUCH_BUCKET"),
        ("--model_dir", "bucket-that-is-not-there/out", "NO_SUCH_BUCKET"),
        ("--processed_dir", "bucket/nothing", "features.npy"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    s3: S3Server,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    uri: str,
    part: str,
) -> None:
    where = {"--processed_dir": str(data_dir), "--model_dir": str(tmp_path / "out")}
    where[flag] = s3.uri(uri)
    assert main([word for pair in where.items() for word in pair]) == 2
    error = capsys.readouterr().err
    assert s3.uri(uri) in error and part in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_store_that_nobody_answers_for_is_said_soon(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "s3://bucket/out?endpoint_override=127.0.0.1:9&scheme=http"
    began = time.monotonic()
    arguments = ("--processed_dir", str(data_dir), "--model_dir", str(tmp_path))
    assert main([*arguments, "--storage_path", uri]) == 2
    assert time.monotonic() - began < 15
    error = capsys.readouterr().err
    assert f"--storage_path {uri}: " in error
    assert "Could not connect" in error and error.count("\n") == 1

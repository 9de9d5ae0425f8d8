"""Runs whose data, checkpoints and outputs are in a bucket of an S3 server process."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.s3_server import CREDENTIALS, S3Server
from support.outcome import Outcome, assert_same
from support.processes import wait_until_gone, worker_pid
from support.shell import command, read_until, run_command, start_command
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
from raykfold.training.fold import FoldTrainer
from raykfold.training.recipe import TrainingSettings

ARGUMENTS = ("--local_cpus", "2")


@pytest.fixture
def data(s3: S3Server, data_dir: Path) -> str:
    """URI of a copy of the data in the bucket."""
    for file in data_dir.iterdir():
        remote(s3.uri(f"bucket/sounds/{file.name}")).send(file)
    return s3.uri("bucket/sounds")


def remote(uri: str) -> RemotePath:
    found = place(uri)
    assert isinstance(found, RemotePath)
    return found


def environment_of(cache: Path) -> dict[str, str]:
    """Return what a run needs to reach the bucket, and to have a cache of its own."""
    return {**CREDENTIALS, "XDG_CACHE_HOME": str(cache)}


def outputs_in(bucket: RemotePath, folder: Path) -> Outcome:
    """Fetch the outputs of a run from the bucket to `folder`, and read them."""
    for file in bucket.files():
        path = file.path_below(bucket)
        if not path.startswith("ray/"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            file.fetch(folder / path)
    return Outcome.of(folder)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_run_in_a_bucket_gives_the_same_bits(
    outcome: Outcome,
    s3: S3Server,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = remote(s3.uri("bucket/out"))
    words = command(data, str(out), *ARGUMENTS)
    done = run_command(words, environment_of(tmp_path / "first"))
    assert done.returncode == 0, done.stdout + done.stderr
    check_bucket(outcome, out, done.stdout, tmp_path / "first")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    assert main(words[3:]) == 0
    assert "nothing is left to train" in capsys.readouterr().out
    assert_same(outcome, outputs_in(out, tmp_path / "outputs"))


def check_bucket(outcome: Outcome, out: RemotePath, output: str, cache: Path) -> None:
    """Assert that a finished run has left everything in the bucket, and nothing in its cache."""
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
    outcome: Outcome, s3: S3Server, data: str, tmp_path: Path
) -> None:
    """Kill the driver, and its worker, which would continue for a moment; resume elsewhere.

    The second command has another cache, as on another machine.
    """
    out = remote(s3.uri("bucket/out"))
    words = command(data, str(out), *ARGUMENTS)
    process = start_command([*words, "--num_workers", "1"], environment_of(tmp_path / "first"))
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

    done = run_command(words, environment_of(tmp_path / "second"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fold 1: resumes after epoch" in done.stdout
    check_bucket(outcome, out, done.stdout, tmp_path / "second")


@pytest.mark.slow
def test_a_store_that_fails_for_ten_seconds_changes_no_result(
    outcome: Outcome, s3: S3Server, data: str, tmp_path: Path
) -> None:
    out = remote(s3.uri("bucket/out"))
    words = command(data, s3.uri("bucket/out", through_faults=True), *ARGUMENTS)
    process = start_command(words, environment_of(tmp_path / "cache"))
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


@pytest.mark.slow
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


def test_a_fresh_run_sets_the_earlier_one_in_the_bucket_aside(s3: S3Server, tmp_path: Path) -> None:
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


def test_an_index_is_valid_under_every_address_of_its_bucket(s3: S3Server) -> None:
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


def test_weights_can_be_loaded_from_a_bucket(
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
def test_a_command_that_needs_a_local_folder_refuses_a_uri(
    arguments: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command, *words = arguments
    assert command(words) == 2
    assert capsys.readouterr().err == (
        "raykfold: s3://bucket/out: expected a local path, not a URI\n"
    )


def test_damaged_data_is_named_by_its_uri(
    s3: S3Server, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (remote(data) / "labels.npy").write_bytes(b"damaged")
    assert main(["--processed_dir", data, "--model_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"raykfold: {s3.uri('bucket/sounds/labels.npy')}: damaged")


def test_one_file_with_the_arrays_is_fetched(
    s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(
        tmp_path / "sounds.npz", X=np.zeros((4, 2, 2), np.float32), y=[0, 1] * 2, folds=[1] * 4
    )
    uri = s3.uri("bucket/sounds.npz")
    remote(uri).send(tmp_path / "sounds.npz")
    assert main(["--processed_dir", uri, "--model_dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"raykfold: {uri}: folds: fold 1 only; a cross-valid")


@pytest.mark.parametrize(
    ("flag", "uri", "part"),
    [
        ("--storage_path", "bucket-that-is-not-there/ray", "NO_SUCH_BUCKET"),
        ("--model_dir", "bucket-that-is-not-there/out", "NO_SUCH_BUCKET"),
        ("--processed_dir", "bucket/nothing", "features.npy"),
        ("--processed_dir", "bucket/nothing.npz", "no such file"),
    ],
)
def test_a_place_that_is_not_there_is_named_in_one_line(
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


@pytest.mark.timeout(60)  # not after the minutes that an outage is bridged for
def test_a_store_that_does_not_answer_is_named_without_patience(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "s3://bucket/out?endpoint_override=127.0.0.1:9&scheme=http"
    arguments = ("--processed_dir", str(data_dir), "--model_dir", str(tmp_path))
    assert main([*arguments, "--storage_path", uri]) == 2
    error = capsys.readouterr().err
    assert f"--storage_path {uri}: " in error
    assert "Could not connect" in error and error.count("\n") == 1

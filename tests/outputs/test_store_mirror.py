"""Outputs on their way to an object store, against a real S3 server process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakes.s3_server import S3Server

from raykfold.errors import StorageError
from raykfold.files.paths import ModelDir
from raykfold.files.remote import RemotePath, place
from raykfold.observers import RunStart
from raykfold.outputs.store_mirror import StoreMirror
from raykfold.training.results import EpochMetrics, FoldResult, Summary


@pytest.fixture(autouse=True)
def _no_thread_left(s3: S3Server) -> Iterator[None]:
    yield
    s3.faults.clear()
    for thread in threading.enumerate():
        if thread.name.startswith("mirror s3"):  # one that a test has left in an outage
            thread.join(60)


@pytest.fixture
def target(s3: S3Server) -> RemotePath:
    found = place(s3.uri("bucket/out", through_faults=True))
    assert isinstance(found, RemotePath)
    return found


@pytest.fixture
def outputs(tmp_path: Path) -> ModelDir:
    return ModelDir(tmp_path / "copy")


def train(outputs: ModelDir, epoch: int, content: bytes = b"") -> None:
    for path in (outputs.epoch_weights(1, epoch), outputs.best_weights(1)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content or str(epoch).encode())
    outputs.training_state.write_text(f"epoch {epoch}")


METRICS = EpochMetrics(0, 1.0, 0.5, 1.0, 0.5, 0.001, 1.0)
START = RunStart("run", 4, (1,), {})
RESULT = FoldResult.of(1, "complete", 8, 2, (METRICS,))
SUMMARY = Summary("run", (RESULT,), None, {0: "a", 1: "b"}, 1.0, 1, {})


def contents(target: RemotePath) -> dict[str, str]:
    found = {}
    for file in target.files():
        with suppress(FileNotFoundError):  # a summary of before goes meanwhile
            found[file.path_below(target)] = file.read_bytes().decode()
    return found


def wait_for(target: RemotePath, name: str, content: str) -> None:
    deadline = time.monotonic() + 30
    while contents(target).get(name) != content:
        assert time.monotonic() < deadline, contents(target)
        time.sleep(0.05)


def test_files_go_as_they_come_and_the_summary_last(
    s3: S3Server, outputs: ModelDir, target: RemotePath
) -> None:
    (target / "summary.json").write_bytes(b"of before")
    said: list[str] = []
    mirror = StoreMirror(outputs, target, said.append)
    train(outputs, 0)
    mirror.run_started(START)
    wait_for(target, "model_fold_1_best.safetensors", "0")
    assert "summary.json" not in contents(target)
    train(outputs, 1)
    mirror.epoch_committed(1, METRICS)
    wait_for(target, "model_fold_1_best.safetensors", "1")
    outputs.summary.write_text("{}")
    mirror.run_finished(SUMMARY)
    outputs.card.write_text("a card")  # of an observer that is closed before
    outputs.report.write_text("a page")
    outputs.plots.mkdir()
    (outputs.plots / "curves.png").write_text("a picture")
    mirror.close()
    assert contents(target) == {
        "checkpoints/fold_1/epoch_0.safetensors": "0",
        "checkpoints/fold_1/epoch_1.safetensors": "1",
        "model_fold_1_best.safetensors": "1",
        "training_state.json": "epoch 1",
        "model_card.md": "a card",
        "plots/curves.png": "a picture",
        "report.html": "a page",
        "summary.json": "{}",
    }
    puts = [line.split("?")[0] for line in s3.requests if line.startswith("PUT")]
    assert puts[-1].endswith("/summary.json")
    assert sum("epoch_0" in line for line in puts) == 1
    assert not outputs.root.exists() and said == []


def test_a_later_session_sends_the_difference(outputs: ModelDir, target: RemotePath) -> None:
    train(outputs, 0)
    first = StoreMirror(outputs, target, print)
    first.run_started(START)
    wait_for(target, "training_state.json", "epoch 0")
    first.close()
    train(outputs, 1)
    second = StoreMirror(outputs, target, print, keep=True)
    second.run_started(START)
    second.run_finished(SUMMARY)
    second.close()
    assert contents(target)["model_fold_1_best.safetensors"] == "1"
    assert len(contents(target)) == 4
    assert outputs.training_state.exists()


def test_an_outage_is_outlasted_and_blocks_nobody(
    s3: S3Server, outputs: ModelDir, target: RemotePath
) -> None:
    s3.fault("internal")
    mirror = StoreMirror(outputs, target, print, pause=0.2)
    mirror.run_started(START)
    for epoch in range(3):  # none of these calls waits for the end of the outage
        train(outputs, epoch)
        mirror.epoch_committed(1, METRICS)
        mirror.time_passed()
    mirror.run_finished(SUMMARY)
    while not s3.disturbed:
        time.sleep(0.01)
    s3.faults.clear()
    mirror.close()
    assert len(contents(target)) == 5


def test_what_cannot_be_sent_is_said_and_ends_the_run(
    s3: S3Server, outputs: ModelDir, target: RemotePath
) -> None:
    train(outputs, 0)
    s3.fault("slow_down")
    mirror = StoreMirror(outputs, target, print, timeout=1, pause=0.2)
    mirror.run_started(START)
    mirror.run_finished(SUMMARY)
    with pytest.raises(StorageError, match=r"not sent yet: epoch_0.*the same command sends"):
        mirror.close()
    assert outputs.training_state.exists()


def test_a_run_that_is_stopped_does_not_wait(
    s3: S3Server, outputs: ModelDir, target: RemotePath
) -> None:
    train(outputs, 0)
    s3.fault("slow_down")
    said: list[str] = []
    mirror = StoreMirror(outputs, target, said.append, timeout=3600)
    mirror.run_started(START)
    mirror.close()
    assert len(said) == 1 and "not sent yet" in said[0]


def test_what_is_pending_is_what_has_still_to_go(
    s3: S3Server, outputs: ModelDir, target: RemotePath
) -> None:
    train(outputs, 0)
    mirror = StoreMirror(outputs, target, print, keep=True)
    assert mirror.pending() == {"s3": 3}
    mirror.run_started(START)
    wait_for(target, "training_state.json", "epoch 0")
    train(outputs, 1)
    assert mirror.pending() == {"s3": 3}  # the best weights again, and the state
    mirror.run_finished(SUMMARY)
    mirror.close()
    assert mirror.pending() == {"s3": 0}


def test_event_files_of_an_earlier_session_go_when_new_ones_come(
    outputs: ModelDir, target: RemotePath
) -> None:
    for session in ("1", "2"):
        outputs.root.mkdir(exist_ok=True)
        folder = outputs.tensorboard / "fold_1"
        for former in folder.glob("*"):
            former.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"events.out.tfevents.{session}.host").write_text(session)
        mirror = StoreMirror(outputs, target, print, keep=session == "1")
        mirror.run_started(START)
        mirror.run_finished(SUMMARY)
        mirror.close()
        assert contents(target) == {
            f"tensorboard/fold_1/events.out.tfevents.{session}.host": session
        }

    train(outputs, 0)  # elsewhere, and without new ones
    mirror = StoreMirror(outputs, target, print)
    mirror.run_started(START)
    mirror.run_finished(SUMMARY)
    mirror.close()
    assert "tensorboard/fold_1/events.out.tfevents.2.host" in contents(target)

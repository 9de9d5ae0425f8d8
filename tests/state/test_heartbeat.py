"""What a driver says of itself while it runs, and that nobody waits for it."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.s3_server import S3Server
from support.run_folder import begin, complete, failed, history

from raykfold.files.atomic import write_file
from raykfold.files.paths import RunDir
from raykfold.files.remote import place
from raykfold.observers import RunStart
from raykfold.state.claim import machine
from raykfold.state.heartbeat import Beat, Heartbeat, read_heartbeat
from raykfold.training.results import Summary

START = RunStart("run", 5, (1, 2), {})
COMPLETE = Summary("run", (complete(1), complete(2)), None, {0: "a"}, 1.0, 2)
NEVER = 3600.0


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "ray" / "run")


def new_heartbeat(run_dir: RunDir, **changes: Any) -> Heartbeat:
    """In a hurry."""
    return Heartbeat(
        run_dir, ["resume"], **{"pending": dict, "pause": 0.01, "every": 0.05, **changes}
    )


def wait_for(run_dir: RunDir, condition: Callable[[Beat], object]) -> Beat:
    """The first beat of which it is true."""
    deadline = time.monotonic() + 30
    while True:
        beat = read_heartbeat(run_dir)
        if beat is not None and condition(beat):
            return beat
        assert time.monotonic() < deadline, beat
        time.sleep(0.01)


def last(run_dir: RunDir) -> Beat:
    beat = read_heartbeat(run_dir)
    assert beat is not None
    return beat


def test_it_says_who_is_at_work_on_what(run_dir: RunDir) -> None:
    began = time.time()
    heart = new_heartbeat(run_dir)
    heart.run_started(START)
    first = wait_for(run_dir, lambda beat: True)
    assert (first.phase, first.epochs, first.epoch_seconds) == ("at work", 0, None)
    assert (first.pid, first.machine, first.every) == (os.getpid(), machine(), 0.05)
    assert began <= first.began <= first.time <= time.time()
    heart.workers_changed([(1,), (2,)])
    heart.epoch_committed(1, history(1)[0])
    later = wait_for(run_dir, lambda beat: beat.epochs)
    assert later.workers == ((1,), (2,))
    assert later.epoch_seconds is not None and later.epoch_seconds > 0
    heart.close()


def test_it_beats_when_nothing_happens(run_dir: RunDir) -> None:
    heart = new_heartbeat(run_dir)
    heart.run_started(START)
    first = wait_for(run_dir, lambda beat: True)
    wait_for(run_dir, lambda beat: beat.time > first.time)
    heart.close()


def test_it_beats_no_faster_however_much_happens(run_dir: RunDir) -> None:
    heart = new_heartbeat(run_dir, pause=NEVER)
    heart.run_started(START)
    first = wait_for(run_dir, lambda beat: True)
    for metrics in history(100):
        heart.epoch_committed(1, metrics)
        heart.time_passed()
    assert last(run_dir) == first
    heart.close()
    assert last(run_dir).epochs == 100


def test_a_run_ends_by_sending_what_is_left(run_dir: RunDir) -> None:
    files = {"Hub": 3, "s3": 0}
    heart = new_heartbeat(run_dir, pending=lambda: files)
    heart.run_started(START)
    heart.workers_changed([(1, 2)])
    heart.run_finished(COMPLETE)
    sending = wait_for(run_dir, lambda beat: beat.phase == "sending")
    assert (sending.pending, sending.workers) == ({"Hub": 3}, ())
    files["Hub"] = 0
    wait_for(run_dir, lambda beat: not beat.pending)
    heart.close()
    over = last(run_dir)
    assert over.phase == "over"
    assert over.result == {
        "status": "complete",
        "mean_accuracy": 0.54,
        "std_accuracy": 0.0,
        "headline": "accuracy",
        "headline_mean": 0.54,
        "headline_std": 0.0,
    }


def test_a_session_that_ends_before_is_stopped(run_dir: RunDir) -> None:
    heart = new_heartbeat(run_dir, every=NEVER)
    heart.run_started(START)
    heart.close()
    assert last(run_dir).phase == "stopped"


def test_one_that_never_began_leaves_nothing(run_dir: RunDir) -> None:
    new_heartbeat(run_dir).close()
    assert not run_dir.root.exists()


def test_the_last_failure_outlives_the_session(run_dir: RunDir) -> None:
    first = new_heartbeat(run_dir)
    first.run_started(START)
    first.fold_finished(failed(2, "loss became\nnan"))
    first.worker_lost((1, 3), "killed")
    first.close()
    before = last(run_dir)
    assert before.last_failure == "the worker of folds 1, 3 ended: killed"
    assert before.failed == {2: "loss became nan"}

    second = new_heartbeat(run_dir)
    second.run_started(START)
    taken_over = wait_for(run_dir, lambda beat: beat.phase == "at work")
    assert (taken_over.last_failure, taken_over.failure_time) == (
        before.last_failure,
        before.failure_time,
    )
    assert taken_over.failed == {}  # it is tried again
    second.fold_finished(failed(2, "unplugged"))
    second.close()
    assert last(run_dir).last_failure == "fold 2 failed: unplugged"


def test_what_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    blocked = tmp_path / "ray"
    blocked.touch()
    run_dir = RunDir(blocked / "run")
    heart = new_heartbeat(run_dir)
    heart.run_started(START)
    heart.epoch_committed(1, history(1)[0])
    assert read_heartbeat(run_dir) is None
    blocked.unlink()
    wait_for(run_dir, lambda beat: beat.epochs == 1)
    heart.close()


def test_a_question_that_fails_stops_no_later_beat(run_dir: RunDir) -> None:
    answers = iter([OSError("gone")])

    def pending() -> dict[str, int]:
        for answer in answers:
            raise answer
        return {"Hub": 1}

    heart = new_heartbeat(run_dir, pending=pending)
    heart.run_started(START)
    wait_for(run_dir, lambda beat: beat.pending == {"Hub": 1})
    heart.close()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"time": 1}', '{"failed": 3, "workers": 1}'])
def test_one_that_cannot_be_read_is_none(run_dir: RunDir, content: str) -> None:
    assert read_heartbeat(run_dir) is None
    write_file(run_dir.heartbeat, content.encode())
    assert read_heartbeat(run_dir) is None


def test_what_a_later_version_adds_is_passed_over(run_dir: RunDir, tmp_path: Path) -> None:
    heart = new_heartbeat(run_dir, every=NEVER)
    heart.run_started(START)
    heart.close()
    file = tmp_path / "ray" / "run" / "heartbeat.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "mood": "good"}))
    assert last(run_dir).phase == "stopped"


def test_the_command_that_goes_on_is_the_run_s_own(tmp_path: Path) -> None:
    config = begin(tmp_path / "a folder", folds=(1, 2))
    heart = Heartbeat(config.run_dir, config.command(), dict)
    heart.run_started(START)
    heart.close()
    assert shlex.split(last(config.run_dir).resume) == config.command()


# --- on an object store ----------------------------------------------------------------------


def test_an_outage_of_the_store_is_felt_by_nobody(s3: S3Server) -> None:
    there = RunDir(place(s3.uri("bucket/ray/run")))
    heart = new_heartbeat(RunDir(place(s3.uri("bucket/ray/run", through_faults=True))))
    s3.fault("internal")
    heart.run_started(START)
    while not s3.disturbed:
        time.sleep(0.01)
    heart.epoch_committed(1, history(1)[0])
    heart.worker_lost((1,), "killed")
    assert read_heartbeat(there) is None
    s3.faults.clear()
    beat = wait_for(there, lambda beat: beat.epochs == 1)
    assert beat.last_failure == "the worker of fold 1 ended: killed"
    heart.close()
    assert last(there).phase == "stopped"

"""`python -m raykfold.status` on files of runs, and with drivers that have died."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes.s3_server import S3Server
from support.run_folder import begin, begin_as, complete, conclude, failed, history, running, store
from support.shell import environment

from raykfold.config.run_config import RunConfig
from raykfold.files.atomic import write_json
from raykfold.observers import RunStart
from raykfold.pages.progress_text import progress_lines
from raykfold.state.heartbeat import Beat, Heartbeat, outcome, read_heartbeat
from raykfold.state.progress import FoldProgress, Progress, Watcher
from raykfold.status import main

HOUR = 3600.0


def look(folder: Path) -> Progress:
    return Watcher(str(folder)).look()


def at_work(config: RunConfig, epochs: int = 0) -> None:
    """Write the heartbeat of a run whose driver is this process, and then stop beating."""
    heart = Heartbeat(config.run_dir, config.command(), dict)
    heart.run_started(RunStart("run", 5, (1, 2, 3), {}))
    heart.workers_changed([(2,)])
    for metrics in history(epochs):
        heart.epoch_committed(2, metrics)
    heart.close()
    change(config, phase="at work", workers=((2,),))


def change(config: RunConfig, **values: Any) -> Beat:
    """Change values of the last heartbeat on disk."""
    beat = read_heartbeat(config.run_dir)
    assert beat is not None
    beat = dataclasses.replace(beat, **values)
    write_json(config.run_dir.heartbeat, beat.to_json())
    return beat


def dead_pid() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of three folds: fold 1 is complete, fold 2 is training, fold 3 has not begun."""
    config = begin(tmp_path / "out")
    store(config, complete(1), running(2, epochs=3))
    return config


@pytest.fixture
def out(config: RunConfig) -> Path:
    return config.model_path


def test_a_run_at_work_is_shown_with_its_folds_and_the_time_left(
    config: RunConfig, out: Path
) -> None:
    at_work(config, epochs=2)
    beat = change(config, epoch_seconds=1.5, pending={"Hub": 3, "s3": 1})
    found = look(out)
    assert (found.state, found.complete, found.epochs_left) == ("at work", 1, 7)
    assert [row.status for row in found.folds] == ["complete", "running", "waiting"]
    text = progress_lines(found)
    ago = text[0].rpartition("heard from ")[2]
    assert text == [
        f"run: 1 of 3 folds complete, at work on {beat.host} (pid {beat.pid}), "
        f"last heard from {ago}",
        "fold    status  epoch  val acc  kept (epoch)  s/epoch",
        "   1  complete    5/5   0.5400    0.5400 (5)      2.0",
        "   2   running    3/5   0.5200    0.5200 (3)      2.0",
        "   3   waiting",
        "about 10 s to go (1.5 s an epoch, 7 epochs left at most)",
        "uploads pending: Hub 3 files, s3 1 file",
    ]


def test_the_time_left_is_at_least_that_of_one_fold_on_one_worker(
    config: RunConfig, out: Path
) -> None:
    """Many workers together were fast; the last fold has one worker."""
    store(config, complete(1), running(2, epochs=1), complete(3))
    at_work(config, epochs=2)
    change(config, epoch_seconds=0.1)
    assert look(out).seconds_left == 4 * 2.0


def test_no_time_is_estimated_before_the_first_epoch_of_a_session(
    config: RunConfig, out: Path
) -> None:
    at_work(config)
    found = look(out)
    assert found.seconds_left is None
    assert "starting: no epoch yet in this session, 7 left at most" in progress_lines(found)


def test_a_fold_in_its_first_epoch_is_running(config: RunConfig, out: Path) -> None:
    at_work(config)
    change(config, workers=((3,),))
    assert [row.status for row in look(out).folds] == ["complete", "waiting", "running"]


def test_a_run_whose_driver_is_dead_is_stopped(config: RunConfig, out: Path) -> None:
    at_work(config, epochs=1)
    beat = change(config, pid=dead_pid())
    found = look(out)
    assert found.state == "stopped" and found.seconds_left is None
    assert [row.status for row in found.folds] == ["complete", "stopped", "waiting"]
    text = progress_lines(found)
    assert re.search(r"1 of 3 folds complete, stopped: last heard from \d+ s ago$", text[0])
    assert text[-1] == f"to resume: {beat.resume}"


def test_a_run_of_a_notebook_is_resumed_by_its_cell(config: RunConfig, out: Path) -> None:
    at_work(dataclasses.replace(config, model="__main__:Net"), epochs=1)
    change(config, pid=dead_pid())
    text = progress_lines(look(out))
    assert text[-1] == "to resume: run its script, or the cell of its notebook, again"


def test_a_run_whose_driver_elsewhere_has_long_sent_no_heartbeat_is_silent(
    config: RunConfig, out: Path
) -> None:
    at_work(config, epochs=1)
    change(config, machine="another", pid=1, host="far", time=time.time() - HOUR)
    found = look(out)
    assert found.state == "silent"
    text = progress_lines(found)
    assert text[0].endswith("heard for 1 h 00 min: the driver on far (pid 1) may be dead")
    assert text[-1].startswith("to resume: python -m raykfold.run")


def test_a_heartbeat_between_two_looks_shows_a_run_at_work_whatever_its_clock_says(
    config: RunConfig, out: Path
) -> None:
    at_work(config, epochs=1)
    beat = change(config, machine="another", time=time.time() - HOUR)
    watcher = Watcher(str(out))
    assert watcher.look().state == "silent"
    change(config, time=beat.time + 1)
    assert watcher.look().state == "at work"


def test_a_clock_that_is_ahead_gives_no_negative_age(config: RunConfig, out: Path) -> None:
    at_work(config, epochs=1)
    ahead = time.time() + HOUR
    change(config, machine="another", time=ahead, last_failure="x", failure_time=ahead + HOUR)
    found = look(out)
    assert found.state == "at work"
    assert found.driver is not None and found.driver["seconds_ago"] == 0
    assert found.last_failure == {"text": "x", "seconds_ago": 0}


def test_a_stopped_run_shows_its_last_failure_and_how_to_resume(
    config: RunConfig, out: Path
) -> None:
    at_work(config, epochs=1)
    failure = {"last_failure": "the worker of fold 2 ended: killed", "pending": {"Hub": 1}}
    beat = change(config, phase="stopped", workers=(), **failure)
    change(config, time=beat.time - 2 * HOUR, failure_time=beat.time - 2 * HOUR - 180)
    text = progress_lines(look(out))
    assert text[0] == "run: 1 of 3 folds complete, stopped: last heard from 2 h 00 min ago"
    assert text[-3:] == [
        "last failure, 2 h 03 min ago: the worker of fold 2 ended: killed",
        "uploads pending when last heard from: Hub 1 file",
        f"to resume: {beat.resume}",
    ]


def test_a_failed_fold_is_shown_while_others_train(config: RunConfig, out: Path) -> None:
    at_work(config)
    change(config, failed={2: "loss became nan"})
    found = look(out)
    assert [row.status for row in found.folds] == ["complete", "failed", "waiting"]
    assert found.epochs_left == 5
    assert "fold 2: failed: loss became nan" in progress_lines(found)


@pytest.mark.parametrize("named", ["outputs", "storage"])
def test_a_finished_run_shows_its_mean(config: RunConfig, named: str) -> None:
    at_work(config)
    store(config, complete(1), complete(2), complete(3))
    summary = conclude(config, complete(1), complete(2), complete(3))
    change(config, phase="over", result=outcome(summary))
    found = look(config.model_path if named == "outputs" else config.run_dir.root)  # type: ignore[arg-type]
    assert (found.state, found.mean_accuracy, found.resume) == ("over", 0.54, None)
    assert progress_lines(found)[0] == "run: 3 of 3 folds complete, over"
    assert progress_lines(found)[-1] == "mean accuracy of the best epochs: 0.5400 (+/- 0.0000)"


@pytest.mark.parametrize("named", ["outputs", "storage"])
def test_a_run_that_monitors_macro_f1_shows_it_and_the_accuracy(
    config: RunConfig, named: str
) -> None:
    at_work(config)
    store(config, complete(1), complete(2), complete(3))
    summary = conclude(config, complete(1), complete(2), complete(3), monitor="macro_f1")
    change(config, phase="over", result=outcome(summary))
    found = look(config.model_path if named == "outputs" else config.run_dir.root)  # type: ignore[arg-type]
    assert progress_lines(found)[-2:] == [
        "mean macro F1 of the best epochs: 0.3400 (+/- 0.0000)",
        "mean accuracy of the best epochs: 0.5400 (+/- 0.0000)",
    ]


def test_a_finished_run_can_still_be_sending_files(config: RunConfig, out: Path) -> None:
    at_work(config)
    conclude(config, complete(1), complete(2), complete(3))
    change(config, phase="sending", pending={"Hub": 2})
    found = look(out)
    assert found.state == "sending"
    assert "still sends files" in progress_lines(found)[0]
    change(config, pid=dead_pid())
    assert look(out).state == "over"


def test_a_partial_run_has_no_mean(config: RunConfig, out: Path) -> None:
    conclude(config, complete(1), complete(2), failed(3, "unplugged"))
    text = progress_lines(look(out))
    assert text[-2:] == ["fold 3: failed: unplugged", "partial: no mean over all folds"]


def test_without_a_heartbeat_nothing_is_known_of_the_driver(config: RunConfig, out: Path) -> None:
    found = look(out)
    assert (found.state, found.driver) == ("unknown", None)
    assert [row.status for row in found.folds] == ["complete", "running", "waiting"]
    assert progress_lines(found)[0] == "run: 1 of 3 folds complete, nothing is known of its driver"
    conclude(config, complete(1), complete(2), complete(3))
    assert progress_lines(look(out))[0] == "run: 3 of 3 folds complete, over"


def test_repeats_are_counted_with_the_run(tmp_path: Path) -> None:
    config = begin(tmp_path, repeats=3)
    store(config, complete(1), running(2, epochs=3))
    first = config.repeat(1)
    begin_as(first)
    store(first, complete(1), running(2, epochs=1))
    for each, pace in ((config, 3.0), (first, 6.0)):
        at_work(each, epochs=1)
        change(each, epoch_seconds=pace, failed={} if each is config else {3: "unplugged"})
    found = look(tmp_path)
    assert [(each.seed, each.complete) for each in found.repeats] == [(1, 1)]
    assert (found.complete, found.total) == (2, 9)
    assert [each.resume for each in found.repeats] == [None]
    assert (found.epochs_left, found.seconds_an_epoch) == (7 + 4, 2.0)
    assert found.seconds_left == 4 * 6.0  # alone, the repeat would take longer than all together
    text = progress_lines(found)
    assert "seed 1: 1 complete, 1 running, 1 failed; 1 of at most 5 epochs of these" in text
    assert "seed 1, fold 3: failed: unplugged" in text


def test_folds_without_room_on_the_screen_are_counted(tmp_path: Path) -> None:
    config = begin(tmp_path, folds=range(1, 101))
    store(config, *(complete(fold) for fold in range(1, 81)), running(81, epochs=2))
    at_work(config)
    change(config, workers=((81,), (82,)))
    text = progress_lines(look(tmp_path), room=8)
    assert len(text) <= 8
    assert [line.split()[0] for line in text[2:4]] == ["81", "82"]
    assert "and 98 more folds: 80 complete, 18 waiting" in text


# --- the command -----------------------------------------------------------------------------


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_status_writes_nothing(config: RunConfig, out: Path) -> None:
    at_work(config)
    before = contents(out)
    assert main([str(out)]) == main([str(out), "--json"]) == 0
    assert contents(out) == before


def test_json_has_the_documented_keys(
    config: RunConfig, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at_work(config, epochs=1)
    change(config, last_failure="x", failure_time=time.time())
    assert main([str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    of_run, of_fold = Progress.__doc__ or "", FoldProgress.__doc__ or ""
    assert list(found) == re.findall(r"^ +([a-z_]+): ", of_run, re.M)
    assert list(found["folds"][0]) == re.findall(r"^ +([a-z_]+): ", of_fold, re.M)
    for inner in (found["driver"], found["last_failure"]):
        assert all(key in of_run for key in inner)
    assert (found["state"], found["folds"][1]["kept_epoch"]) == ("at work", 2)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere"], "nowhere: there is no run"),
        ([], "RUN_DIR"),
        ([".", "--interval", "0"], "--interval: '0': expected a number above 0"),
        ([".", "--interval", "soon"], "'soon': expected a number above 0"),
        ([".", "--wait"], "unrecognized arguments: --wait"),
        (["ftp://x/y"], "expected a path, or an s3://"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    arguments: list[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert part in printed.err and printed.err.count("\n") == 1 and not printed.out


def watch(out: Path, *arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start `status --watch`."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "raykfold.status", str(out)),
            *("--watch", "--interval", "0.05", *arguments),
        ],
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )


def read_until(stream: Any, pattern: str) -> str:
    """Read whole lines until they match `pattern`."""
    text = ""
    while not re.search(pattern, text):
        line = stream.readline()
        assert line, f"no {pattern!r} in: {text}"
        text += line
    return text


def test_watch_prints_a_block_to_a_log_when_something_has_changed(
    config: RunConfig, out: Path
) -> None:
    at_work(config)
    process = watch(out)
    try:
        first = read_until(process.stdout, r"\n\n")
        beat = change(config)
        for number in range(1, 20):
            change(config, time=beat.time + number / 100)  # no news
        store(config, complete(1), running(2, epochs=4))
        second = read_until(process.stdout, r"\n\n")
        (out / "run.json").rename(out / "aside")
        lost = read_until(process.stdout, r"\n\n")
        (out / "aside").rename(out / "run.json")
        read_until(process.stdout, r"\n\n")
        conclude(config, complete(1), complete(2), complete(3))
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert "  3/5  " in first and "  4/5  " in second
    assert lost.startswith("raykfold: ") and "there is no run" in lost
    assert process.returncode == 0
    assert rest.startswith("run: 3 of 3 folds complete, over\n") and rest.count("\n\n") == 1


def test_watch_prints_a_line_of_json_for_each_look(config: RunConfig, out: Path) -> None:
    at_work(config)
    process = watch(out, "--json")
    try:
        assert process.stdout is not None
        states = [json.loads(process.stdout.readline())["state"] for _ in range(2)]
        conclude(config, complete(1), complete(2), complete(3))
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert states == ["at work", "at work"]
    assert json.loads(rest.splitlines()[-1])["state"] == "over"
    assert process.returncode == 0


def test_watch_redraws_a_terminal_in_place(config: RunConfig, out: Path) -> None:
    at_work(config)
    ours, theirs = pty.openpty()
    process = watch(out, stdout=theirs)
    os.close(theirs)
    shown = b""
    try:
        while b"3/5" not in shown:
            shown += os.read(ours, 4096)
        store(config, complete(1), running(2, epochs=4))
        while b"4/5" not in shown:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        shown += rest_of(ours)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"\x1b[1A" in shown  # the cursor goes up
    assert b"interrupted" in shown and b"Traceback" not in shown


def rest_of(terminal: int) -> bytes:
    """Read a terminal until its other side is closed."""
    with io.BytesIO() as rest:
        while True:
            try:
                content = os.read(terminal, 4096)
            except OSError:  # on Linux, the other side is closed
                content = b""
            if not content:
                return rest.getvalue()
            rest.write(content)


# --- on an object store ----------------------------------------------------------------------


def test_a_run_is_read_from_an_object_store(s3: S3Server, tmp_path: Path) -> None:
    config = begin(tmp_path, storage_path=s3.uri("bucket/ray", through_faults=True))
    store(config, complete(1), running(2, epochs=3))
    at_work(config)
    for folder in (str(tmp_path), str(config.run_dir.root)):
        found = Watcher(folder).look()
        assert [row.status for row in found.folds] == ["complete", "running", "waiting"]
        assert found.state == "at work"

    watcher = Watcher(str(tmp_path))
    watcher.look()
    requests = len(s3.requests)
    watcher.look()
    assert not any("folds/" in line for line in s3.requests[requests:])
    s3.fault("internal")
    assert main([str(tmp_path)]) == 1

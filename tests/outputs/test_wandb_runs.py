"""Runs as W&B has them: real offline files, and a server on loopback that takes or refuses them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
from support.wandb_files import Logged, files, newest

from raykfold.config.run_config import RunConfig
from raykfold.files.atomic import write_file
from raykfold.files.paths import ModelDir
from raykfold.observers import RunStart
from raykfold.outputs import wandb_runs
from raykfold.outputs.wandb_runs import WandbRuns
from raykfold.pages.run_figures import curves
from raykfold.training.results import (
    ByRecording,
    EpochMetrics,
    FoldResult,
    Histogram,
    OutOfFoldMetrics,
    RecordingsOfFold,
    Summary,
)

KEY = "0123456789abcdef" * 2 + "fedcba98"
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody's login, settings or service but this test's."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # what a tracker sets, and stays set
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setitem(wandb_runs.SETTINGS, "init_timeout", 3.0)
    (tmp_path / "home").mkdir()
    yield
    wandb.teardown()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, said: list[str]) -> Callable[..., WandbRuns]:
    """Makes trackers that write to ``<tmp_path>/out``."""

    def make_tracker(
        mode: str | None = "offline", run_id: str = "abc-1", api_key: str | None = None
    ) -> WandbRuns:
        config = RunConfig(
            model_dir=tmp_path / "out", epochs=3, wandb_project="sounds", wandb_mode=mode
        )
        return WandbRuns(config, run_id, api_key, said.append)

    return make_tracker


def epoch(number: int, accuracy: float = 0.5) -> EpochMetrics:
    accuracy += number / 10
    figures = {"val_balanced_accuracy": accuracy - 0.1, "val_macro_f1": accuracy - 0.2}
    return EpochMetrics(number, 1.5, 0.25, 1.25, accuracy, 0.001, 2.0, **figures)


def complete(fold: int, accuracy: float = 0.5, epochs: int = 3) -> FoldResult:
    history = tuple(epoch(number, accuracy) for number in range(epochs))
    return FoldResult.of(fold, "complete", 8, 2, history)


def summary(*folds: FoldResult) -> Summary:
    return Summary(
        "run",
        folds,
        OutOfFoldMetrics(0.55, (0.4, 0.7), ()),
        {0: "a"},
        wall_seconds=1.0,
        num_workers=2,
    )


def whole_run(tracker: WandbRuns) -> None:
    """Folds 1 and 2, three epochs each, in turn; fold 2 is better by 0.1."""
    tracker.run_started(RunStart("run", 3, (1, 2), {}))
    for number in range(3):
        tracker.epoch_committed(1, epoch(number))
        tracker.epoch_committed(2, epoch(number, 0.6))
    tracker.fold_finished(complete(1))
    tracker.fold_finished(complete(2, 0.6))
    rows = RecordingsOfFold(1, 4, 0.5, 0.5, 0.5), RecordingsOfFold(2, 4, 0.75, 0.5, 0.5)
    pooled = OutOfFoldMetrics(0.625, (0.5, 0.7), ())
    given = summary(complete(1), complete(2, 0.6))
    tracker.run_finished(replace(given, by_recording=ByRecording(rows, pooled)))
    tracker.close()


def test_each_fold_is_a_run_and_each_epoch_a_row(
    make: Callable[..., WandbRuns],
    tmp_path: Path,
    said: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole_run(make())
    runs = newest(tmp_path / "out")
    assert set(runs) == {"fold_1", "fold_2", "summary"}
    about = runs["fold_2"].run
    assert about["run_id"] == "abc-1-fold-2"
    assert (about["project"], about["run_group"], about["job_type"]) == ("sounds", "run", "fold")
    assert about["config"]["update"]["epochs"] == 3
    for name, best in (("fold_1", 0.7), ("fold_2", 0.8)):
        logged = runs[name]
        assert logged.column("_step") == logged.column("epoch") == [0, 1, 2]
        assert logged.column("val/accuracy") == pytest.approx([best - 0.2, best - 0.1, best])
        row = {key: value for key, value in logged.rows[0].items() if not key.startswith("_")}
        assert row == {
            "epoch": 0,
            "train/loss": 1.5,
            "train/accuracy": 0.25,
            "val/loss": 1.25,
            "val/accuracy": pytest.approx(best - 0.2),
            "val/balanced_accuracy": pytest.approx(best - 0.3),
            "val/macro_f1": pytest.approx(best - 0.4),
            "lr": 0.001,
            "epoch_seconds": 2.0,
        }
        assert logged.summary["best_val_accuracy"] == pytest.approx(best)
        assert logged.summary["best_epoch"] == 2
        assert logged.summary["kept_val_macro_f1"] == pytest.approx(best - 0.2)
        assert logged.summary["status"] == "complete"
        assert "error" not in logged.summary
        assert logged.exit_code == 0
    assert said == []
    assert capfd.readouterr() == ("", "")


def test_a_setting_that_a_version_lacks_is_left_out(
    make: Callable[..., WandbRuns],
    tmp_path: Path,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(wandb_runs.SETTINGS, "was_there_once", True)
    whole_run(make())
    (line,) = said
    assert "lacks the settings was_there_once:" in line and wandb.__version__ in line
    assert newest(tmp_path / "out")["fold_1"].column("epoch") == [0, 1, 2]


def test_nothing_is_recorded_without_a_setting_that_keeps_something_private(
    make: Callable[..., WandbRuns],
    tmp_path: Path,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(wandb_runs.SETTINGS, "was_private_once", True)
    monkeypatch.setattr(wandb_runs, "PRIVACY", wandb_runs.PRIVACY | {"was_private_once"})
    for run_id in ("trial-1", "trial-2"):
        whole_run(make(run_id=run_id))
    (line,) = said
    assert "lacks the settings was_private_once, and" in line and wandb.__version__ in line
    assert line.endswith("nothing is recorded there")
    assert not (tmp_path / "out").exists()


def test_what_keeps_something_private_is_among_the_settings() -> None:
    assert wandb_runs.SETTINGS.keys() >= wandb_runs.PRIVACY


def test_the_summary_run_has_live_means_and_the_table_of_folds(
    make: Callable[..., WandbRuns], tmp_path: Path
) -> None:
    whole_run(make())
    logged = newest(tmp_path / "out")["summary"]
    assert logged.run["run_id"] == "abc-1-summary"
    assert (logged.run["run_group"], logged.run["job_type"]) == ("run", "summary")
    live = logged.rows[:-1]
    assert [row["folds"] for row in live] == [1, 2, 2, 2, 2, 2]
    means = [row["mean_best_val_accuracy"] for row in live]
    assert means == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75])
    assert live[-1]["mean_best_val_macro_f1"] == pytest.approx(0.55)
    assert live[-1]["std_best_val_balanced_accuracy"] == pytest.approx(0.05)
    assert "std_best_val_accuracy" not in live[0]  # one fold has none
    assert [row["std_best_val_accuracy"] for row in live[1:]] == pytest.approx(
        [0.05, 0.0, 0.05, 0.0, 0.05], abs=1e-9
    )
    assert logged.summary["mean_accuracy"] == pytest.approx(0.75)
    assert logged.summary["std_accuracy"] == pytest.approx(0.05)
    assert logged.summary["oof_accuracy"] == 0.55
    assert logged.summary["mean_accuracy_by_recording"] == 0.625
    assert "by_recording" not in logged.summary
    assert logged.summary["monitor"] == "accuracy"
    assert logged.summary["status"] == "complete"
    assert "partial_mean_accuracy" not in logged.summary
    assert logged.exit_code == 0
    table = table_of(logged)
    assert table["columns"] == [
        *("fold", "status", "n_train", "n_val", "epochs_run", "best_epoch"),
        *("best_val_accuracy", "chosen_epoch", "chosen_val_accuracy", "last_val_accuracy"),
        *("kept_val_balanced_accuracy", "kept_val_macro_f1", "stopped_early", "error"),
    ]
    assert table["data"][0][:6] == [1, "complete", 8, 2, 3, 2]
    assert table["data"][1][6] == pytest.approx(0.8)


def test_the_summary_run_shows_the_pictures_that_are_there(
    make: Callable[..., WandbRuns], tmp_path: Path, said: list[str]
) -> None:
    outputs = ModelDir(tmp_path / "out")
    drawn = curves([complete(1)]).png(), curves([complete(2)]).png()
    pictures = dict(zip(("curves", "folds"), drawn, strict=True))
    for name, content in pictures.items():
        write_file(outputs.plots / f"{name}.png", content)
    write_file(outputs.plots / "my own.png", drawn[0])
    whole_run(make())
    logged = newest(outputs.root)["summary"]
    for name, content in pictures.items():
        shown = f"plots/{name}"
        assert logged.rows[-1][f"{shown}._type"] == "image-file"
        assert (logged.folder / "files" / logged.rows[-1][f"{shown}.path"]).read_bytes() == content
    assert not any("my own" in name for name in logged.rows[-1])
    assert said == []


def test_a_picture_that_is_none_is_said_and_spoils_nothing(
    make: Callable[..., WandbRuns], tmp_path: Path, said: list[str]
) -> None:
    write_file(ModelDir(tmp_path / "out").plots / "curves.png", b"no picture")
    whole_run(make())
    logged = newest(tmp_path / "out")["summary"]
    assert logged.summary["mean_accuracy"] == pytest.approx(0.75)
    assert logged.exit_code == 0
    assert len(said) == 1 and said[0].startswith("W&B: the pictures are not sent: ")


def table_of(logged: Logged) -> dict[str, Any]:
    (file,) = (logged.folder / "files" / "media" / "table").glob("fold_results_*.table.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_a_failed_fold_is_a_failed_run(make: Callable[..., WandbRuns], tmp_path: Path) -> None:
    broken = FoldResult.of(2, "failed", 8, 2, (epoch(0, math.nan),), error="loss became nan")
    tracker = make()
    tracker.run_started(RunStart("run", 3, (1, 2), {}))
    tracker.fold_finished(complete(1))
    tracker.fold_finished(broken)
    tracker.run_finished(summary(complete(1), broken))
    tracker.close()
    runs = newest(tmp_path / "out")
    assert runs["fold_2"].exit_code == 1
    assert runs["fold_2"].summary["status"] == "failed"
    assert runs["fold_2"].summary["error"] == "loss became nan"
    assert runs["fold_1"].column("epoch") == [0, 1, 2]  # known from the result alone
    assert runs["summary"].summary["status"] == "partial"
    assert "mean_accuracy" not in runs["summary"].summary
    assert table_of(runs["summary"])["data"][1] == [
        *(2, "failed", 8, 2, 1, 0),
        *(None, None, None, None, None, None, False, "loss became nan"),
    ]


def test_a_resumed_session_logs_what_the_earlier_one_had(
    make: Callable[..., WandbRuns], tmp_path: Path
) -> None:
    first = make()
    first.run_started(RunStart("run", 4, (1, 2, 3), {}))
    first.epoch_committed(1, epoch(0))
    first.close()
    interrupted = newest(tmp_path / "out")["fold_1"]
    assert interrupted.preempting and interrupted.exit_code == 1

    second = make()
    histories = {1: (epoch(0), epoch(1))}
    second.run_started(RunStart("run", 4, (1, 2, 3), histories, {2: complete(2, 0.6)}))
    second.epoch_committed(1, epoch(2))
    second.close()
    sessions = files(tmp_path / "out")
    assert [logged.column("epoch") for logged in sessions["fold_1"]] == [[0], [0, 1, 2]]
    assert {logged.run["run_id"] for logged in sessions["fold_1"]} == {"abc-1-fold-1"}
    over = sessions["fold_2"][-1]
    assert (over.column("epoch"), over.summary["best_epoch"], over.exit_code) == ([0, 1, 2], 2, 0)
    assert sessions["fold_3"][-1].rows == []
    assert sessions["summary"][-1].column("folds") == [2, 2]
    means = sessions["summary"][-1].column("mean_best_val_accuracy")
    assert means == pytest.approx([0.7, 0.75])


def test_an_epoch_that_is_committed_again_is_logged_once(
    make: Callable[..., WandbRuns], tmp_path: Path
) -> None:
    tracker = make()
    tracker.run_started(RunStart("run", 3, (1,), {1: (epoch(0),)}))
    for number in (1, 0, 1, 2):
        tracker.epoch_committed(1, epoch(number))
    tracker.close()
    assert newest(tmp_path / "out")["fold_1"].column("epoch") == [0, 1, 2]
    assert len(newest(tmp_path / "out")["summary"].rows) == 3


def test_values_that_are_not_finite_are_left_out(
    make: Callable[..., WandbRuns], tmp_path: Path
) -> None:
    tracker = make()
    tracker.run_started(RunStart("run", 3, (1,), {}))
    tracker.epoch_committed(1, EpochMetrics(0, math.nan, 0.25, math.inf, math.nan, 0.001, 2.0))
    tracker.epoch_committed(1, epoch(1))
    tracker.close()
    runs = newest(tmp_path / "out")
    row = {key: value for key, value in runs["fold_1"].rows[0].items() if key[0] != "_"}
    assert row == {"epoch": 0, "train/accuracy": 0.25, "lr": 0.001, "epoch_seconds": 2.0}
    assert runs["fold_1"].column("val/loss") == [None, 1.25]
    assert runs["summary"].column("mean_best_val_accuracy") == pytest.approx([0.6])


def test_watched_weights_stand_in_the_row_of_their_epoch(
    make: Callable[..., WandbRuns], tmp_path: Path
) -> None:
    drawn = Histogram(counts=(1, 2), edges=(-1.0, 0.0, 1.0))
    endless = Histogram(counts=(1,), edges=(0.0, math.inf))
    tracker = make()
    tracker.run_started(RunStart("run", 3, (1,), {}))
    tracker.weights_watched(1, 0, {"weights/fc": drawn, "gradients/fc": endless})
    tracker.epoch_committed(1, epoch(0))
    tracker.epoch_committed(1, epoch(1))
    tracker.weights_watched(1, 2, {"weights/fc": drawn})
    tracker.close()
    rows = newest(tmp_path / "out")["fold_1"].rows
    assert rows[0]["weights/fc._type"] == "histogram"
    assert rows[0]["weights/fc.values"] == [1, 2]
    assert rows[0]["weights/fc.bins"] == [-1, 0, 1]
    assert rows[0]["val/loss"] == 1.25
    assert not any("gradients" in key for key in rows[0])
    assert len(rows) == 2 and not any("fc" in key for key in rows[1])


def test_without_a_key_the_run_is_recorded_offline_and_one_line_says_how_to_send_it(
    make: Callable[..., WandbRuns], tmp_path: Path, said: list[str]
) -> None:
    whole_run(make(mode=None))
    (line,) = said
    assert "no API key" in line and str(tmp_path / "out" / "wandb") in line
    assert sync_finds(line) == {"abc-1-fold-1", "abc-1-fold-2", "abc-1-summary"}


def sync_finds(line: str) -> set[str]:
    """Ids of the runs that the command at the end of `line` would send."""
    command = line.partition("wandb sync ")[2]
    program = f"{shlex.quote(sys.executable)} -m wandb sync --dry-run {command}"
    done = subprocess.run(program, shell=True, check=True, capture_output=True, text=True)
    return set(re.findall(r"run-([\w.-]+)\.wandb", done.stdout + done.stderr))


@pytest.mark.parametrize("key_from", [pytest.param("argument", marks=pytest.mark.slow), "login"])
def test_a_server_that_is_not_there_means_offline_after_one_line(
    make: Callable[..., WandbRuns],
    tmp_path: Path,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    key_from: str,
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED)
    netrc = tmp_path / "home" / ".netrc"
    if key_from == "login":
        netrc.write_text(f"machine 127.0.0.1:9\n  login user\n  password {KEY}\n")
        netrc.chmod(0o600)
    whole_run(make(mode=None, api_key=KEY if key_from == "argument" else None))
    (line,) = said
    assert "connection refused" in line or "giving up after 1 attempt" in line  # before 0.31
    assert sync_finds(line) == {"abc-1-fold-1", "abc-1-fold-2", "abc-1-summary"}
    assert newest(tmp_path / "out")["fold_2"].column("epoch") == [0, 1, 2]
    assert "mean_accuracy" in newest(tmp_path / "out")["summary"].summary
    assert capfd.readouterr() == ("", "")
    assert holding_the_key(tmp_path) <= {netrc}


def holding_the_key(folder: Path) -> set[Path]:
    """Every file below `folder` that contains `KEY`; there have to be some files."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found
    return {path for path in found if KEY.encode() in path.read_bytes()}


def test_no_call_waits_for_a_server_that_never_answers(
    make: Callable[..., WandbRuns],
    tmp_path: Path,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker = make(mode="online", api_key=KEY)
        tracker.run_started(RunStart("run", 3, (1,), {}))
        asked, _ = server.accept()  # the first run waits for its answer from here on
        with asked:
            tracker.epoch_committed(1, epoch(0))
            tracker.fold_finished(complete(1))
            tracker.run_finished(summary(complete(1)))
            assert not list((tmp_path / "out" / "wandb").glob("offline-run-*"))
            tracker.close()
    assert newest(tmp_path / "out")["fold_1"].column("epoch") == [0, 1, 2]
    (line,) = said
    assert "offline-run-" in line


def test_a_folder_that_cannot_be_written_is_one_line(
    make: Callable[..., WandbRuns], tmp_path: Path, said: list[str]
) -> None:
    (tmp_path / "out").write_text("a file in its place")
    whole_run(make())
    (line,) = said
    assert str(tmp_path / "out") in line and "nothing more is recorded" in line


def test_a_tracker_that_was_never_told_of_a_run_closes(
    make: Callable[..., WandbRuns], tmp_path: Path, said: list[str]
) -> None:
    tracker = make()
    tracker.epoch_committed(1, epoch(0))
    tracker.close()
    tracker.close()
    assert said == [] and not (tmp_path / "out").exists()


def test_closing_twice_and_events_after_it_change_nothing(
    make: Callable[..., WandbRuns], tmp_path: Path, said: list[str]
) -> None:
    tracker = make()
    whole_run(tracker)
    tracker.epoch_committed(1, epoch(3))
    tracker.close()
    assert newest(tmp_path / "out")["fold_1"].column("epoch") == [0, 1, 2]
    assert said == []


def test_a_tracker_that_closes_leaves_another_one_at_work(
    make: Callable[..., WandbRuns], tmp_path: Path, said: list[str]
) -> None:
    first, second = make(run_id="first"), make(run_id="second")
    for tracker in (first, second):
        tracker.run_started(RunStart("run", 3, (1,), {}))
    while not list((tmp_path / "out" / "wandb").glob("*/*second-summary.wandb")):
        threading.Event().wait(0.05)  # bounded by the test's own time limit
    first.close()
    second.epoch_committed(1, epoch(0))
    second.close()
    logged = {run.run["run_id"]: run for run in files(tmp_path / "out")["fold_1"]}
    assert logged["second-fold-1"].column("epoch") == [0]
    assert said == []


def test_the_process_is_left_as_it_was(make: Callable[..., WandbRuns]) -> None:
    def state() -> tuple[Any, ...]:
        handlers = (signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))
        return (*handlers, sys.exit, sys.excepthook, sys.stdout, dict(os.environ), wandb.run)

    before = state()
    whole_run(make())
    assert state() == before


def test_the_service_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from raykfold.config.run_config import RunConfig
from raykfold.observers import RunStart
from raykfold.outputs.wandb_runs import WandbRuns
config = RunConfig(model_dir=Path("out"), wandb_project="p", wandb_mode="offline")
tracker = WandbRuns(config, "a", None, print)
tracker.run_started(RunStart("run", 3, (1,), {}))
while not list(Path("out/wandb").glob("*/*a-summary.wandb")):
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", script]
    # The service inherits stdout, so that this returns when it has ended too.
    done = subprocess.run(command, cwd=tmp_path, timeout=60, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert (done.stdout, done.stderr) == (b"", b"")


def test_ids_fit_and_stay_apart(make: Callable[..., WandbRuns], tmp_path: Path) -> None:
    for run_id in ("a b/" + "c" * 90, "a b/" + "c" * 91):
        tracker = make(run_id=run_id)
        tracker.run_started(RunStart("run", 3, (1,), {}))
        tracker.close()
    ids = [logged.run["run_id"] for logged in files(tmp_path / "out")["fold_1"]]
    assert len(set(ids)) == 2
    assert all(re.fullmatch(r"a_b_c+-[0-9a-f]{8}-fold-1", run_id) for run_id in ids)
    assert max(map(len, ids)) < 100


class Server(ThreadingHTTPServer):
    """As much of a W&B server as a run needs: it takes rows, and tells what it has on resume."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.sent: list[tuple[str, int]] = []  # run, first row
        self.connections = 0
        self.ended: dict[str, int] = {}  # run → exit code
        self.status = 200
        self.silent = threading.Event()
        self.released = threading.Event()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.content())
        if self.server.silent.is_set():
            self.server.released.wait()
        elif self.server.status != 200:
            self.reply(self.server.status, {"errors": [{"message": "refused"}]})
        elif self.path == "/graphql":
            self.reply(200, {"data": self.graphql(body["query"], body.get("variables") or {})})
        else:
            self.take_rows(self.path.split("/")[-2], body)
            self.reply(200, {})

    def do_PUT(self) -> None:
        self.content()
        self.reply(200, {})

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        (name,) = re.findall(r"(?:query|mutation)\s+(\w+)", query)[:1]
        project = {"id": "p", "name": "sounds", "entity": {"id": "e", "name": "me"}}
        if name == "RunResumeStatus":
            return {"model": self.resume_status(variables["name"], project)}
        if name == "UpsertBucket":
            run = variables["name"]
            self.server.rows.setdefault(run, [])
            bucket = {"id": f"id-{run}", "name": run, "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            uploads = [
                {"name": file, "uploadUrl": f"{self.server.url}/upload/{file}"}
                for file in variables["files"]
            ]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": uploads}}
        if name == "Viewer":
            account = {"id": "e", "entity": "me", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": {**account, "teams": {"edges": []}}}
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "CreateArtifact":
            sequence = {"id": "s", "latestArtifact": None}
            known = {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": known}}
        return {}

    def resume_status(self, run: str, project: dict[str, Any]) -> dict[str, Any] | None:
        rows = self.server.rows.get(run)
        if rows is None:
            return None
        bucket = {
            "id": f"id-{run}",
            "name": run,
            "displayName": run,
            "config": "{}",
            "tags": [],
            "historyLineCount": len(rows),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]",
            "summaryMetrics": "{}",
            "wandbConfig": '{"t": 1}',
        }
        return {**project, "bucket": bucket}

    def take_rows(self, run: str, body: dict[str, Any]) -> None:
        history = body.get("files", {}).get("wandb-history.jsonl")
        if history:
            self.server.sent.append((run, history["offset"]))
            rows = self.server.rows.setdefault(run, [])
            rows[history["offset"] :] = [json.loads(row) for row in history["content"]]
        if body.get("complete"):
            self.server.ended[run] = body["exitcode"]

    def content(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionResetError):  # a client that is gone
            super().handle()

    def log_message(self, *args: Any) -> None:
        """Not on the test's stderr."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        server.released.set()
        server.shutdown()


def test_online_a_resumed_run_goes_on_where_the_server_is(
    make: Callable[..., WandbRuns],
    tmp_path: Path,
    said: list[str],
    server: Server,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = make(mode=None, api_key=KEY)
    first.run_started(RunStart("run", 3, (1,), {}))
    first.epoch_committed(1, epoch(0))
    first.close()
    assert server.ended == {"abc-1-fold-1": 1, "abc-1-summary": 1}
    server.sent.clear()
    second = make(mode=None, api_key=KEY)
    second.run_started(RunStart("run", 3, (1,), {1: (epoch(0), epoch(1))}))
    second.epoch_committed(1, epoch(2))
    second.fold_finished(complete(1))
    second.run_finished(summary(complete(1)))
    second.close()
    assert [row["epoch"] for row in server.rows["abc-1-fold-1"]] == [0, 1, 2]
    assert min(first for run, first in server.sent if run == "abc-1-fold-1") == 1
    assert server.ended == {"abc-1-fold-1": 0, "abc-1-summary": 0}
    assert server.rows["abc-1-summary"][-2]["folds"] == 1
    assert said == []
    assert capfd.readouterr() == ("", "")
    assert holding_the_key(tmp_path) == set()


OLDER_OFFLINE = "disabled = true\nmode = offline"
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("variables", "place", "stored", "recorded", "why"),
    [
        ({"WANDB_MODE": "dryrun"}, None, None, True, "offline by WANDB_MODE=dryrun"),
        ({"WANDB_DISABLED": "true"}, None, None, False, "disabled by WANDB_DISABLED=true"),
        ({"WANDB_MODE": "disabled"}, None, None, False, "disabled by WANDB_MODE=disabled"),
        ({"WANDB_MODE": "dry-run"}, None, None, False, "WANDB_MODE=dry-run: expected one of"),
        ({}, "wandb", "mode = disabled", False, "disabled by {file}"),
        ({}, ".config/wandb", OLDER_OFFLINE, True, "offline by {file}"),
        *(
            pytest.param(*case, marks=slow)
            for case in [
                ({"WANDB_MODE": "offline"}, None, None, True, "offline by WANDB_MODE=offline"),
                ({"WANDB_CONFIG_DIR": "system"}, "system", "mode=offline", True, "offline by "),
                ({}, "wandb", "mode = offline", True, "offline by {file}"),
                ({}, "wandb", "mode = dry-run", True, "offline by {file}"),
                ({}, "wandb", "disabled = true", True, "offline by {file}"),
            ]
        ),
    ],
)
def test_settings_of_wandb_that_forbid_uploads_are_obeyed(
    make: Callable[..., WandbRuns],
    tmp_path: Path,
    said: list[str],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    place: str | None,
    stored: str | None,
    recorded: bool,
    why: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path / "home")
    settings = tmp_path / "home" / (place or "none") / "settings"
    if stored is not None:
        write_file(settings, f"[default]\n{stored}\n".encode())
    whole_run(make(mode=None, api_key=KEY))
    assert server.connections == 0
    (line,) = said
    assert line.startswith(f"W&B: {why.format(file=settings)}")
    if recorded:
        assert sync_finds(line) == {"abc-1-fold-1", "abc-1-fold-2", "abc-1-summary"}
    else:
        assert line.endswith("nothing is recorded there")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({"WANDB_MODE": "disabled", "WANDB_DISABLED": "true"}, "online"),
        pytest.param({"WANDB_MODE": "run", "WANDB_DISABLED": "false"}, None, marks=slow),
        pytest.param({"WANDB_MODE": "shared"}, None, marks=slow),
    ],
)
def test_settings_that_allow_uploads_and_the_flag_send_everything(
    make: Callable[..., WandbRuns],
    said: list[str],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    mode: str | None,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    netrc = Path(os.environ["HOME"]) / ".netrc"
    host = server.url.removeprefix("http://")
    netrc.write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    whole_run(make(mode=mode))
    assert [row["epoch"] for row in server.rows["abc-1-fold-1"]] == [0, 1, 2]
    assert said == []


def test_a_key_that_is_refused_means_offline(
    make: Callable[..., WandbRuns], tmp_path: Path, said: list[str], server: Server
) -> None:
    server.status = 401
    whole_run(make(mode="online", api_key=KEY))
    (line,) = said
    assert "401" in line and KEY not in line
    assert newest(tmp_path / "out")["fold_1"].column("epoch") == [0, 1, 2]


@pytest.mark.slow
def test_a_server_that_goes_silent_during_a_run_does_not_hold_up_its_end(
    make: Callable[..., WandbRuns],
    tmp_path: Path,
    said: list[str],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(wandb_runs.SETTINGS, "finish_timeout", 2.0)
    tracker = make(mode="online", api_key=KEY)
    tracker.run_started(RunStart("run", 3, (1, 2), {}))
    while "abc-1-summary" not in server.rows:  # bounded by the test's own time limit
        threading.Event().wait(0.05)
    server.silent.set()
    for number in range(3):
        tracker.epoch_committed(1, epoch(number))
    tracker.close()
    (line,) = said
    assert "fold_1, fold_2, summary not sent" in line
    assert sync_finds(line) == {"abc-1-fold-1", "abc-1-fold-2", "abc-1-summary"}
    assert newest(tmp_path / "out", "run")["fold_1"].column("epoch") == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_a_home_that_cannot_be_written_spoils_nothing(
    make: Callable[..., WandbRuns],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")  # so that what is set is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/proc/1/none")
    whole_run(make())
    assert said == []
    assert set(newest(tmp_path / "out")) >= {"fold_1", "fold_2", "summary"}
    assert "Traceback" not in "".join(capfd.readouterr())

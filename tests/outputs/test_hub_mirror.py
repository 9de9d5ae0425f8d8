"""What a run leaves on the Hub, and what it fetches from there, whatever comes between."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fakes.hub_server import ATTRIBUTES, Fault, HubServer

from raykfold.config.run_config import RunConfig
from raykfold.errors import BadData
from raykfold.files.atomic import write_file
from raykfold.files.paths import ModelDir
from raykfold.hub import main
from raykfold.observers import RunStart
from raykfold.outputs.hub_client import ModelRepository
from raykfold.outputs.hub_dataset import fetch_missing
from raykfold.outputs.hub_mirror import HubMirror, hub_mirror
from raykfold.outputs.model_dir import ModelDirWriter
from raykfold.outputs.sync import Unavailable
from raykfold.state.archive import write_results
from raykfold.state.record import RunRecord, identity
from raykfold.training.results import EpochMetrics, FoldResult, OutOfFoldMetrics, Summary

REPO = "team/run-1"
DATASET = "team/sounds"
FOLDS = (1, 2)
EPOCHS = 2
PLOTS = ("plots/confusion.png", "plots/curves.png")
CLOSED = "http://127.0.0.1:9"
OPEN, OUTAGE, REACHED = "uploads go to the repository", "cannot be reached", "reached again"

MakeMirror = Callable[..., HubMirror]


# --- a run, and the Hub ----------------------------------------------------------------------


def history(fold: int) -> tuple[EpochMetrics, ...]:
    return tuple(
        EpochMetrics(epoch, 1.0, 0.5, 0.9, 0.5 + fold / 10 + epoch / 100, 0.001, 2.0)
        for epoch in range(EPOCHS)
    )


def train(folder: Path) -> RunConfig:
    """Leave in `folder` what a run does that is still in training."""
    config = RunConfig(run_name="run", model_dir=folder, hf_model_repo_id=REPO)
    RunRecord.of(config, identity(config, "f00d", "cpu x1"), "20250101-000000", (1, 2)).write(
        config
    )
    writer = ModelDirWriter(config)
    for fold in FOLDS:
        for metrics in history(fold):
            weights = f"weights of fold {fold} after epoch {metrics.epoch}\n".encode() * 40
            write_file(config.run_dir.epoch_weights(fold, metrics.epoch), weights)
            writer.epoch_committed(fold, metrics)
    writer.time_passed()
    return config


def complete(config: RunConfig) -> Summary:
    """Leave what a run does at its end."""
    results = tuple(FoldResult.of(fold, "complete", 40, 10, history(fold)) for fold in FOLDS)
    summary = Summary(
        "run",
        results,
        OutOfFoldMetrics(0.7, (0.5, 0.8), ()),
        {0: "dog", 1: "rain"},
        9.0,
        2,
        {"torch": "2.9"},
    )
    ModelDirWriter(config).run_finished(summary)
    write_results(config.outputs, summary, {}, None)
    config.outputs.predictions.write_bytes(bytes(range(256)))
    write_file(config.outputs.report, b"<!doctype html>")
    for name in PLOTS:
        write_file(config.outputs.root / name, name.encode())
    return summary


def add_weights(outputs: ModelDir, epochs: range) -> None:
    for epoch in epochs:
        write_file(outputs.epoch_weights(1, epoch), f"further epoch {epoch}\n".encode())


def without_card(outputs: ModelDir) -> set[str]:
    """Paths in the repository of a complete run, but for what the Hub's side of it adds."""
    names = {outputs.histories.name, outputs.fold_results.name}
    names |= {outputs.predictions.name, outputs.summary.name, outputs.report.name, *PLOTS}
    names |= {file.name for file in outputs.all_best_weights()}
    return names | {
        f"fold_{fold}/epoch_{epoch}.safetensors" for fold in FOLDS for epoch in range(EPOCHS)
    }


def to_go_up(outputs: ModelDir) -> dict[str, bytes]:
    """What the repository of a complete run has to hold."""
    return {
        ".gitattributes": ATTRIBUTES.encode(),
        "README.md": outputs.card.read_bytes(),
        **to_go_up_of(outputs),
    }


def to_go_up_of(outputs: ModelDir) -> dict[str, bytes]:
    """The same of a run or of a repeat, without what the Hub's side adds."""
    paths = without_card(outputs)
    of_epochs = {path for path in paths if "/epoch_" in path}
    folders = {path: outputs.checkpoints if path in of_epochs else outputs.root for path in paths}
    return {path: (folder / path).read_bytes() for path, folder in folders.items()}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    config = train(tmp_path / "out")
    complete(config)
    return config


@pytest.fixture
def outputs(config: RunConfig) -> ModelDir:
    return config.outputs


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def said() -> list[str]:
    """What the user was told."""
    return []


@pytest.fixture
def make(hub: HubServer, said: list[str]) -> Iterator[MakeMirror]:
    """Makes mirrors that are in a hurry and not started yet; they end with the test."""
    made: list[HubMirror] = []

    def say(line: str) -> None:
        if "waiting for" not in line:  # that depends on the machine
            said.append(line)

    def make_mirror(outputs: ModelDir, token: str = hub.token, **changes: object) -> HubMirror:
        options: dict[str, object] = {"interval": 0.05, "first_pause": 0.05, **changes}
        repository = ModelRepository(REPO, token)
        made.append(HubMirror(outputs, repository, say, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make_mirror
    hub.clear_faults()
    for mirror in made:
        mirror.stop()
        assert not mirror.started or mirror.wait(20)


def upload_all(mirror: HubMirror, seconds: float = 30) -> None:
    """Run a mirror to its end."""
    mirror.finish()
    mirror.start()
    assert mirror.wait(seconds)


def files(hub: HubServer) -> dict[str, bytes]:
    return hub.repository(REPO).files


def commits(hub: HubServer) -> list[tuple[str, ...]]:
    """The paths of each commit after the Hub's own first."""
    return [commit.paths for commit in hub.repository(REPO).commits[1:]]


def seen(hub: HubServer) -> list[str]:
    return [request.endpoint for request in hub.requests]


def check_all_up_once(hub: HubServer, outputs: ModelDir) -> None:
    assert files(hub) == to_go_up(outputs)
    times = Counter(path for paths in commits(hub) for path in paths)
    assert times == dict.fromkeys(to_go_up(outputs).keys() - {".gitattributes"}, 1)


def count(said: list[str], text: str) -> int:
    return sum(text in line for line in said)


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it does not come to pass"
        time.sleep(0.01)


# --- what goes up --------------------------------------------------------------------------------


def test_everything_goes_up_and_nothing_else(
    hub: HubServer, outputs: ModelDir, make: MakeMirror, said: list[str]
) -> None:
    """Byte for byte, into this tree:

    .gitattributes                          the Hub's own
    README.md                               model_card.md
    all_fold_histories_pytorch.pkl
    fold_1/epoch_0.safetensors              checkpoints/fold_1/epoch_0.safetensors
    fold_1/epoch_1.safetensors
    fold_2/epoch_0.safetensors
    fold_2/epoch_1.safetensors
    fold_results.json
    model_fold_1_best.safetensors
    model_fold_2_best.safetensors
    oof_predictions.npz
    plots/confusion.png
    plots/curves.png
    report.html
    summary.json
    """
    upload_all(make(outputs))
    assert sorted(files(hub)) == [
        ".gitattributes",
        "README.md",
        "all_fold_histories_pytorch.pkl",
        "fold_1/epoch_0.safetensors",
        "fold_1/epoch_1.safetensors",
        "fold_2/epoch_0.safetensors",
        "fold_2/epoch_1.safetensors",
        "fold_results.json",
        "model_fold_1_best.safetensors",
        "model_fold_2_best.safetensors",
        "oof_predictions.npz",
        "plots/confusion.png",
        "plots/curves.png",
        "report.html",
        "summary.json",
    ]
    card = outputs.card.read_text()
    assert all(f"]({name})" in card for name in PLOTS) and "plots/folds.png" not in card
    check_all_up_once(hub, outputs)
    assert len(said) == 1 and f"{hub.endpoint}/{REPO}" in said[0] and OPEN in said[0]


def test_repeats_go_up_in_folders_of_their_own(
    hub: HubServer, outputs: ModelDir, make: MakeMirror, said: list[str]
) -> None:
    repeat = train(outputs.root / "seed_1")
    complete(repeat)
    upload_all(make(outputs))
    of_repeat = {f"seed_1/{path}": content for path, content in to_go_up_of(repeat.outputs).items()}
    assert files(hub) == to_go_up(outputs) | of_repeat
    last = commits(hub)[-1]
    assert {"summary.json", "seed_1/summary.json"} <= set(last)
    assert count(said, "of another run") == 0


def test_files_of_others_stay_and_are_told_of(
    hub: HubServer, outputs: ModelDir, make: MakeMirror, said: list[str]
) -> None:
    """Another run's folds in the repository, and somebody's copy among our own weights."""
    others = {"model_fold_7_best.safetensors": b"7", "fold_1/epoch_9.safetensors": b"9", "a": b"a"}
    hub.add_repository(REPO, files=others)
    copy = outputs.epoch_weights(1, 0).with_name("epoch_0 (copy).safetensors")
    copy.write_bytes(b"copied by hand")
    upload_all(make(outputs))
    assert files(hub).keys() == without_card(outputs) | {"README.md"} | others.keys()
    assert count(said, "of another run, not touched") == 1
    assert any("model_fold_7_best.safetensors" in line for line in said)


def test_what_is_pending_is_told_without_reading_files(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    mirror = make(outputs)
    mirror.finish()
    waiting = mirror.pending()["Hub"]
    mirror.start()
    assert mirror.wait(30)
    assert waiting == len(files(hub)) - len({".gitattributes", "README.md"})
    assert mirror.pending()["Hub"] == 0
    add_weights(outputs, range(7, 9))
    assert mirror.pending()["Hub"] == 2
    outputs.epoch_weights(1, 7).unlink()
    assert mirror.pending()["Hub"] == 1
    outputs.histories.write_bytes(b"others")
    assert mirror.pending()["Hub"] == 2


def test_a_card_that_the_hub_refuses_keeps_nothing_else_back(
    hub: HubServer, outputs: ModelDir, make: MakeMirror, said: list[str]
) -> None:
    hub.fault("validate_yaml", Fault("status", status=400))
    upload_all(make(outputs))
    assert files(hub).keys() == without_card(outputs) | {".gitattributes"}
    assert count(said, "HTTP 400") == count(said, "going on without the model card") == 1


def test_the_interval_is_from_the_end_of_a_slow_upload(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    add_weights(outputs, range(10, 110))  # more than go into one commit
    hub.fault("lfs_put", Fault("slow", seconds=0.7, times=1))
    upload_all(make(outputs, interval=0.5))
    times = [commit.time for commit in hub.repository(REPO).commits[1:]]
    assert len(times) == 2
    began = [request.time for request in hub.requests if request.endpoint == "preupload"]
    assert began[1] - times[0] > 0.45


def test_only_the_best_weights_go_up_where_that_is_wanted(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    upload_all(make(outputs, upload="best"))
    everything = to_go_up(outputs)
    wanted = {path: everything[path] for path in everything if "/epoch_" not in path}
    assert files(hub) == wanted


def test_nothing_is_left_beside_the_outputs(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    before = set(outputs.root.rglob("*"))
    upload_all(make(outputs))
    assert set(outputs.root.rglob("*")) - before == {outputs.card}


def test_a_second_uploader_finds_nothing_to_do(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    upload_all(make(outputs))
    again = make(outputs)
    upload_all(again)
    assert again.missing() == []
    assert seen(hub).count("commit") == 1 and len(commits(hub)) == 1


def test_what_is_there_of_old_is_replaced(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    same = outputs.epoch_weights(1, 0).read_bytes()
    held = {"fold_1/epoch_0.safetensors": same, "fold_1/epoch_1.safetensors": b"older"}
    hub.add_repository(REPO, files={**held, "README.md": b"older", "mine.txt": b"stays"})
    upload_all(make(outputs))
    wanted = {**to_go_up(outputs), "mine.txt": b"stays"}
    del wanted[".gitattributes"]  # this repository was not made by the uploader
    assert files(hub) == wanted
    assert not any("fold_1/epoch_0.safetensors" in paths for paths in commits(hub))


def test_files_go_up_while_the_run_goes_on(
    hub: HubServer, tmp_path: Path, make: MakeMirror
) -> None:
    config = train(tmp_path / "out")
    mirror = make(config.outputs)
    mirror.start()
    until(lambda: hub.repositories and "model_fold_2_best.safetensors" in files(hub))
    assert b"In training" in files(hub)["README.md"] and "summary.json" not in files(hub)
    add_weights(config.outputs, range(2, 3))
    mirror.wake()
    until(lambda: "fold_1/epoch_2.safetensors" in files(hub))
    complete(config)
    mirror.finish()
    assert mirror.wait(20)
    assert {**to_go_up(config.outputs), "fold_1/epoch_2.safetensors": b"further epoch 2\n"} == (
        files(hub)
    )
    assert b"In training" not in files(hub)["README.md"]


def test_a_run_that_goes_on_takes_an_earlier_summary_away_first(
    hub: HubServer, tmp_path: Path, make: MakeMirror
) -> None:
    hub.add_repository(REPO, files={"summary.json": b"{}", "mine.txt": b"stays"})
    mirror = make(train(tmp_path / "out").outputs)
    mirror.start()
    until(lambda: len(hub.repository(REPO).commits) > 1)
    assert hub.repository(REPO).commits[1].deleted == ("summary.json",)
    assert "mine.txt" in files(hub) and "summary.json" not in files(hub)


def test_a_summary_that_was_taken_away_without_a_reply_is_not_missed(
    hub: HubServer, tmp_path: Path, make: MakeMirror, said: list[str]
) -> None:
    hub.add_repository(REPO, files={"summary.json": b"{}"})
    hub.fault("commit", Fault("lost_reply", times=1))
    mirror = make(train(tmp_path / "out").outputs)
    upload_all(mirror)
    assert count(said, "uploads stop") == 0
    assert mirror.missing() == [] and "summary.json" not in files(hub)


# --- how often, and how much at once -------------------------------------------------------------


def test_commits_keep_their_distance(hub: HubServer, tmp_path: Path, make: MakeMirror) -> None:
    config = train(tmp_path / "out")
    mirror = make(config.outputs, interval=0.5)
    mirror.start()
    for epoch in range(EPOCHS, 42):
        add_weights(config.outputs, range(epoch, epoch + 1))
        mirror.wake()
        time.sleep(0.05)
    complete(config)
    mirror.finish()
    assert mirror.wait(20)

    # Each commit begins with one of these; how long it then takes is not the uploader's.
    began = [request.time for request in hub.requests if request.endpoint == "preupload"]
    assert len(began) == len(commits(hub)) >= 3
    assert all(later - earlier > 0.35 for earlier, later in itertools.pairwise(began))
    assert all(len(paths) > 1 for paths in commits(hub))
    assert ["summary.json" in paths for paths in commits(hub)] == (
        [False] * (len(began) - 1) + [True]
    )
    assert mirror.missing() == []


def test_many_files_go_up_in_several_commits(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    add_weights(outputs, range(EPOCHS, 190))
    upload_all(make(outputs))
    assert len(commits(hub)) == 3
    assert all(len(paths) < 100 for paths in commits(hub))
    assert ["summary.json" in paths for paths in commits(hub)] == [False, False, True]
    assert "README.md" in commits(hub)[0]
    assert len(files(hub)) == len(set(sum(commits(hub), ()))) + 1 == 190 + EPOCHS + 11


# --- faults that pass ----------------------------------------------------------------------------

FAULTS = {
    "500": Fault("status", 500),
    "429": Fault("status", 429, retry_after=1),
    "reset": Fault("reset"),
    "lost_reply": Fault("lost_reply"),
    "slow": Fault("slow", seconds=0.3),
    "409": Fault("status", 409),
    "412": Fault("status", 412),
}
# The client itself tries these again, with pauses of a second and more.
PATIENT = ("tree", "preupload", "lfs_batch", "lfs_put", "lfs_verify")
# Each kind of fault at one endpoint, and one kind at each endpoint; the other pairs take long.
STRUCK = [
    pytest.param(
        endpoint,
        kind,
        marks=[] if kind == "500" or endpoint == "commit" else pytest.mark.slow,
    )
    for endpoint in ("create", "validate_yaml", "commit", *PATIENT)
    for kind in FAULTS
    if kind not in ("409", "412") or endpoint == "commit"
]


@pytest.mark.parametrize(("endpoint", "kind"), STRUCK)
def test_a_fault_that_passes_costs_nothing(
    hub: HubServer, outputs: ModelDir, make: MakeMirror, endpoint: str, kind: str, said: list[str]
) -> None:
    times = 1 if endpoint in PATIENT else 2
    hub.fault(endpoint, Fault(**{**vars(FAULTS[kind]), "times": times}))
    mirror = make(outputs)
    upload_all(mirror)
    check_all_up_once(hub, outputs)
    assert all(commits(hub)), "a commit of nothing new"
    assert mirror.missing() == []
    assert endpoint in seen(hub)
    assert count(said, OPEN) == 1
    assert count(said, OUTAGE) == count(said, REACHED) <= 1, said
    if endpoint not in PATIENT and kind != "slow":
        assert count(said, OUTAGE) == 1


@pytest.mark.parametrize("endpoint", [pytest.param("create", marks=pytest.mark.slow), "commit"])
def test_the_hub_is_left_in_peace_for_as_long_as_it_says(
    hub: HubServer, outputs: ModelDir, make: MakeMirror, endpoint: str
) -> None:
    hub.fault(endpoint, Fault("status", 429, retry_after=2, times=1))
    upload_all(make(outputs))
    struck = seen(hub).index(endpoint)
    assert hub.requests[struck + 1].time - hub.requests[struck].time > 1.9


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("Retry-After", "7", 7),
        ("RateLimit", '"api";r=0;t=7', 7),
        ("RateLimit", '"api";r=10;t=7', None),  # it is not the limit that refused
        ("RateLimit", "soon", None),
    ],
)
def test_an_outage_has_the_seconds_that_the_hub_says(
    hub: HubServer, name: str, value: str, seconds: float | None
) -> None:
    hub.fault("create", Fault("status", 429, headers={name: value}))
    with pytest.raises(Unavailable, match="429") as unavailable:
        ModelRepository(REPO, hub.token).create()
    assert unavailable.value.retry_after == seconds


def test_a_client_that_hides_its_http_client_is_waited_for(
    hub: HubServer,
    outputs: ModelDir,
    make: MakeMirror,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is private in the client may go in any version."""
    monkeypatch.delattr("huggingface_hub.utils._http.default_client_factory")
    with caplog.at_level("INFO", "raykfold"):
        upload_all(make(outputs))
    assert "waits for replies without a time limit" in caplog.text
    check_all_up_once(hub, outputs)


def test_pauses_grow_while_commits_fail(
    hub: HubServer, outputs: ModelDir, make: MakeMirror, said: list[str]
) -> None:
    hub.fault("commit", Fault("status", 503, times=5))
    upload_all(make(outputs))
    tried = [request.time for request in hub.requests if request.endpoint == "commit"]
    assert len(tried) == 6 and tried[5] - tried[4] > 0.7  # 0.05 s, doubled four times
    assert count(said, OUTAGE) == count(said, REACHED) == 1, said


def test_a_repository_that_is_not_seen_at_once_is_waited_for(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    hub.fault("tree", Fault("status", 404, times=3))
    upload_all(make(outputs))
    check_all_up_once(hub, outputs)


def test_a_gateway_that_answers_in_html_is_an_outage(
    monkeypatch: pytest.MonkeyPatch, outputs: ModelDir, said: list[str]
) -> None:
    """What stands before the Hub has an answer of its own when nobody is behind it."""
    with Gateway() as gateway:
        monkeypatch.setenv("HF_ENDPOINT", gateway.url)
        mirror = HubMirror(outputs, ModelRepository(REPO, "hf_test"), said.append, first_pause=0.05)
        mirror.start()
        try:
            until(lambda: gateway.asked > 1 or mirror.wait(0))
        finally:
            mirror.stop()
            assert mirror.wait(20)
    assert count(said, OUTAGE) == 1 and count(said, "uploads stop") == 0, said


class Gateway(ThreadingHTTPServer):
    """Knows the repository and that it is empty; the rest is a bad gateway."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked = 0  # for what it has not

    def __enter__(self) -> Gateway:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Answer(BaseHTTPRequestHandler):
    def answer(self) -> None:
        assert isinstance(self.server, Gateway)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        known = {"/api/repos/create": {"url": f"{self.server.url}/{REPO}"}}
        if self.path.startswith(f"/api/models/{REPO}/tree/"):
            status, kind, body = 200, "application/json", b"[]"
        elif self.path in known:
            status, kind, body = 200, "application/json", json.dumps(known[self.path]).encode()
        else:
            self.server.asked += 1
            status, kind, body = 502, "text/html", b"<html><h1>502 Bad Gateway</h1></html>"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_it_stops_in_the_middle_of_a_pause(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    hub.fault("commit", Fault("status", 503))
    mirror = make(outputs, first_pause=200)
    mirror.start()
    until(lambda: "commit" in seen(hub))
    mirror.stop()
    assert mirror.wait(20)
    assert mirror.missing()


def test_it_stops_while_it_waits_for_the_next_commit(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    mirror = make(outputs, interval=200)
    mirror.start()
    until(lambda: hub.repositories and commits(hub))
    mirror.finish()  # the summary has still to go up
    mirror.stop()
    assert mirror.wait(20)
    assert "summary.json" in mirror.missing()
    assert len(commits(hub)) == 1


@pytest.mark.parametrize("endpoint", ["lfs_batch", "lfs_put", "commit"])
def test_a_file_may_be_replaced_while_it_goes_up(
    hub: HubServer, outputs: ModelDir, make: MakeMirror, endpoint: str, said: list[str]
) -> None:
    hub.fault(endpoint, Fault("slow", seconds=0.5, times=1))
    mirror = make(outputs)
    mirror.start()
    until(lambda: endpoint in seen(hub))
    write_file(outputs.best_weights(1), b"better weights")
    write_file(outputs.epoch_weights(2, 0), b"trained again after a death")
    mirror.finish()
    assert mirror.wait(20)
    assert files(hub) == to_go_up(outputs)
    assert files(hub)["model_fold_1_best.safetensors"] == b"better weights"
    assert len(said) == 1  # what went up was whole, of the older file too


# --- faults that stay ----------------------------------------------------------------------------

REFUSALS = [
    ("create", 400, "HTTP 400"),
    ("create", 401, "HF_TOKEN"),
    ("create", 403, "write permission"),
    ("create", 404, "check the name"),
    ("tree", 404, "check the name"),
    ("commit", 403, "write permission"),
    ("commit", 404, "check the name"),
]


@pytest.mark.parametrize(("endpoint", "status", "advice"), REFUSALS)
def test_a_refusal_is_said_once_and_what_is_left_can_be_sent_later(
    hub: HubServer,
    outputs: ModelDir,
    make: MakeMirror,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    endpoint: str,
    status: int,
    advice: str,
    said: list[str],
) -> None:
    hub.fault(endpoint, Fault("status", status))
    mirror = make(outputs)
    upload_all(mirror)
    (refusal,) = [line for line in said if "uploads stop here" in line]
    assert advice in refusal and "\n" not in refusal
    assert refusal == said[-1]
    # The card is made when it is known what the repository holds.
    card = {"README.md"} if endpoint == "commit" else set()
    assert set(mirror.missing()) == without_card(outputs) | card
    if hub.repositories:
        assert list(files(hub)) == [".gitattributes"]

    hub.clear_faults()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    for _ in range(2):
        assert main(["upload", "--model_dir", str(outputs.root)]) == 0
        printed = capsys.readouterr()
        assert f"Hub: every file is in {REPO}" in printed.out and printed.err == ""
        check_all_up_once(hub, outputs)
    assert os.environ["HF_TOKEN"] == hub.token


def test_a_token_is_shown_nowhere(
    hub: HubServer,
    outputs: ModelDir,
    make: MakeMirror,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SeCrEt")
    upload_all(make(outputs, token="hf_SeCrEt"))
    upload_all(make(outputs, token=None))  # the one of the environment
    assert count(said, "HTTP 401") == 2 and count(said, "hf_SeCrEt") == 0
    hub.add_repository(DATASET, "dataset", {"folds.npy": b"folds"})
    with pytest.raises(BadData, match="401") as refused:
        fetch_missing(outputs.root / "data", DATASET, "hf_SeCrEt", said.append)
    assert "hf_SeCrEt" not in f"{refused.value!r} {said}"

    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert main(["upload", "--model_dir", str(outputs.root)]) == 0
    written = [file for file in outputs.root.rglob("*") if file.is_file()]
    assert written and files(hub)
    for content in [*(file.read_bytes() for file in written), *files(hub).values()]:
        assert b"hf_SeCrEt" not in content and hub.token.encode() not in content


# --- the mirror of a run -------------------------------------------------------------------------


def start() -> RunStart:
    return RunStart("run", EPOCHS, FOLDS, {})


def test_a_run_is_mirrored_and_waits_for_the_end(
    hub: HubServer, tmp_path: Path, make: MakeMirror, said: list[str]
) -> None:
    config = train(tmp_path / "out")
    mirror = make(config.outputs, timeout=20)
    mirror.run_started(start())
    mirror.epoch_committed(1, history(1)[0])
    until(lambda: hub.repositories and len(files(hub)) > 1)
    mirror.time_passed()
    assert count(said, OPEN) == 1
    hub.fault("lfs_put", Fault("slow", seconds=0.3))  # so that there is something to wait for
    mirror.run_finished(complete(config))
    mirror.close()
    assert files(hub) == to_go_up(config.outputs)
    assert said[-1] == "Hub: everything is up"
    assert count(said, OPEN) == 1


def closed_mirror(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, said: list[str], timeout: float
) -> HubMirror:
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    changed = RunConfig(
        run_name="run", model_dir=config.model_dir, hf_model_repo_id=REPO, hub_timeout=timeout
    )
    return hub_mirror(changed, "hf_test", said.append)


def test_a_hub_that_is_not_there_does_not_hold_up_the_end(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    mirror = closed_mirror(config, monkeypatch, said, timeout=1.2)
    mirror.run_started(start())
    mirror.run_finished(complete(config))
    began = time.monotonic()
    mirror.close()
    assert time.monotonic() - began > 1.1
    assert count(said, OUTAGE) == 1 and count(said, OPEN) == 0
    assert count(said, "waiting for 13 files to be sent") == 1
    last = said[-1]
    assert "not sent yet: 13 files (fold_1/epoch_0.safetensors" in last
    assert f"python -m raykfold.hub upload --model_dir {config.model_path}" in last


def test_a_session_that_is_interrupted_does_not_wait(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    mirror = closed_mirror(config, monkeypatch, said, timeout=20)
    mirror.run_started(start())
    mirror.close()
    assert count(said, "waiting") == 0
    assert "not sent yet" in said[-1] and "summary.json" not in said[-1]


def test_a_session_that_never_began_says_nothing(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    closed_mirror(config, monkeypatch, said, timeout=200).close()
    assert said == []


# --- kills ---------------------------------------------------------------------------------------

UPLOAD = """
import sys
from pathlib import Path
from raykfold.files.paths import ModelDir
from raykfold.outputs.hub_client import ModelRepository
from raykfold.outputs.hub_mirror import HubMirror

repository = ModelRepository(sys.argv[2], "hf_test")
mirror = HubMirror(ModelDir(Path(sys.argv[1])), repository, print)
mirror.finish()
mirror.start()
mirror.wait(200)
"""


def kill_when(condition: Callable[[], object], script: str, *arguments: str) -> None:
    with subprocess.Popen([sys.executable, "-c", script, *arguments]) as process:
        try:
            until(lambda: condition() or process.poll() is not None, 60)
            assert process.poll() is None, "it ended before it could be killed"
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("endpoint", "requests"), [("create", 1), ("lfs_put", 3), ("commit", 1)])
def test_a_kill_in_the_middle_loses_nothing(
    hub: HubServer, outputs: ModelDir, make: MakeMirror, endpoint: str, requests: int
) -> None:
    hub.fault(endpoint, Fault("slow", seconds=0.5))
    kill_when(lambda: seen(hub).count(endpoint) >= requests, UPLOAD, str(outputs.root), REPO)
    hub.clear_faults()
    upload_all(make(outputs))  # while the Hub may still be at work on what it was asked before
    check_all_up_once(hub, outputs)
    assert list(outputs.root.glob("rkf-*")) == []


def test_a_commit_that_a_killed_uploader_has_asked_for_is_not_made_again(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    hub.fault("commit", Fault("slow", seconds=0.3))
    kill_when(lambda: "commit" in seen(hub), UPLOAD, str(outputs.root), REPO)
    until(lambda: commits(hub))
    upload_all(make(outputs))
    check_all_up_once(hub, outputs)
    assert seen(hub).count("commit") == 1


def test_a_kill_between_two_commits_loses_nothing(
    hub: HubServer, outputs: ModelDir, make: MakeMirror
) -> None:
    add_weights(outputs, range(EPOCHS, 92))
    kill_when(
        lambda: hub.repositories and commits(hub), UPLOAD, str(outputs.root), REPO
    )  # the second is a minute away
    assert len(commits(hub)) == 1 and "summary.json" not in files(hub)
    upload_all(make(outputs))
    assert len(commits(hub)) == 2 and "summary.json" in commits(hub)[1]
    assert not set(commits(hub)[0]) & set(commits(hub)[1])
    assert files(hub).items() >= to_go_up(outputs).items()
    assert len(files(hub)) == len(to_go_up(outputs)) + 90


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["upload", "--model_dir", "{nothing}"], "holds no run"),
        (["upload", "--model_dir", "{without}"], "expected owner/name"),
        (["upload", "--model_dir", "{without}", "--repoo", "a/b"], "--repoo"),
        (["upload", "--model_dir", "{without}", "--hub_upload", "some"], "some"),
        (["upload"], "--model_dir"),
        ([], "upload"),
        (["download"], "download"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    without = RunConfig(run_name="run", model_dir=tmp_path / "without")
    RunRecord.of(without, identity(without, "f00d", "cpu x1"), "20250101-000000", (1, 2)).write(
        without
    )
    folders = {"nothing": tmp_path / "nothing", "without": tmp_path / "without"}
    assert main([argument.format(**folders) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("raykfold: ") and said in err


def test_another_repository_and_choice_can_be_told(
    hub: HubServer,
    outputs: ModelDir,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    told = ["--model-dir", str(outputs.root), "--repo", "team/other", "--hub-upload", "best"]
    assert main(["upload", *told]) == 0
    assert "every file is in team/other" in capsys.readouterr().out
    assert [repository.id for repository in hub.repositories] == ["team/other"]
    assert not any("/epoch_" in path for path in hub.repository("team/other").files)


def test_the_command_says_what_is_not_up(outputs: ModelDir) -> None:
    command = [sys.executable, "-m", "raykfold.hub", "upload", "--hub_timeout", "1"]
    ended = subprocess.run(
        [*command, "--model_dir", str(outputs.root)],
        env={**os.environ, "HF_ENDPOINT": CLOSED},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "")
    assert ended.stdout.count(OUTAGE) == 1
    assert "Hub: not sent yet: 13 files (" in ended.stdout.splitlines()[-1]

"""Searches as a user starts them, from the shell: real Ray, Ray Tune, cross-validations."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.hub_server import HubServer
from support.outcome import Outcome, assert_as_without_ray
from support.shell import read_until, run_command, start_command
from support.small_data import CLASSES, small_arrays

import raykfold.run
from raykfold.config.options import read_toml
from raykfold.data.reading import read_feature_set, write_feature_set
from raykfold.search import main

ORDINARY, TROUBLED = "raykfold.models:AudioCNN", "support.networks:Troubled"
OTHER = f"{ORDINARY}(dropout=0.1)"
# Of three folds on two slots; fold 4's third evaluation by a troubled network raises.
BASE = """
processed_dir = "{data_dir}"
folds = [1, 3, 4]
epochs = 6
early_stopping_patience = 1
local_cpus = 2
model_dir = "{model_dir}"
"""
MODELS = (ORDINARY, TROUBLED, OTHER)
GRID = f"model = {{grid = {list(MODELS)}}}\nlearning_rate = {{grid = [0.005]}}"


def write_config(folder: Path, text: str, space: str, **places: Path) -> Path:
    file = folder / "search.toml"
    file.write_text(f"{text.format(**places)}\n[search]\n{space}\n")
    return file


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "raykfold.search", "--config", str(config), *arguments]


def run(config: Path, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    return run_command(command(config, *arguments), timeout=timeout)


def kill_after(config: Path, *arguments: str, lines: Sequence[str]) -> None:
    """Start a search, and kill its driver when it has printed such lines, one after the other."""
    killed = start_command(command(config, *arguments))
    try:
        for line in lines:
            read_until(killed, line)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Start a search in this process that is refused, and return the line that says why."""

    def refuse(config: Path, *arguments: str) -> str:
        assert main(command(config, *arguments)[3:]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1, printed
        return printed.err.removeprefix("raykfold: ").rstrip("\n")

    return refuse


def found_in(model_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((model_dir / "search.json").read_text())
    return content


@dataclass(frozen=True)
class Searched:
    """A search that is over, how its command ended, and the Hub that its best trial went to."""

    config: Path
    model_dir: Path
    done: subprocess.CompletedProcess[str]
    hub: HubServer

    @property
    def found(self) -> dict[str, Any]:
        return found_in(self.model_dir)


@pytest.fixture(scope="module")
def searched(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    """Three trials of three folds on two slots, one of which fails; nothing stops the others.

    The driver is killed during the first trial. The search is resumed with two more, and its best
    trial sent to the Hub.
    """
    folder = tmp_path_factory.mktemp("searched")
    model_dir = folder / "out"
    config = write_config(folder, BASE, GRID, data_dir=data_dir, model_dir=model_dir)
    same = ("--trial_scheduler", "none", "--concurrent_trials", "3")
    kill_after(config, *same, "--trials", "1", lines=[r"^trial 1  epoch 1/"])
    sent = ("--hf_model_repo_id", "tester/best", "--hub_interval", "0.5")
    with HubServer() as hub:
        env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": HubServer.token}
        yield Searched(config, model_dir, run_command(command(config, *same, *sent), env), hub)


# --- a whole search ------------------------------------------------------------------------------


def test_trials_that_wait_for_the_same_slots_all_come_to_their_end(searched: Searched) -> None:
    assert searched.done.returncode == 3, searched.done.stderr
    found = searched.found
    assert found["status"] == "partial"
    assert [row["trial"] for row in found["trials"]] == [1, 2, 3]
    ended = {row["config"]["model"]: row["status"] for row in found["trials"]}
    assert ended == {ORDINARY: "complete", OTHER: "complete", TROUBLED: "failed"}


def test_a_trial_is_the_run_that_its_values_make(searched: Searched, outcome: Outcome) -> None:
    row = row_of(searched, ORDINARY)
    mine = Outcome.of(Path(row["model_dir"]))
    folds = [1, 3, 4]
    expected = [row for row in outcome.folds if row["fold"] in folds]
    assert mine.folds == expected
    assert mine.histories == [outcome.histories[fold - 1] for fold in folds]
    for name, content in mine.weights.items():
        assert content == outcome.weights[name], name
    assert row["fold_scores"] == {str(each["fold"]): each["best_val_accuracy"] for each in expected}
    summary = json.loads((Path(row["model_dir"]) / "summary.json").read_text())
    assert row["mean_accuracy"] == summary["mean_accuracy"]
    assert row["std_accuracy"] == summary["std_accuracy"]
    assert row["epochs_run"] == sum(each["epochs_run"] for each in expected)
    assert row["rounds"] == max(each["epochs_run"] for each in expected)


def row_of(searched: Searched, model: str) -> dict[str, Any]:
    values = {"model": model, "learning_rate": 0.005}
    (row,) = (row for row in searched.found["trials"] if row["config"] == values)
    return row


def test_a_score_is_the_mean_over_all_folds_after_each_epoch(searched: Searched) -> None:
    row = row_of(searched, OTHER)
    results = json.loads((Path(row["model_dir"]) / "fold_results.json").read_text())
    accuracies = [[epoch["val_accuracy"] for epoch in fold["history"]] for fold in results]
    expected = [
        sum(max(fold[:epoch]) for fold in accuracies) / len(accuracies)
        for epoch in range(1, max(map(len, accuracies)) + 1)
    ]
    assert row["history"] == pytest.approx(expected, abs=1e-12)


def test_a_trial_that_fails_says_why_and_stops_no_other(searched: Searched) -> None:
    row = row_of(searched, TROUBLED)
    assert row["error"] == "fold 4: epoch 3: RuntimeError: sensor unplugged"
    assert row["mean_accuracy"] is None
    assert f"trial {row['trial']} failed: {row['error']}\n" in searched.done.stdout


def test_the_table_names_the_best_and_how_far_to_trust_it(searched: Searched) -> None:
    best = searched.found["best"]
    complete = [row for row in searched.found["trials"] if row["status"] == "complete"]
    assert best["mean_accuracy"] == max(row["mean_accuracy"] for row in complete)
    output = searched.done.stdout
    assert f"Best: trial {best['trial']}, {best['mean_accuracy']:.4f} (+/- " in output
    assert "have chosen it among 2, so its accuracy is optimistic; --nested measures" in output
    assert f"page: {searched.model_dir / 'report.html'}\n" in output
    assert "<html" in (searched.model_dir / "report.html").read_text()


def test_the_command_of_the_best_trial_runs_it(
    searched: Searched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", searched.hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", HubServer.token)
    best = searched.found["best"]
    given = best["command"].split()
    assert given[:3] == ["python", "-m", "raykfold.run"]
    assert raykfold.run.main(given[3:]) == 0
    printed = capsys.readouterr().out
    assert "complete already, skipped: folds 1, 3, 4; nothing is left to train" in printed
    assert f"Average Best Validation Accuracy: {best['mean_accuracy']:.4f}" in printed
    values = read_toml(best["config_file"])
    assert values["learning_rate"] == best["config"]["learning_rate"]
    assert "search" not in values


def test_a_killed_search_resumes_with_what_its_trials_have(searched: Searched) -> None:
    lines = searched.done.stdout
    assert re.search(r"^trial 1 resumes after epoch \d", lines, re.MULTILINE)
    kept = r"^trial 1: (fold 4: resumes after epoch \d|complete already, skipped: folds 1, 3, 4)"
    assert re.search(kept, lines, re.MULTILINE)
    assert "trial 1 begins: " not in lines and "trial 2 begins: " in lines
    assert searched.found["sessions"] == 2


def test_the_best_trial_goes_to_the_hub(searched: Searched) -> None:
    (repository,) = searched.hub.repositories
    best = Path(searched.found["best"]["model_dir"])
    for name in ("model_fold_3_best.safetensors", "summary.json"):
        assert repository.files[name] == (best / name).read_bytes()


# --- what is wrong is said before anything starts ------------------------------------------------


def test_a_search_is_not_resumed_with_other_settings(
    searched: Searched, refused: Callable[..., str], tmp_path: Path
) -> None:
    before = (searched.model_dir / "search.json").read_bytes()
    same = ("--trial_scheduler", "none")
    fewer = refused(searched.config, *same, "--trials", "2")
    assert fewer.startswith("--trials 2: the search has already begun 3; expected at least that")
    epochs = refused(searched.config, *same, "--epochs", "7")
    assert "is taken by a search with epochs 6, and this one has 7" in epochs
    assert "a search with trial_scheduler none, and this one has asha" in refused(searched.config)
    other = tmp_path / "search.toml"
    other.write_text(searched.config.read_text().replace("[0.005]", "[0.003]"))
    assert "the [search] table differs" in refused(other, *same)
    assert (searched.model_dir / "search.json").read_bytes() == before


@pytest.mark.parametrize("module", ["run", "status", "report"])
def test_other_commands_refuse_the_outputs_of_a_search(
    searched: Searched, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--demo", "--run_name", "sounds", "--model_dir"] if module == "run" else []
    other = importlib.import_module(f"raykfold.{module}")
    assert other.main([*where, str(searched.model_dir)]) == 2
    said = "is taken by a search" if module == "run" else "is a search"
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("space", "arguments", "line"),
    [
        (
            "model = {choice = ['support.networks:Missing']}",
            (),
            "--model support.networks:Missing: cannot be",
        ),
        ("model.dropout = {uniform = [0.5, 1.5]}", (), "dropout"),
        ("normalize = {choice = ['none', 'unit']}", (), "--normalize unit: divides integers by"),
        ("model.depth = {choice = [1, 2]}", (), "unexpected keyword argument 'depth'"),
        ("learning_rate = {grid = [0.1, 0.2]}", ("--sampler", "optuna"), "learning_rate is a grid"),
        (
            "batch_size = {qlograndint = [8, 64, 8]}",
            ("--sampler", "optuna"),
            "expected lograndint there",
        ),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(
    space: str,
    arguments: tuple[str, ...],
    line: str,
    refused: Callable[..., str],
    data_dir: Path,
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, BASE, space, data_dir=data_dir, model_dir=tmp_path / "out")
    assert line in refused(config, *arguments)
    assert not (tmp_path / "out").exists()


def test_nested_needs_three_folds(refused: Callable[..., str], tmp_path: Path) -> None:
    features, labels, folds = small_arrays(40)
    write_feature_set(tmp_path / "two", features, labels, folds % 2, CLASSES, {})
    space = "learning_rate = {choice = [0.1]}"
    places = {"data_dir": tmp_path / "two", "model_dir": tmp_path / "out"}
    config = write_config(tmp_path, BASE.replace("folds =", "#"), space, **places)
    assert refused(config, "--nested") == (
        "--nested true: the data has two folds; expected three or more"
    )


# --- kills and resuming --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_what_is_over_is_not_trained_again(scheduler: str, data_dir: Path, tmp_path: Path) -> None:
    """Whatever the scheduler was told before the kill: it is told again, and nothing is undone."""
    model_dir = tmp_path / "out"
    space = "learning_rate = {loguniform = [1e-5, 1e-1]}"
    config = write_config(tmp_path, BASE, space, data_dir=data_dir, model_dir=model_dir)
    arguments = ("--trials", "4", "--trial_scheduler", scheduler)
    lines = [r"^trial \d complete", r"^trial \d begins", r"^trial \d  epoch 1/"]
    kill_after(config, *arguments, lines=lines)
    before = {row["trial"]: row for row in found_in(model_dir)["trials"]}
    over = {n: row for n, row in before.items() if row["status"] in ("complete", "stopped")}
    first = {number: weights_of(model_dir / f"trials/{number}") for number in over}
    done = run(config, *arguments)
    assert done.returncode == 0, done.stderr
    after = {row["trial"]: row for row in found_in(model_dir)["trials"]}
    assert len(after) == 4 and over
    for number, row in before.items():
        told = row["history"]
        assert after[number]["history"][: len(told)] == told
    for number, row in over.items():
        assert after[number] == row
        assert weights_of(model_dir / f"trials/{number}") == first[number]


def weights_of(folder: Path) -> dict[Path, int]:
    """When each was written."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}


@pytest.mark.slow
def test_ctrl_c_ends_a_search_and_says_how_to_go_on(data_dir: Path, tmp_path: Path) -> None:
    space = "learning_rate = {loguniform = [1e-4, 1e-2]}"
    config = write_config(tmp_path, BASE, space, data_dir=data_dir, model_dir=tmp_path / "out")
    stopped = start_command(command(config, "--trials", "3"))
    read_until(stopped, r"^trial \d  epoch 1/")
    stopped.send_signal(signal.SIGINT)
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    last = output.rstrip("\n").splitlines()[-1]
    assert last.startswith("stopped; to resume: python -m raykfold.search ")
    assert str(config) in last and "--trials 3" in last
    assert "Traceback" not in output
    assert "Last result" not in output  # Ray Tune's own word


# --- which trials go on --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--sampler", "optuna")])
def test_poor_trials_are_stopped_before_their_end(
    arguments: tuple[str, ...], data_dir: Path, tmp_path: Path
) -> None:
    """Rates of which half train nothing; one of the others comes to its end, and is the best."""
    space = "learning_rate = {loguniform = [1e-7, 1e-1]}"
    text = BASE.replace("patience = 1", "patience = 9").replace("epochs = 6", "epochs = 9")
    config = write_config(tmp_path, text, space, data_dir=data_dir, model_dir=tmp_path / "out")
    done = run(config, "--trials", "8", *arguments)
    assert done.returncode == 0, done.stderr
    found = found_in(tmp_path / "out")
    statuses = [row["status"] for row in found["trials"]]
    assert len(statuses) == 8 and set(statuses) == {"complete", "stopped"}
    assert found["epochs_run"] == sum(row["epochs_run"] for row in found["trials"])
    assert found["epochs_run"] < found["epochs_of_all"] == 8 * 3 * 9
    stopped = [row for row in found["trials"] if row["status"] == "stopped"]
    assert all(0 < row["rounds"] < 9 for row in stopped)
    assert found["best"]["mean_accuracy"] > max(row["mean_accuracy"] for row in stopped)


@pytest.mark.slow
def test_nested_measures_each_winner_on_the_fold_that_it_has_not_seen(
    data_dir: Path, tmp_path: Path
) -> None:
    space = "learning_rate = {grid = [1e-6, 0.005]}"
    places = {"data_dir": data_dir, "model_dir": tmp_path / "out"}
    config = write_config(tmp_path, BASE, space, **places)
    done = run(config, "--trial_scheduler", "none", "--nested")
    assert done.returncode == 0, done.stderr
    found = found_in(tmp_path / "out")
    assert [row["fold"] for row in found["nested"]["folds"]] == [1, 3, 4]
    data = read_feature_set(data_dir)
    for row in found["nested"]["folds"]:
        fold = row["fold"]
        within = found_in(tmp_path / f"out/outer_{fold}")
        assert within["folds"] == [each for each in (1, 2, 3, 4, 5) if each != fold]
        assert row["config"] == within["best"]["config"] == {"learning_rate": 0.005}
        assert row["inner_mean_accuracy"] == within["best"]["mean_accuracy"]
        (fit,) = (tmp_path / f"out/outer_{fold}/fits").iterdir()
        assert_as_without_ray(fit, data_dir, folds=[fold], epochs=6, patience=1, inner=True)
        summary = json.loads((fit / "summary.json").read_text())
        assert row["outer_accuracy"] == summary["folds"][0]["chosen_val_accuracy"]
        index = np.load(fit / "oof_predictions.npz")["index"]
        assert set(data.folds[index].tolist()) == {fold}
        trained_on = within["trials"][0]["model_dir"]
        rows = json.loads((Path(trained_on) / "summary.json").read_text())["folds"]
        assert all(each["n_train"] + each["n_val"] == 192 for each in rows)
    accuracies = [row["outer_accuracy"] for row in found["nested"]["folds"]]
    assert found["nested"]["mean_accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["nested"]["std_accuracy"] == pytest.approx(np.std(accuracies))
    mean, std = found["nested"]["mean_accuracy"], found["nested"]["std_accuracy"]
    assert f"Nested: {mean:.4f} (+/- {std:.4f}) over 3 outer folds" in done.stdout
    for fold in (1, 3, 4):  # of a fit that is measured nothing is kept to go on with
        (left,) = (tmp_path / "out/ray").rglob(f"*-outer_{fold}/fits/*")
        assert not (left / "shares").exists() and (left / "folds").exists()
    again = run(config, "--trial_scheduler", "none", "--nested")
    assert again.returncode == 0 and "begins" not in again.stdout
    assert found_in(tmp_path / "out")["nested"] == found["nested"]

"""A hyper-parameter is declared in one place, and everything that lists them knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from support.event_files import hyperparameters

from raykfold.config.options import not_negative, number, option
from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput
from raykfold.observers import RunStart
from raykfold.outputs.model_card import model_card
from raykfold.outputs.tensorboard import TensorBoard
from raykfold.state.record import EarlierRun, RunRecord, identity
from raykfold.tuning.space import SearchConfig, parse_search


@dataclass(frozen=True)
class DecayingRun(RunConfig):
    """A run with one more hyper-parameter."""

    weight_decay: float = option(
        0.0,
        number,
        not_negative,
        group="training",
        hyperparameter=True,
        decides_results=True,
        search=True,
    )
    """Share of each weight that is taken away in a step."""


@dataclass(frozen=True)
class DecayingSearch(SearchConfig, DecayingRun):
    """A search over such runs."""

    trial_class: ClassVar[type[RunConfig]] = DecayingRun


@pytest.fixture
def config(tmp_path: Path) -> DecayingRun:
    return DecayingRun(run_name="run", model_dir=tmp_path, weight_decay=0.25)


def test_it_is_part_of_a_run_s_identity(config: DecayingRun, tmp_path: Path) -> None:
    known = identity(config, "f00d")
    assert known["weight_decay"] == 0.25
    RunRecord.of(config, known, "20260101-000000", (1, 2)).write(config)
    other = DecayingRun(run_name="run", model_dir=tmp_path, weight_decay=0.5)
    with pytest.raises(BadInput, match=r"weight_decay 0\.25, and this one has 0\.5"):
        EarlierRun.read(other).check(identity(other, "f00d"))


def test_the_command_that_resumes_has_it(config: DecayingRun) -> None:
    assert "--weight_decay 0.25" in " ".join(config.command())


def test_it_is_on_the_model_card(config: DecayingRun) -> None:
    record = RunRecord.of(config, identity(config, "f00d"), "20260101-000000", (1, 2))
    row = {"status": "running", "epochs_done": 0, "best_epoch": None, "best_val_accuracy": None}
    card = model_card("owner/name", record, {"folds": {"1": row, "2": row}}, None)
    assert "| weight_decay | 0.25 |" in card


def test_tensorboard_shows_it(config: DecayingRun) -> None:
    board = TensorBoard(config)
    board.run_started(RunStart("run", 3, (1,), {}))
    board.close()
    assert hyperparameters(config.outputs.tensorboard / "fold_1")["weight_decay"] == 0.25


def test_the_record_and_w_and_b_are_told_it(config: DecayingRun) -> None:
    assert config.to_json()["weight_decay"] == 0.25


def test_it_can_be_searched(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text("[search]\nweight_decay = {uniform = [0.0, 0.5]}\n")
    search = parse_search(["--config", str(file), "--demo"], {}, DecayingSearch)
    trial = search.trial(1, {"weight_decay": 0.125})
    assert isinstance(trial, DecayingRun) and trial.weight_decay == 0.125
    file.write_text("[search]\nweight_decay = {uniform = [-0.5, 0.5]}\n")
    with pytest.raises(
        BadInput, match=r"search\.weight_decay: uniform '-0\.5': expected 0 or more"
    ):
        parse_search(["--config", str(file), "--demo"], {}, DecayingSearch)

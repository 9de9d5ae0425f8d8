"""What a search is told: ranges, what can be wrong with them, and the runs that they make."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raykfold.config.run_config import RunConfig, parse_config
from raykfold.errors import BadInput
from raykfold.tuning.space import (
    Domain,
    SearchConfig,
    SearchSpace,
    parse_search,
    value_text,
    values_text,
)

RATE = "learning_rate = {loguniform = [1e-4, 1e-2]}"


def write(folder: Path, space: str, above: str = "", name: str = "search.toml") -> Path:
    file = folder / name
    file.write_text(f"{above}\n[search]\n{space}\n")
    return file


def parsed(folder: Path, space: str, *arguments: str, above: str = "", **env: str) -> SearchConfig:
    return parse_search(["--config", str(write(folder, space, above)), *arguments], env)


def refused(folder: Path, space: str, *arguments: str, above: str = "", **env: str) -> str:
    with pytest.raises(BadInput) as caught:
        parsed(folder, space, *arguments, above=above, **env)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder / "search.toml"), "FILE")


# --- reading -------------------------------------------------------------------------------------


def test_ranges_stand_beside_the_keys_of_a_run(tmp_path: Path) -> None:
    space = f"""
    {RATE}
    batch-size = {{choice = [16, 32]}}
    precision = {{grid = ["fp32", "bf16"]}}
    model.dropout = {{uniform = [0.1, 0.5]}}
    "model.width" = {{qrandint = [8, 32, 8]}}
    """
    config = parsed(tmp_path, space, "--trials", "7", above="epochs = 15\nsampler = 'optuna'")
    assert (config.epochs, config.num_trials, config.sampler) == (15, 7, "optuna")
    assert config.space.domains == {
        "learning_rate": Domain("loguniform", (1e-4, 1e-2)),
        "batch_size": Domain("choice", (16, 32)),
        "precision": Domain("grid", ("fp32", "bf16")),
        "model.dropout": Domain("uniform", (0.1, 0.5)),
        "model.width": Domain("qrandint", (8, 32, 8)),
    }
    assert config.space.to_json()["batch_size"] == {"choice": [16, 32]}


def test_the_network_itself_can_be_searched(tmp_path: Path) -> None:
    config = parsed(tmp_path, "model = {choice = ['a:B', 'a:C(x=1)']}")
    assert config.space.domains == {"model": Domain("choice", ("a:B", "a:C(x=1)"))}


def test_flag_goes_before_variable_and_variable_before_file(tmp_path: Path) -> None:
    above = "trials = 1\ntrial_scheduler = 'none'\ngrace_period = 2"
    config = parsed(
        tmp_path,
        RATE,
        "--trials",
        "3",
        above=above,
        RAYKFOLD_TRIALS="2",
        RAYKFOLD_TRIAL_SCHEDULER="asha",
    )
    assert (config.num_trials, config.trial_scheduler, config.grace_epochs) == (3, "asha", 2)


def test_without_a_number_there_are_as_many_trials_as_combinations(tmp_path: Path) -> None:
    grids = "batch_size = {grid = [16, 32, 64]}\nlearning_rate = {grid = [0.1, 0.2]}"
    assert parsed(tmp_path, grids).num_trials == 6
    assert parsed(tmp_path, RATE).num_trials == 20
    assert parsed(tmp_path, grids, "--trials", "auto").num_trials == 6


def test_probes_reach_both_ends_of_each_range_and_every_choice() -> None:
    space = SearchSpace(
        {
            "learning_rate": Domain("loguniform", (0.1, 0.2)),
            "batch_size": Domain("randint", (16, 33)),
            "epochs": Domain("qrandint", (2, 8, 2)),
            "model.kind": Domain("choice", ("a", "b", "c")),
            "model.width": Domain("uniform", (8, 9)),
        }
    )
    probes = list(space.probes())
    reached = {name: {probe[name] for probe in probes} for name in space.domains}
    assert reached == {
        "learning_rate": {0.1, math.nextafter(0.2, 0.1)},
        "batch_size": {16, 32},
        "epochs": {2, 8},
        "model.kind": {"a", "b", "c"},
        "model.width": {8.0, math.nextafter(9, 8)},
    }


def test_epochs_can_be_searched(tmp_path: Path) -> None:
    config = parsed(tmp_path, "epochs = {choice = [9, 27]}")
    assert (config.most_epochs, config.grace_epochs) == (27, 3)
    assert config.epochs_of({"epochs": 9}) == config.trial(1, {"epochs": 9}).epochs == 9
    in_memory = config.with_data_in_memory()
    assert not config.trial(1, {}).in_memory
    assert in_memory.run_name == "arrays" and in_memory.trial(1, {}).in_memory


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ("seed = {choice = [1, 2]}", "search.seed: cannot be searched: the best of several seeds"),
        ("folds = {choice = [1, 2]}", "search.folds: cannot be searched: it decides what is meas"),
        ("monitor = {choice = ['loss']}", "search.monitor: cannot be searched: it decides what is"),
        ("model_dir = {choice = ['a']}", "search.model_dir: cannot be searched: it does not aff"),
        (
            "trials = {choice = [1]}",
            "it does not affect training; expected it above [search]",
        ),
        ("batch-size = {choice = [1]}\nbatch_size = {choice = [2]}", "batch_size: appears tw"),
        (
            "batch_size = {choice = [10000000000000000000]}",
            "expected a whole number of less than 64 bits",
        ),
        (
            "model = {choise = ['a:B']}",
            "search.model: unknown range 'choise'; did you mean choice?",
        ),
        ("model.dropout = [0.3, 0.4]", "search.model.dropout: expected one range, as in {choice ="),
        (
            "model.dropout = 0.3",
            "search.model.dropout: expected one range, as in {choice = [1, 2]}",
        ),
        ("model.x = {choice = [1, 1.0]}", "search.model.x: choice: 1 appears twice"),
        ("learning_rat = {choice = [1]}", "search.learning_rat: unknown; did you mean learning_"),
        ("zzz = {choice = [1]}", "search.zzz: unknown; expected epochs, batch_size"),
        (
            "learning_rate = 0.1",
            "search.learning_rate: expected one range, as in {choice = [1, 2]}",
        ),
        ("learning_rate = {}", "search.learning_rate: expected one range"),
        ("learning_rate = {choice = [1], grid = [2]}", "search.learning_rate: expected one range"),
        ("learning_rate = {loguniformly = [1, 2]}", "unknown range 'loguniformly'; did you mean l"),
        ("learning_rate = {zzz = [1, 2]}", "unknown range 'zzz'; expected uniform, "),
        ("learning_rate = {choice = 1}", "choice 1: expected a list, as in choice = [1, 2]"),
        ("learning_rate = {choice = []}", "learning_rate: choice: is empty"),
        ("learning_rate = {choice = [0.1, 0.1]}", "learning_rate: choice: 0.1 appears twice"),
        ("learning_rate = {grid = [0.1, 0]}", "learning_rate: grid: '0': expected more than 0"),
        ("learning_rate = {choice = [true]}", "choice: True: expected a number or a text"),
        ("learning_rate = {choice = ['x']}", "choice: 'x': expected a number"),
        (
            "learning_rate = {uniform = [-1, 1]}",
            "learning_rate: uniform '-1.0': expected more than 0",
        ),
        ("learning_rate = {uniform = [1]}", "uniform: has 1 values; expected lower end, upper end"),
        (
            "learning_rate = {quniform = [1, 2]}",
            "has 2 values; expected lower end, upper end and step",
        ),
        (
            "learning_rate = {uniform = [0.2, 0.1]}",
            "uniform 0.2: expected a lower end below the upper",
        ),
        (
            "learning_rate = {uniform = [0.1, 0.1]}",
            "uniform 0.1: expected a lower end below the upper",
        ),
        ("learning_rate = {uniform = [0.1, inf]}", "uniform inf: expected numbers"),
        ("learning_rate = {uniform = [nan, 1]}", "uniform nan: expected numbers"),
        ("learning_rate = {uniform = ['a', 1]}", "uniform 'a': expected numbers"),
        (
            "learning_rate = {loguniform = [0, 1]}",
            "loguniform 0: expected more than 0 for a logarithmic",
        ),
        (
            "learning_rate = {quniform = [0.1, 1, 0.3]}",
            "quniform 0.1: expected a multiple of the step",
        ),
        ("learning_rate = {quniform = [0.1, 1, 0]}", "quniform 0: expected a step above 0"),
        (
            "batch_size = {uniform = [1, 2]}",
            "uniform: is not a range of whole numbers; expected randint, log",
        ),
        ("batch_size = {randint = [1.5, 2]}", "randint 1.5: expected whole numbers"),
        ("batch_size = {randint = [0, 4]}", "batch_size: randint '0': expected more than 0"),
        ("batch_size = {randint = [1, 10000000000000000000]}", "expected less than 2**63"),
        (
            "model = {uniform = [0, 4]}",
            "search.model: uniform: is a range of numbers; expected choice or grid",
        ),
        (
            "precision = {choice = ['fp8']}",
            "precision: choice: 'fp8': expected auto or fp32 or bf16",
        ),
        ("model.n_mels = {choice = [1]}", "search.model.n_mels: n_mels follows from the data"),
        ("model = {choice = ['a:B(']}", "search.model: choice: 'a:B(': expected module:Class"),
        ("model = {choice = ['a:B( )', 'a:B']}", "search.model: choice: 'a:B' appears twice"),
        ("model.x = {choice = [[1]]}", "search.model.x: choice: [1]: expected "),
        ("", "has no [search] table with ranges"),
    ],
)
def test_a_range_that_is_none_is_named(tmp_path: Path, space: str, line: str) -> None:
    said = refused(tmp_path, space)
    assert said.startswith("--config FILE: ") and line in said


def test_a_value_is_given_above_or_searched_and_not_both(tmp_path: Path) -> None:
    line = "--config FILE: search.learning_rate: also has a fixed value; expected one of the two"
    assert refused(tmp_path, RATE, above="learning_rate = 0.1") == line
    assert refused(tmp_path, RATE, "--learning_rate", "0.1") == line
    assert refused(tmp_path, RATE, RAYKFOLD_LEARNING_RATE="0.1") == line
    dropout = "model.dropout = {uniform = [0.1, 0.5]}"
    line = "--config FILE: search.model.dropout: also has a fixed value; expected one of the two"
    assert refused(tmp_path, dropout, above="model.dropout = 0.2") == line
    assert refused(tmp_path, dropout, "--model", "a:B(dropout=0.2)") == line
    assert parsed(tmp_path, dropout, above="model.head-dropout = 0.2")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--repeats", "2"), "--repeats 2: expected 1 for a search"),
        (
            ("--epochs", "5", "--grace_period", "6"),
            "--grace_period 6: expected at most the 5 --epochs",
        ),
        (("--reduction_factor", "1"), "--reduction_factor '1': expected more than 1"),
        (("--trials", "0"), "--trials '0': expected more than 0"),
        (("--sampler", "grid"), "--sampler 'grid': expected random or optuna"),
        (("--trial", "3"), "--trial: unknown flag; did you mean --trials?"),
    ],
)
def test_a_flag_that_makes_no_search_is_named(
    tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    assert refused(tmp_path, RATE, *arguments).startswith(line)


def test_a_step_of_one_is_none(tmp_path: Path) -> None:
    """Ray Tune then leaves the upper end out, and Optuna alone would not."""
    config = parsed(tmp_path, "epochs = {qrandint = [2, 4, 1]}", "--sampler", "optuna")
    assert config.space.domains == {"epochs": Domain("randint", (2, 4))}
    assert config.most_epochs == 3


def test_a_search_wants_a_file_with_ranges(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match="--config: is missing; expected a TOML file with a \\[search"
    ):
        parse_search(["--demo"], {})
    with pytest.raises(BadInput, match="is empty; expected"):
        SearchConfig(demo=True)


def test_a_run_refuses_the_file_of_a_search(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\[search\] is for python -m raykfold.search"):
        parse_config(["--config", str(write(tmp_path, RATE))], {})


# --- the runs that it makes ----------------------------------------------------------------------


def test_a_trial_is_a_run_with_its_values_in_folders_of_its_own(tmp_path: Path) -> None:
    config = parsed(tmp_path, RATE, "--demo", "--fresh", "--model_dir", str(tmp_path / "out"))
    trial = config.trial(3, {"learning_rate": 0.002, "model.width": 16, "model.dropout": 0.1})
    assert type(trial) is RunConfig
    assert (trial.demo, trial.learning_rate, trial.fresh) == (True, 0.002, False)
    assert trial.model == "raykfold.models:AudioCNN(dropout=0.1, width=16)"
    assert trial.run_name == "demo-trial-3"
    assert trial.model_dir == tmp_path / "out/trials/3"
    assert trial.run_dir.root == tmp_path / "out/ray/demo/trials/demo-trial-3"
    assert parse_config(trial.command()[3:], {}) == trial


def test_the_search_within_an_outer_fold_is_a_search_without_it(tmp_path: Path) -> None:
    config = parsed(tmp_path, RATE, "--demo", "--nested", "--folds", "1,2")
    within = config.outer(2)
    assert type(within) is SearchConfig
    assert (within.nested, within.folds, within.space) == (False, None, config.space)
    assert within.run_name == "demo-outer_2"
    assert within.run_dir.root == config.run_dir.root / "outer/demo-outer_2"
    fit = within.fit(4, {"learning_rate": 0.002}, fold=2)
    assert (fit.folds, fit.select, fit.learning_rate) == ((2,), "inner", 0.002)
    assert len({each.run_dir.root for each in (config, within, fit, within.trial(4, {}))}) == 4


def test_the_command_that_resumes_reads_back_as_the_same_search(tmp_path: Path) -> None:
    space = "learning_rate = {grid = [0.1, 0.2]}\nmodel.width = {choice = [8, 16]}"
    config = parsed(tmp_path, space, "--demo", "--trials", "3", "--nested", above="epochs = 7")
    command = config.command()
    assert command[:3] == ["python", "-m", "raykfold.search"]
    assert parse_search(command[3:], {}) == config


def test_the_command_that_resumes_says_what_the_file_would_not(tmp_path: Path) -> None:
    above = "demo = true\nepochs = 15\nnum_workers = 2\nnested = true\nfresh = true\ntrials = 9"
    flags = "--epochs 50 --num_workers auto --nested false --trials auto"
    config = parsed(tmp_path, RATE, *flags.split(), above=above)
    again = parse_search(config.command()[3:], {})
    assert (config.epochs, config.nested, config.trials) == (50, False, None)
    assert again == dataclasses.replace(config, fresh=False)


def test_arguments_of_the_network_can_stand_in_the_file_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("demo = true\nmodel.dropout = 0.3\n")
    assert parse_config(["--config", str(file)], {}).model == (
        "raykfold.models:AudioCNN(dropout=0.3)"
    )
    file.write_text('demo = true\nmodel = "a:B(x=1)"\n"model.y" = "z"\n')
    assert parse_config(["--config", str(file)], {}).model == "a:B(x=1, y='z')"
    file.write_text("demo = true\nmodel.n_mels = 3\n")
    with pytest.raises(BadInput, match="model: n_mels follows from the data"):
        parse_config(["--config", str(file)], {})


def test_from_python_a_space_is_read_like_the_table(tmp_path: Path) -> None:
    rows = {
        "learning_rate": {"loguniform": (np.float64(1e-4), 1e-2)},
        "batch_size": {"choice": np.array([16, 32])},
        "model": {"choice": [torch.nn.Linear, "a:B(y=1,x=2)"]},
    }
    config = SearchConfig(demo=True, trials=np.int64(3), space=rows)  # type: ignore[arg-type]
    table = (
        "learning_rate = {loguniform = [1e-4, 1e-2]}\nbatch_size = {choice = [16, 32]}\n"
        'model = {choice = ["torch.nn.modules.linear:Linear", "a:B(x=2, y=1)"]}'
    )
    file = parsed(tmp_path, table, "--trials", "3")
    assert config.space == file.space and config.trials == 3
    assert json.dumps(config.to_json()["space"]) == json.dumps(file.to_json()["space"])


@pytest.mark.parametrize(
    ("space", "wrong"),
    [
        (None, r"\[search\] None: expected a mapping of ranges"),
        ({"batch_size": {"choice": 16}}, r"\[search\]: batch_size: choice 16: expected a list"),
        ({"batch_size": [16, 32]}, r"\[search\]: batch_size: expected one range"),
        ({"batch_size": {"choice": [16.0]}}, r"batch_size: choice: '16\.0': expected a whole"),
        (SearchSpace({"epochs": Domain("randint", (0, 9))}), "epochs: randint '0': expected more"),
        ({"batch_size": {"choice": {16, 32}}}, r"batch_size: choice \{.*\}: expected a list"),
        (
            {"batch_size": {1: [16, 32]}},
            r"\[search\]: batch_size: unknown range 1; expected uniform",
        ),
        ({"model": {1: {"choice": [1]}}}, r"\[search\]: model\.1: '1' is not the name of an arg"),
        ({"model": {1: [1]}}, r"\[search\]: model\.1: '1' is not the name of an argument"),
    ],
)
def test_from_python_a_wrong_space_is_refused_like_the_table(space: Any, wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong):
        SearchConfig(demo=True, space=space)


def test_from_python_too_a_value_is_given_or_searched_and_not_both() -> None:
    rate: Any = {"learning_rate": {"loguniform": [1e-4, 1e-2]}}
    with pytest.raises(BadInput, match=r"\[search\]: learning_rate: also has a fixed value"):
        SearchConfig(demo=True, learning_rate=0.5, space=rate)
    dropout: Any = {"model": {"dropout": {"choice": [0.1, 0.2]}}}
    with pytest.raises(BadInput, match=r"\[search\]: model.dropout: also has a fixed value"):
        SearchConfig(demo=True, model="a:B(dropout=0.2)", space=dropout)
    assert SearchConfig(demo=True, model="a:B(width=2)", learning_rate=0.5, space=dropout)


def test_the_command_is_one_that_a_shell_takes(tmp_path: Path) -> None:
    config = RunConfig(demo=True, model="a:B(x='q r')")
    assert parse_config(shlex.split(shlex.join(config.command()))[3:], {}) == config


def test_values_are_shown_with_four_figures() -> None:
    values = {"learning_rate": 0.00012345678, "batch_size": 16, "model": "a:B", "model.deep": True}
    assert values_text(values) == (
        "learning_rate 0.0001235, batch_size 16, model a:B, model.deep True"
    )
    assert value_text(0.5) == "0.5"


def test_arguments_of_a_recipe_are_searched_as_those_of_a_network_are(tmp_path: Path) -> None:
    rows = "recipe.gamma = {uniform = [1, 3]}\nmixup = {choice = [0, 0.4]}"
    config = parsed(tmp_path, rows, above='preset = "strong"\nrecipe = "a:B(kind=1)"')
    trial = config.trial(1, {"recipe.gamma": 1.5, "mixup": 0.4})
    assert trial.recipe == "a:B(gamma=1.5, kind=1)" and trial.mixup == 0.4
    assert trial.normalize == config.normalize != "none"

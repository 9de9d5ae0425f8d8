"""The files of a search: ``search.json`` and ``best.toml``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raykfold.config.options import read_toml
from raykfold.config.run_config import RunConfig, parse_config
from raykfold.driver import open_inputs
from raykfold.tuning.findings import best_toml, write_results
from raykfold.tuning.observer import SearchObserver
from raykfold.tuning.scores import Score
from raykfold.tuning.search import FoldSearch
from raykfold.tuning.space import Domain, SearchConfig, SearchSpace


def test_the_best_is_written_as_a_run_that_goes_to_the_hub(tmp_path: Path) -> None:
    space = SearchSpace({"learning_rate": Domain("loguniform", (0.001, 0.1))})
    config = SearchConfig(
        demo=True,
        epochs=3,
        folds=(1, 2),
        model_dir=tmp_path,
        hf_model_repo_id="me/best",
        trials=2,
        space=space,
    )
    with open_inputs(config, None, []) as inputs:
        search = FoldSearch(config, inputs, SearchObserver())
    journal = search.journal

    def write() -> dict[str, Any]:
        write_results(config, search.results())
        content: dict[str, Any] = json.loads((tmp_path / "search.json").read_text())
        return content

    for number, accuracy in ((1, 0.5), (2, 0.7)):
        journal.add_trial({"learning_rate": number / 1000})
        journal.add_score(number, Score(1, {1: accuracy, 2: accuracy}), epochs_run=2)
    assert (write()["status"], write()["best"]) == ("running", None)
    assert not (tmp_path / "best.toml").exists()
    for number in (1, 2):
        journal.end_trial(number, "complete", 4)
    content = write()
    assert (content["status"], content["best"]["trial"]) == ("complete", 2)
    assert (content["epochs_run"], content["epochs_of_all"]) == (8, 2 * 2 * 3)
    assert content["best"]["model_dir"] == str(tmp_path / "trials/2")
    assert content["identity"]["data"] == inputs.data.fingerprint
    values = read_toml(str(tmp_path / "best.toml"))
    assert values["learning_rate"] == 0.002 and values["hf_model_repo_id"] == "me/best"
    assert values["model_dir"] == str(tmp_path / "trials/2")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learning_rate": 1e-05, "batch_size": 7, "folds": (1, 3), "tensorboard": True},
        {
            "model": "a.b:C(x='\"q\"\\\\n', y=0.5)",
            "run_name": 'é "quoted" \x7f \t ✓',
            "model_dir": "/tmp/a\\b",
        },
        {"processed_dir": "s3://bucket/a?scheme=http", "wait_timeout": 2.5, "use_gpu": False},
    ],
)
def test_the_best_is_a_file_that_reads_back_as_the_same_run(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = RunConfig(**{"processed_dir": tmp_path, **changes})
    file = tmp_path / "best.toml"
    file.write_text(best_toml(config, "the best"), encoding="utf-8")
    assert file.read_text(encoding="utf-8").startswith("# the best\n")
    assert parse_config(["--config", str(file)], {}) == config


def test_the_best_names_its_data_wherever_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, file = RunConfig(), tmp_path / "best.toml"
    file.write_text(best_toml(config))
    monkeypatch.chdir(tmp_path.parent)
    assert parse_config(["--config", str(file)], {}) == config


def test_the_best_of_arrays_names_no_folder_of_data() -> None:
    assert "processed_dir" not in best_toml(RunConfig().with_data_in_memory())


def test_the_best_does_not_name_a_cluster(tmp_path: Path) -> None:
    config = RunConfig(demo=True, address="10.0.0.1:6379")
    file = tmp_path / "best.toml"
    file.write_text(best_toml(config))
    assert parse_config(["--config", str(file)], {}).address is None

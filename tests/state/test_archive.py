"""A run as it lies: named by its outputs, by its storage, moved, under way, damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.run_folder import begin, complete, conclude, failed, history, running, store

from raykfold.errors import BadInput
from raykfold.state.archive import Known, open_run


def test_a_run_under_way_is_read_from_its_checkpoints(tmp_path: Path) -> None:
    config = begin(tmp_path)
    store(config, complete(1), running(2, epochs=3))
    archive = open_run(str(tmp_path))
    assert archive.run_name == "run"
    assert archive.record.folds == (1, 2, 3)
    assert archive.summary is None and archive.predictions is None
    assert archive.folds == {1: complete(1), 2: running(2, epochs=3)}


def test_a_run_that_is_over_is_read_from_its_outputs(tmp_path: Path) -> None:
    config = begin(tmp_path)
    conclude(config, complete(1), complete(2), failed(3, "unplugged"))
    shutil.rmtree(tmp_path / "ray")
    archive = open_run(tmp_path)
    assert archive.summary is not None and archive.summary.status == "partial"
    assert archive.folds == {1: complete(1), 2: complete(2), 3: failed(3, "unplugged")}
    assert archive.state is not None and archive.state["folds"]["3"]["error"] == "unplugged"
    assert archive.predictions is not None
    assert archive.predictions.fold.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("named", ["out", "out/ray/run", "elsewhere/run", "elsewhere"])
def test_outputs_and_storage_name_the_same_run(tmp_path: Path, named: str) -> None:
    storage = None if named.startswith("out") else tmp_path / "elsewhere"
    config = begin(tmp_path / "out", storage_path=storage)
    store(config, running(1, epochs=2))
    if named == "elsewhere":
        with pytest.raises(BadInput, match="there is no run"):
            open_run(tmp_path / named)
    else:
        assert open_run(tmp_path / named).folds == {1: running(1, epochs=2)}


def test_a_relative_path_is_one_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert open_run("out").place == tmp_path / "out"


def test_a_run_that_was_moved_is_read_where_it_is(tmp_path: Path) -> None:
    store(begin(tmp_path / "before"), complete(1), running(2, epochs=3))
    (tmp_path / "before").rename(tmp_path / "after")
    assert open_run(tmp_path / "after").folds == {1: complete(1), 2: running(2, epochs=3)}


def test_a_copy_is_not_taken_for_what_it_is_a_copy_of(tmp_path: Path) -> None:
    config = begin(tmp_path / "first")
    store(config, running(1, epochs=1))
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    store(config, running(1, epochs=4))
    assert open_run(tmp_path / "copy").folds == {1: running(1, epochs=1)}


def test_a_fold_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    config = begin(tmp_path)
    store(config, complete(1), complete(2))
    (tmp_path / "ray/run/folds/fold_1/history.json").write_text("{}")
    assert open_run(tmp_path).folds == {2: complete(2)}


def test_an_index_that_cannot_be_read_leaves_what_is_known_without_it(tmp_path: Path) -> None:
    config = begin(tmp_path)
    (tmp_path / "ray/run/index.json").write_text("{")
    archive = open_run(tmp_path)
    assert archive.folds == {} and archive.record.epochs == config.epochs


def test_a_later_look_reads_only_what_is_new(tmp_path: Path) -> None:
    config = begin(tmp_path)
    store(config, complete(1), running(2, epochs=1))
    known: Known = {}
    assert open_run(tmp_path, known).folds.keys() == {1, 2}
    shutil.rmtree(tmp_path / "ray/run/folds/fold_1")
    index = json.loads((tmp_path / "ray/run/index.json").read_text())
    store(config, running(2, epochs=2))
    added = json.loads((tmp_path / "ray/run/index.json").read_text())
    added["folds"] |= {"1": index["folds"]["1"]}
    (tmp_path / "ray/run/index.json").write_text(json.dumps(added))
    assert open_run(tmp_path, known).folds == {1: complete(1), 2: running(2, epochs=2)}
    assert open_run(tmp_path).folds == {2: running(2, epochs=2)}


def test_a_fold_that_was_handed_over_again_is_read_again(tmp_path: Path) -> None:
    config = begin(tmp_path)
    known: Known = {}
    for epochs in (1, 2):
        store(config, running(1, epochs))
        there, target = tmp_path / "ray/run/shares/a", tmp_path / "ray/run/handed_over/fold_1"
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (there / f"checkpoint_{epochs}/fold_1").rename(target)
        index = json.loads((tmp_path / "ray/run/index.json").read_text())
        index["folds"]["1"] = str(target)
        (tmp_path / "ray/run/index.json").write_text(json.dumps(index))
        assert open_run(tmp_path, known).folds[1].history == history(epochs)


@pytest.mark.parametrize("named", ["nowhere", "file", "", "file/below"])
def test_where_no_run_is_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="there is no run; expected the --model_dir of one"):
        open_run(named)


@pytest.mark.parametrize(
    ("content", "part"),
    [("", "Expecting value"), ("[]", "not a JSON object"), ("[" * 100_000, "recursion")],
)
def test_a_record_that_is_no_json_object_is_named(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(BadInput, match=rf"{tmp_path}: its run\.json cannot be read .*{part}"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("run_name", None, "it has no 'run_name'"),
        ("identity", {}, "it has no 'data'"),
        ("config", None, "it has no 'config'"),
        ("config", {"epochs": None}, "NoneType"),
        ("config", {"seed": "x"}, "invalid literal"),
        ("config", {"storage_path": 3}, "not texts"),
        ("config", {"storage_path": "x://s"}, "a path"),
        ("folds", ["x"], "invalid literal"),
        ("versions", None, "it has no 'versions'"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, field: str, value: Any, part: str) -> None:
    begin(tmp_path)
    content = json.loads((tmp_path / "run.json").read_bytes())
    if value is None:
        del content[field]
    elif field == "config":
        content[field] |= value
    else:
        content[field] = value
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=rf"{tmp_path}: its run\.json cannot be read .*{part}"):
        open_run(tmp_path)


def test_a_password_in_a_uri_is_not_repeated() -> None:
    with pytest.raises(BadInput) as refused:
        open_run("s3://user:hunter2@bucket/run")
    assert "hunter2" not in str(refused.value)


def test_a_damaged_output_is_named(tmp_path: Path) -> None:
    conclude(begin(tmp_path), complete(1))
    (tmp_path / "fold_results.json").write_text("[")
    archive = open_run(tmp_path)
    with pytest.raises(BadInput, match=r"fold_results\.json: is not valid JSON"):
        _ = archive.folds
    for content in ("{}", '{"a": 1}', "[{}]", "[1]"):
        (tmp_path / "fold_results.json").write_text(content)
        with pytest.raises(BadInput, match=r"fold_results\.json: cannot be read"):
            _ = open_run(tmp_path).folds

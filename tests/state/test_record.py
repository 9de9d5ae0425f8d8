"""What a run resumes: records, and the identity that they must share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput
from raykfold.files.atomic import write_file
from raykfold.state.record import EarlierRun, RunRecord, identity


def config(folder: Path, **changes: Any) -> RunConfig:
    return RunConfig(**{"run_name": "run", "model_dir": folder / "out", **changes})


def test_a_precision_that_is_left_open_becomes_the_run_s_own(tmp_path: Path) -> None:
    run = config(tmp_path)
    assert "precision" not in identity(run, "f")
    RunRecord.of(run, identity(run, "f", "gpu", "bf16"), "20261124-120000", (1, 2)).write(run)
    assert EarlierRun.read(run).identity_value("precision") == "bf16"
    EarlierRun.read(run).check(identity(run, "f"))
    EarlierRun.read(config(tmp_path, precision="bf16")).check(identity(run, "f"))
    exact = config(tmp_path, precision="fp32")
    with pytest.raises(BadInput, match="precision bf16, and this one has fp32"):
        EarlierRun.read(exact).check(identity(exact, "f"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 16),
        ("learning_rate", 0.01),
        ("early_stopping_patience", 3),
        ("seed", 1),
        ("model", "other:Model"),
    ],
)
@pytest.mark.parametrize("lost", ["nothing", "storage", "model_dir"])
def test_another_config_under_the_same_name_is_refused(
    tmp_path: Path, name: str, value: object, lost: str
) -> None:
    before = config(tmp_path, storage_path=tmp_path / "ray")
    RunRecord.of(before, identity(before, "f", "cpu x1"), "20261124-120000", (1, 2)).write(before)
    if lost != "nothing":
        shutil.rmtree(tmp_path / ("ray" if lost == "storage" else "out"))
    now = config(tmp_path, storage_path=tmp_path / "ray", **{name: value})
    with pytest.raises(BadInput) as error:
        EarlierRun.read(now).check(identity(now, "f"))
    assert name in str(error.value) and str(value) in str(error.value)
    assert "--fresh" in str(error.value)


def test_other_data_another_device_and_fewer_epochs_are_refused(tmp_path: Path) -> None:
    run = config(tmp_path)
    RunRecord.of(run, identity(run, "f", "cpu x1"), "20261124-120000", (1, 2)).write(run)
    with pytest.raises(BadInput, match="data"):
        EarlierRun.read(run).check(identity(run, "g"))
    with pytest.raises(BadInput, match="device cpu x1, and this one has cpu x2"):
        EarlierRun.read(run).check(identity(run, "f", "cpu x2"))
    with pytest.raises(BadInput, match="--epochs 49"):
        EarlierRun.read(config(tmp_path, epochs=49)).check(identity(run, "f"))
    EarlierRun.read(config(tmp_path, epochs=51)).check(identity(run, "f", "cpu x1"))
    EarlierRun.read(config(tmp_path, folds=(1,), num_workers=7)).check(identity(run, "f"))


def test_a_model_dir_of_another_run_is_refused(tmp_path: Path) -> None:
    run = config(tmp_path)
    RunRecord.of(run, identity(run, "f"), "20261124-120000", (1, 2)).write(run)
    with pytest.raises(BadInput, match=r"--model_dir .* belongs to the run 'run'"):
        EarlierRun.read(config(tmp_path, run_name="other")).check(identity(run, "f"))


@pytest.mark.parametrize("content", ["", "[]", '{"run_name": "run"}'])
def test_an_unreadable_record_is_named(tmp_path: Path, content: str) -> None:
    run = config(tmp_path)
    write_file(run.run_dir.run_record, content.encode())
    with pytest.raises(BadInput, match=r"run\.json.*--fresh"):
        EarlierRun.read(run).check(identity(run, "f"))


def test_a_record_holds_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run = config(tmp_path)
    RunRecord.of(run, identity(run, "f"), "20261124-120000", (1, 2)).write(run)
    record = run.run_dir.run_record.read_bytes().decode()
    assert "hf_secret" not in record
    assert json.loads(record)["config"]["epochs"] == 50

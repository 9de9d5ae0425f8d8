from __future__ import annotations

from pathlib import Path

import pytest

from raykfold.errors import BadInput
from raykfold.files.paths import ModelDir, RunDir, absolute, fold_of_best_weights, is_weights
from raykfold.files.remote import RemotePath, place

STORE = RemotePath("s3", "bucket/a")


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert absolute("a/../b") == absolute(Path("b")) == tmp_path / "b"
    assert absolute("~/x") == Path("/home/ann/x")
    assert absolute("file:///a%20b") == Path("/a b")
    assert absolute(STORE) is STORE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://bucket/a", "s3://bucket/a: expected a local path, not a URI"),
        ("s3://key:secret@bucket/a", "s3://…@bucket/a: has credentials"),
        ("ftp://host/a", "ftp://host/a: expected a path"),
        ("~nobody-of-that-name/a", "~nobody-of-that-name"),
    ],
)
def test_paths_that_cannot_be_local(text: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        absolute(text)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_run_dir_may_be_on_a_store() -> None:
    assert RunDir(STORE).finished(3) == place("s3://bucket/a/folds/fold_3")
    assert RunDir(Path("/a")).epoch_weights(3, 0) == Path("/a/weights/fold_3/epoch_0.safetensors")


@pytest.mark.parametrize(
    ("path", "fold", "weights"),
    [
        ("model_fold_3_best.safetensors", 3, True),
        ("model_fold_-1_best.safetensors", -1, True),
        ("model_fold_x_best.safetensors", None, False),
        ("fold_3/epoch_0.safetensors", None, True),
        ("seed_1/fold_3/epoch_0.safetensors", None, True),
        ("seed_1/model_fold_3_best.safetensors", None, True),
        ("other/model_fold_3_best.safetensors", None, False),
        ("fold_3/epoch_0.safetensors/x", None, False),
    ],
)
def test_files_of_weights_are_told_by_name(path: str, fold: int | None, weights: bool) -> None:
    assert fold_of_best_weights(path) == fold
    assert is_weights(path) == weights


def test_outputs_are_told_from_what_a_user_keeps_beside_them(tmp_path: Path) -> None:
    outputs = ModelDir(tmp_path)
    ours = [
        outputs.run_record, outputs.summary, outputs.training_state, outputs.histories,
        outputs.fold_results, outputs.predictions, outputs.card, outputs.report, outputs.plots,
        outputs.tensorboard, outputs.checkpoints, outputs.search, outputs.best_config,
        outputs.trials, outputs.best_weights(3), tmp_path / "outer_2", tmp_path / "seed_4",
    ]  # fmt: skip
    for path in (*ours, tmp_path / "notes.txt", tmp_path / "ray", tmp_path / "seed_x"):
        path.touch()
    assert outputs.outputs() == sorted(ours)


def test_only_existing_files_are_listed(tmp_path: Path) -> None:
    outputs = ModelDir(tmp_path)
    assert outputs.all_plots() == outputs.all_epoch_weights() == outputs.all_best_weights() == []
    names = ["fold_1/epoch_0", "fold_2/epoch_0", "fold_1/epoch_2", "fold_1/epoch_10"]
    for name in names:
        file = outputs.checkpoints / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (outputs.checkpoints / "fold_1" / "epoch_x.safetensors").touch()
    outputs.plots.mkdir()
    for name in ("curves", "mine"):
        (outputs.plots / f"{name}.png").touch()
    (tmp_path / "seed_3").mkdir()
    found = [file.relative_to(outputs.checkpoints) for file in outputs.all_epoch_weights()]
    assert [file.with_suffix("").as_posix() for file in found] == names
    assert outputs.all_plots() == [outputs.plots / "curves.png"]
    assert outputs.repeats() == {"seed_3": ModelDir(tmp_path / "seed_3")}

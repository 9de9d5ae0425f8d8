"""A fold's state ⇄ files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from support.small_data import CLASSES

from raykfold.data.feature_set import FeatureSet
from raykfold.files.atomic import Damaged
from raykfold.models import AudioCNN
from raykfold.state.checkpoint import (
    WeightsContext,
    load_finished_fold,
    load_state,
    save_active_fold,
    save_finished_fold,
    weights_bytes,
)
from raykfold.state.states import load_result
from raykfold.training.fold import FoldTrainer
from raykfold.training.recipe import TrainingSettings

CONTEXT = WeightsContext(
    model="raykfold.models:AudioCNN",
    classes=CLASSES,
    input_shape=(16, 32),
    feature_parameters={"kind": "log_mel", "n_mels": 16},
)


def new_trainer(data: FeatureSet) -> FoldTrainer:
    return FoldTrainer(
        3,
        torch.from_numpy(np.asarray(data.features)),
        torch.from_numpy(data.class_indices),
        data.split(3),
        data.num_classes,
        TrainingSettings("raykfold.models:AudioCNN", 32, 0.003, 5, 0),
    )


@pytest.fixture(scope="module")
def trained(small_data: FeatureSet) -> FoldTrainer:
    fold = new_trainer(small_data)
    for _ in range(3):
        fold.run_epoch()
    return fold


def test_a_fold_goes_on_from_its_files_to_equal_bits(
    small_data: FeatureSet, tmp_path: Path
) -> None:
    whole, again = new_trainer(small_data), new_trainer(small_data)
    whole.run_epoch()
    snapshot = whole.snapshot()
    save_active_fold(tmp_path / "fold_3", snapshot, weights_bytes(snapshot, CONTEXT))
    again.load_state_dict(load_state(tmp_path / "fold_3"))
    assert whole.run_epoch().loss == again.run_epoch().loss
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert load_result(tmp_path / "fold_3").history == tuple(whole.history[:1])
    assert load_result(tmp_path / "fold_3").status == "running"


def test_weights_say_all_that_it_takes_to_use_them(trained: FoldTrainer, tmp_path: Path) -> None:
    (tmp_path / "epoch_2.safetensors").write_bytes(weights_bytes(trained.snapshot(), CONTEXT))
    with safe_open(tmp_path / "epoch_2.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["fold"] == "3"
    assert metadata["epoch"] == "2"
    assert float(metadata["accuracy"]) == trained.history[2].val_accuracy
    assert json.loads(metadata["classes"]) == {str(k): v for k, v in CLASSES.items()}
    assert json.loads(metadata["input_shape"]) == [16, 32]
    assert json.loads(metadata["features"]) == {"kind": "log_mel", "n_mels": 16}
    n_mels, time = json.loads(metadata["input_shape"])
    model = AudioCNN(n_mels, len(CLASSES), time)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "epoch_2.safetensors"))


def test_a_finished_fold_leaves_everything(
    small_data: FeatureSet, trained: FoldTrainer, tmp_path: Path
) -> None:
    validation = small_data.split(3).validation
    snapshot, probabilities = trained.snapshot(), trained.held_out_probabilities()
    save_finished_fold(tmp_path / "fold_3", snapshot, CONTEXT, validation, probabilities)
    left = load_finished_fold(tmp_path / "fold_3")
    result = snapshot.result("complete")
    assert left.result == result
    assert result.status == "complete"
    assert (result.n_train, result.n_val) == (192, 48)
    np.testing.assert_array_equal(left.index, validation)
    np.testing.assert_array_equal(left.probabilities, probabilities)
    best = safetensors.torch.load(left.weights)
    for name, value in trained.kept_weights.items():
        assert torch.equal(best[name], value)
    assert load_state(tmp_path / "fold_3")["fold"] == 3


def test_a_state_with_foreign_code_is_refused(tmp_path: Path) -> None:
    """Whole by its hashes, and yet not to be trusted: storage can be shared."""
    from raykfold.files.atomic import write_folder

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    content = (tmp_path / "evil.pt").read_bytes()
    write_folder(tmp_path / "fold_3", {"state.pt": content}, {"fold": 3})
    with pytest.raises(Damaged, match=r"state\.pt"):
        load_state(tmp_path / "fold_3")
    assert not (tmp_path / "ran").exists()


def test_networks_with_tied_weights_can_be_saved(
    small_data: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tied_model.py").write_text(
        "import torch\n"
        "class Tied(torch.nn.Module):\n"
        "    def __init__(self, n_mels, num_classes, target_len):\n"
        "        super().__init__()\n"
        "        self.a = torch.nn.Linear(n_mels, n_mels)\n"
        "        self.b = torch.nn.Linear(n_mels, n_mels)\n"
        "        self.b.weight = self.a.weight\n"
        "        self.out = torch.nn.Linear(n_mels, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.out(torch.relu(self.b(torch.relu(self.a(x.mean(2))))))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    fold = FoldTrainer(
        3,
        torch.from_numpy(np.asarray(small_data.features)),
        torch.from_numpy(small_data.class_indices),
        small_data.split(3),
        4,
        TrainingSettings("tied_model:Tied", 32, 0.003, 5, 0),
    )
    fold.run_epoch()
    (tmp_path / "w.safetensors").write_bytes(weights_bytes(fold.snapshot(), CONTEXT))
    fold.model.load_state_dict(safetensors.torch.load_file(tmp_path / "w.safetensors"))


def test_equal_weights_are_equal_bytes_in_every_process(
    trained: FoldTrainer, tmp_path: Path
) -> None:
    """Safetensors alone orders metadata differently from file to file."""
    contents = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(weights_bytes(trained.snapshot(), CONTEXT))
        contents.add(path.read_bytes())
    assert len(contents) == 1

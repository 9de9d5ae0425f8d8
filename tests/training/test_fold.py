"""One fold in training, without Ray and without files."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.folds import assert_same
from support.recipes import ALL_ON
from support.small_data import SHAPES, shaped_data

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.errors import FoldError, NonFiniteLoss
from raykfold.training.fold import EVALUATION_BATCH, FoldTrainer, run_epochs
from raykfold.training.recipe import TrainingSettings
from raykfold.training.steps import Recorder, Step, no_recordings

SETTINGS = TrainingSettings(
    model="raykfold.models:AudioCNN",
    batch_size=32,
    learning_rate=0.001,
    early_stopping_patience=3,
    seed=0,
)


def settings(**changes: Any) -> TrainingSettings:
    return dataclasses.replace(SETTINGS, **changes)


def trainer(
    data: FeatureSet,
    fold: int = 1,
    recorder: Recorder | None = None,
    device: str = "cpu",
    cls: type[FoldTrainer] = FoldTrainer,
    **changes: Any,
) -> FoldTrainer:
    return cls(
        fold,
        torch.from_numpy(np.asarray(data.features)).to(device),
        torch.from_numpy(data.class_indices).to(device),
        data.split(fold),
        data.num_classes,
        settings(**changes),
        recorder,
    )


def test_settings_are_the_options_of_the_same_names() -> None:
    config = RunConfig(demo=True, learning_rate=0.01, early_stopping_patience=4, precision="auto")
    expected = settings(learning_rate=0.01, early_stopping_patience=4, precision="bf16")
    assert TrainingSettings.of(config, "bf16") == expected


def test_it_learns(small_data: FeatureSet) -> None:
    fold = trainer(small_data, learning_rate=0.003)
    for _ in range(12):
        fold.run_epoch()
    assert fold.history[-1].loss < 0.7 * fold.history[0].loss
    assert fold.kept_epoch is not None
    assert fold.history[fold.kept_epoch].val_accuracy > 0.5  # chance is 0.25


@pytest.mark.parametrize("kind", SHAPES)
def test_it_learns_from_samples_of_any_shape(kind: str) -> None:
    data = shaped_data(kind)
    normalize = {"embeddings": "band", "images": "unit", "waveforms": "clip"}[kind]
    augmented: dict[str, Any] = {"mixup": 0.2} if kind == "embeddings" else {"time_shift": 0.3}
    if kind == "images":
        augmented["spec_augment"] = "4,4"
    model = f"support.networks:Of{kind.capitalize()}"
    wanted = {"model": model, "learning_rate": 0.03, "normalize": normalize, **augmented}
    fold = trainer(data, **wanted)
    while fold.epochs_run < 8:
        fold.run_epoch()
        if fold.epochs_run == 4:
            resumed = trainer(data, **wanted)
            resumed.load_state_dict(copy.deepcopy(fold.state_dict()))
    assert max(each.val_accuracy for each in fold.history) > 0.8
    while resumed.epochs_run < 8:
        resumed.run_epoch()
    assert_same(fold, resumed)


def test_integers_are_scaled_only_if_told() -> None:
    data, rows = shaped_data("images"), torch.arange(5)
    expected = torch.from_numpy(data.features[:5].astype(np.float32))
    model = "support.networks:OfImages"
    assert torch.equal(trainer(data, model=model).batch(rows)[0], expected)
    scaled, _ = trainer(data, model=model, normalize="unit").batch(rows)
    assert torch.equal(scaled, expected / 255)


def test_its_epochs_are_those_of_a_plain_loop_to_the_bit(small_data: FeatureSet) -> None:
    fold = trainer(small_data)
    model, split = copy.deepcopy(fold.model), small_data.split(1)
    train, validation = torch.from_numpy(split.train), torch.from_numpy(split.validation)
    features = torch.from_numpy(np.asarray(small_data.features))
    targets = torch.from_numpy(small_data.class_indices)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    with torch.random.fork_rng():
        torch.set_rng_state(fold.state_dict()["random"]["torch"])
        for _ in range(2):
            model.train()
            total = 0.0
            for rows in train[torch.randperm(len(train))].split(32):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(features[rows]), targets[rows])
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            model.eval()
            with torch.inference_mode():
                logits = model(features[validation])
            metrics = fold.run_epoch()
            assert metrics.loss == pytest.approx(total / len(train), rel=1e-12)
            right = (logits.argmax(dim=1) == targets[validation]).float().mean().item()
            assert metrics.val_accuracy == pytest.approx(right, rel=1e-6)
            val_loss = torch.nn.functional.cross_entropy(logits, targets[validation]).item()
            assert metrics.val_loss == pytest.approx(val_loss, rel=1e-12)
            for name, value in fold.model.state_dict().items():
                assert torch.equal(value, model.state_dict()[name]), name


def test_equal_seed_and_fold_give_equal_bits_whatever_else_happens(small_data: FeatureSet) -> None:
    alone, disturbed, other = trainer(small_data), trainer(small_data), trainer(small_data, fold=2)
    for _ in range(3):
        alone.run_epoch()
    for _ in range(3):
        other.run_epoch()
        torch.manual_seed(99)
        np.random.rand(7)
        random.random()
        disturbed.run_epoch()
    assert_same(alone, disturbed)


def test_training_leaves_the_generators_of_the_process_alone(small_data: FeatureSet) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = draw()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    fold = trainer(small_data)
    fold.run_epoch()
    fold.held_out_probabilities()
    assert draw() == expected


def test_folds_stepped_together_are_to_the_bit_as_alone(small_data: FeatureSet) -> None:
    alone = [trainer(small_data, fold, batch_size=9) for fold in (1, 2, 3)]  # several turns
    for fold in alone:
        for _ in range(2):
            fold.run_epoch()
    together = [trainer(small_data, fold, batch_size=9) for fold in (1, 2, 3)]
    run_epochs(together[:2])
    run_epochs(together)
    run_epochs([together[2]])
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_of_folds_stepped_together_one_fails_alone(small_data: FeatureSet) -> None:
    alone, beside = trainer(small_data), trainer(small_data)
    wild = trainer(small_data, fold=2, learning_rate=1e30)
    broken = trainer(small_data, fold=3)

    def fail(*_: object) -> None:
        raise RuntimeError("sensor unplugged")

    broken.model.register_forward_pre_hook(fail)
    outcomes = run_epochs([broken, beside, wild])
    assert isinstance(outcomes[2], NonFiniteLoss)
    assert str(outcomes[3]) == "epoch 1: RuntimeError: sensor unplugged"
    assert wild.epochs_run == broken.epochs_run == 0
    assert outcomes[1] == beside.history[0]
    alone.run_epoch()
    assert_same(alone, beside)


def test_time_together_is_shared(small_data: FeatureSet) -> None:
    folds = [trainer(small_data, fold) for fold in (1, 2)]
    started = time.perf_counter()
    run_epochs(folds)
    assert sum(fold.history[0].seconds for fold in folds) <= time.perf_counter() - started


def test_steps_that_are_recorded_give_equal_bits(small_data: FeatureSet) -> None:
    recorded: list[int] = []

    def recorder(step: Step, rows: torch.Tensor) -> Step:
        recorded.append(len(rows))
        step(rows)  # a recording may leave tensors changed, and random numbers drawn
        return step

    plain = trainer(small_data, batch_size=20)
    fold = trainer(small_data, batch_size=20, recorder=recorder)
    for _ in range(5):
        plain.run_epoch()
        fold.run_epoch()
    assert_same(plain, fold)
    assert fold.why_not_recorded is None
    assert {20, fold.n_train % 20} <= set(recorded)


def test_in_bf16_it_learns_as_well_and_evaluates_in_fp32(small_data: FeatureSet) -> None:
    exact = trainer(small_data, learning_rate=0.003)
    fold = trainer(small_data, learning_rate=0.003, precision="bf16")
    for _ in range(8):
        exact.run_epoch()
        fold.run_epoch()
    assert fold.history[0].loss != exact.history[0].loss
    assert fold.history[0].loss == pytest.approx(exact.history[0].loss, rel=0.02)
    assert fold.history[-1].loss < 0.7 * fold.history[0].loss
    assert all(value.dtype != torch.bfloat16 for value in fold.model.state_dict().values())
    validation = small_data.split(1).validation
    with torch.inference_mode():
        logits = fold.model.eval()(torch.from_numpy(small_data.features[validation]))
    targets = torch.from_numpy(small_data.class_indices[validation])
    assert fold.history[-1].val_loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, targets)), rel=1e-5
    )


@pytest.mark.parametrize("change", [{"seed": 1}, {"fold": 2}])
def test_another_seed_or_fold_starts_from_other_weights(
    small_data: FeatureSet, change: dict[str, Any]
) -> None:
    first, second = trainer(small_data), trainer(small_data, **change)
    assert not torch.equal(
        first.model.state_dict()["fc1.weight"], second.model.state_dict()["fc1.weight"]
    )


@pytest.mark.parametrize("stop", [0, 2])
def test_a_state_that_went_through_a_file_goes_on_to_equal_bits(
    small_data: FeatureSet, stop: int
) -> None:
    whole, first = trainer(small_data), trainer(small_data)
    for _ in range(3):
        whole.run_epoch()
    for _ in range(stop):
        first.run_epoch()
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = trainer(small_data)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for _ in range(3 - stop):
        second.run_epoch()
    assert_same(whole, second)


def test_a_snapshot_stays_what_it_is_while_the_fold_goes_on(small_data: FeatureSet) -> None:
    fold, then, later = (trainer(small_data, learning_rate=0.003) for _ in range(3))
    for _ in range(2):
        fold.run_epoch()
        then.run_epoch()
    snapshot = fold.snapshot()
    fold.run_epoch()
    assert (snapshot.so_far.fold, snapshot.so_far.history) == (1, tuple(fold.history[:2]))
    for name, value in then.model.state_dict().items():
        assert torch.equal(snapshot.weights[name], value)
    for name, value in then.kept_weights.items():
        assert torch.equal(snapshot.kept_weights[name], value)
    later.load_state_dict(snapshot.state)
    later.run_epoch()
    assert_same(fold, later)


def test_a_snapshot_keeps_the_version_of_a_network_s_layout(
    small_data: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights without it are migrated as if they were old."""
    (tmp_path / "versioned_model.py").write_text(
        "import raykfold\n"
        "class Versioned(raykfold.AudioCNN):\n"
        "    _version = 2\n"
        "    def _load_from_state_dict(self, state, prefix, metadata, *rest):\n"
        "        assert metadata.get('version') == 2\n"
        "        super()._load_from_state_dict(state, prefix, metadata, *rest)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    first, second = (trainer(small_data, model="versioned_model:Versioned") for _ in range(2))
    first.run_epoch()
    buffer = io.BytesIO()
    torch.save(dict(first.snapshot().state), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same(first, second)


def test_a_state_of_another_fold_is_refused(small_data: FeatureSet) -> None:
    with pytest.raises(ValueError, match="fold 2"):
        trainer(small_data).load_state_dict(trainer(small_data, fold=2).state_dict())


def test_a_network_that_draws_from_python_and_numpy_resumes_to_equal_bits(
    small_data: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noisy_model.py").write_text(
        "import random, numpy, raykfold\n"
        "class Noisy(raykfold.AudioCNN):\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            x = x + random.random() + numpy.random.normal()\n"
        "        return super().forward(x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    whole = trainer(small_data, model="noisy_model:Noisy")
    first = trainer(small_data, model="noisy_model:Noisy")
    second = trainer(small_data, model="noisy_model:Noisy")
    for _ in range(3):
        whole.run_epoch()
    first.run_epoch()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.run_epoch()
    second.run_epoch()
    assert_same(whole, second)


def test_held_out_probabilities_are_those_of_the_best_weights(small_data: FeatureSet) -> None:
    fold = trainer(small_data, learning_rate=0.003)
    for _ in range(6):
        fold.run_epoch()
    assert fold.kept_epoch is not None
    split = small_data.split(1)
    assert fold.n_val > 0 and fold.n_val != EVALUATION_BATCH
    before = {name: value.clone() for name, value in fold.model.state_dict().items()}
    probabilities = fold.held_out_probabilities()
    assert probabilities.shape == (len(split.validation), 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    right = probabilities.argmax(axis=1) == small_data.class_indices[split.validation]
    assert right.mean() == fold.history[fold.kept_epoch].val_accuracy
    for name, value in fold.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_last_short_batch_is_used(small_data: FeatureSet) -> None:
    seen = []
    fold = trainer(small_data, batch_size=50)
    fold.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    fold.run_epoch()
    assert seen == [50, 50, 50, 42, fold.n_val]


def test_a_last_batch_of_one_sample_joins_the_one_before(small_data: FeatureSet) -> None:
    sizes = []

    class Sizes(FoldTrainer):
        def training_step(
            self, rows: torch.Tensor, samples: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            sizes.append(len(rows))
            return super().training_step(rows)

    for batch_size in (191, 64, 1):  # of 192 samples
        fold = trainer(small_data, batch_size=batch_size, cls=Sizes)
        fold.run_epoch()
    assert sizes == [192, *[64] * 3, *[1] * 192]


class Scripted(FoldTrainer):
    """A trainer whose evaluations follow a script, to show what learning rate and patience do."""

    script: list[tuple[float, float]]

    def evaluation_step(
        self, rows: torch.Tensor, samples: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, accuracy = self.script[self.epochs_run]
        logits = torch.nn.functional.one_hot(self._class_indices[rows], 4).float()
        logits[round(accuracy * len(rows)) :] *= -1
        return torch.tensor(loss), logits

    def training_step(self, *_: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(1.0), torch.tensor(0)


def scripted(data: FeatureSet, script: list[tuple[float, float]], **changes: Any) -> Scripted:
    fold = Scripted(
        1,
        torch.from_numpy(np.asarray(data.features)),
        torch.from_numpy(data.class_indices),
        data.split(1),
        data.num_classes,
        settings(**changes),
    )
    fold.script = script
    return fold


def test_it_stops_after_patience_epochs_without_a_strictly_lower_loss(
    small_data: FeatureSet,
) -> None:
    fold = scripted(small_data, [(1.0, 0.1), (0.9, 0.1), (0.9, 0.1), (0.95, 0.1), (0.9, 0.1)])
    stopped = []
    for _ in range(5):
        fold.run_epoch()
        stopped.append(fold.stopped_early)
    assert stopped == [False, False, False, False, True]
    assert fold.done(epochs=50)


def test_a_lower_loss_starts_patience_anew(small_data: FeatureSet) -> None:
    fold = scripted(small_data, [(1.0, 0.1), (1.1, 0.1), (1.1, 0.1), (0.9, 0.1), (1.0, 0.1)])
    for _ in range(5):
        fold.run_epoch()
    assert not fold.stopped_early
    assert not fold.done(epochs=6)
    assert fold.done(epochs=5)


def test_the_best_epoch_is_the_first_with_the_highest_accuracy(small_data: FeatureSet) -> None:
    fold = scripted(small_data, [(1.0, 0.0), (0.9, 0.4), (0.8, 0.4), (0.7, 0.3)])
    best = []
    for _ in range(4):
        fold.run_epoch()
        best.append(fold.kept_epoch)
    assert best == [0, 1, 1, 1]


def test_with_an_inner_split_the_samples_that_are_held_out_decide_nothing(
    small_data: FeatureSet,
) -> None:
    """With other labels for them, all that changes is what is measured on them."""
    split = small_data.split(1, inner=True)
    labels = torch.from_numpy(small_data.class_indices)
    others = labels.clone()
    held_out = torch.from_numpy(split.validation)
    others[held_out] = (others[held_out] + 1) % 4
    folds = [
        FoldTrainer(
            1,
            torch.from_numpy(np.asarray(small_data.features)),
            class_indices,
            split,
            small_data.num_classes,
            settings(early_stopping_patience=2, learning_rate=0.005),
        )
        for class_indices in (labels, others)
    ]
    for fold in folds:
        while not fold.done(epochs=12):
            fold.run_epoch()
    fold, other = folds
    deciding = ("loss", "accuracy", "inner_loss", "inner_accuracy", "learning_rate")
    for mine, theirs in zip(fold.history, other.history, strict=True):
        assert all(getattr(mine, name) == getattr(theirs, name) for name in deciding), mine
        assert mine.val_loss != theirs.val_loss
    assert fold.kept_epoch == other.kept_epoch
    best = max(fold.history, key=lambda metrics: metrics.inner_accuracy or 0.0)
    assert fold.history[fold.kept_epoch or 0].inner_accuracy == best.inner_accuracy
    for name, value in fold.kept_weights.items():
        assert torch.equal(value, other.kept_weights[name]), name
    assert fold.n_train + fold.n_val + len(split.inner) == len(small_data)


def test_the_learning_rate_falls_to_a_fifth_after_six_epochs_without_progress(
    small_data: FeatureSet,
) -> None:
    fold = scripted(small_data, [(1.0, 0.1)] * 40, early_stopping_patience=100)
    rates = [fold.run_epoch().learning_rate for _ in range(40)]
    assert rates[:7] == [0.001] * 7
    assert rates[7] == pytest.approx(0.0002)
    assert rates[13] == pytest.approx(0.00004)
    assert rates[-1] == pytest.approx(1e-5)


def test_a_loss_that_is_no_number_fails_the_fold_with_epoch_and_batch(
    small_data: FeatureSet,
) -> None:
    fold = trainer(small_data, learning_rate=1e30)
    with pytest.raises(NonFiniteLoss, match=r"loss became (nan|inf) in epoch 1, batch \d of \d"):
        fold.run_epoch()


def test_an_exception_in_the_network_fails_the_fold(small_data: FeatureSet) -> None:
    fold = trainer(small_data)
    fold.run_epoch()

    def fail(*_: object) -> None:
        raise RuntimeError("sensor unplugged")

    fold.model.register_forward_pre_hook(fail)
    with pytest.raises(FoldError, match="epoch 2: RuntimeError: sensor unplugged"):
        fold.run_epoch()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_float32_in_the_batch(small_data: FeatureSet, dtype: type) -> None:
    fold = FoldTrainer(
        1,
        torch.from_numpy(small_data.features.astype(dtype)),
        torch.from_numpy(small_data.class_indices),
        small_data.split(1),
        small_data.num_classes,
        SETTINGS,
    )
    assert math.isfinite(fold.run_epoch().loss)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, torch.AcceleratorError])
def test_what_is_wrong_with_the_process_is_not_held_against_the_fold(
    small_data: FeatureSet, error: type[Exception]
) -> None:
    broken_trainer = trainer(small_data)

    def broken(*_: object) -> None:
        raise error("CUDA error: an illegal memory access was encountered")

    broken_trainer.model.register_forward_pre_hook(broken)
    with pytest.raises(error, match="illegal memory access"):
        broken_trainer.run_epoch()


# --- on a GPU ----------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def deterministic() -> Iterator[None]:
    """As a worker sets it."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


@on_a_gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("recipe", [{}, ALL_ON], ids=["plain", "all_on"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_give_the_bits_of_steps_as_they_come(
    small_data: FeatureSet, precision: str, recipe: dict[str, Any]
) -> None:
    changes: dict[str, Any] = {
        "batch_size": 20,
        "learning_rate": 0.1,
        "early_stopping_patience": 99,
        "epochs": 16,
        "precision": precision,
        **recipe,
    }
    plain = trainer(small_data, recorder=no_recordings("not wanted"), device="cuda", **changes)
    fold = trainer(small_data, device="cuda", **changes)
    for _ in range(16):
        plain.run_epoch()
        fold.run_epoch()
    assert fold.history[-1].learning_rate < 0.1  # recordings with another one were made
    assert plain.why_not_recorded == "not wanted"
    assert fold.why_not_recorded is None
    assert_same(plain, fold)
    assert plain.histograms() == fold.histograms()


@on_a_gpu
@pytest.mark.usefixtures("deterministic")
def test_folds_stepped_together_on_a_gpu_are_to_the_bit_as_alone(small_data: FeatureSet) -> None:
    alone, together = (
        [trainer(small_data, fold, device="cuda", batch_size=5) for fold in (1, 2, 3, 4)]
        for _ in range(2)
    )
    for fold in alone:
        for _ in range(8):
            fold.run_epoch()
    for _ in range(8):
        run_epochs(together)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


@on_a_gpu
@pytest.mark.usefixtures("deterministic")
def test_a_state_from_a_gpu_goes_on_to_equal_bits(small_data: FeatureSet) -> None:
    whole, first, second = (trainer(small_data, device="cuda") for _ in range(3))
    for _ in range(8):
        whole.run_epoch()
    for _ in range(5):
        first.run_epoch()
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True, map_location="cpu"))
    for _ in range(3):
        second.run_epoch()
    assert_same(whole, second)

"""Recipes: what options and derived classes change in a fold, and what they cannot."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support.folds import assert_same
from support.recipes import ALL_ON, Counting
from torch import Tensor, nn

import raykfold
from raykfold.config.presets import PRESETS
from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.errors import BadInput, FoldError
from raykfold.training.fold import FoldTrainer, run_epochs
from raykfold.training.recipe import TrainingSettings
from raykfold.training.results import Monitor, monitor_of


def trainer(
    data: FeatureSet, fold: int = 1, state: dict[str, Any] | None = None, **changes: Any
) -> FoldTrainer:
    settings = TrainingSettings("raykfold.models:AudioCNN", 32, 0.003, 9, 0)
    return FoldTrainer(
        fold,
        torch.from_numpy(np.asarray(data.features)),
        torch.from_numpy(data.class_indices),
        data.split(fold),
        data.num_classes,
        dataclasses.replace(settings, **changes),
        state=state,
    )


def by(recipe: str, **arguments: Any) -> dict[str, Any]:
    return {"recipe": f"{__name__}:{recipe}({', '.join(f'{k}={v}' for k, v in arguments.items())})"}


def saved(fold: FoldTrainer) -> dict[str, Any]:
    """Return a fold's state as a worker reads it from a checkpoint."""
    file = io.BytesIO()
    torch.save(dict(fold.snapshot().state), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


# --- the options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ALL_ON.keys() - {"monitor", "warmup_epochs"}))
def test_each_option_changes_the_weights(small_data: FeatureSet, name: str) -> None:
    one_on: dict[str, Any] = {name: ALL_ON[name]}
    if name == "optimizer":
        one_on = {"optimizer": "sgd"}  # without decay AdamW is Adam
    # Without dropout, random numbers that nothing uses change nothing.
    model = "raykfold.models:AudioCNN(dropout=0, head_dropout=0)"
    plain = trainer(small_data, model=model)
    changed = trainer(small_data, model=model, **one_on)
    for fold in (plain, changed):
        fold.run_epoch()
        fold.run_epoch()
    weights = changed.evaluated.state_dict()
    assert any(not torch.equal(v, weights[n]) for n, v in plain.evaluated.state_dict().items())


def test_with_everything_on_a_fold_goes_on_from_its_state_to_the_bit(
    small_data: FeatureSet,
) -> None:
    whole = trainer(small_data, epochs=4, **ALL_ON)
    for _ in range(4):
        whole.run_epoch()
    fold = trainer(small_data, epochs=4, **ALL_ON)
    for _ in range(3):
        fold.run_epoch()
        fold = trainer(small_data, state=saved(fold), epochs=4, **ALL_ON)
    fold.run_epoch()
    assert_same(fold, whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "scheduler": "plateau", "warmup_epochs": 3},
        {"recipe": "test_check:Trained"},
        {"recipe": "support.recipes:Counting(start=2)", "ema": 0.5},
    ],
)
def test_a_fold_goes_on_from_its_state_to_the_bit(
    small_data: FeatureSet, changes: dict[str, Any]
) -> None:
    whole = fold = trainer(small_data, **changes)
    for epoch in range(3):
        whole.run_epoch()
        if epoch == 0:
            fold = trainer(small_data, state=saved(whole), **changes)
        else:
            fold.run_epoch()
    assert_same(fold, whole)


def test_with_everything_on_folds_that_are_stepped_together_are_those_alone(
    small_data: FeatureSet,
) -> None:
    together = [trainer(small_data, fold, epochs=4, **ALL_ON) for fold in (1, 2, 3)]
    for _ in range(2):
        run_epochs(together)
    for fold in together:
        alone = trainer(small_data, fold.fold, epochs=4, **ALL_ON)
        alone.run_epoch()
        alone.run_epoch()
        assert_same(fold, alone)


def rates(data: FeatureSet, epochs: int = 6, **changes: Any) -> list[float]:
    fold = trainer(data, epochs=epochs, learning_rate=1.0, batch_size=200, **changes)
    return [round(fold.run_epoch().learning_rate, 6) for _ in range(epochs)]


def test_the_learning_rate_follows_the_schedule(small_data: FeatureSet) -> None:
    """Warm-up by equal steps; then half a cosine (I. Loshchilov, F. Hutter 2017, equation 5)."""
    assert rates(small_data, scheduler="none") == [1.0] * 6
    assert rates(small_data, scheduler="none", warmup_epochs=3) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates(small_data, scheduler="plateau", warmup_epochs=3)[:4] == [0.25, 0.5, 0.75, 1]
    half = [round((1 + np.cos(np.pi * step / 4)) / 2, 6) for step in range(4)]
    assert rates(small_data, scheduler="cosine", warmup_epochs=2) == [0.333333, 0.666667, *half]


def test_weights_that_are_kept_are_the_average(small_data: FeatureSet) -> None:
    plain, fold = trainer(small_data, batch_size=200), trainer(small_data, batch_size=200, ema=0.15)
    name = "fc2.weight"
    expected = fold.model.state_dict()[name].clone()
    for decay in (1 / 10, 0.15):  # 2 / 11 would be more; epochs of one step each
        plain.run_epoch()
        fold.run_epoch()
        expected = decay * expected + (1 - decay) * plain.model.state_dict()[name]
    assert torch.equal(fold.model.state_dict()[name], plain.model.state_dict()[name])
    snapshot = fold.snapshot()
    assert torch.allclose(snapshot.weights[name], expected, rtol=1e-5)
    assert (fold.kept_epoch == 1) == torch.equal(
        snapshot.kept_weights[name], snapshot.weights[name]
    )


def test_balanced_weights_make_classes_equal(small_data: FeatureSet) -> None:
    fold = trainer(small_data, class_weights="balanced")
    counts = np.bincount(small_data.class_indices[small_data.split(1).train])
    weights = fold.recipe.class_weights
    assert weights is not None
    assert (weights.numpy() * counts).tolist() == pytest.approx([counts.sum() / 4] * 4)


@pytest.mark.parametrize("monitor", ["accuracy", "balanced_accuracy", "macro_f1", "loss"])
def test_the_monitored_figure_chooses_the_epoch(small_data: FeatureSet, monitor: Monitor) -> None:
    fold = trainer(small_data, monitor=monitor, learning_rate=0.02)
    for _ in range(5):
        fold.run_epoch()
    figures = [getattr(metrics, f"val_{monitor}") for metrics in fold.history]
    best = min(figures) if monitor == "loss" else max(figures)
    assert fold.kept_epoch == figures.index(best)
    assert monitor_of(monitor, [fold.snapshot().so_far]) == monitor


def test_a_preset_gives_way_to_what_is_said() -> None:
    config = RunConfig(demo=True, preset="strong", mixup=0.0, learning_rate=0.01)
    strong = {**PRESETS["strong"], "mixup": 0.0}
    assert {name: getattr(config, name) for name in strong} == strong
    assert RunConfig(demo=True).changed() == {"demo": True}
    plain = dataclasses.replace(config, preset="plain")
    assert {name: getattr(plain, name) for name in strong} == dict(PRESETS["plain"])
    again = dataclasses.replace(plain, preset="strong", ema=0.5)
    assert (again.normalize, again.ema) == (PRESETS["strong"]["normalize"], 0.5)
    expected = ["--demo", "--learning_rate", "0.01", "--preset", "strong", "--mixup", "0.0"]
    assert config.flags() == expected


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"weight_decay": float("inf")}, "--weight_decay inf: expected a finite number"),
        ({"mixup": -1}, "--mixup -1: expected 0 or more"),
        ({"mixup": float("inf")}, "--mixup inf: expected a finite number"),
        ({"ema": 1}, "--ema 1: expected a number from 0 to below 1"),
        ({"spec_augment": "8"}, "--spec_augment '8': expected numbers of mel bands and of frames"),
        ({"spec_augment": (8, -1)}, "expected numbers of mel bands and of frames, as in 8,20"),
        ({"scheduler": "asha"}, "or none; what stops the trials of a search is --trial_scheduler"),
        ({"optimizer": "lion"}, "--optimizer 'lion': expected adam or adamw or sgd"),
        ({"preset": "weak"}, "--preset 'weak': expected plain or strong"),
        ({"recipe": 3}, "--recipe 3: expected module:Class"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as refused:
        RunConfig(demo=True, **values)
    assert line in str(refused.value)


def test_masks_are_one_text_however_they_are_given() -> None:
    for given in ("8,20", "8, 20", (8, 20), [8, 20], np.array([8, 20])):
        assert RunConfig(demo=True, spec_augment=given).spec_augment == "8,20"  # type: ignore[arg-type]
    assert RunConfig(demo=True, spec_augment="0,0").spec_augment == "none"


# --- derived classes -----------------------------------------------------------------------------


def test_what_a_recipe_holds_is_part_of_a_folds_state(small_data: FeatureSet) -> None:
    settings: dict[str, Any] = {"recipe": "support.recipes:Counting(start=3)"}
    whole, fold = trainer(small_data, **settings), trainer(small_data, **settings)
    for _ in range(2):
        whole.run_epoch()
    fold.run_epoch()
    fold = trainer(small_data, state=saved(fold), **settings)
    fold.run_epoch()
    assert_same(fold, whole)
    for each in (fold.recipe, whole.recipe):
        assert isinstance(each, Counting) and each.batches == 3 + 2 * 6
    assert fold.recipe.state_dict()["values"]["seen"] == whole.recipe.state_dict()["values"]["seen"]


class Fitting(raykfold.Recipe):
    fitted: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def fit(self, features: Iterable[Tensor], labels: Tensor) -> None:
        self.fitted.append((torch.cat(list(features)), labels.clone()))
        for batch in features:
            batch.zero_()  # even this changes nothing of the fold's data
        labels.zero_()


def test_fit_sees_the_training_split_once_and_nothing_else(small_data: FeatureSet) -> None:
    """A class that only the held-out fold has never gets to `fit`."""
    first, *_, planted = small_data.class_labels
    others = np.where(small_data.labels == planted, first, small_data.labels)
    labels = np.where(small_data.folds == 2, planted, others)
    data = dataclasses.replace(small_data, labels=labels)
    Fitting.fitted.clear()
    fold = trainer(data, 2, **by("Fitting"))
    fold.run_epoch()
    trainer(data, 2, state=saved(fold), **by("Fitting")).run_epoch()
    ((features, targets),) = Fitting.fitted
    train = data.split(2).train
    assert 3 not in targets.tolist() and targets.tolist() == data.class_indices[train].tolist()
    assert np.array_equal(features.numpy(), np.asarray(data.features, np.float32)[train])
    plain = trainer(data, 2)
    plain.run_epoch()
    assert plain.history[0].loss == fold.history[0].loss


def test_with_an_inner_split_fit_does_not_see_that_either(small_data: FeatureSet) -> None:
    Fitting.fitted.clear()
    split = small_data.split(1, inner=True)
    FoldTrainer(
        1,
        torch.from_numpy(np.asarray(small_data.features)),
        torch.from_numpy(small_data.class_indices),
        split,
        4,
        TrainingSettings("raykfold.models:AudioCNN", 32, 0.003, 9, 0, **by("Fitting")),
    )
    assert len(Fitting.fitted[0][0]) == len(split.train) < len(small_data.split(1).train)


class Layered(raykfold.Recipe):
    """Has a network of its own, two groups of parameters, a frozen layer, and a rate by batch."""

    scheduler_interval = "batch"

    def network(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        layers = [nn.Flatten(), nn.Linear(math.prod(input_shape), 8), nn.Linear(8, num_classes)]
        layers[1].requires_grad_(False)
        return nn.Sequential(*layers)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        last = network.get_submodule("2")
        assert isinstance(last, nn.Linear)
        groups = [{"params": [last.weight], "lr": 0.1}, {"params": [last.bias], "lr": 0.2}]
        return torch.optim.SGD(groups)

    def scheduler(
        self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        total = epochs * steps_per_epoch
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=total)


def test_a_recipe_can_build_everything(small_data: FeatureSet) -> None:
    fold = trainer(small_data, epochs=2, **by("Layered"))
    frozen = fold.model.state_dict()["1.weight"].clone()
    first, second = fold.run_epoch(), fold.run_epoch()
    assert torch.equal(fold.model.state_dict()["1.weight"], frozen)
    assert first.learning_rate == pytest.approx(0.05) and second.learning_rate == pytest.approx(0)
    assert fold.recipe.metadata()["network_by"] == "recipe"


class Scored(raykfold.Recipe):
    def score(self, evaluation: raykfold.Evaluation) -> float:
        return float("nan") if evaluation.logits.shape[1] == 4 else 0.0


def test_a_score_that_is_no_number_ends_the_fold(small_data: FeatureSet) -> None:
    with pytest.raises(FoldError, match="score returned nan; expected a finite number"):
        trainer(small_data, **by("Scored")).run_epoch()


class Wrapped(raykfold.Recipe):
    def __init__(self, alpha: float, *, kind: str = "a") -> None:
        pass


class Remembering(raykfold.Recipe):
    """Scores by a mean of all evaluations that it has seen."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def score(self, evaluation: raykfold.Evaluation) -> float:
        self.seen.append(evaluation.accuracy)
        return sum(self.seen) / len(self.seen)


def test_with_an_inner_split_a_score_learns_nothing_of_the_held_out_samples(
    small_data: FeatureSet,
) -> None:
    fold = FoldTrainer(
        1,
        torch.from_numpy(np.asarray(small_data.features)),
        torch.from_numpy(small_data.class_indices),
        small_data.split(1, inner=True),
        4,
        TrainingSettings("raykfold.models:AudioCNN", 32, 0.003, 9, 0, **by("Remembering")),
    )
    fold.run_epoch()
    fold.run_epoch()
    assert isinstance(fold.recipe, Remembering)
    assert fold.recipe.seen == [metrics.inner_accuracy for metrics in fold.history]


def test_a_recipe_can_be_given_as_an_object() -> None:
    config = RunConfig(demo=True, recipe=Wrapped(0.25, kind="b"))  # type: ignore[arg-type]
    assert config.recipe == f"{__name__}:Wrapped(alpha=0.25, kind='b')"
    assert RunConfig(demo=True, recipe=Counting).recipe == "support.recipes:Counting"  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Recipe takes no arguments"):
        raykfold.Recipe(alpha=1)
    with pytest.raises(BadInput, match=r"--recipe .*expected module:Class"):
        RunConfig(demo=True, recipe=Wrapped([1]))  # type: ignore[arg-type]

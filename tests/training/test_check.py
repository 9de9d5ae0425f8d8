"""Networks that are tried before a run: accepted, warned of, or refused in one line."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_data import SHAPES, shaped_data
from torch import Tensor, nn

import raykfold
from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.errors import BadInput
from raykfold.training.check import check_training


class Good(nn.Module):
    """Takes (B, n_mels, time), and returns logits."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__()
        self.out = nn.Linear(n_mels * target_len, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(x.flatten(1))
        return logits


class Wide(Good):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x)] * 2, dim=1)


class Pair(Good):
    def forward(self, x: Tensor) -> Tensor:
        return x, x  # type: ignore[return-value]


class Raises(Good):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("first line\nsecond line")


class Pictures(nn.Module):
    """Takes pictures with a channel: (B, 1, n_mels, time)."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, num_classes, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


class Constant(nn.Module):
    """Has no parameters."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.num_classes)


class Frozen(Good):
    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__(n_mels, num_classes, target_len)
        self.requires_grad_(False)


class Detached(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Pooled(nn.Module):
    """BatchNorm behind pooling, which has no variance of one sample."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(n_mels)
        self.out = nn.Linear(n_mels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.norm(x.mean(dim=2)))
        return logits


class Caching(Good):
    """Makes a table when it is first called."""

    table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(0, 1, x.shape[2]).cos()
        return super().forward(x * self.table)


class Softmax(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)


class Squeezed(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(demo=True, model_dir=tmp_path)


def check(config: RunConfig, data: FeatureSet, network: type[nn.Module]) -> list[str]:
    spec = f"{__name__}:{network.__name__}"
    return check_training(dataclasses.replace(config, model=spec), data)


def test_a_network_that_trains_passes(config: RunConfig, small_data: FeatureSet) -> None:
    assert check(config, small_data, Good) == check(config, small_data, Pooled) == []
    assert check(config, small_data, Caching) == []
    assert check_training(config, small_data) == []  # the built-in one


def test_it_draws_no_random_number(config: RunConfig, small_data: FeatureSet) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    check_training(config, small_data)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("network", "part"),
    [
        (Wide, "returned (2, 8)"),
        (Pair, "returned tuple"),
        (Raises, "RuntimeError: first line"),
        (Pictures, "it takes (2, 1, 16, 32): expected x = x.unsqueeze(1)"),
        (Constant, "has no parameters to train"),
        (Detached, "cannot be trained (RuntimeError"),
        (Frozen, "has no parameters to train"),
    ],
)
def test_a_network_that_will_not_do_is_refused(
    config: RunConfig, small_data: FeatureSet, network: type[nn.Module], part: str
) -> None:
    with pytest.raises(BadInput) as error:
        check(config, small_data, network)
    assert f"--model {__name__}:{network.__name__}" in str(error.value)
    assert part in str(error.value)


def test_batches_of_one_sample_are_tried_where_they_are_asked_for(
    config: RunConfig, small_data: FeatureSet
) -> None:
    single = dataclasses.replace(config, batch_size=1)
    with pytest.raises(BadInput, match=r"fails on input \(1, 16, 32\) in training"):
        check(single, small_data, Pooled)


@pytest.mark.parametrize(
    ("network", "part"),
    [(Softmax, "leave out its last softmax"), (Squeezed, "returned (4,) for input (1, 16, 32)")],
)
def test_what_will_hurt_is_said(
    config: RunConfig, small_data: FeatureSet, network: type[nn.Module], part: str
) -> None:
    (line,) = check(config, small_data, network)
    assert part in line


@pytest.mark.parametrize(
    ("kind", "options", "part"),
    [
        (
            "embeddings",
            {"spec_augment": "2,2"},
            "--spec_augment 2,2: masks .* shape (64,) have one",
        ),
        ("waveforms", {"preset": "strong"}, "--spec_augment 8,8: masks .* shape (8000,) have one"),
        ("embeddings", {"normalize": "unit"}, "--normalize unit: .* the features are float32"),
    ],
)
def test_options_that_do_not_fit_the_samples_are_refused(
    config: RunConfig, kind: str, options: dict[str, Any], part: str
) -> None:
    own = dataclasses.replace(config, model=f"support.networks:Of{kind.capitalize()}", **options)
    with pytest.raises(BadInput, match=part.replace("(", r"\(").replace(")", r"\)")):
        check_training(own, shaped_data(kind))


@pytest.mark.parametrize("kind", SHAPES)
def test_networks_of_any_shape_are_tried(config: RunConfig, kind: str) -> None:
    own = dataclasses.replace(config, model=f"support.networks:Of{kind.capitalize()}")
    assert check_training(own, shaped_data(kind)) == []
    other = "waveforms" if kind == "images" else "images"
    with pytest.raises(BadInput, match=r"fails on input \(2, "):
        check_training(own, shaped_data(other))
    assert check_training(with_recipe(own, Plain), shaped_data(kind)) == []


class Tokens(nn.Module):
    """Takes integers from 0 to 255, as an embedding does."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x.long()).mean(dim=1)


def test_a_network_for_integers_is_tried_on_integers(config: RunConfig) -> None:
    tokens = np.full((8, 50), 255, dtype=np.uint8)
    data = FeatureSet.from_arrays(tokens, np.arange(8) % 2, np.arange(8) // 2 % 2)
    assert check(config, data, Tokens) == []


# --- recipes -------------------------------------------------------------------------------------


class Plain(raykfold.Recipe):
    """Changes nothing."""


class Fine(raykfold.Recipe):
    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return super().augment(inputs.flip(2), targets)


class Layered(raykfold.Recipe):
    """Fits a layer of its network."""

    def network(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        self._shift = nn.Parameter(torch.zeros(input_shape[0], 1))
        model = Good(input_shape[0], num_classes, input_shape[1])
        model.register_parameter("shift", self._shift)
        return model

    def fit(self, features: Iterable[Tensor], labels: Tensor) -> None:
        self._shift.data.copy_(torch.cat(list(features)).mean((0, 2)).unsqueeze(1))


class OneValue(raykfold.Recipe):
    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs  # type: ignore[return-value]


class Shorter(raykfold.Recipe):
    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[:, :, 1:], targets


class WrongTargets(raykfold.Recipe):
    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, targets.float()


class NotANumber(raykfold.Recipe):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.mean() * float("nan")


class NoScalar(raykfold.Recipe):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits


class NoParameters(raykfold.Recipe):
    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([], lr=0.1)


class NoOptimizer(raykfold.Recipe):
    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD  # type: ignore[return-value]


class NoScheduler(raykfold.Recipe):
    def scheduler(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        return 0.1


class NoNetwork(raykfold.Recipe):
    def network(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return None  # type: ignore[return-value]


class TooWide(raykfold.Recipe):
    def network(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return Wide(input_shape[0], num_classes, input_shape[1])


class Failing(raykfold.Recipe):
    def fit(self, features: Iterable[Tensor], labels: Tensor) -> None:
        raise RuntimeError("no statistics")


class NoScore(raykfold.Recipe):
    def score(self, evaluation: raykfold.Evaluation) -> float:
        return "high"  # type: ignore[return-value]


class Holding(raykfold.Recipe):
    def __init__(self) -> None:
        self.handle = object()


class Needy(raykfold.Recipe):
    def __init__(self, needed: int) -> None:
        pass


class Interval(raykfold.Recipe):
    scheduler_interval = "step"  # type: ignore[assignment]


class Hiding(raykfold.Recipe):
    def __init__(self) -> None:
        self.loss = nn.CrossEntropyLoss()  # type: ignore[method-assign]


class OwnNormalization(raykfold.Recipe):
    def fit(self, features: Iterable[Tensor], labels: Tensor) -> None:
        self.normalization = nn.BatchNorm1d(len(next(iter(features))[0]))  # type: ignore[assignment]


class Prior(raykfold.Recipe):
    """Adds the logarithm of each class's share."""

    def fit(self, features: Iterable[Tensor], labels: Tensor) -> None:
        self.shares = labels.bincount(minlength=self.num_classes) / len(labels)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().loss(logits + self.shares.log(), targets)


class Counted(raykfold.Recipe):
    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()


class Made(raykfold.Recipe):
    """Makes a module where a fold that resumes does not come by."""

    head: nn.Module | None = None

    def fit(self, features: Iterable[Tensor], labels: Tensor) -> None:
        self.head = nn.BatchNorm1d(len(next(iter(features))[0]))

    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs if self.head is None else self.head(inputs), targets


class Private(raykfold.Recipe):
    def fit(self, features: Iterable[Tensor], labels: Tensor) -> None:
        self._shift = torch.cat(list(features)).mean()

    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs - self._shift, targets


class OwnGenerator(raykfold.Recipe):
    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs + self._rng.normal(), targets


class FailsLater(raykfold.Recipe):
    def scheduler(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        def factor(epoch: int) -> float:
            if epoch:
                raise RuntimeError("at the end of an epoch")
            return 1.0

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class NotARecipe:
    pass


def with_recipe(config: RunConfig, recipe: type) -> RunConfig:
    return dataclasses.replace(config, recipe=f"{__name__}:{recipe.__name__}")


class Trained(raykfold.Recipe):
    """Trains a parameter of its own, counts what it sees, and needs that for its schedule."""

    def __init__(self) -> None:
        self.temperature = nn.Parameter(torch.ones(1))
        self.pair = (torch.zeros(1), 0)

    def fit(self, features: Iterable[Tensor], labels: Tensor) -> None:
        self.count = len(labels)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        parameters = [*network.parameters(), self.temperature]
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def scheduler(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, max(self.count // 64, 1))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.pair = (self.pair[0] + 1, self.pair[1] + 1)
        return super().loss(logits / self.temperature, targets)


class Ranked(raykfold.Recipe):
    """Has a score that needs all classes, and is NumPy's."""

    def score(self, evaluation: raykfold.Evaluation) -> float:
        from sklearn.metrics import roc_auc_score

        probabilities = evaluation.logits.softmax(1)
        score = roc_auc_score(evaluation.targets, probabilities, multi_class="ovr")
        return np.float64(score)


def test_a_recipe_that_trains_passes(config: RunConfig, small_data: FeatureSet) -> None:
    assert check_training(with_recipe(config, Fine), small_data) == []
    for recipe in (Layered, Trained, Ranked):
        assert check_training(with_recipe(config, recipe), small_data) == []
    everything = dataclasses.replace(config, preset="strong", class_weights="balanced", ema=0.9)
    assert check_training(with_recipe(everything, Fine), small_data) == []


def test_a_recipe_is_fitted_to_every_class_of_the_training_split(config: RunConfig) -> None:
    """Also to one that is rare, in data of which a part is tried."""
    samples = np.arange(6000)
    labels = np.where(samples < 2, 7, samples % 2)
    features = np.random.default_rng(0).normal(size=(6000, 16, 32)).astype(np.float32)
    data = FeatureSet.from_arrays(features, labels, samples % 5 + 1)
    smoothed = dataclasses.replace(config, label_smoothing=0.1)
    assert check_training(with_recipe(smoothed, Prior), data) == []


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        (
            OneValue,
            "augment returned shape (32, 16, 32) torch.float32; expected a tuple of in",
        ),
        (Shorter, "augment returned shape (32, 16, 31) torch.float32; expected float inputs of s"),
        (
            WrongTargets,
            "returned shape (32,) torch.float32; expected targets of shape (32,) long",
        ),
        (NotANumber, "training loss became nan in epoch 1, batch 1 of 2"),
        (NoScalar, "loss returned shape (32, 4) torch.float32; expected a scalar tensor"),
        (NoParameters, "optimizer fails (ValueError: optimizer got an empty parameter list)"),
        (NoOptimizer, "optimizer returned <class 'torch.optim.sgd.SGD'>; expected a torch.optim"),
        (NoScheduler, "scheduler returned 0.1; expected one of torch.optim.lr_scheduler, or None"),
        (NoNetwork, "network returned None; expected a torch.nn.Module"),
        (TooWide, "returned (2, 8) for input (2, 16, 32); expected logits of shape (2, 4)"),
        (Failing, "fit fails (RuntimeError: no statistics)"),
        (NoScore, "score returned 'high'; expected a finite number"),
        (Holding, "its attribute handle is of type object, which a checkpoint cannot hold"),
        (Needy, "cannot be constructed (TypeError: missing a required argument: 'needed')"),
        (Interval, "scheduler_interval is 'step'; expected epoch or batch"),
        (Hiding, "its attribute loss hides what raykfold.Recipe has by that name"),
        (OwnNormalization, "normalization is a BatchNorm1d; expected another name for it"),
        (Counted, "its attribute seen is of type Counter, which a checkpoint cannot hold"),
        (
            Made,
            "its module head is missing where a fold resumes; expected it to be made in the con",
        ),
        (Private, "augment fails (AttributeError: 'Private' object has no attribute '_shift')"),
        (OwnGenerator, "a fold that resumes gives other results than one that never stopped"),
        (FailsLater, "scheduler fails (RuntimeError: at the end of an epoch)"),
        (NotARecipe, "not a subclass of raykfold.Recipe"),
    ],
)
def test_a_recipe_that_does_not_is_refused_in_one_line(
    config: RunConfig, small_data: FeatureSet, recipe: type, part: str
) -> None:
    with pytest.raises(BadInput) as refused:
        check_training(with_recipe(config, recipe), small_data)
    line = str(refused.value)
    assert line.startswith(f"--recipe {__name__}:{recipe.__name__}: ") and part in line
    assert "\n" not in line

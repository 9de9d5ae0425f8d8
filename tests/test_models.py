"""The built-in network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raykfold.config.class_spec import DEFAULT_MODEL
from raykfold.errors import BadInput
from raykfold.models import AudioCNN
from raykfold.training.network import build_model

NAMES = {
    "encoder1.conv",
    "encoder1.bn",
    "encoder2.conv",
    "encoder2.bn",
    "encoder3.conv",
    "encoder3.bn",
    "conv1d",
    "fc1",
    "fc2",
}


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("n_mels", "classes", "time", "parameters"), [(128, 10, 173, 250_250), (64, 10, 32, 184_714)]
)
def test_the_network_has_the_size_of_the_one_it_replaces(
    n_mels: int, classes: int, time: int, parameters: int
) -> None:
    assert size(build_model(DEFAULT_MODEL, (n_mels, time), classes)) == parameters
    model = AudioCNN(n_mels, classes, time).eval()
    assert model(torch.randn(3, n_mels, time)).shape == (3, classes)


def test_weights_are_named_so_that_those_trained_elsewhere_load() -> None:
    weights = AudioCNN(64, 10, 32).state_dict()
    assert {name.rpartition(".")[0] for name in weights} == NAMES


def test_it_computes_what_its_definition_says() -> None:
    """The same composition from torch's functional parts, in evaluation mode."""
    torch.manual_seed(0)
    model = AudioCNN(16, 3, 20).eval()
    w = model.state_dict()
    x = torch.randn(2, 16, 20)
    y = x[:, None]
    for name, pool in (("encoder1", 2), ("encoder2", 2), ("encoder3", (2, 4))):
        y = nn.functional.conv2d(y, w[f"{name}.conv.weight"], w[f"{name}.conv.bias"], padding=1)
        y = y - w[f"{name}.bn.running_mean"][:, None, None]
        scale = w[f"{name}.bn.weight"] / torch.sqrt(w[f"{name}.bn.running_var"] + 1e-5)
        y = y * scale[:, None, None] + w[f"{name}.bn.bias"][:, None, None]
        y = nn.functional.max_pool2d(y.clamp(min=0), pool)
    y = nn.functional.conv1d(y.mean(3), w["conv1d.weight"], w["conv1d.bias"], padding=1)
    y = (y.clamp(min=0).flatten(1) @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)
    expected = y @ w["fc2.weight"].T + w["fc2.bias"]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(("n_mels", "time"), [(7, 32), (64, 15)])
def test_features_smaller_than_pooling_allows_are_refused(n_mels: int, time: int) -> None:
    with pytest.raises(BadInput, match="n_mels >= 8 and time >= 16"):
        build_model(DEFAULT_MODEL, (n_mels, time), 10)


def test_the_smallest_features_are_accepted() -> None:
    model = build_model(DEFAULT_MODEL, (8, 16), 2)
    assert model(torch.zeros(2, 8, 16)).shape == (2, 2)


def test_width_and_dropout_can_be_others() -> None:
    torch.manual_seed(0)
    spec = f"{DEFAULT_MODEL}(width=8, dropout=0.1, head_dropout=0.0)"
    model = build_model(spec, (16, 20), 3)
    assert size(model) < size(build_model(DEFAULT_MODEL, (16, 20), 3)) / 4
    channels = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [8, 16, 32]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1, 0.1, 0.0]


def test_without_arguments_it_is_the_same_network_to_the_bit() -> None:
    weights = []
    for spec in (DEFAULT_MODEL, f"{DEFAULT_MODEL}(width=32, dropout=0.2, head_dropout=0.5)"):
        torch.manual_seed(0)
        weights.append(build_model(spec, (16, 20), 3).state_dict())
    assert all(torch.equal(values, weights[1][name]) for name, values in weights[0].items())


@pytest.mark.parametrize(
    "arguments",
    ["width=0", "width=2.5", "width='8'", "dropout=1", "dropout=-0.1", "head_dropout='a'", "x=1"],
)
def test_arguments_that_make_no_network_are_refused(arguments: str) -> None:
    with pytest.raises(BadInput, match=r"AudioCNN\(.*\): cannot be built") as error:
        build_model(f"{DEFAULT_MODEL}({arguments})", (16, 20), 3)
    assert arguments.partition("=")[0] in str(error.value)

"""Networks by name: built, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raykfold.errors import BadInput
from raykfold.training.network import build_model


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_models.py").write_text(
        "import torch\n"
        "class Good(torch.nn.Module):\n"
        "    def __init__(self, n_mels, num_classes, target_len):\n"
        "        super().__init__()\n"
        "        self.out = torch.nn.Linear(n_mels * target_len, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.out(x.flatten(1))\n"
        "class Picky(Good):\n"
        "    def __init__(self, n_mels):\n"
        "        pass\n"
        "class Shaped(torch.nn.Module):\n"
        "    def __init__(self, num_classes, input_shape, width=2):\n"
        "        super().__init__()\n"
        "        self.given = input_shape, num_classes, width\n"
        "class Both(Good):\n"
        "    def __init__(self, n_mels, num_classes, target_len, input_shape=None):\n"
        "        super().__init__(n_mels, num_classes, target_len)\n"
        "class Passing(Shaped):\n"
        "    def __init__(self, width=5, **data):\n"
        "        super().__init__(width=width, **data)\n"
        "class PassingAll(Good):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "class NoModule:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_models"


def test_an_own_network_is_built_with_three_numbers(own_models: str) -> None:
    model = build_model(f"{own_models}:Good", (4, 5), 3)
    assert model(torch.zeros(2, 4, 5)).shape == (2, 3)


def test_a_network_that_passes_everything_on_is_built_like_its_base(own_models: str) -> None:
    for name in ("PassingAll", "Both"):
        model = build_model(f"{own_models}:{name}", (4, 5), 3)
        assert model(torch.zeros(2, 4, 5)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 5)])
def test_an_own_network_can_ask_for_the_shape(own_models: str, shape: tuple[int, ...]) -> None:
    for name, width in (("Shaped", 2), ("Shaped(width=3)", 3), ("Passing", 5)):
        model = build_model(f"{own_models}:{name}", shape, 6)
        assert model.given == (shape, 6, width)


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
def test_a_network_of_spectrograms_refuses_other_shapes(
    own_models: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(BadInput, match=r"Good: is called with .*expected a class with the param"):
        build_model(f"{own_models}:Good", shape, 3)
    with pytest.raises(BadInput, match=r"takes samples of \(n_mels, time\).*\(\d.*module:Class"):
        build_model("raykfold.models:AudioCNN", shape, 3)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Picky", "cannot be built"),
        ("NoModule", "not a subclass of torch.nn.Module"),
        ("Absent", "cannot be imported"),
    ],
)
def test_a_network_that_cannot_be_built_is_named(own_models: str, name: str, part: str) -> None:
    with pytest.raises(BadInput) as error:
        build_model(f"{own_models}:{name}", (8, 16), 3)
    assert f"--model {own_models}:{name}" in str(error.value)
    assert part in str(error.value)


@pytest.mark.parametrize("spec", ["torch", "torch:", ":Linear", "no.such.module:Net"])
def test_a_name_that_leads_nowhere_is_named(spec: str) -> None:
    with pytest.raises(BadInput, match="--model"):
        build_model(spec, (8, 16), 2)

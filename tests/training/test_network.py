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
        "class NoModule:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_models"


def test_an_own_network_is_built_with_three_numbers(own_models: str) -> None:
    model = build_model(f"{own_models}:Good", 4, 3, 5)
    assert model(torch.zeros(2, 4, 5)).shape == (2, 3)


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
        build_model(f"{own_models}:{name}", 8, 3, 16)
    assert f"--model {own_models}:{name}" in str(error.value)
    assert part in str(error.value)


@pytest.mark.parametrize("spec", ["torch", "torch:", ":Linear", "no.such.module:Net"])
def test_a_name_that_leads_nowhere_is_named(spec: str) -> None:
    with pytest.raises(BadInput, match="--model"):
        build_model(spec, 8, 2, 16)

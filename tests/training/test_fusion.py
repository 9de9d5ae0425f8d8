from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raykfold.training.fusion import fused_block

SHAPES = [
    ((4, 1, 12, 16), (2, 2)),
    ((3, 8, 13, 17), (2, 2)),  # of what does not divide, the rest is left out
    ((2, 8, 16, 20), (2, 4)),
]


def modules(
    in_channels: int, dtype: torch.dtype = torch.float64
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Of six channels, whose norm has scales of either sign."""
    conv = nn.Conv2d(in_channels, 6, 3, padding=1).to(dtype)
    norm = nn.BatchNorm2d(6).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -1.0, 0.5, -0.1, 2.0, 1e-3]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.3, 0.1, -1e-3]))
    return conv, norm


def block(
    x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, pool: tuple[int, int], dropout: float = 0.0
) -> Tensor:
    return fused_block(x, conv, norm, nn.MaxPool2d(pool), nn.Dropout(dropout))


def one_by_one(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, pool: tuple[int, int]) -> Tensor:
    return functional.max_pool2d(torch.relu(norm(conv(x))), pool)


@pytest.mark.parametrize(("shape", "pool"), SHAPES)
@pytest.mark.parametrize("silence", [False, True])
def test_it_trains_as_the_modules_one_by_one_do(
    shape: tuple[int, ...], pool: tuple[int, int], silence: bool
) -> None:
    torch.manual_seed(0)
    conv, norm = modules(shape[1])
    others = copy.deepcopy(conv), copy.deepcopy(norm)
    x = torch.randn(shape, dtype=torch.float64)
    if silence:
        x[..., shape[3] // 2 :] = -3.0  # all windows there have several maxima
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):
        out, expected = block(x, conv, norm, pool), one_by_one(y, *others, pool)
        torch.testing.assert_close(out, expected)
        grad = torch.randn_like(expected)
        out.backward(grad)
        expected.backward(grad)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(conv.weight.grad, others[0].weight.grad)
    torch.testing.assert_close(norm.weight.grad, others[1].weight.grad)
    torch.testing.assert_close(norm.bias.grad, others[1].bias.grad)
    torch.testing.assert_close(norm.state_dict(), others[1].state_dict())


@pytest.mark.parametrize(("shape", "pool"), SHAPES)
def test_it_evaluates_as_the_modules_one_by_one_do(
    shape: tuple[int, ...], pool: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    conv, norm = modules(shape[1])
    block(torch.randn(shape, dtype=torch.float64), conv, norm, pool, 0.5)  # running statistics
    before = copy.deepcopy(norm.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    dropout = nn.Dropout(0.5).eval()
    out = fused_block(x, conv.eval(), norm.eval(), nn.MaxPool2d(pool), dropout)
    torch.testing.assert_close(out, one_by_one(x, conv, norm, pool))
    torch.testing.assert_close(norm.state_dict(), before)


@pytest.mark.parametrize("training", [True, False])
def test_a_convolution_without_bias_will_do(training: bool) -> None:
    torch.manual_seed(0)
    conv, norm = modules(2)
    conv.bias = None
    norm.train(training)
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    others = copy.deepcopy(conv), copy.deepcopy(norm)
    torch.testing.assert_close(block(x, conv, norm, (2, 2)), one_by_one(x, *others, (2, 2)))
    torch.testing.assert_close(norm.state_dict(), others[1].state_dict())


def test_its_gradient_is_the_slope() -> None:
    torch.manual_seed(0)
    conv, norm = modules(2)
    x = torch.randn(2, 2, 6, 8, dtype=torch.float64, requires_grad=True)
    inputs = (x, conv.weight, norm.weight, norm.bias)
    assert torch.autograd.gradcheck(lambda *_: block(x, conv, norm, (2, 2)), inputs)


def test_the_bias_of_the_convolution_needs_no_gradient_and_gets_none() -> None:
    torch.manual_seed(0)
    conv, norm = modules(2)
    assert conv.bias is not None
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    block(x, conv, norm, (2, 2)).square().sum().backward()
    assert conv.bias.grad is None
    one_by_one(x, conv, norm, (2, 2)).square().sum().backward()
    assert conv.bias.grad is not None and conv.bias.grad.abs().max() < 1e-12


def test_its_output_may_be_changed_in_place() -> None:
    torch.manual_seed(0)
    conv, norm = modules(2)
    others = copy.deepcopy(conv), copy.deepcopy(norm)
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    block(x, conv, norm, (2, 2)).mul_(3.0).sum().backward()
    one_by_one(x, *others, (2, 2)).mul(3.0).sum().backward()
    torch.testing.assert_close(conv.weight.grad, others[0].weight.grad)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv": {"stride": (2, 2)}},
        {"conv": {"padding_mode": "reflect"}},
        {"norm": {"momentum": None}},
        {"norm": {"affine": False}},
        {"norm": {"track_running_stats": False}},
        {"pool": {"stride": (1, 1)}},
        {"pool": {"ceil_mode": True}},
        {"dropout": {"p": 1.0}},
        {"dropout": {"p": 1 - 2**-20}},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_other_modules_are_called_one_by_one(
    changes: dict[str, dict[str, Any]], training: bool
) -> None:
    torch.manual_seed(0)
    parts = [
        nn.Conv2d(2, 6, **{"kernel_size": 3, "padding": 1, **changes.get("conv", {})}),
        nn.BatchNorm2d(6, **changes.get("norm", {})),
        nn.MaxPool2d(**{"kernel_size": (2, 2), **changes.get("pool", {})}),
        nn.Dropout(**{"p": 0.0, **changes.get("dropout", {})}),
    ]
    others = copy.deepcopy(parts)
    for part in (*parts, *others):
        part.train(training)
    x = torch.randn(3, 2, 9, 9)
    for _ in range(2):
        expected = others[3](others[2](torch.relu(others[1](others[0](x)))))
        torch.testing.assert_close(fused_block(x, *parts), expected)  # type: ignore[arg-type]
    torch.testing.assert_close(parts[1].state_dict(), others[1].state_dict())


def test_dropout_goes_on_beside_a_norm_that_is_frozen() -> None:
    torch.manual_seed(0)
    conv, norm = modules(2, torch.float32)
    x = torch.randn(8, 2, 32, 32)
    out = block(x, conv, norm.eval(), (2, 2), 0.5)
    full = one_by_one(x, conv, norm, (2, 2))
    passed = (out != 0).sum() / (full != 0).sum()
    assert 0.4 < passed < 0.6


def test_hooks_on_the_modules_are_called() -> None:
    conv, norm = modules(2, torch.float32)
    seen: list[torch.Size] = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    block(torch.randn(3, 2, 8, 8), conv, norm, (2, 2))
    assert seen == [torch.Size([3, 6, 8, 8])]


def test_dropout_leaves_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    conv, norm = modules(2)
    with torch.no_grad():
        norm.bias.fill_(20)  # far above zero, so that what is zero was dropped
    x = torch.randn(32, 2, 64, 64, dtype=torch.float64, requires_grad=True)
    out = block(x, conv, norm, (2, 2), 0.2)
    full = one_by_one(x, conv, norm, (2, 2))
    passed = out != 0
    share = passed.float().mean().item()
    assert share == pytest.approx(0.8, abs=4 * (0.16 / out.numel()) ** 0.5)
    torch.testing.assert_close(out[passed], full[passed] / 0.8)
    for along in ((0, 2, 3), (1, 2, 3)):  # of every channel, and of every sample
        assert passed.float().mean(dim=along).sub(0.8).abs().max() < 0.02
    assert norm.bias.grad is None
    out.sum().backward()
    assert norm.bias.grad is not None  # the gradient knows which elements passed
    torch.testing.assert_close(norm.bias.grad, passed.double().sum(dim=(0, 2, 3)) / 0.8)


def test_equal_seeds_drop_the_same() -> None:
    conv, norm = modules(2, torch.float32)
    x = torch.randn(3, 2, 8, 8)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return block(x, conv, norm, (2, 2), 0.5)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_in_half_precision_it_stays_close() -> None:
    torch.manual_seed(0)
    conv, norm = modules(8, torch.float32)
    x = torch.randn(4, 8, 16, 16)
    others = copy.deepcopy(conv), copy.deepcopy(norm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block(x, conv, norm, (2, 2))
    assert out.dtype == torch.bfloat16
    expected = block(x, *others, (2, 2))
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)
    out.float().square().sum().backward()
    expected.square().sum().backward()
    for weight, exact in ((conv.weight, others[0].weight), (norm.weight, others[1].weight)):
        assert weight.grad is not None and exact.grad is not None
        assert (weight.grad - exact.grad).norm() < 0.03 * exact.grad.norm()

"""A convolution and what follows it in an encoder block, as one step.

Batch normalisation, ReLU, pooling and dropout, one after the other, each read and write the whole
output of the convolution, forward and backward: that can take longer than the convolution. Here
the output is normalised and pooled, and all the rest is done on what pooling leaves of it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# A threshold of this many bits decides whether dropout keeps an element: so p is met to one part
# in 65,536, and one random word of 64 bits serves four elements.
_BITS = 16


def encoded(
    x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, pool: nn.MaxPool2d, dropout: nn.Dropout
) -> Tensor:
    """``dropout(pool(relu(norm(conv(x)))))``, within rounding, trained or evaluated as `norm` is.

    The norm is that of Ioffe & Szegedy 2015 (https://arxiv.org/abs/1502.03167), as `nn.BatchNorm2d`
    has it. In training the convolution's bias gets no gradient, because the true one is zero: the
    norm takes away whatever a bias adds. Modules that are not what this knows (another stride, a
    norm without statistics, a hook, a class derived from one of these) are called one by one.

    Args:
        x: (B, in_channels, height, width).

    Returns:
        (B, out_channels, height, width) of what pooling leaves, channels last in memory.
    """
    if not _is_known(conv, norm, pool, dropout) or x.shape[0] * x.shape[2] * x.shape[3] == 1:
        return cast(Tensor, dropout(pool(torch.relu(norm(conv(x))))))
    assert norm.running_mean is not None and norm.running_var is not None
    if not norm.training:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            shift = shift + conv.bias * scale
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        y = functional.conv2d(x, _channels_last(weight), shift, padding=conv.padding)
        return cast(Tensor, dropout(torch.relu(pool(y))))  # ReLU after pooling: both only grow
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    y = functional.conv2d(x, _channels_last(conv.weight), None, padding=conv.padding)
    dropped = dropout.p if dropout.training else 0.0
    out = cast(
        Tensor, _NormReluPool.apply(y, norm.weight, norm.bias, norm, pool.kernel_size, dropped)
    )
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        if conv.bias is not None:
            norm.running_mean.add_(conv.bias, alpha=norm.momentum)
    return out


def _is_known(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, pool: nn.MaxPool2d, dropout: nn.Dropout
) -> bool:
    modules = (conv, norm, pool, dropout)
    plain = tuple(map(type, modules)) == (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Dropout)
    return (
        plain
        and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        and not any(module._backward_hooks or module._backward_pre_hooks for module in modules)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and pool.stride == pool.kernel_size
        and pool.padding == 0
        and pool.dilation == 1
        and not pool.ceil_mode
        and not pool.return_indices
        and round(dropout.p * 2**_BITS) < 2**_BITS  # what `_kept` can compare with
    )


class _NormReluPool(torch.autograd.Function):
    """Norm, pooling, ReLU and dropout, in training, of a convolution's output y.

    y is normalised to z = sign(gamma) (y - mean) / std, and z pooled to m. The norm gives
    |gamma| z + beta, which grows with z as ReLU does: so ReLU of |gamma| m + beta is what pooling
    last would give.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        gamma: Tensor,
        beta: Tensor,
        norm: nn.BatchNorm2d,
        window: int | tuple[int, int],
        dropout: float,
    ) -> Tensor:
        assert norm.momentum is not None
        sign = torch.ones_like(gamma).copysign_(gamma)
        z, _, inverse_std = torch.native_batch_norm(
            y, sign, None, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
        )
        m, where = torch.ops.aten.max_pool2d_with_indices(z, window)
        scale = 1 / (1 - dropout)
        out = torch.addcmul(_maps(beta * scale), m, _maps(gamma.abs() * scale)).clamp_min_(0)
        if dropout:
            out.mul_(_kept(out, dropout))
        # What is above zero is what has passed the ReLU and was not dropped. Not the output itself
        # is kept: whoever gets it may change it.
        ctx.save_for_backward(z, m, where, out > 0, gamma, sign, inverse_std)
        ctx.scale = scale
        return out.to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, m, where, passed, gamma, sign, inverse_std = ctx.saved_tensors
        d = (grad * passed).to(gamma.dtype).mul_(ctx.scale)
        d_beta = d.sum(dim=(0, 2, 3))
        d_abs_gamma = (d * m).sum(dim=(0, 2, 3))
        # The gradient at z is |gamma| d at the maxima and 0 elsewhere; the norm takes out of it
        # its mean and its part along z.
        slope = gamma * inverse_std
        count = z.numel() // z.shape[1]
        shift, tilt = _maps(slope * d_beta / -count), _maps(slope * d_abs_gamma / -count)
        dy = torch.addcmul(shift.to(z.dtype), z, tilt.to(z.dtype))
        maxima = torch.addcmul(shift, m, tilt).addcmul_(d, _maps(slope)).to(z.dtype)
        # Windows do not overlap, so no element is written twice, and order does not matter.
        _rows(dy).scatter_(1, _rows(where), _rows(maxima))
        return dy, sign * d_abs_gamma, d_beta, None, None, None


def _kept(like: Tensor, dropout: float) -> Tensor:
    """Whether dropout keeps each element of a (B, C, H, W); memory as `like` has it, channels last.

    Four times as fast, on a CPU, as `torch.bernoulli`, which takes a double for each.
    """
    batch, channels, height, width = like.shape
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: like.numel()]
    kept = bits >= round(dropout * 2**_BITS) - 2 ** (_BITS - 1)
    return kept.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _maps(values: Tensor) -> Tensor:
    """(C,) as what multiplies (B, C, H, W)."""
    return values.view(1, -1, 1, 1)


def _rows(maps: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H W, C), without a copy where channels are last in memory."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)

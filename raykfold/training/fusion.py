"""An encoder block in less time: convolution, batch normalization, ReLU, pooling and dropout.

One after the other, each module behind the convolution reads and writes its whole output, forward
and backward, which can take longer than the convolution. Here the output is normalized and pooled,
and everything else is computed on the smaller, pooled result.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Dropout compares random numbers of this many bits with a threshold. So p is met to one part in
# 65,536, and a random word of 64 bits serves four elements.
_BITS = 16


def fused_block(
    x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, pool: nn.MaxPool2d, dropout: nn.Dropout
) -> Tensor:
    """Compute ``dropout(pool(relu(norm(conv(x)))))``, within rounding, in the mode of `norm`.

    Batch normalization is that of Ioffe & Szegedy 2015 (https://arxiv.org/abs/1502.03167), as in
    `nn.BatchNorm2d`. In training the convolution's bias gets no gradient, because the true one is
    zero: the norm subtracts whatever a bias adds. Modules that cannot be fused (another stride, a
    norm without statistics, a hook, a derived class) are called one by one.

    Args:
        x: (B, in_channels, height, width).

    Returns:
        (B, out_channels, pooled height, pooled width), channels last in memory.
    """
    if not _can_fuse(conv, norm, pool, dropout) or x.shape[0] * x.shape[2] * x.shape[3] == 1:
        return cast(Tensor, dropout(pool(torch.relu(norm(conv(x))))))
    assert norm.running_mean is not None and norm.running_var is not None

    # In evaluation the norm is a fixed scale and shift, which the convolution takes over.
    if not norm.training:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            shift = shift + conv.bias * scale
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        y = functional.conv2d(x, _channels_last(weight), shift, padding=conv.padding)
        return cast(Tensor, dropout(torch.relu(pool(y))))  # both are monotonic: any order will do

    # In training the norm's statistics are those of the batch.
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


def _can_fuse(
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
        and round(dropout.p * 2**_BITS) < 2**_BITS  # a threshold that `_dropout_mask` can have
    )


class _NormReluPool(torch.autograd.Function):
    """Norm, pooling, ReLU and dropout, in training, of a convolution's output y.

    y is normalized to z = sign(gamma) (y - mean) / std, and z is pooled to m. The norm's output,
    |gamma| z + beta, increases with z, as ReLU does. So ReLU of |gamma| m + beta is the same as
    pooling after norm and ReLU.
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
            out.mul_(_dropout_mask(out, dropout))
        # Elements above zero have passed ReLU and dropout. The output itself is not saved, because
        # the caller may change it in place.
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
        # The gradient at z is |gamma| d at the maxima and 0 elsewhere. The norm's backward pass
        # subtracts its mean and its projection on z.
        slope = gamma * inverse_std
        count = z.numel() // z.shape[1]
        shift, tilt = _maps(slope * d_beta / -count), _maps(slope * d_abs_gamma / -count)
        dy = torch.addcmul(shift.to(z.dtype), z, tilt.to(z.dtype))
        maxima = torch.addcmul(shift, m, tilt).addcmul_(d, _maps(slope)).to(z.dtype)
        # Windows do not overlap, so no element is written twice: the result is deterministic.
        _rows(dy).scatter_(1, _rows(where), _rows(maxima))
        return dy, sign * d_abs_gamma, d_beta, None, None, None


def _dropout_mask(like: Tensor, dropout: float) -> Tensor:
    """Return (B, C, H, W) bool, in the layout of `like`, channels last: False where dropped.

    On a CPU it is four times as fast as `torch.bernoulli`, which draws a double for each element.
    """
    batch, channels, height, width = like.shape
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: like.numel()]
    mask = bits >= round(dropout * 2**_BITS) - 2 ** (_BITS - 1)
    return mask.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _maps(values: Tensor) -> Tensor:
    """Reshape (C,) to what broadcasts over (B, C, H, W)."""
    return values.view(1, -1, 1, 1)


def _rows(maps: Tensor) -> Tensor:
    """Reshape (B, C, H, W) to (B, H W, C), without a copy where channels are last in memory."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)

"""The built-in network."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from raykfold.training.fusion import fused_block


class EncoderBlock(nn.Module):
    """Convolution 3 by 3, batch normalization, ReLU, max pooling and dropout, in this order.

    They are computed together, in less time than one after the other (`raykfold.training.fusion`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        pool: factors by which pooling reduces (n_mels, time).
        dropout: probability of an element to be dropped in training.
    """

    def __init__(
        self, in_channels: int, out_channels: int, pool: tuple[int, int], dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.bn = nn.BatchNorm2d(out_channels)
        self.pool = nn.MaxPool2d(pool)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return fused_block(x, self.conv, self.bn, self.pool, self.dropout)


class AudioCNN(nn.Module):
    """Three encoder blocks over a log-mel spectrogram, and a small classifier.

    The input is (B, n_mels, time) float32, the output (B, num_classes) logits. The mean is taken
    over time, but not over frequency: the number of parameters depends on `n_mels` and not on
    `target_len`.

    Args:
        n_mels: mel bands, at least 8 (pooling divides them by 8).
        num_classes: number of outputs.
        target_len: frames, at least 16 (pooling divides them by 16).
        width: channels of the first block; the others have twice and four times as many.
        dropout: dropout probability of the blocks.
        head_dropout: dropout probability of the classifier.

    Attributes:
        recordable: a training step can be replayed as a CUDA graph, because it does the same each
            time except for the values of tensors and the GPU's random numbers. It is not
            inherited: a derived class declares it for itself.

    Raises:
        ValueError: the input is too small for the pooling, or another value is out of range.
    """

    recordable = True

    def __init__(
        self,
        n_mels: int,
        num_classes: int,
        target_len: int,
        *,
        width: int = 32,
        dropout: float = 0.2,
        head_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width {width!r}: expected a whole number of channels, 1 or more")
        for name, value in (("dropout", dropout), ("head_dropout", head_dropout)):
            if isinstance(value, str) or not 0 <= value < 1:
                raise ValueError(f"{name} {value!r}: expected a number from 0 to below 1")
        if n_mels < 8 or target_len < 16:
            raise ValueError(
                f"features of {n_mels} mel bands by {target_len} frames are too small: "
                "AudioCNN pools them by 8 and 16, so it needs n_mels >= 8 and time >= 16"
            )
        self.encoder1 = EncoderBlock(1, width, (2, 2), dropout)
        self.encoder2 = EncoderBlock(width, 2 * width, (2, 2), dropout)
        self.encoder3 = EncoderBlock(2 * width, 4 * width, (2, 4), dropout)
        self.conv1d = nn.Conv1d(4 * width, 2 * width, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(2 * width * (n_mels // 8), 128)
        self.dropout = nn.Dropout(head_dropout)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(3).permute(0, 3, 1, 2)  # one channel, last in memory
        x = self.encoder3(self.encoder2(self.encoder1(x)))
        x = torch.relu(self.conv1d(x.mean(dim=3)))  # (B, channels, n_mels / 8)
        x = torch.relu(self.fc1(x.flatten(1)))
        return cast(Tensor, self.fc2(self.dropout(x)))

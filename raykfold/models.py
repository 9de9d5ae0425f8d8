"""The built-in network."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from raykfold.training.fusion import encoded


class EncoderBlock(nn.Module):
    """Convolution 3 by 3, batch normalisation, ReLU, max pooling and dropout, in this order.

    What its modules give one by one, computed as one step (`raykfold.training.fusion`).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        pool: factors by which pooling shrinks (n_mels, time).
        dropout: probability with which an element is dropped in training.
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
        return encoded(x, self.conv, self.bn, self.pool, self.dropout)


class AudioCNN(nn.Module):
    """Three encoder blocks over a log-mel spectrogram, and a small classifier.

    `recordable` says that a step of it does the same whenever it is done, but for tensors and the
    GPU's random numbers: so it can be replayed as a CUDA graph. A class derived from this one has
    to say so for itself.

    Input (B, n_mels, time) float32; output (B, num_classes) logits. The time axis is averaged
    away, so `target_len` does not change the parameters; frequency is kept, and does.

    Args:
        n_mels: mel bands, at least 8 (pooling divides them by 8).
        num_classes: outputs.
        target_len: frames, at least 16 (pooling divides them by 16).
        width: channels of the first block; the others have twice and four times as many.
        dropout: probability with which the blocks drop an element.
        head_dropout: that of the classifier.

    Raises:
        ValueError: the input is smaller than pooling allows; or another value makes no network.
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
            raise ValueError(f"width {width!r}: want a whole number of channels, 1 or more")
        for name, value in (("dropout", dropout), ("head_dropout", head_dropout)):
            if isinstance(value, str) or not 0 <= value < 1:
                raise ValueError(f"{name} {value!r}: want a number from 0 to below 1")
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
        x = torch.relu(self.conv1d(x.mean(dim=3)))  # (B, channels, n_mels / 8) along frequency
        x = torch.relu(self.fc1(x.flatten(1)))
        return cast(Tensor, self.fc2(self.dropout(x)))

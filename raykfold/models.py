"""The built-in network, and how a network is named and built."""

from __future__ import annotations

import importlib
from typing import cast

import torch
from torch import Tensor, nn

from raykfold.config.model_spec import Blueprint
from raykfold.errors import BadInput
from raykfold.training.fusion import encoded

DEFAULT_MODEL = "raykfold.models:AudioCNN"


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


def model_class(spec: str) -> type[nn.Module]:
    """The class that a blueprint's name, ``module:Class``, stands for.

    Raises:
        BadInput: it cannot be imported, or is no `nn.Module` class.
    """
    module_name, _, class_name = spec.partition(":")
    if not module_name or not class_name:
        raise BadInput(f"--model {spec!r}: want module:Class, as in {DEFAULT_MODEL}")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a user's module can raise anything while it is imported
        raise BadInput(
            f"--model {spec}: cannot be imported ({type(error).__name__}: {error}); "
            "the module must be on the Python path"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise BadInput(f"--model {spec}: is no torch.nn.Module class")
    return found


def build_model(spec: str, n_mels: int, num_classes: int, target_len: int) -> nn.Module:
    """The network named by `spec`, with initial weights from torch's current random state.

    Args:
        spec: ``module:Class``, called with ``(n_mels, num_classes, target_len)`` and the keyword
            arguments that it has in parentheses (`raykfold.config.model_spec`).

    Raises:
        BadInput: the class cannot be imported or constructed for this input.
    """
    try:
        blueprint = Blueprint.read(spec)
    except ValueError as error:
        raise BadInput(f"--model {spec}: {error}") from None
    cls = model_class(blueprint.name)
    try:
        return cls(n_mels, num_classes, target_len, **blueprint.arguments)
    except Exception as error:
        raise BadInput(
            f"--model {spec}: cannot be built for {n_mels} mel bands, {num_classes} classes, "
            f"{target_len} frames ({type(error).__name__}: {error})"
        ) from error


def check_model(spec: str, n_mels: int, num_classes: int, target_len: int) -> int:
    """Build the network once, send two samples through it, and count its parameters.

    Leaves torch's random state as it was.

    Raises:
        BadInput: it cannot be built, fails on such input, or returns another shape than
            (2, num_classes).
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        model = build_model(spec, n_mels, num_classes, target_len).eval()
        try:
            output = model(torch.zeros(2, n_mels, target_len))
        except Exception as error:
            raise BadInput(
                f"--model {spec}: fails on input (2, {n_mels}, {target_len}) "
                f"({type(error).__name__}: {error})"
            ) from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (2, num_classes):
        raise BadInput(
            f"--model {spec}: returned {shape} for input (2, {n_mels}, {target_len}); "
            f"want logits of shape (2, {num_classes})"
        )
    return sum(parameter.numel() for parameter in model.parameters())

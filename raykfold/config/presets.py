"""What ``--preset`` stands for: values of the options that say how a fold is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLAIN: Mapping[str, Any] = {
    "early_stopping_patience": 10,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "scheduler": "plateau",
    "warmup_epochs": 0,
    "grad_clip": 0.0,
    "label_smoothing": 0.0,
    "class_weights": "none",
    "normalize": "none",
    "mixup": 0.0,
    "spec_augment": "none",
    "time_shift": 0.0,
    "ema": 0.0,
    "monitor": "accuracy",
}
"""Values that change nothing: training as it is without these options."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "plain": PLAIN,
    # For small sets of recordings; chosen on Free Spoken Digits (tests/benchmarks/RESULTS.md).
    "strong": {
        **PLAIN,
        "early_stopping_patience": 50,  # the last epochs, of low learning rates, gain most
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "scheduler": "cosine",
        "warmup_epochs": 2,
        "label_smoothing": 0.1,
        "normalize": "band",
        "mixup": 0.2,
        "spec_augment": "8,8",
    },
}


def is_plain(config: Mapping[str, Any], name: str) -> bool:
    """Return whether an option is one of a preset's, and has the value of ``plain`` in a run.

    Where another preset would have set it to something else, it counts as not plain.

    Args:
        config: the run's options.
        name: of the option.
    """
    preset = PRESETS.get(config.get("preset", "plain"), PLAIN)
    return name in PLAIN and config.get(name) == PLAIN[name] == preset[name]

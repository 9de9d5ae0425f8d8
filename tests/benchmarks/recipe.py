"""Time a training step of AudioCNN with parts of a recipe, against the plain step.

    python tests/benchmarks/recipe.py [--threads 2] [--steps 60] [--device cpu]

Prints medians of steps of 32 samples, and their ratios. The ways take turns, step by step, so that
whatever else the machine does slows all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

from raykfold.config.presets import PRESETS
from raykfold.data.feature_set import Split
from raykfold.training.fold import FoldTrainer
from raykfold.training.recipe import TrainingSettings

SHAPES = ((64, 32), (128, 173))
THREE: dict[str, Any] = {"normalize": "band", "spec_augment": "8,20", "mixup": 0.2}
STRONG = {**PRESETS["strong"]}
PLAIN_STEP: dict[str, Any] = {
    "model": "raykfold.models:AudioCNN",
    "batch_size": 32,
    "learning_rate": 0.001,
    "early_stopping_patience": 9,
    "seed": 0,
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normalize": {"normalize": "band"},
    "spec_augment": {"spec_augment": "8,20"},
    "mixup": {"mixup": 0.2},
    "these three": THREE,
    "preset strong": STRONG,
    "strong, time_shift, ema, grad_clip": {
        **STRONG,
        "time_shift": 0.1,
        "ema": 0.99,
        "grad_clip": 1.0,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| shape | way | step, ms | ratio |\n| --- | --- | --- | --- |")
    for shape in SHAPES:
        medians = measure(shape, arguments.steps, torch.device(arguments.device))
        for way, median in medians.items():
            ratio = median / medians["plain"]
            print(f"| {shape} | {way} | {1000 * median:.1f} | {ratio:.2f} |", flush=True)


def measure(shape: tuple[int, int], steps: int, device: torch.device) -> dict[str, float]:
    """Return way → median seconds of a training step."""
    features, classes = torch.randn(256, *shape), torch.arange(256) % 10
    split = Split(1, np.arange(224), np.arange(224, 256))
    trainers = {
        way: FoldTrainer(
            1,
            features.to(device),
            classes.to(device),
            split,
            10,
            TrainingSettings(**{**PLAIN_STEP, **changes}),
        )
        for way, changes in WAYS.items()
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    rows = torch.arange(32, device=device)
    for step in range(steps + 5):
        for way, trainer in trainers.items():
            trainer.model.train()
            started = time.perf_counter()
            with trainer.active():
                trainer.training_step(rows)
            trainer.wait()
            if step >= 5:
                seconds[way].append(time.perf_counter() - started)
    return {way: statistics.median(each) for way, each in seconds.items()}


if __name__ == "__main__":
    main()

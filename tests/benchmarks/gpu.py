"""Time the training core on one GPU, without Ray, at the shapes of UrbanSound8K.

    python tests/benchmarks/gpu.py [--folds 10 --clips 8732 --epochs 3]

Compares with a plain loop over a `DataLoader`, for one fold: steps without recording, steps that
are recorded as CUDA graphs, and all folds stepped together; each in fp32 and in bf16. Prints the
seconds of an epoch of one fold, including its checkpoint. The first epochs, in which steps are
recorded, are not timed. The column "bits" says whether the losses equal those of the first way in
that precision. On a CPU this only shows that the script works.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sequential import PlainCNN, run_epoch
from torch.utils.data import DataLoader, Subset

from raykfold.data.feature_set import SoundDataset, Split
from raykfold.state.checkpoint import WeightsContext, save_active_fold, weights_bytes
from raykfold.training.fold import FoldTrainer, run_epochs
from raykfold.training.recipe import Precision, TrainingSettings
from raykfold.training.steps import Step

UNTIMED = 4
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--clips", type=int, default=8732)
    parser.add_argument("--epochs", type=int, default=3, help="epochs to time")
    parser.add_argument("--shape", default="128x173")
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.deterministic = True
    features, classes = sounds(arguments.clips, arguments.shape, device)
    splits = [split(fold, arguments.clips, arguments.folds) for fold in range(arguments.folds)]
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}; {arguments}")
    print("| way | seconds an epoch of a fold | ratio | bits |")
    print("| --- | --- | --- | --- |")
    plain = reference(features, classes, splits[0], arguments.batch_size, arguments.epochs)
    print(f"| a plain loop | {plain:.4f} | 1.0 | |", flush=True)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        first: list[list[float]] | None = None
        for way, (recorder, stepped) in WAYS.items():
            settings = TrainingSettings(
                "raykfold.models:AudioCNN", arguments.batch_size, 0.001, 99, 0, precision
            )
            folds = [
                FoldTrainer(each.fold, features, classes, each, CLASSES, settings, recorder)
                for each in splits
            ]
            seconds = timed(folds, stepped, arguments.epochs)
            losses = [[epoch.loss for epoch in fold.history] for fold in folds]
            first = first or losses
            same = "equal" if losses == first else "different"
            print(f"| {way}, {precision} | {seconds:.4f} | {plain / seconds:.1f} | {same} |")
            refused = folds[0].why_not_recorded
            if refused and recorder is None:
                print(f"(not recorded: {refused})")


def not_recorded(step: Step, rows: torch.Tensor) -> Step:
    raise RuntimeError("not recorded here")


def one_by_one(folds: list[FoldTrainer]) -> None:
    for fold in folds:
        fold.run_epoch()


Stepped = Callable[[list[FoldTrainer]], object]
WAYS: dict[str, tuple[Callable[[Step, torch.Tensor], Step] | None, Stepped]] = {
    "not recorded": (not_recorded, one_by_one),
    "recorded": (None, one_by_one),
    "together": (None, run_epochs),
}


def timed(folds: list[FoldTrainer], stepped: Stepped, epochs: int) -> float:
    context = WeightsContext("raykfold.models:AudioCNN", {}, (1, 1), {})
    with tempfile.TemporaryDirectory() as folder:
        for number in itertools.count():
            if number == UNTIMED:
                started = time.perf_counter()
            if number == UNTIMED + epochs:
                return (time.perf_counter() - started) / epochs / len(folds)
            stepped(folds)
            for fold in folds:
                snapshot = fold.snapshot()
                weights = weights_bytes(snapshot, context)
                save_active_fold(Path(folder) / str(fold.fold), snapshot, weights)
    raise AssertionError("a count has no end")


def reference(
    features: torch.Tensor, classes: torch.Tensor, fold: Split, batch_size: int, epochs: int
) -> float:
    """Return the median seconds of an epoch of the plain loop."""
    dataset = SoundDataset(features.cpu().numpy(), classes.cpu().numpy(), str(features.device))
    train = DataLoader(Subset(dataset, fold.train.tolist()), batch_size=batch_size, shuffle=True)
    validation = DataLoader(Subset(dataset, fold.validation.tolist()), batch_size=batch_size)
    model = PlainCNN(features.shape[1], CLASSES).to(features.device)
    optimizer = torch.optim.Adam(model.parameters())
    seconds = []
    for _ in range(1 + epochs):
        started = time.perf_counter()
        run_epoch(model, train, optimizer)
        with torch.no_grad():
            run_epoch(model, validation)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def sounds(clips: int, shape: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise that is a little louder in the band of its class, and the classes."""
    n_mels, frames = map(int, shape.split("x"))
    rng = np.random.default_rng(0)
    classes = rng.integers(0, CLASSES, clips)
    features = rng.normal(size=(clips, n_mels, frames)).astype(np.float32)
    for label in range(CLASSES):
        band = slice(label * n_mels // CLASSES, (label + 1) * n_mels // CLASSES)
        features[classes == label, band] += 0.5
    return torch.from_numpy(features).to(device), torch.from_numpy(classes).to(device)


def split(fold: int, clips: int, folds: int) -> Split:
    number = np.arange(clips)
    held_out = number % folds == fold
    return Split(fold=fold, train=number[~held_out], validation=number[held_out])


if __name__ == "__main__":
    main()

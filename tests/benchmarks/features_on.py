"""Time epochs whose features are on the device against those that are streamed to it.

    python tests/benchmarks/features_on.py [--shape 64x32 --batch_size 32 --clips 2000 --epochs 6]

Trains two folds alike, an epoch of one after an epoch of the other: one has its features in the
memory of the device, the other reads batches from a mapped file, which the page cache holds.
Prints the seconds of an epoch of each, without the first two, and the median of the ratios; `bits`
says whether the losses are equal. On a GPU both record steps as CUDA graphs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from raykfold.data.feature_set import Split
from raykfold.training.feature_stream import FeatureStream
from raykfold.training.fold import FoldTrainer
from raykfold.training.recipe import TrainingSettings

UNTIMED = 2  # at least; on a GPU, steps are recorded in the first epochs
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="64x32")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=6, help="epochs to time")
    parser.add_argument("--model", default="raykfold.models:AudioCNN")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.deterministic = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(0)
    classes = rng.integers(0, CLASSES, arguments.clips)
    with tempfile.TemporaryDirectory() as folder:
        features = mapped_file(Path(folder), arguments.shape, classes)
        stream = FeatureStream(features, device)
        rows = np.arange(arguments.clips)
        split = Split(0, rows[rows % 10 > 0], rows[rows % 10 == 0])
        settings = TrainingSettings(arguments.model, arguments.batch_size, 0.001, 99, 0)
        resident, streamed = (
            FoldTrainer(0, each, torch.tensor(classes, device=device), split, CLASSES, settings)
            for each in (stream.on_device(), stream)
        )
        seconds: list[tuple[float, float]] = []
        for epoch in range(UNTIMED + arguments.epochs):
            # In turns, and first one and then the other first: machines change their speed.
            both = (resident, streamed) if epoch % 2 else (streamed, resident)
            took = {fold: fold.run_epoch().seconds for fold in both}
            seconds.append((took[resident], took[streamed]))
    same = [each.loss for each in resident.history] == [each.loss for each in streamed.history]
    timed = seconds[UNTIMED:]
    ratio = statistics.median(after / before for before, after in timed)
    medians = [statistics.median(column) for column in zip(*timed, strict=True)]
    print(
        f"{arguments.shape}, batches of {arguments.batch_size}, {device.type}: on the device ",
        end="",
    )
    print(f"{medians[0]:.3f} s, streamed {medians[1]:.3f} s, ratio {ratio:.3f}, ", end="")
    print(f"bits {'equal' if same else 'different'}")


def mapped_file(folder: Path, shape: str, classes: np.ndarray) -> np.ndarray:
    """Return a mapped file of (N, *shape) noise in which a class is a louder band."""
    sizes = tuple(map(int, shape.split("x")))
    path = folder / "features.npy"
    features = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(len(classes), *sizes)
    )
    rng = np.random.default_rng(1)
    for sample, label in zip(features, classes, strict=True):
        sample[...] = rng.standard_normal(sizes, dtype=np.float32)
        sample[label % sizes[0]] += 1
    features.flush()
    return np.load(path, mmap_mode="r")


if __name__ == "__main__":
    main()

"""Compare accuracies in fp32 and in bf16: every fold with several seeds in both, as pairs.

    python tests/benchmarks/precision.py --processed_dir data/fsdd --epochs 10 --seeds 5

Runs without Ray, one fold in a process. Uses a GPU if there is one, else the CPU, which rounds
bf16 in the same way.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from raykfold.data.reading import read_feature_set
from raykfold.training.fold import FoldTrainer
from raykfold.training.recipe import Precision, TrainingSettings

PRECISIONS: tuple[Precision, Precision] = ("fp32", "bf16")
Job = tuple[Path, int, int, int, Precision]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processed_dir", type=Path, default=Path("data/processed"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    folds = read_feature_set(arguments.processed_dir).fold_labels
    pairs = list(itertools.product(range(arguments.seeds), folds))
    jobs: list[Job] = [
        (arguments.processed_dir, arguments.epochs, seed, fold, precision)
        for seed, fold in pairs
        for precision in PRECISIONS
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        results = dict(zip(jobs, pool.imap(train, jobs), strict=True))
    rows = np.array([[results[job][:2] for job in jobs if job[4] == p] for p in PRECISIONS])
    seconds = [sum(results[job][2] for job in jobs if job[4] == p) for p in PRECISIONS]
    print(f"{arguments.seeds} seeds x {len(folds)} folds x {arguments.epochs} epochs; ", end="")
    print(f"seconds of training: fp32 {seconds[0]:.0f}, bf16 {seconds[1]:.0f}")
    for which, name in enumerate(("best epoch", "last epoch")):
        print(compared(name, rows[0, :, which], rows[1, :, which]))


def train(job: Job) -> tuple[float, float, float]:
    """Return the accuracies at the best and the last epoch, and the seconds of training."""
    folder, epochs, seed, fold, precision = job
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    data = read_feature_set(folder)
    trainer = FoldTrainer(
        fold,
        torch.from_numpy(np.array(data.features)).to(device),
        torch.from_numpy(data.class_indices).to(device),
        data.split(fold),
        data.num_classes,
        TrainingSettings("raykfold.models:AudioCNN", 32, 0.001, epochs, seed, precision),
    )
    started = time.perf_counter()
    accuracies = [trainer.run_epoch().val_accuracy for _ in range(epochs)]
    return max(accuracies), accuracies[-1], time.perf_counter() - started


def compared(name: str, exact: np.ndarray, rough: np.ndarray) -> str:
    """Return the means and the paired t-test (Student, 1908) as text."""
    from scipy.stats import ttest_rel

    difference = statistics.fmean(rough) - statistics.fmean(exact)
    test = ttest_rel(rough, exact)
    return (
        f"{name}: fp32 {statistics.fmean(exact):.4f}, bf16 {statistics.fmean(rough):.4f}, "
        f"difference {difference:+.4f}, t = {test.statistic:.2f}, p = {test.pvalue:.2f} "
        f"({len(exact)} pairs)"
    )


if __name__ == "__main__":
    main()

"""Cross-validate with a plain loop, to compare speed with: fold after fold in one process.

    python tests/benchmarks/sequential.py --processed_dir data/processed --epochs 5 --folds 1,2

Network, optimiser, schedule and stopping rule are those of a run. Network and loop are written in
the usual way: module after module, a `DataLoader`, `loss.item()` for each batch, and nothing is
saved.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from raykfold.data.feature_set import FeatureSet, SoundDataset
from raykfold.data.reading import read_feature_set

Loader = DataLoader[tuple[torch.Tensor, torch.Tensor]]


class PlainCNN(nn.Module):
    """The network of `raykfold.AudioCNN`, written in plain modules; takes (B, n_mels, time)."""

    def __init__(self, n_mels: int, num_classes: int) -> None:
        super().__init__()
        self.encoders = nn.Sequential(
            encoder(1, 32, (2, 2)), encoder(32, 64, (2, 2)), encoder(64, 128, (2, 4))
        )
        self.conv1d = nn.Conv1d(128, 64, kernel_size=3, padding=1)
        self.head = nn.Sequential(
            nn.Linear(64 * (n_mels // 8), 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoders(x.unsqueeze(1)).mean(dim=3)
        return self.head(torch.relu(self.conv1d(x)).flatten(1))


def encoder(in_channels: int, out_channels: int, pool: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(pool),
        nn.Dropout(0.2),
    )


def main() -> None:
    args = parse_args()
    started = time.perf_counter()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = read_feature_set(args.processed_dir)
    dataset = SoundDataset(data.features, data.class_indices, device)

    folds = [run_fold(args, data, dataset, fold) for fold in args.folds or data.fold_labels]

    wall_seconds = time.perf_counter() - started
    accuracies = [fold["best_val_accuracy"] for fold in folds]
    mean, std = statistics.fmean(accuracies), statistics.pstdev(accuracies)
    epoch_seconds = statistics.median(each for fold in folds for each in fold["epoch_seconds"])
    print(f"Average Best Validation Accuracy: {mean:.4f} (+/- {std:.4f})")
    print(f"{wall_seconds:.1f} s in all, {epoch_seconds:.3f} s an epoch (median)")
    if args.json:
        report = {
            "folds": folds,
            "mean_accuracy": mean,
            "std_accuracy": std,
            "wall_seconds": wall_seconds,
            "median_epoch_seconds": epoch_seconds,
            "samples": len(data),
            "input_shape": list(data.sample_shape),
            "batch_size": args.batch_size,
            "device": device,
            "threads": args.threads,
            "torch": str(torch.__version__),
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def run_fold(
    args: argparse.Namespace, data: FeatureSet, dataset: SoundDataset, fold: int
) -> dict[str, Any]:
    split = data.split(fold)
    train = Subset(dataset, split.train.tolist())
    validation = Subset(dataset, split.validation.tolist())
    train_loader: Loader = DataLoader(train, batch_size=args.batch_size, shuffle=True)
    validation_loader: Loader = DataLoader(validation, batch_size=args.batch_size)
    model = PlainCNN(data.sample_shape[0], data.num_classes).to(dataset.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min", factor=0.2, patience=5, min_lr=1e-5
    )

    best_accuracy, best_epoch = -1.0, 0
    lowest_loss, without_improvement = math.inf, 0
    seconds: list[float] = []
    for epoch in range(args.epochs):
        started = time.perf_counter()
        loss, accuracy = run_epoch(model, train_loader, optimizer)
        with torch.no_grad():
            val_loss, val_accuracy = run_epoch(model, validation_loader)
        scheduler.step(val_loss)
        seconds.append(time.perf_counter() - started)
        print(
            f"fold {fold} epoch {epoch + 1}/{args.epochs}  loss {loss:.4f}  accuracy {accuracy:.4f}"
            f"  val_loss {val_loss:.4f}  val_accuracy {val_accuracy:.4f}  {seconds[-1]:.3f} s",
            flush=True,
        )
        if val_accuracy > best_accuracy:
            best_accuracy, best_epoch = val_accuracy, epoch
        if val_loss < lowest_loss:
            lowest_loss, without_improvement = val_loss, 0
        else:
            without_improvement += 1
        if without_improvement >= args.early_stopping_patience:
            break
    return {
        "fold": fold,
        "epochs_run": len(seconds),
        "best_epoch": best_epoch,
        "best_val_accuracy": best_accuracy,
        "epoch_seconds": seconds,
    }


def run_epoch(
    model: nn.Module, loader: Loader, optimizer: torch.optim.Optimizer | None = None
) -> tuple[float, float]:
    """Return mean loss and accuracy over `loader`; train if there is an optimiser."""
    model.train(optimizer is not None)
    criterion = nn.CrossEntropyLoss()
    total_loss, right, seen = 0.0, 0, 0
    for inputs, targets in loader:
        logits = model(inputs)
        loss = criterion(logits, targets)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total_loss += loss.item() * len(targets)
        right += (logits.argmax(dim=1) == targets).sum().item()
        seen += len(targets)
    return total_loss / seen, right / seen


def parse_args() -> argparse.Namespace:
    def labels(text: str) -> list[int]:
        return [int(label) for label in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processed_dir", type=Path, default=Path("data/processed"))
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=0.001)
    parser.add_argument("--early_stopping_patience", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=labels, help="folds to hold out, as in 1,3 (default: all)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(default: all cores)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Time whole runs: a plain loop, raykfold before the work on its speed, and raykfold now.

    python tests/benchmarks/speed.py [--processed_dir data/fsdd --epochs 15] [--seeds 1,2,3]

By default the data are 400 clips of the demo, stretched to the (128, 173) of UrbanSound8K. Each
run is a command in its own process, one after the other, with all cores and including start-up.
The earlier raykfold comes from the repository's history, and runs with the first seed only. Early
stopping is off, so that all train the same number of epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from raykfold.data.demo import demo_arrays

REPOSITORY = Path(__file__).resolve().parents[2]
BEFORE = "5432986"
CLIPS = 400


@dataclass(frozen=True)
class Measured:
    seconds: float
    accuracies: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = statistics.fmean(self.accuracies), statistics.pstdev(self.accuracies)
        return f"{mean:.4f} ± {std:.4f}"


def main() -> None:
    arguments = parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = arguments.processed_dir or stretched_demo(scratch / "data")
        earlier = None if arguments.no_before else source_of(BEFORE, scratch / "before")
        training = ["--processed_dir", str(data.absolute()), "--epochs", str(arguments.epochs)]
        training += ["--early_stopping_patience", str(arguments.epochs)]
        print("| seed | what | wall, s | ratio | best accuracy, mean ± std over folds |")
        print("| --- | --- | --- | --- | --- |")
        differences: list[float] = []
        for seed in seeds:
            command = [*training, "--seed", str(seed)]
            reference = sequential(command, scratch / f"sequential-{seed}.json")
            row(seed, "a plain loop", reference, reference)
            if earlier and seed == seeds[0]:
                row(seed, f"raykfold {BEFORE}", run(command, scratch / "b", earlier), reference)
            for extra in ([], *(each.split() for each in arguments.also)):
                after = run([*command, *extra], scratch / f"a{seed}{''.join(extra)}", REPOSITORY)
                row(seed, " ".join(["raykfold", *extra]), after, reference)
                if not extra:
                    differences += np.subtract(after.accuracies, reference.accuracies).tolist()
        if len(differences) > 1:
            print(agreement(differences, len(seeds)))


def agreement(differences: list[float], seeds: int) -> str:
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return (
        f"\nraykfold minus the plain loop, paired over {len(differences) // seeds} folds and "
        f"{seeds} seed{'s' * (seeds > 1)}: {mean:+.4f}, standard error {error:.4f}"
    )


def row(seed: int, what: str, measured: Measured, reference: Measured) -> None:
    ratio = reference.seconds / measured.seconds
    print(f"| {seed} | {what} | {measured.seconds:.1f} | {ratio:.2f} | {measured} |", flush=True)


def sequential(command: list[str], report: Path) -> Measured:
    script = str(REPOSITORY / "tests/benchmarks/sequential.py")
    seconds = timed([sys.executable, script, *command, "--json", str(report)], REPOSITORY)
    folds = json.loads(report.read_text())["folds"]
    return Measured(seconds, tuple(fold["best_val_accuracy"] for fold in folds))


def run(command: list[str], model_dir: Path, source: Path) -> Measured:
    """Run and time the raykfold in the folder `source`."""
    whole = [sys.executable, "-m", "raykfold.run", *command, "--model_dir", str(model_dir)]
    seconds = timed(whole, source)
    folds = json.loads((model_dir / "summary.json").read_text())["folds"]
    return Measured(seconds, tuple(fold["best_val_accuracy"] for fold in folds))


def timed(command: list[str], source: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(source)}
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr or done.stdout)
    return time.perf_counter() - started


def source_of(commit: str, folder: Path) -> Path | None:
    """Return a folder with the package at `commit`; None if the history does not have it."""
    archive = subprocess.run(
        ["git", "archive", commit, "raykfold"], cwd=REPOSITORY, capture_output=True, check=False
    )
    if archive.returncode:
        print(f"commit {commit} not found: the earlier raykfold is left out", file=sys.stderr)
        return None
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def stretched_demo(folder: Path) -> Path:
    """Return a folder with demo clips of (128, 173): each band twice, frames repeated."""
    features, labels, folds, _ = demo_arrays()
    tall = np.repeat(features[:CLIPS], 2, axis=1)
    frames = np.arange(173) % tall.shape[2]
    folder.mkdir()
    np.save(folder / "features.npy", tall[:, :, frames])
    np.save(folder / "labels.npy", labels[:CLIPS])
    np.save(folder / "folds.npy", folds[:CLIPS])
    return folder


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processed_dir", type=Path, help="(default: stretched demo clips)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--no_before", action="store_true", help="leave out the earlier raykfold")
    parser.add_argument(
        "--also", action="append", default=[], help="flags of one more run, as '--precision bf16'"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Compare plain training with balanced class weights on imbalanced data, 1 to 10.

    python tests/benchmarks/imbalance.py [--epochs 20] [--seeds 3] [--folder DIR]

The data are three draws of the built-in data; of every second class one sample of ten remains.
Both ways run as whole runs, and the figures are those of their summaries. `--folder` saves the
runs; those that are there already do not train again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from raykfold.data.demo import demo_arrays
from raykfold.data.reading import write_feature_set
from raykfold.training.results import Summary

DRAWS, KEPT = 3, 10
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "--class_weights balanced": ("--class_weights", "balanced"),
    "--monitor balanced_accuracy": ("--monitor", "balanced_accuracy"),
    "both": ("--class_weights", "balanced", "--monitor", "balanced_accuracy"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to save data and runs")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_data(folder / "data")
        print("| training | accuracy | balanced accuracy | macro-F1 |\n| --- | --- | --- | --- |")
        for name, arguments in WAYS.items():
            out = folder / name.strip("-").replace(" ", "-")
            print(row(name, trained(folder / "data", out, options, arguments)), flush=True)


def write_data(folder: Path) -> None:
    draws = [demo_arrays(seed) for seed in range(DRAWS)]
    features, labels, folds = (
        np.concatenate(arrays) for arrays in list(zip(*draws, strict=True))[:3]
    )
    # Of the rare classes, samples are taken evenly from the folds.
    kept = labels % 2 == 0
    for label in np.unique(labels[~kept]):
        for number, fold in enumerate(np.unique(folds)):
            rows = np.flatnonzero((labels == label) & (folds == fold))
            kept[rows[number % KEPT :: KEPT]] = True
    names = dict(enumerate(draws[0][3]))
    write_feature_set(folder, features[kept], labels[kept], folds[kept], names, {})


def trained(
    data: Path, out: Path, options: argparse.Namespace, arguments: tuple[str, ...]
) -> Summary:
    if not (out / "summary.json").exists():
        command = ["-m", "raykfold.run", "--processed_dir", str(data), "--model_dir", str(out)]
        numbers = ["--epochs", str(options.epochs), "--repeats", str(options.seeds)]
        subprocess.run(
            [sys.executable, *command, *numbers, *arguments], check=True, capture_output=True
        )
    return Summary.from_json(json.loads((out / "summary.json").read_bytes()))


def row(name: str, summary: Summary) -> str:
    figures = (summary.kept, summary.balanced_accuracy, summary.macro_f1)
    cells = [f"{each.mean:.3f} ± {each.std:.3f}" for each in figures if each is not None]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

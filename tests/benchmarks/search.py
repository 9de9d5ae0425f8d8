"""What a search finds, and for how many epochs, against a full grid of which each trial is trained
to its end.

    python tests/benchmarks/search.py [--trials 12] [--epochs 10] [--folder DIR]

The grid is of learning rates from 1e-4 to 1e-1, evenly spaced in their logarithm, on the built-in
data. The searches have as many trials, of the same rates, or of rates from that range.
With --folder, what was run stays there, and what is there already is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LOWEST, HIGHEST = 1e-4, 1e-1
SEARCHES = {
    "asha, the same rates": ("grid", ("--scheduler", "asha")),
    "median, the same rates": ("grid", ("--scheduler", "median")),
    "asha, random rates": ("range", ("--scheduler", "asha")),
    "asha, Optuna's rates": ("range", ("--scheduler", "asha", "--sampler", "optuna")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with folder_of(options.folder) as folder:
        rates = np.geomspace(LOWEST, HIGHEST, options.trials).tolist()
        spaces = {
            "grid": f"{{grid = {rates}}}",
            "range": f"{{loguniform = [{LOWEST}, {HIGHEST}]}}",
        }
        for name, space in spaces.items():
            (folder / f"{name}.toml").write_text(
                f"demo = true\nepochs = {options.epochs}\n[search]\nlearning_rate = {space}\n"
            )
        trials = ("--trials", str(options.trials))
        full = searched(folder, "full", "grid", *trials, "--scheduler", "none")
        print_row("full grid", full, full)
        for number, (name, (space, arguments)) in enumerate(SEARCHES.items()):
            found = searched(folder, f"search-{number}", space, *trials, *arguments)
            print_row(name, found, full)


@contextlib.contextmanager
def folder_of(named: Path | None) -> Iterator[Path]:
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield named
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def searched(folder: Path, name: str, space: str, *arguments: str) -> dict[str, Any]:
    """``search.json`` of a search."""
    file = folder / name / "search.json"
    command = [sys.executable, "-m", "raykfold.search", "--config", str(folder / f"{space}.toml")]
    command += ["--model_dir", str(file.parent), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def print_row(name: str, found: dict[str, Any], full: dict[str, Any]) -> None:
    best = found["best"]
    print(
        f"{name}: learning rate {best['config']['learning_rate']:.2e}, mean "
        f"{best['mean_accuracy']:.4f}, {found['epochs_run']} epochs "
        f"({found['epochs_run'] / full['epochs_run']:.0%} of the full grid), "
        f"{found['wall_seconds']:.0f} s ({found['wall_seconds'] / full['wall_seconds']:.0%})",
        flush=True,
    )


if __name__ == "__main__":
    main()

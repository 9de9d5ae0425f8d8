"""Compare searches with a full grid: what they find, and how many epochs they train for it.

    python tests/benchmarks/search.py [--trials 12] [--epochs 10] [--folder DIR]

The grid has learning rates from 1e-4 to 1e-1, evenly spaced in their logarithm, on the built-in
data, and trains each to the end. The searches have as many trials, of the same rates or of rates
from that range. `--folder` saves the searches; those that are there already do not run again.

Also prints what pruning by folds would save, on the accuracies of the full grid: folds are trained
one after the other, and a trial is dropped if a paired test over its folds says that it is worse
than the best so far. This is repeated for many random orders of the trials.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raykfold.training.statistics import ROUNDING, corrected_t_test, mean

LOWEST, HIGHEST = 1e-4, 1e-1
ORDERS, UNLIKELY = 300, 0.05
SEARCHES = {
    "asha, the same rates": ("grid", ("--trial_scheduler", "asha")),
    "median, the same rates": ("grid", ("--trial_scheduler", "median")),
    "asha, random rates": ("range", ("--trial_scheduler", "asha")),
    "asha, Optuna's rates": ("range", ("--trial_scheduler", "asha", "--sampler", "optuna")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12, help="of the grid and of each search")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where to save the searches")
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
        full = searched(folder, "full", "grid", *trials, "--trial_scheduler", "none")
        print_row("full grid", full, full)
        for number, (name, (space, arguments)) in enumerate(SEARCHES.items()):
            found = searched(folder, f"search-{number}", space, *trials, *arguments)
            print_row(name, found, full)
        for fewest in (2, 3):
            print_pruning_by_folds(full, fewest)


@contextlib.contextmanager
def folder_of(named: Path | None) -> Iterator[Path]:
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield named
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def searched(folder: Path, name: str, space: str, *arguments: str) -> dict[str, Any]:
    """Run a search, and return its ``search.json``."""
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


def print_pruning_by_folds(full: dict[str, Any], fewest: int) -> None:
    """Print what pruning by folds finds and saves, if it tests from the fold number `fewest` on."""
    scores = {row["trial"]: list(row["fold_scores"].values()) for row in full["trials"]}
    highest = full["best"]["mean_accuracy"]
    folds, found = 0, 0
    for order in range(ORDERS):
        shuffled = list(scores)
        random.Random(order).shuffle(shuffled)
        winner, trained = pruned_by_folds([scores[trial] for trial in shuffled], fewest)
        folds += trained
        found += winner >= highest - ROUNDING
    whole = ORDERS * sum(map(len, scores.values()))
    print(
        f"by folds, from {fewest} on, p < {UNLIKELY}: finds the best in {found / ORDERS:.0%} of "
        f"{ORDERS} orders, with {folds / whole:.0%} of the folds of the full grid"
    )


def pruned_by_folds(trials: list[list[float]], fewest: int) -> tuple[float, int]:
    """Return the mean of the winner, and the number of folds that were trained."""
    best, trained = trials[0], len(trials[0])
    for scores in trials[1:]:
        seen = next(
            (
                count
                for count in range(fewest, len(scores))
                if is_worse(scores[:count], best[:count], len(scores))
            ),
            len(scores),
        )
        trained += seen
        if seen == len(scores) and mean(scores) > mean(best):
            best = scores
    return mean(best), trained


def is_worse(scores: list[float], best: list[float], folds: int) -> bool:
    """Return the verdict of a one-sided paired t-test, corrected for overlapping training sets."""
    test = corrected_t_test([a - b for a, b in zip(scores, best, strict=True)], 1 / (folds - 1))
    if test.t is None or test.p is None:  # all differences are equal
        return test.difference < 0
    return test.t < 0 and test.p / 2 < UNLIKELY


if __name__ == "__main__":
    main()

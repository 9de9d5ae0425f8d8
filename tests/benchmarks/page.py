"""Compare the time for a run's page and for the search for twins with that of the run itself.

    python tests/benchmarks/page.py MODEL_DIR [--repeats 3]

The run must be complete, and its data must not have moved.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from raykfold.data.leakage import find_leakage
from raykfold.data.reading import read_feature_set
from raykfold.files.paths import ModelDir
from raykfold.pages.run_page import write_report
from raykfold.state.archive import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    summary = open_run(options.model_dir).summary
    assert summary is not None, "the run is not complete"
    run = summary.wall_seconds
    processed_dir = Path(open_run(options.model_dir).record.config["processed_dir"])
    data = read_feature_set(processed_dir)
    with tempfile.TemporaryDirectory() as folder:
        outputs = ModelDir(Path(folder))
        steps: dict[str, Callable[[], object]] = {
            "read and check the data": lambda: read_feature_set(processed_dir),
            "look for twins in other folds": lambda: find_leakage(data),
            "the page and its pictures": lambda: write_report(
                open_run(options.model_dir), outputs, data
            ),
        }
        print(f"the run: {run:.1f} s")
        for name, step in steps.items():
            first, *more = (seconds_of(step) for _ in range(1 + options.repeats))
            again = statistics.median(more)
            print(
                f"{name}: {first:.2f} s the first time, {first / run:.1%} of the run; "
                f"{again:.2f} s again"
            )


def seconds_of(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

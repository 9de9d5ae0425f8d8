"""Time a run outside of its epochs, phase by phase, for 1 to 5 folds on two slots.

    python tests/benchmarks/overhead.py [--repeats 3] [--folds 1,2,5] [--clips 250 --shape 64x32]

Runs on noise, in a new process each time. The driver's log marks the phases. The cost of a round
is its wall time minus the seconds of its epochs.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS = 8
PHASES = (
    "imports",
    "Ray",
    "share dealt",
    "worker up",
    "first step",
    "to first step",
    "epochs",
    "round",
    "round, %",
    "end",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folds", default="1,2,3,4,5", help="numbers of folds to hold out")
    parser.add_argument("--clips", type=int, default=250, help="a fifth of them in each fold")
    parser.add_argument("--shape", default="64x32")
    parser.add_argument("--child", nargs=2, metavar=("DIR", "FOLDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, folds = arguments.child
        run(Path(folder), int(folds), arguments.clips, arguments.shape)
        return
    print(f"seconds, median of {arguments.repeats}; {EPOCHS} epochs, two slots")
    print("folds  " + "  ".join(f"{phase:>13}" for phase in PHASES))
    for folds in map(int, arguments.folds.split(",")):
        data = ["--clips", str(arguments.clips), "--shape", arguments.shape]
        rows = [measure(folds, data) for _ in range(arguments.repeats)]
        medians = [statistics.median(row[phase] for row in rows) for phase in PHASES]
        print(f"{folds:5}  " + "  ".join(f"{value:13.2f}" for value in medians), flush=True)


def measure(folds: int, data: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        done = subprocess.run(
            [sys.executable, __file__, *data, "--child", folder, str(folds)],
            capture_output=True,
            text=True,
            check=False,
        )
        ended = time.time()
    if done.returncode:
        raise SystemExit(done.stderr)
    marks = json.loads(done.stdout.splitlines()[-1])
    first_step = max(marks["ready"].values())
    return {
        "imports": marks["imported"] - began,
        "Ray": marks["connected"] - marks["imported"],
        "share dealt": max(marks["dealt"].values()) - marks["connected"],
        "worker up": max(marks["up"].values()) - max(marks["dealt"].values()),
        "first step": first_step - max(marks["up"].values()),
        "to first step": first_step - began,
        **rounds(marks),
        "end": ended - max(at for rows in marks["epochs"].values() for at, _, _ in rows),
    }


def rounds(marks: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of a round's epochs and beyond them, where the latter are highest."""
    costs = []
    for share, ready in marks["ready"].items():
        rows = marks["epochs"][share]
        epochs = sum(seconds for _, _, seconds in rows)
        wall = max(at for at, _, _ in rows) - ready
        costs.append(((wall - epochs) / EPOCHS, epochs / EPOCHS))
    cost, epochs = max(costs)
    return {"epochs": epochs, "round": cost, "round, %": 100 * cost / epochs}


def run(folder: Path, folds: int, clips: int, shape: str) -> None:
    from raykfold.config.command import without_gc

    with without_gc():  # as the command does
        from raykfold import RunConfig, cross_validate
    from raykfold.data.feature_set import FeatureSet
    from raykfold.files.remote import leave
    from raykfold.observers import Observer

    rng = np.random.default_rng(0)
    data = FeatureSet.from_arrays(
        rng.normal(size=(clips, *map(int, shape.split("x")))).astype(np.float32),
        rng.integers(0, 10, clips),
        np.arange(clips) % 5 + 1,
    )
    marks: dict[str, object] = {"imported": time.time()}
    named = tuple(range(1, folds + 1))
    share_of: dict[int, str] = {}

    class Marks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text == "connected to Ray":
                marks["connected"] = record.created
                return
            share = text.split()[1].strip(":")
            for sign in ("dealt", "worker up", "first step"):
                if sign in text:
                    key = {"worker up": "up", "first step": "ready"}.get(sign, sign)
                    marks.setdefault(key, {})[share] = record.created  # type: ignore[index]
            if "dealt" in text:
                labels = text.split("fold")[1].strip("s ")
                share_of.update({int(label): share for label in labels.split(", ")})

    class Epochs(Observer):
        def epoch_committed(self, fold: int, metrics: object) -> None:
            row = [time.time(), fold, metrics.seconds]  # type: ignore[attr-defined]
            marks.setdefault("epochs", {}).setdefault(share_of[fold], []).append(row)  # type: ignore[attr-defined]

    logger = logging.getLogger("raykfold")
    logger.setLevel(logging.INFO)
    logger.addHandler(Marks())
    config = RunConfig(
        run_name="overhead", model_dir=folder, epochs=EPOCHS, folds=named, local_cpus=2
    )
    cross_validate(config, data=data, observers=[Epochs()])
    print(json.dumps(marks))
    leave(0)


if __name__ == "__main__":
    main()

"""Measure what more slots and more folds cost on one host: start, rounds, CPU and memory.

    python tests/benchmarks/scale.py [--slots 2,4,8,16] [--folds 10] [--seconds 20]
    python tests/benchmarks/scale.py --ledger

Slots are logical: sixteen workers on two cores take eight times as long to start as on machines of
their own. Epochs wait and compute next to nothing. Rounds are measured only while all shares
train: what a round takes beyond the seconds of its epochs, and the CPU time of each kind of
process for an epoch of a fold, which does not depend on the number of cores. With `--ledger`: the
driver's time for a committed round, by the numbers of folds and of finished folds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.processes import descends, processes

ROLES = {
    "board": "ray::EventBoard",
    "controllers": "ray::ShareController",
    "workers": "ray::RayTrainWorker",
    "gcs and raylet": "/ray/core/src/ray/",
}
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", default="2,4,8,16")
    parser.add_argument("--folds", default="10", help="one number, or one for each of --slots")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure rounds")
    parser.add_argument("--ledger", action="store_true", help="time the driver alone")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, slots, folds, seconds = arguments.child
        run(Path(folder), int(slots), int(folds), float(seconds))
    elif arguments.ledger:
        time_the_ledger()
    else:
        slots = [int(each) for each in arguments.slots.split(",")]
        folds = [int(each) for each in arguments.folds.split(",")]
        folds = folds * len(slots) if len(folds) == 1 else folds
        table(list(zip(slots, folds, strict=True)), arguments.seconds)


def table(sizes: list[tuple[int, int]], seconds: float) -> None:
    print("| slots | folds | to first step of all, s | beyond the epochs, ms a round | CPU, ms an "
          "epoch of a fold: driver | board | controllers | workers | gcs, raylet | "
          "MB a share on the driver's node |")  # fmt: skip
    print("| --- " * 10 + "|")
    rows = []
    for slots, folds in sizes:
        row = measure(slots, folds, seconds)
        rows.append(row)
        roles = ("driver", *ROLES)
        cpu = " | ".join(f"{row['cpu'][role]:.1f}" for role in roles)
        print(f"| {slots} | {folds} | {row['start']:.1f} | {row['round']:.0f} | {cpu} | "
              f"{row['megabytes']:.0f} |", flush=True)  # fmt: skip
    if len(rows) > 1:
        slots_ = [slots for slots, _ in sizes]
        slope, constant = np.polyfit(slots_, [row["start"] for row in rows], 1)
        print(f"start: {constant:.1f} s + {slope:.2f} s a slot")


def measure(slots: int, folds: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--child", folder, *map(str, (slots, folds, seconds))],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


class Window(logging.Handler):
    """Measures epochs, CPU and memory once the last share has begun to train; then ends the run."""

    def __init__(self, shares: int, seconds: float) -> None:
        super().__init__()
        self.began = time.time()
        self.start = 0.0
        self.epochs: list[tuple[int, float]] = []
        self.cpu: dict[str, float] = {}
        self.megabytes = 0.0
        self._shares = shares
        self._seconds = seconds
        self._ready = 0

    def emit(self, record: logging.LogRecord) -> None:
        self._ready += "first step" in record.getMessage()
        if self._ready == self._shares and not self.start:
            self.start = record.created - self.began
            threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        self.epochs.clear()
        before = cpu_by_role()
        time.sleep(self._seconds)
        self.cpu = {role: taken - before[role] for role, taken in cpu_by_role().items()}
        self.megabytes = unshared("controllers") / self._shares
        import _thread

        _thread.interrupt_main()


def run(folder: Path, slots: int, folds: int, seconds: float) -> None:
    from raykfold import RunConfig, cross_validate
    from raykfold.data.feature_set import FeatureSet
    from raykfold.observers import Observer
    from raykfold.training.results import EpochMetrics

    rng = np.random.default_rng(0)
    data = FeatureSet.from_arrays(
        rng.normal(size=(4 * folds, 8, 8)).astype(np.float32),
        rng.integers(0, 4, 4 * folds),
        np.arange(4 * folds) % folds + 1,
    )
    shares = min(slots, folds)
    window = Window(shares, seconds)

    class Epochs(Observer):
        def epoch_committed(self, fold: int, metrics: EpochMetrics) -> None:
            window.epochs.append((fold, metrics.seconds))

    logger = logging.getLogger("raykfold")
    logger.setLevel(logging.INFO)
    logger.addHandler(window)
    config = RunConfig(
        run_name="scale",
        model_dir=folder,
        model="support.networks:Idle",
        epochs=10**6,
        early_stopping_patience=10**6,
        batch_size=1024,
        local_cpus=slots,
    )
    with contextlib.suppress(KeyboardInterrupt):
        cross_validate(config, data=data, observers=[Epochs()])
    rounds = len(window.epochs) / folds
    in_epochs = sum(taken for _, taken in window.epochs) / shares
    print(
        json.dumps(
            {
                "start": window.start,
                "round": 1000 * (seconds - in_epochs) / rounds,
                "cpu": {role: 1000 * s / len(window.epochs) for role, s in window.cpu.items()},
                "megabytes": window.megabytes,
            }
        )
    )


def cpu_by_role() -> dict[str, float]:
    """Return the CPU seconds that this process and its descendants have taken, by role."""
    seconds = dict.fromkeys(("driver", *ROLES), 0.0)
    for pid, role in roles():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        seconds[role] += (int(fields[11]) + int(fields[12])) / _TICKS
    return seconds


def unshared(*wanted: str) -> float:
    """Return the MB that only the processes of these roles hold."""
    total = 0.0
    for pid, role in roles():
        if role in wanted:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in text.splitlines() if "Private" in line)
    return total / 1024


def roles() -> Iterator[tuple[int, str]]:
    """Yield pid and role of this process and of its descendants that have one."""
    yield os.getpid(), "driver"
    for pid, title in processes():
        role = next((role for role, sign in ROLES.items() if sign in title), None)
        if role is not None and descends(pid, os.getpid()):
            yield pid, role


def time_the_ledger() -> None:
    """Print the driver's milliseconds for a committed round of one fold, its outputs included."""
    print("| folds | of them finished | ms a round |")
    print("| --- | --- | --- |")
    for folds, over in ((10, 0), (100, 0), (100, 50), (100, 95)):
        print(f"| {folds} | {over} | {1000 * seconds_a_round(folds, over):.2f} |", flush=True)


def seconds_a_round(folds: int, over: int, rounds: int = 200) -> float:
    from raykfold import RunConfig
    from raykfold.data.feature_set import FeatureSet
    from raykfold.outputs.model_dir import ModelDirWriter
    from raykfold.state.ledger import Ledger
    from raykfold.state.record import EarlierRun
    from raykfold.training.results import EpochMetrics, FoldResult, Round

    def epoch(number: int) -> EpochMetrics:
        return EpochMetrics(number, 1.0, 0.5, 1.0, 0.5, 0.001, 1.0)

    labels = np.arange(4 * folds) % 2
    data = FeatureSet.from_arrays(
        np.zeros((4 * folds, 2, 2), np.float32), labels, np.arange(4 * folds) // 4 + 1
    )
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(run_name="scale", model_dir=Path(folder), epochs=10**6)
        writer = ModelDirWriter(config)
        ledger = Ledger(EarlierRun.read(config), data, data.fold_labels, writer)
        for fold in data.fold_labels[folds - over :]:
            history = tuple(map(epoch, range(50)))
            result = FoldResult.of(fold, "complete", 8, 2, history)
            ledger.take_in([(Round(1, {fold: history[-1]}, finished={fold: result}), None)])
        times = []
        for number in range(rounds):
            began = time.perf_counter()
            ledger.take_in(
                [(Round(number + 1, {1: epoch(number)}, saved=(1,)), f"{folder}/c{number}")]
            )
            writer.time_passed()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()

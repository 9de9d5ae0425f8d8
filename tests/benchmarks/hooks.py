"""Measure what each change to Ray's private parts gains: time, CPU and memory of a start.

    python tests/benchmarks/hooks.py [--slots 0] [--repeats 3] [--without "the cluster's monitor"]

Leaves out one change after the other; `--without` can be repeated. With `--slots 0`: the start of a
local Ray with 2 CPUs, and 3 s more. With more: from there to the first step of all shares of so
many slots, and 2 s more. CPU seconds and memory are those of all processes of a run; memory is what
no other process shares.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.processes import descends, processes

_START = {
    "the log monitor": {"start_log_monitor"},
    "the dashboard's server": {"start_api_server"},
    "the cluster's monitor": {"start_monitor"},
    "looking once a second for the node": {"get_node"},
}
_SHARES = {
    "Ray Train's actor where workers meet": {"SynchronizationActor", "_shutdown_sync_actor"},
    "the callback for Ray Data": {"DatasetsCallback"},
    "the callback that frees slots": {"PlacementGroupCleanerCallback"},
    "an environment of each worker's own": {"_get_worker_runtime_env"},
    "a request for each worker's resources": {"ask_for_nothing"},
}
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without", action="append", metavar="NAME", help="as in the table")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, *left_out = arguments.child
        leave_out(left_out)
        row = measure_shares(folder, arguments.slots) if arguments.slots else measure_start()
        print(json.dumps(row))
        return
    changes = _SHARES if arguments.slots else _START
    if not {*(arguments.without or ())} <= {*changes}:
        parser.error(f"--without: expected one of {', '.join(changes)}")
    variants: dict[str, set[str]] = {"all changes": set()}
    for name in arguments.without or changes:
        variants[f"with {name}"] = changes[name]
    if not arguments.without:
        variants["none of them"] = set().union(*changes.values())
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for _ in range(arguments.repeats):  # in turn, so that other work burdens all alike
        for name, left_out in variants.items():
            rows[name].append(run(arguments.slots, left_out))
    print("| | wall, s | CPU, s | MB | processes |\n| --- | --- | --- | --- | --- |")
    for name, measured in rows.items():
        row = {each: statistics.median(one[each] for one in measured) for each in measured[0]}
        print(f"| {name} | {row['wall']:.1f} | {row['cpu']:.1f} | {row['megabytes']:.0f} | "
              f"{row['processes']:.0f} |")  # fmt: skip


def run(slots: int, left_out: Collection[str]) -> dict[str, float]:
    """Return what a process without these changes measures."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--slots", str(slots), "--child", folder, *left_out],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def leave_out(changes: Collection[str]) -> None:
    """Leave changes out, here and in the controllers, which get `lighten` by value."""
    private: Any = importlib.import_module("raykfold.distributed.ray_private")
    lighten_controller, useful_callbacks = private.lighten_controller, private.useful_callbacks

    def replace_less() -> None:
        here: Any = importlib.import_module("raykfold.distributed.ray_private")
        replace = here.replace
        here.replace = lambda path, **new: replace(
            path, **{name: change for name, change in new.items() if name not in changes}
        )

    def lighten(*args: Any) -> None:
        replace_less()
        lighten_controller(*args)

    def callbacks(given: list[Any]) -> list[Any]:
        useful = useful_callbacks(given)
        return [each for each in given if each in useful or type(each).__name__ in changes]

    replace_less()
    private.lighten_controller = lighten
    private.useful_callbacks = callbacks
    if "ask_for_nothing" in changes:
        private.ask_for_nothing = lambda policy: None


def measure_start() -> dict[str, float]:
    from raykfold.distributed.session import ray_session

    began = time.time()
    with ray_session(None, local_cpus=2):
        wall = time.time() - began
        time.sleep(3)
        return {"wall": wall, **usage()}


class Window(logging.Handler):
    """Measures from the connection to the first step of all shares; then ends the run."""

    def __init__(self, shares: int) -> None:
        super().__init__()
        self.row: dict[str, float] = {}
        self._shares = shares
        self._ready = 0
        self._connected = 0.0
        self._cpu = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message == "connected to Ray":
            self._connected, self._cpu = record.created, usage()["cpu"]
        self._ready += "first step" in message
        if self._ready == self._shares and not self.row:
            self.row["wall"] = record.created - self._connected
            threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        time.sleep(2)
        self.row |= usage()
        self.row["cpu"] -= self._cpu
        import _thread

        _thread.interrupt_main()


def measure_shares(folder: str, slots: int) -> dict[str, float]:
    from raykfold import RunConfig, cross_validate
    from raykfold.data.feature_set import FeatureSet

    folds = max(2, slots)
    rng = np.random.default_rng(0)
    data = FeatureSet.from_arrays(
        rng.normal(size=(4 * folds, 8, 8)).astype(np.float32),
        rng.integers(0, 4, 4 * folds),
        np.arange(4 * folds) % folds + 1,
    )
    config = RunConfig(
        run_name="hooks",
        model_dir=Path(folder),
        model="support.networks:Idle",
        epochs=10**6,
        early_stopping_patience=10**6,
        batch_size=1024,
        local_cpus=slots,
    )
    window = Window(slots)
    log = logging.getLogger("raykfold")
    log.setLevel(logging.INFO)
    log.addHandler(window)
    with contextlib.suppress(KeyboardInterrupt):
        cross_validate(config, data=data)
    return window.row


def usage() -> dict[str, float]:
    """Return the CPU seconds, the unshared MB and the number of this process and all below it."""
    cpu = kilobytes = 0.0
    number = 0
    for pid, _ in processes():
        if not descends(pid, os.getpid()):
            continue
        with contextlib.suppress(OSError):  # it has just ended
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            memory = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            cpu += (int(stat[11]) + int(stat[12])) / _TICKS
            kilobytes += sum(int(line.split()[1]) for line in memory if "Private" in line)
            number += 1
    return {"cpu": cpu, "megabytes": kilobytes / 1024, "processes": number}


if __name__ == "__main__":
    main()

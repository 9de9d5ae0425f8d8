"""Time from a fault to the next epoch of both folds of a run, with a free slot elsewhere.

    python tests/benchmarks/recovery.py [--repeats 3]

A head and three hosts with one CPU each (tests/support/hosts.py, which needs root and iproute2)
run one job of two folds. An epoch takes a little over a second, and each figure includes one or
two.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.hosts import Host, Hosts, drain, job_command, wait_for
from support.shell import command
from support.small_data import CLASSES, small_arrays

from raykfold.data.reading import write_feature_set

FOLDS = (1, 2)
ARGUMENTS = (
    *("--model", "support.networks:Unhurried", "--folds", "1,2"),
    *("--epochs", "100000", "--early_stopping_patience", "100000"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder, Hosts(4) as hosts:
        data_dir, model_dir = Path(folder) / "sounds", Path(folder) / "out"
        write_feature_set(data_dir, *small_arrays(), CLASSES, {"kind": "log_mel"})
        hosts.start_head()
        hosts.join(*hosts.workers)
        job = hosts.head.start(
            *job_command(hosts, "submit", "--", *command(data_dir, model_dir, *ARGUMENTS))
        )
        print("| fault | median | each |")
        print("| --- | --- | --- |")
        for name, fault in faults(hosts).items():
            times = [seconds_of(hosts, model_dir, fault) for _ in range(repeats)]
            each = ", ".join(f"{taken:.1f}" for taken in times)
            print(f"| {name} | {statistics.median(times):.1f} | {each} |", flush=True)
        job.kill()


def faults(hosts: Hosts) -> dict[str, Callable[[Host, ExitStack], object]]:
    """Return the faults by name: each strikes a host, and puts what undoes it on the stack."""
    return {
        "SIGKILL of a worker": lambda host, after: host.kill("TrainWorker"),
        "SIGSTOP of a worker": lambda host, after: host.kill("TrainWorker", signal.SIGSTOP),
        "SIGKILL of the Train controllers": lambda host, after: hosts.head.kill("ShareController"),
        "SIGKILL of all processes of a node": lambda host, after: host.power_off(),
        "packets no longer reach a node": lambda host, after: after.enter_context(host.cut_off()),
        "a node is drained": lambda host, after: drain(hosts, host, seconds=60),
    }


def seconds_of(hosts: Hosts, model_dir: Path, fault: Callable[[Host, ExitStack], object]) -> float:
    wait_for(lambda: all(last_epoch(model_dir, fold) for fold in FOLDS), "the first epochs")
    before = [last_epoch(model_dir, fold) for fold in FOLDS]
    steady = [epoch + 2 for epoch in before]
    wait_for(lambda: reached(model_dir, steady), "two more epochs of both")
    struck = next(host for host in hosts.workers if host.processes("TrainWorker"))
    with ExitStack() as after:
        began = time.monotonic()
        fault(struck, after)
        last = [last_epoch(model_dir, fold) + 2 for fold in FOLDS]  # one may have been under way
        wait_for(lambda: reached(model_dir, last), "epochs after the fault", seconds=200)
        taken = time.monotonic() - began
    struck.power_off()
    hosts.join(struck)
    return taken


def reached(model_dir: Path, epochs: list[int]) -> bool:
    return all(
        last_epoch(model_dir, fold) >= epoch for fold, epoch in zip(FOLDS, epochs, strict=True)
    )


def last_epoch(model_dir: Path, fold: int) -> int:
    """Return the newest epoch among the outputs of a fold, from 0; 0 if there is none yet."""
    found = (model_dir / f"checkpoints/fold_{fold}").glob("epoch_*.safetensors")
    return max((int(path.stem.removeprefix("epoch_")) for path in found), default=0)


if __name__ == "__main__":
    main()

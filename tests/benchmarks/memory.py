"""Unshared memory that each further worker of a run adds, with features of 800 MB.

    python tests/benchmarks/memory.py [--workers 1,2,3]

For each number of workers: a run is started, watched for some seconds of training, and stopped.
Memory is what the kernel counts as private (resident, and in no other process) in the Train
workers alone, and in all processes of the run; the features lie in shared memory, once.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SAMPLES, N_MELS, FRAMES = 9034, 128, 173  # 800 MB of float32
WATCH_SECONDS = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", default="1,2,3")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        processed = Path(folder) / "processed"
        write_data(processed)
        size = (processed / "features.npy").stat().st_size
        print(f"features {size / 1e6:.0f} MB; private memory in MB, peak of {WATCH_SECONDS:.0f} s")
        print("workers  a worker, largest   whole run   added by the last worker")
        before: float | None = None
        for workers in map(int, arguments.workers.split(",")):
            largest, whole = watch(processed, Path(folder) / str(workers), workers)
            added = "" if before is None else f"{whole - before:26.0f}"
            print(f"{workers:7}  {largest:18.0f}  {whole:10.0f}  {added}", flush=True)
            before = whole


def write_data(processed: Path) -> None:
    processed.mkdir()
    rng = np.random.default_rng(0)
    features = np.lib.format.open_memmap(
        processed / "features.npy", mode="w+", dtype=np.float32, shape=(SAMPLES, N_MELS, FRAMES)
    )
    for start in range(0, SAMPLES, 500):
        part = features[start : start + 500]
        part[:] = rng.normal(size=part.shape)
    features.flush()
    np.save(processed / "labels.npy", np.arange(SAMPLES) % 10)
    np.save(processed / "folds.npy", np.arange(SAMPLES) % 7 % 5 + 1)


def watch(processed: Path, model_dir: Path, workers: int) -> tuple[float, float]:
    """Peaks in MB: of the largest worker, of the whole run."""
    command = [
        *(sys.executable, "-m", "raykfold.run", "--processed_dir", str(processed)),
        *("--model_dir", str(model_dir), "--local_cpus", str(workers)),
        *("--num_workers", str(workers)),
    ]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        largest = whole = 0.0
        deadline = None
        while deadline is None or time.monotonic() < deadline:
            if run.poll() is not None:
                raise SystemExit(f"the run ended by itself, with {run.returncode}")
            rows = {pid: private(pid) for pid in family(run.pid)}
            training = [pid for pid in rows if "run_train_fn" in title(pid)]
            if len(training) == workers and deadline is None:
                deadline = time.monotonic() + WATCH_SECONDS
            whole = max(whole, sum(rows.values()))
            largest = max([largest, *(rows[pid] for pid in training)])
            time.sleep(0.5)
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(timeout=60)
    return largest, whole


def family(ancestor: int) -> set[int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue  # it has just ended
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found = {ancestor}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def private(pid: int) -> float:
    """MB that are resident and in no other process."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0  # it has just ended
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    main()

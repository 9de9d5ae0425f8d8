"""Measure the unshared memory that each further worker of a run adds, with features of 800 MB.

    python tests/benchmarks/memory.py [--workers 1,2,3] [--batch_size 2]

For each number of workers, starts a run, watches it for some seconds of training, and stops it.
Batches of two leave out the memory of a training step, which every training loop needs. Counts
memory that is resident in one process only: of the largest Train worker, and of all processes of
the run. Does not count the features, which the machine holds once, in the mapped file: they would
be charged to the process that touches a page first.
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
WATCH_SECONDS = 45.0  # from the start of the last worker: about 30 s of training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", default="1,2,3")
    parser.add_argument("--batch_size", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        processed = Path(folder) / "processed"
        write_data(processed)
        size = (processed / "features.npy").stat().st_size
        print(
            f"features {size / 1e6:.0f} MB, batches of {arguments.batch_size}; "
            f"unshared memory in MB, peak of {WATCH_SECONDS:.0f} s"
        )
        print("workers  largest worker  whole run  added by the last")
        before: float | None = None
        for workers in map(int, arguments.workers.split(",")):
            model_dir = Path(folder) / str(workers)
            largest, whole = watch(processed, model_dir, workers, arguments.batch_size)
            added = "" if before is None else f"{whole - before:20.0f}"
            print(f"{workers:7}  {largest:14.0f}  {whole:9.0f}{added}", flush=True)
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


def watch(processed: Path, model_dir: Path, workers: int, batch_size: int) -> tuple[float, float]:
    """Return the peak MB of the largest worker and of the whole run."""
    command = [
        *(sys.executable, "-m", "raykfold.run", "--processed_dir", str(processed)),
        *("--model_dir", str(model_dir), "--local_cpus", str(workers)),
        *("--num_workers", str(workers), "--batch_size", str(batch_size)),
    ]
    run = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        largest = whole = 0.0
        deadline = None
        while deadline is None or time.monotonic() < deadline:
            if run.poll() is not None:
                raise SystemExit(f"the run ended with exit code {run.returncode}")
            rows = {pid: unshared(pid) for pid in family(run.pid)}
            training = [pid for pid in rows if "RayTrainWorker" in title(pid)]
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
                continue  # the process has ended
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found = {ancestor}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def unshared(pid: int) -> float:
    """Return the MB that are resident in this process alone, without the features."""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:
        return 0.0  # the process has ended
    kilobytes, counted = 0, True
    for line in lines:
        name, _, value = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty"):
            kilobytes += int(value.split()[0]) * counted
        elif " " in name:  # the first line of a mapping: addresses, permissions, …, path
            counted = not ("/plasma" in line or line.endswith("features.npy"))
    return kilobytes * 1024 / 1e6


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    main()

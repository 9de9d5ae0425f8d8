"""Time a run's start with much data: from the command to the first step of both workers.

    python tests/benchmarks/start.py [--megabytes 800 --repeats 3] [--before CHECKOUT]

The data is noise in files; memory holds it. With `--before`, another checkout of raykfold takes
turns with this one. Prints the median seconds to the line `first step` of each share, and the most
shared memory (/dev/shm) that was in use meanwhile.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=800)
    parser.add_argument("--shape", default="128x173")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path, help="another checkout")
    arguments = parser.parse_args()
    checkouts = [path for path in (arguments.before, HERE) if path is not None]
    seconds: dict[Path, list[float]] = {path: [] for path in checkouts}
    shared: dict[Path, list[float]] = {path: [] for path in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "data", arguments.megabytes * 10**6, arguments.shape)
        for _ in range(arguments.repeats):
            for path in checkouts:
                took, most = start(path, Path(folder))
                seconds[path].append(took)
                shared[path].append(most)
    for path in checkouts:
        name = "this checkout" if path == HERE else "before"
        print(
            f"{name}: {statistics.median(seconds[path]):.2f} s to the first steps, "
            f"{max(shared[path]):.0f} MB of shared memory"
        )


def write_data(folder: Path, size: int, shape: str) -> None:
    folder.mkdir()
    sizes = tuple(map(int, shape.split("x")))
    clips = size // (4 * int(np.prod(sizes)))
    rng = np.random.default_rng(0)
    features = np.lib.format.open_memmap(
        folder / "features.npy", mode="w+", dtype=np.float32, shape=(clips, *sizes)
    )
    for sample in features:
        sample[...] = rng.standard_normal(sizes, dtype=np.float32)
    features.flush()
    np.save(folder / "labels.npy", rng.integers(0, 10, clips))
    np.save(folder / "folds.npy", np.arange(clips) % 5 + 1)


def start(checkout: Path, folder: Path) -> tuple[float, float]:
    """Return the seconds to the first step of two workers, and the shared memory used, in MB."""
    command = [sys.executable, "-m", "raykfold.run", "--processed_dir", str(folder / "data")]
    flags = ["--folds", "1,2", "--local_cpus", "2", "--verbose", "--model_dir"]
    out = folder / "out"
    idle = shared_memory()
    most = 0.0
    began = time.monotonic()
    run = subprocess.Popen(
        [*command, *flags, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=folder,
    )
    assert run.stdout is not None
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.1):
            most = max(most, shared_memory() - idle)

    watching = threading.Thread(target=watch)
    watching.start()
    ready, lines = 0, []
    for line in run.stdout:
        lines.append(line)
        ready += ": first step" in line
        if ready == 2:
            break
    took = time.monotonic() - began
    run.send_signal(signal.SIGINT)
    run.communicate()
    ended.set()
    watching.join()
    shutil.rmtree(out, ignore_errors=True)
    if ready < 2:
        raise SystemExit("".join(lines))
    return took, most


def shared_memory() -> float:
    """Return how much of /dev/shm is in use, in MB. Ray's object store is there."""
    usage = os.statvfs("/dev/shm")
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize / 1e6


if __name__ == "__main__":
    main()

"""Train on features of any size, and measure memory, an epoch's seconds, and the disk.

    python tests/benchmarks/size.py --gigabytes 40
    python tests/benchmarks/size.py --gigabytes 10 --dense

Makes a data set of (128, 173) float32 in a folder that is removed at the end, and trains two folds
of it with a tiny network, each on a worker of its own. The file is sparse: some samples are real,
and the others are holes, which the disk does not store and which are read as zeros. With --dense
every sample is written, and an epoch depends on the disk. For that, the page cache is told to
forget the file, and the speed of the disk is measured on a file of its own.

The trial ends when the disk has less than --keep_free gigabytes left. Memory is the peak of each
process. Anonymous memory counts against the machine; pages of files, also those of the features,
are given up when it runs short.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from memory import family, title
from torch import nn

SHAPE = (128, 173)
SAMPLE_BYTES = 4 * SHAPE[0] * SHAPE[1]
CLASSES, FOLDS = 10, 5
REAL = 2000  # samples of a sparse file that are no holes
CHUNK = 500  # samples
DISK_BYTES = 2 * 10**9  # of the file that tells the disk's speed
KINDS = ("RssAnon", "RssShmem", "RssFile")


class Tiny(nn.Module):
    """Tells classes by the mean of each band."""

    def __init__(self, n_mels: int, num_classes: int, target_len: int) -> None:
        super().__init__()
        self.head = nn.Linear(n_mels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.mean(dim=2))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of features [2]")
    parser.add_argument("--dense", action="store_true", help="write every sample")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--keep_free", type=float, default=10.0, help="GB of the disk [10]")
    parser.add_argument("--folder", type=Path, help="on the disk to try [the system's temporary]")
    parser.add_argument("arguments", nargs="*", help="more flags of raykfold.run, after --")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="raykfold-size-", dir=options.folder) as made:
        folder = Path(made)
        written = options.gigabytes if options.dense else REAL * SAMPLE_BYTES / 1e9
        room = free_gigabytes(folder) - options.keep_free - DISK_BYTES / 1e9
        if written > room:
            sys.exit(f"{written:.1f} GB do not fit: the disk has room for {room:.1f} GB")
        speed = disk_speed(folder)
        data = folder / "data"
        write_data(data, int(options.gigabytes * 1e9 / SAMPLE_BYTES), dense=options.dense)
        forget(data / "features.npy")
        peaks, least_free, wall = train(folder, data, options)
        size = (data / "features.npy").stat().st_size
        results = json.loads((folder / "out" / "fold_results.json").read_text())
    seconds = [epoch["seconds"] for fold in results for epoch in fold["history"]]
    kind = "dense" if options.dense else "sparse"
    print(f"features {size / 1e9:.1f} GB, {kind}; the whole command {wall:.0f} s")
    print(f"an epoch of a fold: {statistics.median(seconds):.1f} s, of {len(seconds)}")
    print(
        f"its features a second: {size / statistics.median(seconds) / 1e6:.0f} MB, by each worker"
    )
    print(f"the disk reads {speed / 1e6:.0f} MB a second; at least {least_free:.1f} GB were free")
    print("peak MB       anonymous  shared  of files")
    for name, peak in peaks.items():
        print(f"{name:13} {peak[0]:9.0f}  {peak[1]:6.0f}  {peak[2]:8.0f}")


def write_data(folder: Path, count: int, *, dense: bool) -> None:
    """Write log-mel-like samples, in which a class is a louder band."""
    folder.mkdir()
    labels = np.arange(count) % CLASSES
    features = np.lib.format.open_memmap(
        folder / "features.npy", mode="w+", dtype=np.float32, shape=(count, *SHAPE)
    )
    rng = np.random.default_rng(0)
    real = np.arange(count) if dense else np.unique(np.linspace(0, count - 1, REAL).astype(int))
    noise = rng.normal(-40, 10, (CHUNK, *SHAPE)).astype(np.float32)
    for start in range(0, len(real), CHUNK):
        rows = real[start : start + CHUNK]
        # Rolled and scaled, the same noise gives other samples in little time.
        part = np.roll(noise, start, axis=2)[: len(rows)] * np.float32(1 + start / count / 10)
        part[np.arange(len(rows)), labels[rows] * 12] += 10
        features[rows] = part
    features.flush()
    np.save(folder / "labels.npy", labels)
    np.save(folder / "folds.npy", np.arange(count) // CLASSES % FOLDS + 1)


def disk_speed(folder: Path) -> float:
    """Return the bytes a second of a read from front to back that no cache helps."""
    path = folder / "dense"
    block = np.random.default_rng(0).bytes(8 * 2**20)
    with path.open("wb") as file:
        for _ in range(DISK_BYTES // len(block)):
            file.write(block)
    forget(path)
    started, done = time.perf_counter(), 0
    with path.open("rb", buffering=0) as file:
        while part := file.read(8 * 2**20):
            done += len(part)
    path.unlink()
    return done / (time.perf_counter() - started)


def forget(path: Path) -> None:
    """Write a file's pages to the disk, and have the page cache forget them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def train(
    folder: Path, data: Path, options: argparse.Namespace
) -> tuple[dict[str, list[float]], float, float]:
    """Run raykfold, and return peaks in MB by process, the least free GB, and its seconds."""
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [
        *(sys.executable, "-m", "raykfold.run", "--processed_dir", str(data)),
        *("--model_dir", str(folder / "out"), "--model", "size:Tiny", "--folds", "1,2"),
        *("--epochs", str(options.epochs), "--batch_size", str(options.batch_size)),
        *("--local_cpus", "2", *options.arguments),
    ]
    started = time.monotonic()
    run = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, start_new_session=True)
    peaks: dict[str, list[float]] = {}
    least = free_gigabytes(folder)
    try:
        while run.poll() is None:
            least = min(least, free_gigabytes(folder))
            if least < options.keep_free:
                sys.exit(f"ended: the disk has {least:.1f} GB left")
            others = [0.0] * len(KINDS)
            for pid in family(run.pid):
                resident = resident_megabytes(pid)
                if pid == run.pid or "RayTrainWorker" in title(pid):
                    name = "driver" if pid == run.pid else f"worker {pid}"
                    peaks[name] = list(map(max, peaks.get(name, resident), resident))
                else:
                    others = [sum(pair) for pair in zip(others, resident, strict=True)]
            peaks["Ray, together"] = list(map(max, peaks.get("Ray, together", others), others))
            time.sleep(0.2)
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGINT)
            try:
                run.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
    if run.returncode != 0:
        sys.exit(f"the run ended with exit code {run.returncode}")
    return peaks, least, time.monotonic() - started


def resident_megabytes(pid: int) -> list[float]:
    """Return what a process has in memory, by `KINDS`."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # the process has ended
        lines = []
    values = dict(line.split(":", 1) for line in lines)
    return [int(values.get(kind, "0").split()[0]) / 1024 for kind in KINDS]


def free_gigabytes(folder: Path) -> float:
    return shutil.disk_usage(folder).free / 1e9


if __name__ == "__main__":
    main()

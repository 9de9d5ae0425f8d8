"""What `prepare folder` takes for many short files, and what a SIGKILL in the middle costs.

python tests/benchmarks/prepare.py --files 20000
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000  # Hz
SECONDS = 0.5
FLAGS = [
    *("--make_folds=5", "--group_pattern=(?P<group>[^_]+)_", "--local_cpus=2"),
    *(f"--sample_rate={RATE}", f"--seconds={SECONDS}", "--n_mels=64", "--n_fft=512"),
    "--hop_length=128",
]


@dataclass
class Measured:
    """A command: its wall time in seconds, when it said which percentage, and memory in MiB."""

    wall: float = 0.0
    at: dict[int, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)


def write_files(folder: Path, count: int) -> None:
    """Write noise of 40 speakers in ten classes."""
    rng = np.random.default_rng(0)
    for n in range(count):
        path = folder / f"class{n % 10}" / f"s{n // 10 % 40:02d}_{n:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = rng.uniform(-0.5, 0.5, round(RATE * SECONDS)).astype(np.float32)
        soundfile.write(path, samples, RATE)


def prepare(audio: Path, processed: Path, kill_at: int | None = None) -> Measured:
    """Run the command; kill it when it says that `kill_at` per cent are done."""
    measured, start = Measured(), time.monotonic()
    command = [sys.executable, "-m", "raykfold.prepare", "folder", *FLAGS]
    command += ["--audio_dir", str(audio), "--processed_dir", str(processed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watch = threading.Thread(target=watch_memory, args=(process, measured))
        watch.start()
        assert process.stdout is not None
        for line in process.stdout:
            percentage = line.partition("%")[0].strip()
            if percentage.isdecimal():
                measured.at[int(percentage)] = time.monotonic()
            if percentage == str(kill_at):
                process.kill()
    watch.join()
    if process.returncode != (0 if kill_at is None else -9):
        raise SystemExit(f"exit code {process.returncode}")
    measured.wall = time.monotonic() - start
    return measured


def watch_memory(process: subprocess.Popen[str], measured: Measured) -> None:
    """Note the peaks of the driver's memory: of its own, and of all that it maps (Linux)."""
    while process.poll() is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "VmRSS"):
                mib = int(value.split()[0]) / 1024
                measured.peak[name] = max(measured.peak.get(name, 0), mib)
        time.sleep(0.1)


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20000)
    count = parser.parse_args().files
    with tempfile.TemporaryDirectory() as folder:
        audio, whole, killed = (Path(folder) / name for name in ("audio", "whole", "killed"))
        write_files(audio, count)
        runs = {
            "never stopped": prepare(audio, whole),
            "killed at 50 %": prepare(audio, killed, kill_at=50),
            "the same command again": prepare(audio, killed),
        }
        print("| prepare | wall, s | files a second | peak memory, MiB | of its own, MiB |")
        print("| --- | --- | --- | --- | --- |")
        for name, run in runs.items():
            first, last = min(run.at), max(run.at)
            rate = count * (last - first) / 100 / (run.at[last] - run.at[first])
            peaks = f"{run.peak['VmRSS']:.0f} | {run.peak['RssAnon']:.0f}"
            print(f"| {name} | {run.wall:.0f} | {rate:.0f} | {peaks} |")
        megabytes = (whole / "features.npy").stat().st_size / 1e6
        same = "the same" if hashes(whole) == hashes(killed) else "OTHER"
        print(f"\nfeatures.npy has {megabytes:.0f} MB; after the kill, all files have {same} bytes")


if __name__ == "__main__":
    main()

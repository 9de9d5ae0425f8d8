"""Compare the time to a run's results with and without uploads to a slow Hub.

    python tests/benchmarks/mirror.py [--pairs 3] [--epochs 8]

The Hub is on loopback and takes a second for each call. The time is from the command to the line
with the mean. The wait for the remaining uploads comes after it and has a column of its own. The
runs of a pair follow each other, and the pairs alternate in which run comes first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes.hub_server import Fault, HubServer

CALL_SECONDS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    print("seconds to the results; the demo's data, two folds on two slots")
    print("pair  without     with    ratio  final wait  commits")
    ratios = []
    for pair in range(arguments.pairs):
        if pair % 2:
            seconds, wait, commits = with_mirror(arguments.epochs)
            without, _ = measure(arguments.epochs, {})
        else:
            without, _ = measure(arguments.epochs, {})
            seconds, wait, commits = with_mirror(arguments.epochs)
        ratios.append(seconds / without)
        print(
            f"{pair + 1:4} {without:8.2f} {seconds:8.2f} {ratios[-1]:8.3f} {wait:11.2f} "
            f"{commits:8}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.3f}")


def with_mirror(epochs: int) -> tuple[float, float, int]:
    with HubServer() as hub:
        hub.fault("*", Fault("slow", seconds=CALL_SECONDS))
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": hub.token,
            "HF_HUB_DISABLE_XET": "1",
        }
        flags = ("--hf_model_repo_id", "tester/demo", "--hub_interval", "5")
        seconds, wait = measure(epochs, environment, *flags)
        return seconds, wait, len(hub.repository("tester/demo").commits) - 1


def measure(epochs: int, environment: dict[str, str], *flags: str) -> tuple[float, float]:
    """Return the seconds from the command to the mean, and from there to its end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "raykfold.run", "--demo", "--local_cpus", "2"),
            *("--folds", "1,2", "--epochs", str(epochs), "--model_dir", folder, *flags),
        ]
        began = time.perf_counter()
        run = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        assert run.stdout is not None
        done = 0.0
        for line in run.stdout:
            if line.startswith("Average Best"):
                done = time.perf_counter()
        ended = time.perf_counter()
        if run.wait() or not done:
            raise SystemExit(f"the run failed: {run.returncode}")
        return done - began, ended - done


if __name__ == "__main__":
    main()

"""Try raykfold with other versions of Ray, of the Hub's client and of W&B, and print a table.

    python tests/versions.py [--only ray==2.49.2] [--folder .versions]

Each version is installed alone into an environment that finds everything else in this one: some
hundred MB and seconds each, found again the next time. With each Ray the built-in data is trained.
The hash of its weights and predictions has to be the same with all of them. Then come the tests of
a worker and a driver that are killed, and of a search. With each client come its tests.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.layers import layer
from support.outcome import Outcome

ROOT = Path(__file__).parents[1]
_Tests = dict[str, tuple[str, ...]]  # step → arguments of pytest
_RUN = ("tests/commands/test_run.py", "-k", "killed_worker or documented_files")
_SEARCH = ("tests/tuning/test_search.py", "-k", "same_slots or run_that_its_values_make")
_RAY: _Tests = {"kill and resume": _RUN, "search": _SEARCH}
_HUB: _Tests = {"hub": ("tests/outputs", "tests/fakes", "-k", "hub or xet or card")}
_WANDB: _Tests = {"wandb": ("tests/outputs/test_wandb_runs.py",)}
# The oldest of each range, and for Ray two between; the installed ones are the newest tested.
VERSIONS = {
    "ray==2.49.2": _RAY,
    "ray==2.52.1": _RAY,
    "ray==2.56.0": _RAY,
    "ray": _RAY,
    "huggingface_hub==1.5.0": _HUB,
    "huggingface_hub": _HUB,
    "wandb==0.30.0": _WANDB,
    "wandb": _WANDB,
}
_DEMO = "demo"
_MOST_SECONDS = 600


class Trial(NamedTuple):
    """What one step came to."""

    step: str
    outcome: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=VERSIONS, help="can be repeated")
    parser.add_argument("--folder", type=Path, default=ROOT / ".versions")
    options = parser.parse_args()
    print("| version | step | outcome | seconds |\n| --- | --- | --- | --- |")
    failed = False
    hashes = set()
    for requirement in options.only or VERSIONS:
        python = environment(options.folder, requirement)
        for trial in trials(python, VERSIONS[requirement]):
            if trial.outcome.startswith("FAILED"):
                failed = True
            elif trial.step == _DEMO:
                hashes.add(trial.outcome)
            name = installed(python, requirement.partition("==")[0])
            row = f"| {name} | {trial.step} | {trial.outcome} | {trial.seconds:.0f} |"
            print(row, flush=True)
    if len(hashes) > 1:
        failed = True
        print(f"FAILED: the demo comes to other bits: {', '.join(sorted(hashes))}")
    return int(failed)


def environment(folder: Path, requirement: str) -> Path:
    """Return the Python of an environment with this requirement over the one that runs here."""
    if "==" not in requirement:
        return Path(sys.executable)
    return layer(folder / requirement.replace("==", "-"), requirement)


def installed(python: Path, package: str) -> str:
    """Return a package's name and version, as `python` imports it."""
    code = f"import {package} as module; print(module.__version__)"
    shown = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return f"{package} {shown.stdout.strip()}"


def trials(python: Path, tests: _Tests) -> Iterator[Trial]:
    if tests is _RAY:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            demo = ["-m", "raykfold.run", "--demo", "--epochs", "2", "--model_dir", str(out)]
            outcome, seconds = run(python, *demo)
            failed = outcome.startswith("FAILED")
            yield Trial(_DEMO, outcome if failed else digest(out), seconds)
    for step, arguments in tests.items():
        yield Trial(step, *run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments))


def run(python: Path, *arguments: str) -> tuple[str, float]:
    """Run a command; return its last line, or that it failed, and the seconds that it took."""
    began = time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [python, *arguments],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"FAILED: not over after {_MOST_SECONDS} s", time.monotonic() - began
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    outcome = lines[-1] if done.returncode == 0 else f"FAILED: {lines[-1]}"
    return outcome, time.monotonic() - began


def digest(model_dir: Path) -> str:
    """Return the beginning of a hash of a run's weights and predictions."""
    outcome = Outcome.of(model_dir)
    found = hashlib.sha256()
    for name, content in outcome.weights.items():
        found.update(name.encode() + content)
    for name, values in outcome.predictions.items():
        found.update(name.encode() + values.tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())

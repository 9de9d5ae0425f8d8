"""Start `python -m raykfold.run` as a user does from the shell, and read what it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

# With a patience of one epoch and a high rate, folds stop early, and at different epochs.
ARGUMENTS = ("--epochs", "6", "--early_stopping_patience", "1", "--learning_rate", "0.005")


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment for a command that finds ``support.networks``.

    It has no variable of raykfold, no address of a running Ray, and then `changes`.
    """
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAYKFOLD_")}
    here.pop("RAY_ADDRESS", None)
    return {**here, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def command(processed_dir: Path | str, model_dir: Path | str, *arguments: str) -> list[str]:
    """Return the words of a run of `ARGUMENTS`; of a flag that is given twice the last counts."""
    base = [sys.executable, "-m", "raykfold.run", "--processed_dir", str(processed_dir)]
    return [*base, "--model_dir", str(model_dir), *ARGUMENTS, *arguments]


def run_command(
    words: list[str], env: dict[str, str] | None = None, *, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in `environment` with `env`, and capture what it prints."""
    return subprocess.run(
        words, capture_output=True, text=True, timeout=timeout, env=environment(**env or {})
    )


def start_command(words: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command in a session of its own; its two streams come as one."""
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**env or {}),
        start_new_session=True,
    )


def run(
    processed_dir: Path, model_dir: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end and capture what it prints."""
    return run_command(command(processed_dir, model_dir, *arguments), env)


def start(processed_dir: Path, model_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `command`, so that its lines can be read as they come."""
    return start_command(command(processed_dir, model_dir, *arguments))


def read_until(process: subprocess.Popen[str], pattern: str) -> list[str]:
    """Return the lines of a process up to the first that has `pattern`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"no {pattern!r} in: {''.join(lines)}")

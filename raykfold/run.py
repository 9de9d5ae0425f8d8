"""``python -m raykfold.run``: cross-validate from the command line."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

from raykfold.config.command import exit_code, uncollected
from raykfold.config.run_config import RunConfig, in_submitted_job, parse_config
from raykfold.errors import RunStopped
from raykfold.files.remote import RemotePath, leave

PARTIAL = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit code: 0, 1, 2, 3 or 130 (see `raykfold.errors`)."""
    arguments = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: _main(arguments), stopped="stopped")


def _main(arguments: Sequence[str]) -> int:
    config = parse_config(arguments, os.environ)
    return exit_code(
        lambda: _run(config),
        stopped=f"stopped; to go on: {shlex.join(config.command())}",
        verbose=config.verbose,
    )


def _run(config: RunConfig) -> int:
    take_signals()
    if config.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    with uncollected():
        from raykfold.driver import cross_validate
        from raykfold.outputs.console import console
        from raykfold.text import duration

    summary = cross_validate(config, observers=[console()])
    where = f" on node {platform.node()}" if in_submitted_job(os.environ) else ""
    print(f"{duration(summary.wall_seconds)}; outputs in {config.model_dir}{where}")
    if isinstance(config.model_place, RemotePath) or config.outputs.report.is_file():
        print(f"page: {config.model_place / config.outputs.report.name}")
    if summary.status == "complete":
        return 0
    print(f"to try what failed again: {shlex.join(config.command())}")
    return PARTIAL


def take_signals() -> None:
    """Let SIGINT and SIGTERM end the run in an orderly way; a second one, at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: Any) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, _stop_at_once)
    raise RunStopped(signal.Signals(number).name)


def _stop_at_once(number: int, frame: Any) -> None:
    os._exit(RunStopped.exit_code)


if __name__ == "__main__":
    leave(main())

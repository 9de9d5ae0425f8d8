"""``python -m raykfold.run``: cross-validate from the command line."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence

from raykfold.config.command import PARTIAL, run_configured, without_gc
from raykfold.config.run_config import RunConfig, in_submitted_job, parse_config
from raykfold.files.remote import RemotePath, leave


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit code: 0, 1, 2, 3 or 130 (see `raykfold.errors`)."""
    return run_configured(parse_config, _run, argv)


def _run(config: RunConfig) -> int:
    with without_gc():
        from raykfold.driver import cross_validate
        from raykfold.text import duration

    summary = cross_validate(config, progress=True)
    where = f" on node {platform.node()}" if in_submitted_job(os.environ) else ""
    print(f"{duration(summary.wall_seconds)}; outputs in {config.model_dir}{where}")
    if isinstance(config.model_place, RemotePath) or config.outputs.report.is_file():
        print(f"page: {config.model_place / config.outputs.report.name}")
    if summary.status == "complete":
        return 0
    print(f"to try what failed again: {shlex.join(config.command())}")
    return PARTIAL


if __name__ == "__main__":
    leave(main())

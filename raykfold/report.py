"""``python -m raykfold.report``: make the page of a run, while it trains or afterwards.

    python -m raykfold.report runs/demo

It reads the run's files alone, and writes one HTML file that loads nothing from the network, with
its pictures beside it as PNGs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raykfold.config.command import Parser, add_flag, run_command
from raykfold.errors import BadInput, RaykfoldError, StorageError
from raykfold.files.atomic import write_file
from raykfold.files.paths import ModelDir, absolute
from raykfold.files.remote import RemotePath, place
from raykfold.pages.run_page import report, write_report
from raykfold.state.archive import Archive, open_outputs
from raykfold.text import one_line

if TYPE_CHECKING:
    from raykfold.data.feature_set import FeatureSet


def main(argv: Sequence[str] | None = None) -> int:
    """Make the page, print where it is, and return the exit code (see `raykfold.errors`)."""
    return run_command(_parser, _main, argv)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m raykfold.report",
        description="Make the page of a run, while it trains or afterwards.",
        epilog="Exit codes: 0 done, 2 bad input, 130 interrupted, 1 anything else.",
    )
    parser.add_argument(
        "run",
        metavar="RUN_DIR",
        help="The run's outputs (--model_dir), or its folder on storage; a path or a URI.",
    )
    add_flag(
        parser, "processed_dir", metavar="DIR", help="Folder of the data, if it has been moved."
    )
    add_flag(
        parser,
        "output",
        metavar="FILE",
        help="Write the page alone to FILE [report.html in the model_dir, and PNGs beside it].",
    )
    return parser


def _main(options: argparse.Namespace) -> int:
    archive = _open(options.run)
    # Where the page goes. A file that the user names gets the page alone; a link is followed.
    target: Path | None = None
    outputs: ModelDir | None = None
    if options.output is not None:
        target = absolute(options.output).resolve()
        if target.exists() and not target.is_file():
            raise BadInput(f"--output {options.output}: is not a file")
    elif isinstance(archive.place, Path) and archive.place != archive.run_dir.root:
        outputs = ModelDir(archive.place)
    else:
        where = "is on a store" if isinstance(archive.place, RemotePath) else "holds no outputs"
        raise BadInput(f"{archive.place}: {where}, so no page fits there; expected --output FILE")
    data = _data(archive, options.processed_dir)
    if archive.summary is None:  # the run may have finished meanwhile, and written its own page
        archive = _open(options.run)
    try:
        if outputs is not None:
            print(write_report(archive, outputs, data))
        elif target is not None:
            write_file(target, report(archive, data).encode())
            print(target)
    except StorageError as error:
        wrong = f"--output {target}" if target else f"{options.run}"
        cause = one_line(error.__cause__ or error)
        raise BadInput(f"{wrong}: cannot be written ({cause}); expected another --output") from None
    return 0


def _open(run: str) -> Archive:
    """Open a run and read all of it, so that a damaged file is reported before anything else."""
    archive = open_outputs(run)
    for part in ("summary", "state", "predictions", "folds"):
        getattr(archive, part)
    return archive


def _data(archive: Archive, named: str | None) -> FeatureSet | None:
    """Read the run's data for pictures of samples; without it, print a line and return None.

    Raises:
        BadInput: `named`, the folder that the user gave, does not hold the run's data.
    """
    from raykfold.data.demo import demo_feature_set
    from raykfold.data.reading import read_feature_set

    config = archive.record.config
    try:
        if named is None and config["demo"]:
            data = demo_feature_set()
        elif named is None and config.get("in_memory"):
            raise BadInput("the data was given as arrays in Python")
        elif isinstance(folder := place(named or config["processed_dir"]), RemotePath):
            raise BadInput(f"{folder}: is on a store; --processed_dir takes a copy on this machine")
        else:
            data = read_feature_set(absolute(folder))
        if data.fingerprint == archive.record.fingerprint:
            return data
        if named is not None:
            raise BadInput(f"--processed_dir {named}: is not the data of this run")
        print(
            "without pictures of samples: the data is not what the run was trained on",
            file=sys.stderr,
        )
    except RaykfoldError as error:
        if named is not None:
            raise
        what = one_line(str(error).partition(";")[0])
        print(
            f"without pictures of samples: {what}; --processed_dir DIR names another folder",
            file=sys.stderr,
        )
    return None


if __name__ == "__main__":
    sys.exit(main())

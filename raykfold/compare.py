"""``python -m raykfold.compare``: whether one run is better than another, fold by fold.

python -m raykfold.compare runs/a runs/b
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from raykfold.config.command import Parser, add_flag, run_command
from raykfold.files.remote import without_password
from raykfold.pages.comparison_text import comparison_lines, verdict
from raykfold.state.archive import open_outputs
from raykfold.state.comparison import EPOCHS, compare


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print, and return the exit code: 0, 1, 2 or 130 (see `raykfold.errors`)."""
    return run_command(_parser, _main, argv)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m raykfold.compare",
        description="Tell whether one run is better than another, over the same folds.",
        epilog="Exit codes: 0 done, 2 the two cannot be compared, or bad usage.",
    )
    parser.add_argument("run_a", metavar="RUN_A", help="Outputs of a run: its --model_dir.")
    parser.add_argument("run_b", metavar="RUN_B", help="Those of another.")
    add_flag(
        parser,
        "by",
        choices=list(EPOCHS),
        help="Of each fold, the epoch to compare by (those whose weights were kept by default).",
    )
    add_flag(parser, "json", action="store_true", help="Print one JSON object.")
    return parser


def _main(options: argparse.Namespace) -> int:
    names = without_password(options.run_a), without_password(options.run_b)
    found = compare(open_outputs(options.run_a), open_outputs(options.run_b), options.by, names)
    if options.json:
        print(json.dumps({**found.to_json(), "verdict": verdict(found)}))
    else:
        print("\n".join(comparison_lines(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

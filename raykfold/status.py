"""``python -m raykfold.status``: how a run is doing, from its storage alone.

    python -m raykfold.status runs/demo
    python -m raykfold.status s3://bucket/runs/demo --watch
    python -m raykfold.status runs/demo --json

It works on any machine that sees the storage, and writes nothing there. With ``--json`` it prints
the fields of `raykfold.state.progress.Progress` as one object, with ``--watch`` one object a line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence

from raykfold.config.command import Parser, add_flag, run_command
from raykfold.errors import RaykfoldError
from raykfold.pages.progress_text import progress_lines
from raykfold.state.progress import Progress, Watcher
from raykfold.text import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Look, print, and return the exit code: 0, 1, 2 or 130 (see `raykfold.errors`)."""
    return run_command(_parser, _main, argv)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m raykfold.status",
        description="Tell how a run is doing, from its storage alone; nothing is written.",
        epilog="Exit codes: 0 done, 2 bad input, 130 interrupted, 1 anything else.",
    )
    parser.add_argument(
        "run", metavar="RUN_DIR", help="Its --model_dir, or its folder on storage; path or URI."
    )
    add_flag(parser, "watch", action="store_true", help="Look again and again until it is over.")
    add_flag(
        parser,
        "interval",
        metavar="SECONDS",
        type=_positive,
        default=2.0,
        help="Time from one look to the next.",
    )
    add_flag(parser, "json", action="store_true", help="One JSON object, with --watch a line.")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def _main(options: argparse.Namespace) -> int:
    watcher = Watcher(options.run)
    in_place = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if not options.watch:
        progress = watcher.look()
        if options.json:
            print(json.dumps(progress.to_json(), indent=2))
        else:
            print("\n".join(progress_lines(progress)))
    elif options.json:
        for look in _looks(watcher, options.interval):
            if isinstance(look, Progress):
                print(json.dumps(look.to_json()), flush=True)
            else:
                print(f"raykfold: {one_line(look)}", file=sys.stderr, flush=True)
    elif in_place:
        _watch_in_place(_looks(watcher, options.interval))
    else:
        _watch_in_blocks(_looks(watcher, options.interval))
    return 0


def _looks(watcher: Watcher, interval: float) -> Iterator[Progress | RaykfoldError]:
    """Yield looks until the run is over, or why one failed; the first must succeed."""
    look: Progress | RaykfoldError = watcher.look()
    while True:
        yield look
        if isinstance(look, Progress) and look.state == "over":
            return
        time.sleep(interval)
        try:
            look = watcher.look()
        except RaykfoldError as error:  # an outage; or the run is just being set aside
            look = error


def _watch_in_place(looks: Iterator[Progress | RaykfoldError]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        last: list[str] = []
        for look in looks:
            if isinstance(look, Progress):
                last, note = progress_lines(look, room=console.height - 2), []
            else:
                note = [f"raykfold: {one_line(look)}"]
            shown = Text("\n".join([*last, *note]), no_wrap=True, overflow="ellipsis")
            live.update(shown, refresh=True)


def _watch_in_blocks(looks: Iterator[Progress | RaykfoldError]) -> None:
    """Print a block when something has changed, as a log needs it."""
    before: object = None
    for look in looks:
        if isinstance(look, Progress):
            now: object = look.events
            block = [*progress_lines(look), ""]
        else:
            now, block = str(look), [f"raykfold: {one_line(look)}", ""]
        if now != before:
            print("\n".join(block), flush=True)
        before = now


if __name__ == "__main__":
    sys.exit(main())

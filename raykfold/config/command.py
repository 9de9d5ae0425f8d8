"""What the commands of raykfold have in common: how flags are spelt, and how a command ends."""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from raykfold.errors import BadInput, RaykfoldError, RunStopped
from raykfold.text import one_line


class Parser(argparse.ArgumentParser):
    """Raises what others print: a wrong command line is bad input like any other."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """
        Raises:
            BadInput: always.
        """
        raise BadInput(f"{message}; see --help")


def add_flag(parser: argparse._ActionsContainer, name: str, **options: Any) -> None:
    """A flag that can be written with underscores or with hyphens, its default in its help."""
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    if options.get("default") is not None:
        options["help"] += " [%(default)s]"
    parser.add_argument(*spellings, dest=name, **options)


def exit_code(command: Callable[[], int], *, stopped: str, verbose: bool = False) -> int:
    """Run a command to its end: its own exit code, or that of what it raised, in one line.

    Args:
        stopped: what to say when Ctrl-C ends it.
        verbose: show the traceback too.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that it lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for the interpreter's last flush
        return 1
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return RunStopped.exit_code
    except RaykfoldError as error:
        if verbose:
            traceback.print_exc()
        print(f"raykfold: {one_line(error, longest=None)}", file=sys.stderr)
        return error.exit_code


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports of much: what they make stays, and to look through it for cycles is a fifth."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

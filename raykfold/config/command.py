"""What the commands of raykfold have in common: how flags are spelt, and how a command ends."""

from __future__ import annotations

import argparse
import gc
import io
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol, TypeVar

from raykfold.errors import BadInput, RaykfoldError, RunStopped
from raykfold.text import one_line

PARTIAL = 3  # the exit code when some folds or trials failed


class Configuration(Protocol):
    """What `run_configured` needs to know of a configuration."""

    @property
    def verbose(self) -> bool: ...

    def command(self) -> list[str]:
        """Return the command that resumes the work."""


_Config = TypeVar("_Config", bound=Configuration)


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


def run_configured(
    parse: Callable[[Sequence[str], Mapping[str, str]], _Config],
    work: Callable[[_Config], int],
    argv: Sequence[str] | None,
) -> int:
    """Parse a configuration, do the work that it describes, and return the exit code.

    SIGINT and SIGTERM end the work in an orderly way, with the command that resumes it as the last
    line; a second signal ends the process at once.

    Args:
        parse: takes the arguments and the environment.
        work: returns the exit code.
        argv: the arguments; those of this process by default.
    """

    def command() -> int:
        config = parse(sys.argv[1:] if argv is None else argv, os.environ)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
        if config.verbose:
            logging.basicConfig(level=logging.INFO, format="%(message)s")
        stopped = f"stopped; to go on: {shlex.join(config.command())}"
        return exit_code(lambda: work(config), stopped=stopped, verbose=config.verbose)

    return exit_code(command, stopped="stopped")


def _stop(number: int, frame: Any) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, _stop_at_once)
    raise RunStopped(signal.Signals(number).name)


def _stop_at_once(number: int, frame: Any) -> None:
    os._exit(RunStopped.exit_code)


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

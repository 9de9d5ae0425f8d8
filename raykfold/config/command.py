"""What all commands share: how flags are spelt, and how a command ends."""

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
from typing import Any, NoReturn, Protocol, TextIO, TypeVar

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
    """A parser that raises `BadInput` for a wrong command line, like any other wrong input."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see --help")


def add_flag(parser: argparse._ActionsContainer, name: str, **options: Any) -> None:
    """Add a flag with its default in its help. It can also be spelt with hyphens."""
    if options.get("default") is not None:
        options["help"] += " [%(default)s]"
    hyphens = f"--{name.replace('_', '-')}"
    if options.get("required"):  # two actions would both be required
        parser.add_argument(f"--{name}", hyphens, dest=name, **options)
        return
    parser.add_argument(f"--{name}", dest=name, **options)
    if "_" in name:
        parser.add_argument(hyphens, dest=name, **{**options, "help": argparse.SUPPRESS})


def exit_code(command: Callable[[], int], *, stopped: str, verbose: bool = False) -> int:
    """Run a command and return its exit code; report an error of raykfold in one line.

    Args:
        command: returns an exit code.
        stopped: the line to print when Ctrl-C ends it.
        verbose: print the traceback, too.
    """
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack a character
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = command()
        except SystemExit:  # of --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _flush_output()
        _tell(f"\n{stopped}")
        return RunStopped.exit_code
    except RaykfoldError as error:
        _flush_output()
        if verbose:
            traceback.print_exc()
        _tell(f"raykfold: {one_line(error, longest=None)}")
        return error.exit_code
    except OSError as error:
        # An error of a stream names no file, but neither does a failed write to a file. Where the
        # stream has no buffer, nothing tells the two apart.
        broken = isinstance(error, BrokenPipeError)  # the reader of the output has closed it
        is_buffered = not getattr(sys.stdout, "write_through", False)
        if error.filename is not None or (_flush_output() and is_buffered and not broken):
            raise
        if verbose:
            traceback.print_exc()
        if not broken:
            _tell(f"raykfold: standard output: cannot be written ({error.strerror})")
        _to_nowhere(sys.stdout)
        return 1


def _flush_output() -> bool:
    """Return whether what was printed has reached its reader; what has not is dropped."""
    try:
        sys.stdout.flush()
    except OSError:
        _to_nowhere(sys.stdout)
        return False
    return True


def _open_streams() -> None:
    """Open the streams that the shell has closed (``>&-``), onto nothing.

    Python has None for them, and the next file that is opened would take the number of a closed
    one, with all that libraries print.
    """
    lost = sys.stdout is None
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            os.set_inheritable(number, True)
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if lost:
        _tell("raykfold: standard output is closed; nothing is shown")


def _tell(line: str) -> None:
    """Print a line to stderr, if that can be: the exit code speaks as well."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _to_nowhere(sys.stderr)


def _to_nowhere(stream: TextIO) -> None:
    """Lead a stream to nothing, for the interpreter's last flush."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def run_command(
    parser: Callable[[], argparse.ArgumentParser],
    work: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
    *,
    stopped: str = "raykfold: interrupted",
) -> int:
    """Parse the arguments, do the work, and return the exit code (see `raykfold.errors`).

    Args:
        parser: makes the command's parser.
        work: takes the parsed arguments, and returns the exit code.
        argv: the arguments; those of this process by default.
        stopped: the line to print when Ctrl-C ends the work.
    """
    arguments = sys.argv[1:] if argv is None else argv
    verbose = "--verbose" in arguments
    return exit_code(lambda: work(parser().parse_args(arguments)), stopped=stopped, verbose=verbose)


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
        stopped = f"stopped; to resume: {shlex.join(config.command())}"
        return exit_code(lambda: work(config), stopped=stopped, verbose=config.verbose)

    return exit_code(command, stopped="stopped")


def _stop(number: int, frame: Any) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, _stop_at_once)
    raise RunStopped(signal.Signals(number).name)


def _stop_at_once(number: int, frame: Any) -> None:
    os._exit(RunStopped.exit_code)


def leave_lost_folder() -> None:
    """Go to the root if the working directory was deleted: MKL ends a process that is in none.

    Call it when all paths that the user named are absolute.
    """
    try:
        os.getcwd()
    except OSError:
        os.chdir("/")


@contextmanager
def without_gc() -> Iterator[None]:
    """Pause garbage collection, for large imports: it takes a fifth of their time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

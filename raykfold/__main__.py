"""``raykfold COMMAND …``, which is ``python -m raykfold.COMMAND …``."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from raykfold import __version__
from raykfold.config.command import exit_code
from raykfold.errors import BadInput
from raykfold.files.remote import leave

COMMANDS = {
    "prepare": "compute features from recordings",
    "run": "cross-validate, or resume a run",
    "search": "tune hyper-parameters on the cross-validated score",
    "status": "how a run is doing",
    "report": "write the tables and the page of a run again",
    "compare": "compare two runs on the same folds",
    "predict": "classify recordings",
    "hub": "send to the Hugging Face Hub, or fetch from it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Call the command that the first argument names, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        code: int = importlib.import_module(f"raykfold.{arguments[0]}").main(arguments[1:])
        return code
    return exit_code(lambda: _describe(*arguments[:1]), stopped="stopped")


def _describe(argument: str = "--help") -> int:
    """Print what there is to know without a command.

    Raises:
        BadInput: the argument is no command and no flag.
    """
    if argument in ("-h", "--help"):
        rows = "\n".join(f"  {name:8}  {about}" for name, about in COMMANDS.items())
        print(f"usage: raykfold COMMAND ...\n\n{rows}\n\nraykfold COMMAND --help prints its flags.")
    elif argument == "--version":
        print(f"raykfold {__version__}")
    else:
        near = difflib.get_close_matches(argument, COMMANDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
        raise BadInput(f"{argument}: there is no such command; {meant}")
    return 0


def script() -> NoReturn:
    """Run as the script ``raykfold``, which finds modules where ``python -m raykfold`` does."""
    with suppress(OSError):  # the working directory is gone
        sys.path[0] = os.getcwd()  # in place of the script's own folder
    leave(main())


if __name__ == "__main__":
    leave(main())

"""``raykfold COMMAND …``, which is ``python -m raykfold.COMMAND …``."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
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
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        rows = "\n".join(f"  {name:8}  {about}" for name, about in COMMANDS.items())
        print(f"usage: raykfold COMMAND ...\n\n{rows}\n\nraykfold COMMAND --help prints its flags.")
        return 0
    if first == "--version":
        print(f"raykfold {__version__}")
        return 0
    if first not in COMMANDS:
        return exit_code(lambda: _refuse(first), stopped="stopped")
    code: int = importlib.import_module(f"raykfold.{first}").main(arguments[1:])
    return code


def _refuse(name: str) -> NoReturn:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    meant = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(COMMANDS)}"
    raise BadInput(f"{name}: there is no such command{meant}")


def script() -> NoReturn:
    """Run as the script ``raykfold``."""
    leave(main())


if __name__ == "__main__":
    script()

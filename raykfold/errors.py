"""Everything that raykfold raises on purpose.

    RaykfoldError                 exit code 1
    ├── BadInput                  2   a flag, a file or a value that cannot be right
    │   └── BadData               2   ... found inside a data file
    ├── StorageError              1   the disk is full, or a path went away, during a run
    └── FoldError                 (none: it fails one fold, and the others go on)
        └── NonFiniteLoss
    KeyboardInterrupt
    └── RunStopped                130 a signal asked the run to stop

The command line prints the message of a `RaykfoldError` as one line on stderr, without a
traceback, and exits with its `exit_code`. A run in which some folds failed is no exception:
it returns a `Summary` whose status is ``partial``, and the command exits with 3.
"""

from __future__ import annotations


class RaykfoldError(Exception):
    """Base of all errors raised on purpose; its text is one line meant for the user."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows: as on the command line, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


class BadInput(RaykfoldError):
    """A wrong flag, value, file or name. The text names it, the value, and what would be right."""

    exit_code = 2


class BadData(BadInput):
    """A data file that is missing, damaged, or holds what a cross-validation cannot use."""


class StorageError(RaykfoldError):
    """Results could not be written. What was complete before is safe, and the run can resume."""


class FoldError(RaykfoldError):
    """One fold cannot go on. It is marked failed with this text; the others finish."""


class NonFiniteLoss(FoldError):
    """The training or validation loss of a fold became NaN or infinite."""


class RunStopped(KeyboardInterrupt):
    """A signal (Ctrl-C, `kill`, `ray job stop`) asked the run to stop.

    Not an `Exception`, so that no ``except Exception`` on its way takes it for something else.
    """

    exit_code = 130

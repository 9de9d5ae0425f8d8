"""Progress in a notebook: one output of the cell that changes in place.

It is an IPython display with an id. Frontends update such a display without widgets, and a saved
notebook has its last state only. The bars of tqdm and rich need ipywidgets for that: without them
tqdm writes to stderr, and rich asks for them.
"""

from __future__ import annotations

import sys
import time
from html import escape
from typing import TYPE_CHECKING

from raykfold.observers import Observer
from raykfold.outputs.console import Display, LiveProgress
from raykfold.pages import remarks
from raykfold.pages.summary_text import fold_line
from raykfold.text import count_of, duration, figure_text, plus_minus
from raykfold.training.results import Summary

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

_PAUSE = 0.25  # seconds between updates: each is a message, which a slow frontend has to draw


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def notebook() -> Observer:
    """Return the observer that shows progress below the cell that is running."""
    return LiveProgress(_Cell())


class _Cell(Display):
    """The output of a cell: a bar over all epochs, a row for each fold, and the lines below."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._result = ""  # replaces the rows at the end
        self._is_over = False
        self._handle: DisplayHandle | None = None
        self._drawn = float("-inf")
        self._is_stale = False

    def refresh(self) -> None:
        self._is_stale = True
        self.time_passed()

    def time_passed(self) -> None:
        if self._is_stale and time.monotonic() - self._drawn > _PAUSE:
            self._draw()

    def print(self, text: str) -> None:
        self._lines.append(text)
        self._draw()

    def finish(self, summary: Summary) -> None:
        self._is_over = True
        self._result = _result(summary)
        # Each line also names the fold's error; the table of the summary does not.
        for seed, folds in summary.by_seed:
            name = "" if seed is None else f"seed {seed}, "
            self._lines += [name + fold_line(each) for each in folds if each.status == "failed"]
        self._draw()

    def close(self) -> None:
        if self.runs and not self._is_over:
            self._is_over = True
            self._result = "Stopped. What is complete is safe: run the cell again to go on."
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        content = {"text/plain": self._text(), "text/html": self._html()}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
        self._drawn, self._is_stale = time.monotonic(), False

    def _text(self) -> str:
        return "\n".join(filter(None, [self._state(), *self._lines]))

    def _state(self) -> str:
        """Return how far the run is; an empty text before it begins."""
        if self._result or not self.runs:
            return self._result
        done, left = self._epochs()
        return f"{done} of at most {count_of(done + left, 'epoch')}, {self.time_left()}"

    def _epochs(self) -> tuple[int, int]:
        """Return how many epochs are trained, and how many are left at most."""
        done = sum(run.epochs_done() for run in self.runs)
        return done, sum(run.epochs_left() for run in self.runs)

    def _html(self) -> str:
        parts = []
        if state := self._state():
            parts.append(f"<div>{escape(state)}</div>")
        if self.runs and not self._is_over:
            done, left = self._epochs()
            bar = f'<progress value="{done}" max="{done + left}" style="width:100%"></progress>'
            rows = "".join(
                f'<tr><th style="text-align:left">{escape(name)}</th>'
                f'<td style="text-align:left">{escape(about)}</td></tr>'
                for run in self.runs
                for name, about in run.rows()
            )
            parts[:0] = [bar]
            parts.append(f"<table>{rows}</table>")
        parts += [f"<div>{escape(line)}</div>" for line in self._lines]
        return f'<div style="max-width:60em">{"".join(parts)}</div>'


def _result(summary: Summary) -> str:
    """Return the result in a line; the summary itself shows the rest."""
    run = f"{summary.run_name}: {count_of(len(summary.folds), 'fold')}"
    if summary.repeats is not None:
        run += f" with each of {len(summary.repeats.seeds)} seeds"
    estimate = summary.over_folds(summary.headline)
    if estimate is None:
        return f"{run}. {remarks.on_partial(summary)}"
    value = plus_minus(estimate.mean, estimate.std, len(summary.folds))
    where = f"at the {summary.kept_epochs} epochs"
    return (
        f"{run} complete in {duration(summary.wall_seconds)}: {figure_text(summary.headline)} "
        f"{value} {where}"
    )

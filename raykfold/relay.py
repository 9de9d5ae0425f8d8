"""Ray Train's callback in the controller of a share: it relays committed rounds to the board.

A module of its own, because the controller imports it: what trains is not needed there.
"""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from raykfold.events import Round, RoundCommitted


class ShareCallback(UserCallback):
    """Tells the board, from a share's Train controller, that a round is committed."""

    def __init__(self, board: Any, share: str) -> None:
        self._board = board
        self._share = share

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """One worker a share, so one row of metrics.

        An exception here would end the share: nothing can raise but a bug, and the driver would
        deal its folds anew.
        """
        path = checkpoint.path if checkpoint is not None else None
        event = RoundCommitted(self._share, Round.from_metrics(metrics[0]), path)
        self._board.post.remote(event)

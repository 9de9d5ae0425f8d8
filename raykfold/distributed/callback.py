"""The callback in a share's Train controller that tells the driver of committed rounds.

It is a module of its own because the controller imports it, and must not import what trains.
"""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from raykfold.distributed.events import RoundCommitted
from raykfold.training.results import Round


class ShareCallback(UserCallback):
    """Posts each committed round to the event board.

    Args:
        board: handle of the `EventBoard`.
        share: the share's name.
    """

    def __init__(self, board: Any, share: str) -> None:
        self._board = board
        self._share = share

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Post the round. A share has one worker, so there is one row of metrics.

        An exception here would end the share. Only a bug can raise one, and the driver would then
        deal its folds again.
        """
        path = checkpoint.path if checkpoint is not None else None
        event = RoundCommitted(self._share, Round.from_metrics(metrics[0]), path)
        self._board.post.remote(event)

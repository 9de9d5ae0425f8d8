"""What Ray Train's controller of a share runs of ours: it relays committed rounds to the board.

A module of its own, because the controller imports it: what trains is not needed there.
"""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from raykfold.events import RoundCommitted
from raykfold.results import Round


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


class ClosedScalingPolicy(FixedScalingPolicy):
    """One worker, in a Ray that cannot grow: there is no autoscaler to tell of it.

    Ray Train's own policy starts an actor for that, and waits for it before it starts the worker.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask nobody for resources."""

    def _maybe_send_resource_request(self) -> None:
        """Nor remind anybody."""

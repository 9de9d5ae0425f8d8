"""What Ray Train's controller of a share runs of ours: it relays committed rounds to the board.

A module of its own, because the controller imports it: what trains is not needed there.
"""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
    DefaultPlacementGroupHandle,
)
from ray.util.placement_group import placement_group

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


def slot_name(share: str) -> str:
    """What the placement group of a share is called."""
    return f"raykfold-{share}"


class _ShareWorkerGroup(WorkerGroup):
    """One worker, in a placement group that has a name.

    By that the driver can give the slot back when the controller is killed. Ray Train's own
    answer to that is an actor more for each run.
    """

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:
        share = self._train_run_context.run_config.name
        assert share is not None
        group = placement_group(
            [worker_group_context.resources_per_worker],
            strategy=worker_group_context.placement_strategy,
            name=slot_name(share),
            bundle_label_selector=worker_group_context.label_selector,
        )
        return DefaultPlacementGroupHandle(group)


class ShareController(TrainController):
    """Ray Train's controller, with a worker group of ours."""

    worker_group_cls = _ShareWorkerGroup


class OneWorker(FixedScalingPolicy):
    """One worker, for which the driver has seen a slot: the autoscaler need not be asked for it.

    Ray Train's own policy starts an actor for that, and waits for it before it starts the worker.
    What the run could use beyond the slots that are there, the driver asks for.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask nobody for resources."""

    def _maybe_send_resource_request(self) -> None:
        """Nor remind anybody."""

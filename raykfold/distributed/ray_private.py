"""What Ray Train's controller of a share runs of ours: it relays committed rounds to the board.

A module of its own, because the controller imports it: what trains is not needed there.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train import UserCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, worker_group
from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
    DefaultPlacementGroupHandle,
)
from ray.train.v2._internal.execution.worker_group.state import (
    WorkerGroupState,
    WorkerGroupStateBuilder,
)
from ray.util.placement_group import placement_group

from raykfold.distributed.events import RoundCommitted
from raykfold.distributed.session import replaced
from raykfold.training.results import Round


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
    """One worker, in a placement group that has a name, and with nobody to wait for.

    By the name the driver can give the slot back when the controller is killed. Ray Train's own
    answer to that is an actor more for each run.
    """

    def _start_impl(self, builder: WorkerGroupStateBuilder) -> None:
        """As Ray Train does it, without an actor where the workers of a group meet.

        It would take a second of CPU and 110 MB, for a worker that meets nobody.
        """
        ours = _StateBuilder()
        try:
            with replaced(worker_group, {"SynchronizationActor": _Meeting}):
                super()._start_impl(ours)
        except BaseException:
            if not self.has_started():  # what has is shut down by the controller
                ours.shutdown()
            raise

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

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        """Nothing where nothing is asked for, as on an instance of our own.

        Ray Train adds its own settings, which the worker inherits there; and without an environment
        of its own, one of Ray's idle processes can be the worker.
        """
        return WorkerGroup._get_worker_runtime_env(custom_runtime_env) if custom_runtime_env else {}


class _Meeting:
    """Stands in for Ray Train's `SynchronizationActor` where a group has one worker.

    Both the actor class, as which the controller uses it, and the handle that the worker has.
    """

    @staticmethod
    def options(**_: Any) -> type[_Meeting]:
        return _Meeting

    @staticmethod
    def remote(**_: Any) -> _Meeting:
        return _Meeting()

    @property
    def broadcast_from_rank_zero(self) -> _Answer:
        return _Answer("data")

    @property
    def set_required_ranks(self) -> _Answer:
        return _Answer()

    @property
    def reset(self) -> _Answer:
        return _Answer()


class _Answer:
    """A method of `_Meeting`, which answers with the argument of this name."""

    def __init__(self, name: str | None = None) -> None:
        self._name = name

    def remote(self, *_: Any, **arguments: Any) -> Any:
        return ray.put(arguments[self._name] if self._name is not None else True)


class _State(WorkerGroupState):
    def shutdown(self) -> None:
        parts = _StateBuilder()
        parts.workers, parts.placement_group_handle = self.workers, self.placement_group_handle
        parts.shutdown()


class _StateBuilder(WorkerGroupStateBuilder):
    def build(self) -> WorkerGroupState:
        return _State(**vars(super().build()))

    def shutdown(self) -> None:
        self.sync_actor = None  # Ray Train would kill it, and it is no actor
        super().shutdown()


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

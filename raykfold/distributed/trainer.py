"""The Ray Train run of a share: one worker, no retries; and what the end of one tells."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

import ray
import ray.train
from ray.exceptions import ActorDiedError, RayActorError, RayError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.util.placement_group import (
    get_placement_group,
    placement_group_table,
    remove_placement_group,
)

from raykfold.config.environment import worker_runtime_env
from raykfold.distributed.callback import ShareCallback
from raykfold.distributed.ray_private import (
    ControllerHandle,
    error_in_worker,
    health_failure,
    is_failed_start,
    is_lost_slot,
    slot_name,
    supported_arguments,
)
from raykfold.distributed.worker import ShareTask, run_share
from raykfold.files.remote import Place, for_ray
from raykfold.text import one_line
from raykfold.training.recipe import PROCESS_ERRORS


class ShareTrainer:
    """Runs a share in Ray Train.

    It uses `DataParallelTrainer` and not `TorchTrainer`, because a single worker needs no process
    group and is shown its own GPU only. Ray Train retries nothing: when a share dies, the driver
    deals its folds again, to whatever is free then.

    Args:
        task: what the share's worker is told.
        storage: folder where Ray Train keeps the share's checkpoints, on a disk that every node
            has or on an object store.
        excluded: ids of nodes where the worker must not run.
        own_instance: Ray was started by this process, and ends with it.
        plain: start the worker as Ray Train starts it by default, without any change.
    """

    def __init__(
        self,
        task: ShareTask,
        storage: Place,
        excluded: Collection[str],
        *,
        own_instance: bool,
        plain: bool,
    ) -> None:
        self._task = task
        self._slot_name = slot_name(task.share)
        path, filesystem = for_ray(storage)
        elsewhere = {"ray.io/node-id": f"!in({','.join(sorted(excluded))})"} if excluded else None
        selector = supported_arguments(ray.train.ScalingConfig, label_selector=elsewhere)
        self._trainer = DataParallelTrainer(
            run_share,
            # By reference: the controller gets the config too. It need not read the task, and so
            # need not import torch.
            train_loop_config={"task": ray.put(task)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1,
                use_gpu=bool(task.size.gpus),
                resources_per_worker=task.size.resources,
                **selector,
            ),
            # A type checker sees the classes of Ray Train V1 here, which V2 replaces.
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]
                name=task.share,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=ray.train.FailureConfig(
                    max_failures=0,
                    **supported_arguments(
                        ray.train.FailureConfig,
                        controller_failure_limit=0,
                        max_preemption_failures=0,
                    ),
                ),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=3),
                callbacks=[ShareCallback(task.board, task.share)],  # type: ignore[list-item]
                worker_runtime_env=worker_runtime_env(own_instance),
            ),
        )
        self._controller = ControllerHandle(
            self._trainer,
            task.share,
            selector=None if selector else elsewhere,
            plain=plain,
        )

    def fit(self) -> None:
        """Run the share to its end.

        Raises:
            Exception: what ended it early; see `end_of`.
        """
        self._trainer.fit()

    def stop(self) -> bool:
        """End the run now: `fit`, in whatever thread it waits, raises.

        Returns:
            Whether it ends now. Where the controller cannot be killed, the worker gives all folds
            back after this epoch.
        """
        if self._controller.kill():
            return True
        folds = tuple(self._task.splits)
        self._task.board.ask.remote(self._task.share, folds, leave=True)
        return False

    def free_slot(self) -> None:
        """Free the slot that the share still holds if its controller was killed."""
        with suppress(ValueError):  # there is no such slot, as it should be
            remove_placement_group(get_placement_group(self._slot_name))

    def slot_node(self) -> str | None:
        """Return the id of the node where the share has its slot; None before it has one."""
        try:
            table = placement_group_table(get_placement_group(self._slot_name))
        except ValueError:
            return None
        return next(iter(table.get("bundles_to_node_id", {}).values()), None) or None


class End(NamedTuple):
    """What ended a share early.

    Attributes:
        reason: in one line. Ray's errors are tracebacks within tracebacks.
        died: the worker's process died or became unusable.
        failed: it died, or something else may be wrong with the folds. What Ray, the network or the
            storage did is not: a store that is away fails every fold alike.
        displaced: its node or its slot was gone.
        unexplained: an exception that Ray, the network, the storage and the device do not explain.
    """

    reason: str
    died: bool = False
    failed: bool = False
    displaced: bool = False
    unexplained: bool = False


def end_of(error: Exception) -> End:
    """Return what an error of `fit` tells."""
    # The failure of the worker, or of the controller.
    root, in_worker = error, isinstance(error, WorkerGroupError)
    if isinstance(error, WorkerGroupError):
        root = error_in_worker(next(iter(error.worker_failures.values()), error))
    elif isinstance(error, ControllerError):
        root = error.controller_failure

    found = health_failure(root)
    if found is not None:
        died = isinstance(found, ActorDiedError)
        return End(_exit_detail(found), died, died)
    if is_lost_slot(root):
        return End("its slot was taken by somebody else", displaced=True)
    if is_failed_start(root):
        reason = f"it did not start: {_exit_detail(root.__cause__ or root)}"
        displaced = "its node has died" in str(error)
        return End(reason, failed=not displaced, displaced=displaced)
    if isinstance(root, RayActorError) and not in_worker:
        return End("its Ray Train controller died")
    reason = _last_line(root)
    if not isinstance(root, RayError | ControllerError | WorkerGroupError):
        reason = one_line(f"{type(root).__name__}: {reason}")
    died = in_worker and isinstance(root, PROCESS_ERRORS)
    others = isinstance(root, RayError | OSError | ControllerError | WorkerGroupError)
    unexplained = not died and not others
    return End(reason, died, died or (in_worker and unexplained), unexplained=unexplained)


def _exit_detail(error: BaseException) -> str:
    """Return why a process ended, as Ray says it somewhere in the error's text."""
    detail = re.search(r"Worker exit detail: (.+?)(?:\. |$)", str(error), re.MULTILINE)
    return one_line(detail[1]) if detail else _last_line(error)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(error).__name__)

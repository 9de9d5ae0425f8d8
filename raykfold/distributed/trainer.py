"""The Ray Train run of a share: one worker, no retries, and no actor that it has no use for."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorDiedError, RayActorError, RayError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import (
    get_placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykfold.config.environment import worker_runtime_env
from raykfold.distributed.deal import WorkerSize
from raykfold.distributed.ray_private import OneWorker, ShareCallback, ShareController, slot_name
from raykfold.distributed.worker import ShareTask, run_share
from raykfold.files.remote import Place, for_ray
from raykfold.text import one_line
from raykfold.training.fold import OF_THE_PROCESS

# Ray Train starts an actor for each of these, three seconds of CPU apiece. Features come through
# the object store and not through Ray Data; the slot of a dead controller is given back here.
_UNUSED = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


class ShareTrainer(DataParallelTrainer):
    """Runs a share in Ray Train.

    `DataParallelTrainer` and not `TorchTrainer`, because a worker alone needs no process group,
    and is shown its own GPU only. `max_failures` is 0 because the driver deals the folds of a
    dead share anew, to whatever is free then.

    Args:
        task: what the share's worker is told.
        size: what the worker takes of a node.
        storage: folder below which Ray Train keeps the share's checkpoints, on a disk that every
            node has or on an object store.
        shunned: ids of nodes where the worker must not run.
        own_instance: Ray was started by this process, and ends with it.
    """

    def __init__(
        self,
        task: ShareTask,
        size: WorkerSize,
        storage: Place,
        *,
        shunned: Collection[str] = (),
        own_instance: bool,
    ) -> None:
        self._share = task.share
        self._own_instance = own_instance
        self._controller: Any = None
        self._stopped = False
        path, filesystem = for_ray(storage)
        super().__init__(
            run_share,
            # By reference: the controller, which is handed the config too, need not read it, and
            # so need not import torch.
            train_loop_config={"task": ray.put(task)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1,
                use_gpu=bool(size.gpus),
                resources_per_worker=size.resources,
                label_selector=_elsewhere(shunned),  # type: ignore[call-arg]
            ),
            # A type checker sees the classes of Ray Train V1 here, which V2 replaces.
            run_config=ray.train.RunConfig(
                name=task.share,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=ray.train.FailureConfig(
                    max_failures=0,
                    controller_failure_limit=0,  # type: ignore[call-arg]
                    max_preemption_failures=0,
                ),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=3),
                callbacks=[ShareCallback(task.board, task.share)],  # type: ignore[list-item]
                worker_runtime_env=worker_runtime_env(own_instance),
            ),
        )

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if type(each).__name__ not in _UNUSED]

    def stop(self) -> None:
        """End the run now: `fit`, in whatever thread it waits, raises."""
        self._stopped = True
        if self._controller is not None:
            ray.kill(self._controller)

    def give_slot_back(self) -> None:
        """Take from the share what a controller that was killed has left it."""
        with suppress(ValueError):  # there is none of that name, as it should be
            remove_placement_group(get_placement_group(slot_name(self._share)))

    def slot_node(self) -> str | None:
        """Id of the node where the share has its slot; None before it has one."""
        try:
            table = placement_group_table(get_placement_group(slot_name(self._share)))
        except ValueError:
            return None
        return next(iter(table.get("bundles_to_node_id", {}).values()), None) or None

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        """As Ray Train does it, but with a handle on the controller, for `stop`."""
        if self._stopped:
            raise ControllerError(RuntimeError("stopped before it began"))
        parts["scaling_policy"] = OneWorker(parts["scaling_policy"].scaling_config)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # An instance of our own has the settings already, and an idle process without others.
        settings = {} if self._own_instance else {"env_vars": get_env_vars_to_propagate()}
        controller = ray.remote(ShareController).options(
            num_cpus=0, scheduling_strategy=here, runtime_env=settings
        )
        self._controller = controller.remote(**parts)
        if self._stopped:  # meanwhile
            ray.kill(self._controller)
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())


def _elsewhere(shunned: Collection[str]) -> dict[str, str] | None:
    return {"ray.io/node-id": f"!in({','.join(sorted(shunned))})"} if shunned else None


def is_death(error: Exception) -> bool:
    """Whether an error of `fit` tells of the end of the worker's process, or of its use."""
    root = _root(error)
    if isinstance(root, WorkerHealthCheckFailedError):
        return isinstance(root.health_check_failure, ActorDiedError)
    return isinstance(error, WorkerGroupError) and isinstance(root, OF_THE_PROCESS)


def is_failure(error: Exception) -> bool:
    """Whether it tells of something that can be wrong with the folds, at whatever place.

    Not what Ray, the network or the storage did: a store that is away fails every fold alike.
    """
    root = _root(error)
    if isinstance(root, WorkerHealthCheckFailedError):
        return is_death(error)
    if isinstance(root, WorkerGroupStartupFailedError):
        return "its node has died" not in str(error)
    others = (RayError, OSError, TrainingFailedError, WorkerGroupStartupTimeoutError)
    return isinstance(error, WorkerGroupError) and not isinstance(root, others)


def cause(error: Exception) -> str:
    """What ended a share, in a line: Ray's errors are tracebacks within tracebacks."""
    match _root(error):
        case WorkerHealthCheckFailedError(health_check_failure=failure):
            return _of_death(failure)
        case WorkerGroupStartupTimeoutError():
            return "its slot was taken by somebody else"
        case WorkerGroupStartupFailedError() as failure:
            return f"it did not start: {_of_death(failure.__cause__ or failure)}"
        case RayActorError() if not isinstance(error, WorkerGroupError):
            return "its Ray Train controller died"
        case RayError() | TrainingFailedError() as failure:
            return _last_line(failure)
        case raised:
            return one_line(f"{type(raised).__name__}: {_last_line(raised)}")


def _root(error: Exception) -> Exception:
    """The failure of the worker, or of the controller, that an error of `fit` is about."""
    if isinstance(error, WorkerGroupError):
        failure = next(iter(error.worker_failures.values()), error)
        return getattr(failure, "_base_exc", failure)
    return error.controller_failure if isinstance(error, ControllerError) else error


def _of_death(error: BaseException) -> str:
    detail = re.search(r"Worker exit detail: (.+?)(?:\. |$)", str(error), re.MULTILINE)
    return one_line(detail[1]) if detail else _last_line(error)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(error).__name__)

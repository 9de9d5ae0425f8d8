"""The Ray Train run of a share: one worker, no retries, and no actor that it has no use for."""

from __future__ import annotations

from typing import Any

import ray
import ray.train
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykfold.credentials import SECRETS
from raykfold.relay import ClosedScalingPolicy, ShareCallback
from raykfold.remote import Place, for_ray
from raykfold.shares import WorkerSize
from raykfold.worker import ShareTask, run_share

# Ray Train starts an actor for each of these, three seconds of CPU apiece.
_UNUSED = {"DatasetsCallback"}  # features come through the object store, not through Ray Data
_UNUSED_ALONE = {"PlacementGroupCleanerCallback"}  # an instance of our own goes as a whole


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
        own_instance: Ray was started by this process, and ends with it.
    """

    def __init__(
        self, task: ShareTask, size: WorkerSize, storage: Place, *, own_instance: bool
    ) -> None:
        self._own_instance = own_instance
        self._controller: Any = None
        path, filesystem = for_ray(storage)
        super().__init__(
            run_share,
            # By reference: the controller, which is handed the config too, need not read it, and
            # so need not import torch.
            train_loop_config={"task": ray.put(task)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, use_gpu=bool(size.gpus), resources_per_worker=size.resources
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
                # A submitted job's environment is also that of its workers. An instance of our
                # own was started without them.
                worker_runtime_env={} if own_instance else {"env_vars": dict.fromkeys(SECRETS, "")},
            ),
        )

    def _create_default_callbacks(self) -> list[Any]:
        unused = _UNUSED | _UNUSED_ALONE if self._own_instance else _UNUSED
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if type(each).__name__ not in unused]

    def stop(self) -> None:
        """End the run now: `fit`, in whatever thread it waits, raises."""
        if self._controller is not None:
            ray.kill(self._controller)

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        """As Ray Train does it, but with a handle on the controller, for `stop`."""
        if self._own_instance:
            parts["scaling_policy"] = ClosedScalingPolicy(parts["scaling_policy"].scaling_config)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        controller = ray.remote(TrainController).options(
            num_cpus=0,
            scheduling_strategy=here,
            runtime_env={"env_vars": get_env_vars_to_propagate()},
        )
        self._controller = controller.remote(**parts)
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())

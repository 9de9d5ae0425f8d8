"""What the cluster's autoscaler is asked for: as many workers as the run could use."""

from __future__ import annotations

import threading

import ray.train
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    AUTOSCALING_REQUESTS_INTERVAL_S,
    TrainAutoscalingCoordinatorClient,
)

from raykfold.distributed.deal import WorkerSize

_END_SECONDS = 2.0  # what is not taken back by then lapses


class Request:
    """A standing request, through Ray Train's coordinator, which adds up those of all runs.

    In a thread of its own: the coordinator is an actor that may have to start first. When the
    driver is killed, its request lapses within minutes.

    Args:
        name: who asks; no other run may have it.
        size: what a worker takes of a node.
    """

    def __init__(self, name: str, size: WorkerSize) -> None:
        self._client = TrainAutoscalingCoordinatorClient(f"raykfold-{name}")
        self._size = size
        self._workers = 0
        self._asked = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._keep_asking, daemon=True)
        self._thread.start()

    def want(self, workers: int) -> None:
        """From now on the run could use so many workers, those that it has among them."""
        with self._changed:
            self._workers = workers
            self._changed.notify_all()

    def close(self) -> None:
        """Take the request back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_END_SECONDS)

    def _keep_asking(self) -> None:
        while not self._closed:
            workers = self._workers
            if workers:
                self._client.send_resource_request(self._scaling(workers), workers)
            elif self._asked:
                self._client.cancel_resource_request()
            self._asked = workers
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._workers != self._asked,
                    timeout=AUTOSCALING_REQUESTS_INTERVAL_S if self._asked else None,
                )
        if self._asked:
            self._client.cancel_resource_request()

    def _scaling(self, workers: int) -> ray.train.ScalingConfig:
        return ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=bool(self._size.gpus),
            resources_per_worker=self._size.resources,
        )

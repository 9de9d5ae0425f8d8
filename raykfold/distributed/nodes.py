"""Ray's nodes: what they have, which of them are going, and the request for more of them."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykfold.distributed.code import DriverCode, import_task
from raykfold.distributed.deal import WorkerSize, slots
from raykfold.distributed.ray_private import (
    Autoscaler,
    draining_nodes,
    free_resources,
    resource_limit,
)
from raykfold.files.atomic import is_seen
from raykfold.files.remote import Place
from raykfold.text import count_of

_CONNECT_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 60.0
_WITHDRAW_SECONDS = 2.0  # what becomes of a request that is not withdrawn by then: see `Request`
# NVIDIA's GPUs for data centres, from Ampere on, as Ray names them.
_WITH_BF16 = r"A100.*|A10G?|A30|A40|L4|L40S?|H100|H200|GH200|H20|B200|B300|GB200|GB300"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """A node of the cluster that Ray has not given up.

    Attributes:
        id: Ray's id, in hexadecimal digits.
        address: of the node's raylet, Ray's process there.
        port: of the raylet.
        resources: what the node has in all.
    """

    id: str
    address: str
    port: int
    resources: Mapping[str, float]


def all_nodes() -> list[Node]:
    """Return the nodes of the cluster, without those that Ray has given up."""
    keys = ("NodeID", "NodeManagerAddress", "NodeManagerPort", "Resources")
    return [Node(*(row[key] for key in keys)) for row in ray.nodes() if row["Alive"]]


def free_slots(size: WorkerSize, excluded: Collection[str] = ()) -> int:
    """Return how many workers of this size the nodes have room for now.

    Args:
        excluded: ids of nodes that do not count.
    """
    return slots([free for node, free in free_resources().items() if node not in excluded], size)


def most_gpus() -> float:
    """Return how many GPUs the cluster has, or could get from its autoscaler."""
    return max(ray.cluster_resources().get("GPU", 0.0), resource_limit("GPU"))


def gpus_have_bf16(resources: Iterable[str] | None = None) -> bool:
    """Return whether all GPUs are known to compute in bfloat16, which older ones only emulate.

    Args:
        resources: names of the cluster's resources, which tell the kind of its GPUs; by default
            those of the connected cluster.
    """
    prefix = "accelerator_type:"
    names = ray.cluster_resources() if resources is None else resources
    kinds = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return bool(kinds) and all(re.fullmatch(_WITH_BF16, kind) for kind in kinds)


def answers(node: Node) -> bool:
    """Return whether a node's raylet accepts a connection."""
    try:
        socket.create_connection((node.address, node.port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def is_up(node_id: str) -> bool:
    """Return whether a node answers, and Ray has not given it up."""
    return any(node.id == node_id and answers(node) for node in all_nodes())


def start_actor(actor_class: type, *arguments: Any, restarts: bool = False) -> Any:
    """Start an actor on this process's node that takes no CPU, and return its handle.

    It ends with the driver. Ray repeats a call that a bad network has cut short, for as long as the
    actor lives. So each call may come twice.

    Args:
        actor_class: its class.
        arguments: of the class.
        restarts: start it again, from these, when its process dies.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_task_retries": -1}
    if restarts:
        options["max_restarts"] = -1
    return ray.remote(actor_class).options(**options).remote(*arguments)


def kill_process(node_id: str, pid: int) -> None:
    """Kill a process on a node, by a task there; do not wait for it."""
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    ray.remote(_kill).options(num_cpus=0, scheduling_strategy=where).remote(pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def inventory(size: WorkerSize) -> str:
    """Return in words what a worker takes and what the cluster has of it."""
    nodes = all_nodes()
    free = free_resources().values()
    counts = [
        f"{sum(node.get(name, 0.0) for node in free):g} of "
        f"{sum(node.resources.get(name, 0.0) for node in nodes):g} {name}s"
        for name in size.resources
    ]
    there = count_of(len(nodes), "node")
    return f"a worker takes {size}; {there} with {' and '.join(counts)} free"


def blind_nodes(marker: Place, size: WorkerSize) -> list[Node]:
    """Return the nodes with room for a worker that do not see the file `marker`.

    A node that does not answer is not among them: its workers look for the file themselves.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in nodes_for(size) if node.id != here]
    return [node for node, sees in run_on(others, is_seen, marker) if not sees]


def missing_imports(code: DriverCode, size: WorkerSize) -> dict[str, tuple[str, list[Node]]]:
    """Return what cannot be imported → why, and on which nodes with room for a worker.

    A node that does not answer is left out.
    """
    missing: dict[str, tuple[str, list[Node]]] = {}
    values = (code.before, code.after, code.classes, code.by_value)
    for node, failure in run_on(nodes_for(size), import_task(), *values):
        if failure is not None:
            what, why = failure
            missing.setdefault(what, (why, []))[1].append(node)
    return missing


def nodes_for(size: WorkerSize) -> list[Node]:
    """Return the nodes with room for a worker, if nothing else runs there."""
    return [node for node in all_nodes() if slots([node.resources], size)]


def run_on(
    nodes: Iterable[Node],
    task: Callable[..., Any],
    *arguments: Any,
    seconds: float = _ANSWER_SECONDS,
) -> list[tuple[Node, Any]]:
    """Run a task on each of these nodes; return what those that answer have returned.

    Args:
        nodes: the nodes.
        task: the task.
        arguments: of the task.
        seconds: to wait for answers.
    """
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        remote = ray.remote(num_cpus=0, max_retries=0)(task).options(scheduling_strategy=there)
        asked[remote.remote(*arguments)] = node
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    answers = []
    for reference in answered:
        try:
            answers.append((asked[reference], ray.get(reference)))
        except ray.exceptions.RayError as error:  # the node has gone
            _log.info("node %s did not answer: %s", asked[reference].address, error)
    return answers


class Watch:
    """Watches the nodes in a thread, and notices lost ones sooner than Ray.

    Ray gives a node up 15 s after its raylet has died, and 65 s after its packets began to vanish,
    as when a machine loses its power. Until then Ray would start workers there.
    """

    def __init__(self) -> None:
        self._here = ray.get_runtime_context().get_node_id()
        self._leaving: set[str] = set()
        self._silent_since: dict[str, float] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)
        self._thread.start()

    def leaving(self) -> set[str]:
        """Return the ids of nodes that were told to drain: they go soon, or have gone."""
        return self._leaving

    def silent(self, seconds: float = 0.0) -> set[str]:
        """Return the ids of nodes that have not answered for so long, and that Ray still counts.

        If every other node is silent, it is this one that is cut off, and the result is empty.
        """
        before = time.monotonic() - seconds
        return {node for node, since in self._silent_since.items() if since <= before}

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join(_LOOK_SECONDS + _CONNECT_SECONDS)

    def _keep_looking(self) -> None:
        with ThreadPoolExecutor(max_workers=32) as pool:
            while not self._closed.wait(_LOOK_SECONDS):
                try:
                    self._look(pool)
                except Exception as error:  # the cluster is ending; the driver will hear of it
                    _log.info("cannot look at the nodes: %s", error)

    def _look(self, pool: ThreadPoolExecutor) -> None:
        self._leaving = draining_nodes()
        nodes = [node for node in all_nodes() if node.id != self._here]
        began = time.monotonic()
        up = pool.map(answers, nodes)
        silent = {node.id for node, answered in zip(nodes, up, strict=True) if not answered}
        if len(silent) == len(nodes):
            silent.clear()
        known = self._silent_since
        self._silent_since = {node: known.get(node, began) for node in silent}


class Request:
    """A standing request to the cluster's autoscaler for as many workers as the run could use.

    It is repeated in a thread, because asking can take seconds: an actor may have to start first.
    When the driver is killed, a request to Ray Train's coordinator lapses within minutes. A Ray
    without one, as 2.49 to 2.56, gets a request by the public call, which stays until another run
    asks or somebody withdraws it.

    Args:
        name: who asks; no other run may have it.
        size: what a worker takes of a node.
    """

    def __init__(self, name: str, size: WorkerSize) -> None:
        self._autoscaler = Autoscaler(f"raykfold-{name}")
        self._resources = size.resources
        self._wanted = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._keep_asking, daemon=True)
        self._thread.start()

    def want(self, workers: int) -> None:
        """Ask for so many workers from now on, those that the run has included."""
        with self._changed:
            self._wanted = workers
            self._changed.notify_all()

    def close(self) -> None:
        """Withdraw the request."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_WITHDRAW_SECONDS)

    def _keep_asking(self) -> None:
        asked = 0  # workers, as the autoscaler has it
        while True:
            with self._changed:
                closed = self._closed
                wanted = 0 if closed else self._wanted
            try:
                if wanted:
                    self._autoscaler.ask(self._resources, wanted)
                elif asked:
                    self._autoscaler.withdraw()
                asked = wanted
            except Exception as error:  # the cluster is ending; the driver will hear of it
                _log.info("cannot ask the autoscaler: %s", error)
            if closed:
                return
            with self._changed:
                self._changed.wait_for(
                    partial(self._wants_other_than, wanted),
                    timeout=self._autoscaler.interval if wanted or asked else None,
                )

    def _wants_other_than(self, workers: int) -> bool:
        return self._closed or self._wanted != workers

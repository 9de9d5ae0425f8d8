"""What Ray's nodes have to give, which of them are going, and what they see of a folder."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykfold.distributed.deal import WorkerSize, slots
from raykfold.files.atomic import is_seen
from raykfold.files.remote import Place

_CONNECT_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 60.0
# NVIDIA's for data centres, from Ampere on, as Ray names them.
_WITH_BF16 = r"A100.*|A10G?|A30|A40|L4|L40S?|H100|H200|GH200|H20|B200|B300|GB200|GB300"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's, in hexadecimal digits.
        address: of its raylet, the process that is Ray there.
        port: of its raylet.
        alive: not yet given up by Ray.
        resources: what it has in all.
    """

    id: str
    address: str
    port: int
    alive: bool
    resources: Mapping[str, float]


def all_nodes() -> list[Node]:
    """Every node that the cluster has or has had."""
    return [
        Node(
            id=row["NodeID"],
            address=row["NodeManagerAddress"],
            port=row["NodeManagerPort"],
            alive=row["Alive"],
            resources=row["Resources"],
        )
        for row in ray.nodes()
    ]


def free_slots(size: WorkerSize, shunned: Collection[str] = ()) -> int:
    """Workers of this size for which Ray has room now, node by node.

    Args:
        shunned: ids of nodes that do not count.
    """
    # Ray's public call adds the nodes up, and a worker cannot be split over two.
    from ray._private.state import available_resources_per_node

    room = available_resources_per_node()
    return slots([free for node, free in room.items() if node not in shunned], size)


def most_gpus() -> float:
    """GPUs that the cluster has, or that its autoscaler could give it."""
    from ray._private.state import state

    at_most = state.get_max_resources_from_cluster_config() or {}
    return max(ray.cluster_resources().get("GPU", 0.0), at_most.get("GPU", 0))


def gpus_have_bf16() -> bool:
    """Whether all GPUs that are there are known to compute in bfloat16; older ones imitate it.

    Ray names the generation in a resource of the node.
    """
    return have_bf16(ray.cluster_resources())


def have_bf16(resources: Iterable[str]) -> bool:
    """As `gpus_have_bf16`, of the names of a cluster's resources."""
    kind = "accelerator_type:"
    kinds = [name.removeprefix(kind) for name in resources if name.startswith(kind)]
    return bool(kinds) and all(re.fullmatch(_WITH_BF16, each) for each in kinds)


class Watch:
    """Looks after the nodes from a thread of its own, faster than Ray does.

    Ray takes 15 s to give up a node whose raylet has died, and 65 s where packets vanish, as when
    a machine loses its power; it deals to it until then.
    """

    def __init__(self) -> None:
        self._here = ray.get_runtime_context().get_node_id()
        self._leaving: set[str] = set()
        self._silent_since: dict[str, float] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)
        self._thread.start()

    def leaving(self) -> set[str]:
        """Ids of nodes that were told to drain: they are taken away soon, or have gone."""
        return self._leaving

    def silent(self, seconds: float = 0.0) -> set[str]:
        """Ids of nodes that Ray has not given up and that have not answered for so long.

        None where all are silent but this one: then it is this one that is cut off.
        """
        before = time.monotonic() - seconds
        return {node for node, since in self._silent_since.items() if since <= before}

    def close(self) -> None:
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
        from ray._private.state import state

        self._leaving = set(state.get_draining_nodes())
        nodes = [node for node in all_nodes() if node.alive and node.id != self._here]
        began = time.monotonic()
        up = pool.map(answers, nodes)
        silent = {node.id for node, answered in zip(nodes, up, strict=True) if not answered}
        if len(silent) == len(nodes):
            silent.clear()
        known = self._silent_since
        self._silent_since = {node: known.get(node, began) for node in silent}


def answers(node: Node) -> bool:
    """Whether a node's raylet takes a connection."""
    try:
        socket.create_connection((node.address, node.port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def is_up(node_id: str) -> bool:
    """Whether Ray has not given a node up, and it answers."""
    return any(node.id == node_id and node.alive and answers(node) for node in all_nodes())


def blind_nodes(marker: Place, size: WorkerSize) -> list[Node]:
    """Nodes with room for a worker that do not see the file `marker`.

    A node that does not answer is not among them: its workers look for themselves.
    """
    here = ray.get_runtime_context().get_node_id()
    asked = {}
    for node in all_nodes():
        if node.alive and node.id != here and slots([node.resources], size):
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            look = ray.remote(num_cpus=0, max_retries=0)(is_seen).options(scheduling_strategy=there)
            asked[look.remote(marker)] = node
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    return [asked[answer] for answer in answered if _answer(answer) is False]


def _answer(reference: Any) -> bool | None:
    try:
        return bool(ray.get(reference))
    except ray.exceptions.RayError:  # the node went away
        return None


def inventory(size: WorkerSize) -> str:
    """What a worker takes and what the cluster has of it, for people."""
    from ray._private.state import available_resources_per_node

    alive = [node for node in all_nodes() if node.alive]
    free = available_resources_per_node().values()
    counts = [
        f"{sum(node.get(name, 0.0) for node in free):g} of "
        f"{sum(node.resources.get(name, 0.0) for node in alive):g} {name}s"
        for name in size.resources
    ]
    nodes = f"{len(alive)} node{'s' * (len(alive) != 1)}"
    return f"a worker takes {size}; {nodes} with {' and '.join(counts)} free"

"""What Ray's nodes have to give, which of them are going, and what they see of a folder."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykfold.shares import WorkerSize, slots

_CONNECT_SECONDS = 2.0
_LOOK_SECONDS = 60.0


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


def leaving_nodes() -> set[str]:
    """Ids of the nodes that were told to drain: they are taken away soon, or have gone."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def is_up(node_id: str) -> bool:
    """Whether the raylet of a node answers.

    Ray hears of a lost node seconds after the loss of its workers: so it is asked itself.
    """
    node = next((each for each in all_nodes() if each.id == node_id), None)
    if node is None or not node.alive:
        return False
    try:
        socket.create_connection((node.address, node.port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def blind_nodes(marker: Path, content: str, size: WorkerSize) -> list[Node]:
    """Nodes with room for a worker that do not see `content` in the file `marker`.

    A node that does not answer is not among them: its workers look for themselves.
    """
    here = ray.get_runtime_context().get_node_id()
    asked = {}
    for node in all_nodes():
        if node.alive and node.id != here and slots([node.resources], size):
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            look = ray.remote(num_cpus=0, max_retries=0)(sees).options(scheduling_strategy=there)
            asked[look.remote(marker, content)] = node
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_SECONDS)
    return [asked[answer] for answer in answered if _answer(answer) is False]


def _answer(reference: Any) -> bool | None:
    try:
        return bool(ray.get(reference))
    except ray.exceptions.RayError:  # the node went away
        return None


def sees(marker: Path, content: str) -> bool:
    """Whether the file `marker` holds `content`, as seen from this process."""
    try:
        return marker.read_text() == content
    except OSError:
        return False


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

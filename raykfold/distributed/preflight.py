"""Checks and choices once Ray is connected: worker size, slots, storage, precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from raykfold.config.class_spec import DEFAULT_MODEL, ModelSpec
from raykfold.config.run_config import RunConfig
from raykfold.distributed.code import DriverCode
from raykfold.distributed.deal import WorkerSize
from raykfold.distributed.feature_copy import FeatureSource, node_obstacle
from raykfold.distributed.nodes import (
    blind_nodes,
    free_slots,
    gpus_have_bf16,
    missing_imports,
    most_gpus,
    nodes_for,
    run_on,
)
from raykfold.errors import BadInput, StorageError
from raykfold.files.atomic import write_file
from raykfold.files.remote import Place, RemotePath
from raykfold.text import count_of, one_line, size_text
from raykfold.training.recipe import Precision


def worker_size(config: RunConfig, own_instance: bool, before: str | None) -> WorkerSize:
    """Return what each worker takes of a node, as the flags and the cluster's GPUs decide.

    Args:
        own_instance: Ray was started by this process, and never grows.
        before: the device of an earlier session of the run, if there was one.

    Raises:
        BadInput: --use_gpu is true, and an instance of our own has no GPU.
    """
    has_gpu, use_gpu = most_gpus() >= 1, config.use_gpu
    if use_gpu and own_instance and not has_gpu:  # in a cluster, one may still come
        raise BadInput("--use_gpu true: Ray has no GPU here; expected false or auto")
    if use_gpu is None:
        # Of a cluster that is only coming up again, the nodes with GPUs may not be there yet.
        use_gpu = has_gpu if own_instance or before is None else before == "gpu"
    return WorkerSize(cpus=config.cpus_per_worker, gpus=int(use_gpu))


def check_slots(config: RunConfig, size: WorkerSize) -> None:
    """Check that an instance of our own has room for the workers that the flags ask for.

    A cluster need not be checked: what it lacks may still come.

    Raises:
        BadInput: there is no slot, or fewer than --num_workers.
    """
    there = free_slots(size)
    if there == 0:
        raise BadInput(
            f"--cpus_per_worker {size.cpus}: the local Ray instance has no room for a worker of "
            f"{size}; expected fewer, or more --local_cpus"
        )
    if config.num_workers is not None and config.num_workers > there:
        raise BadInput(
            f"--num_workers {config.num_workers}: the local Ray instance has "
            f"{count_of(there, 'slot')} of {size}; expected at most that, or more --local_cpus"
        )


def check_code(code: DriverCode, size: WorkerSize) -> None:
    """Check that the nodes of a cluster can import what their workers need.

    Raises:
        BadInput: a node with room for a worker cannot.
    """
    for what, (why, nodes) in missing_imports(code, size).items():
        addresses = " and ".join(node.address for node in nodes)
        expected = "installed" if what == "raykfold" else "in a folder that all nodes share"
        raise BadInput(
            f"{what}: cannot be imported on node {addresses} ({one_line(why)}); expected it "
            f"{expected}, or a run submitted by ray job submit --working-dir, which carries it"
        )


def check_features(source: FeatureSource, size: WorkerSize) -> None:
    """Check that a node of a cluster sees the features or has room for a copy.

    Where only some do, the workers of the others say so, and the run goes on without these nodes.

    Raises:
        BadInput: of the nodes with room for a worker, none does.
    """
    answers = run_on(nodes_for(size), node_obstacle, source)
    if answers and all(obstacle is not None for _, obstacle in answers):
        found = "; ".join(f"on {node.address}, {obstacle}" for node, obstacle in answers)
        raise BadInput(
            f"--scratch_dir {source.folder}: no node sees {source.file.path} or can hold a copy "
            f"of its {size_text(source.file.nbytes)} of features ({found}); expected a folder "
            "with that room on each node, or data in a folder that all nodes share"
        )


@contextmanager
def storage_marker(config: RunConfig, size: WorkerSize) -> Iterator[Place]:
    """Yield a file on the run's storage that every node with a slot sees; delete it at the end.

    Workers look for it too: those of nodes that join later.

    Raises:
        BadInput: some nodes do not see it.
    """
    marker = config.run_dir.marker(os.urandom(8).hex())
    try:
        write_file(marker, b"")
        blind = blind_nodes(marker, size)
        if blind:
            expected = (
                "a store that every node reaches, and credentials for it there"
                if isinstance(marker, RemotePath)
                else "a folder that all nodes share, or a URI like s3://bucket/folder"
            )
            raise BadInput(
                f"--storage_path {config.storage_path}: is not seen by "
                f"{' and '.join(node.address for node in blind)}; expected {expected}"
            )
        yield marker
    finally:
        with suppress(OSError, StorageError):  # a later run sweeps it
            marker.unlink(missing_ok=True)


def precision(config: RunConfig, size: WorkerSize, before: str | None) -> Precision:
    """Return what `--precision` stands for; a run that resumes keeps the one of `before`."""
    chosen = before if config.precision == "auto" else config.precision
    if chosen is None:
        # bf16 may not suit every part of a network of the user's own.
        default = ModelSpec.parse(config.model).name == DEFAULT_MODEL
        return "bf16" if default and size.gpus and gpus_have_bf16() else "fp32"
    return "bf16" if chosen == "bf16" else "fp32"

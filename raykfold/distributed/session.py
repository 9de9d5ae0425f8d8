"""A connection to Ray: to a named cluster, or to an instance of this process's own."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from raykfold.config.environment import allocator, name_of_address, python_path, source_of_address
from raykfold.distributed.ray_private import (
    check_cluster,
    object_store_bytes,
    own_token,
    silent_daemons,
    start_with_few_daemons,
    token_refused,
)
from raykfold.errors import BadInput
from raykfold.files.scratch import scratch_dir
from raykfold.text import one_line

# Ray reads these when it is imported or started. A value that the user has set stays.
_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else each worker prints a FutureWarning
    # Else a thread that calls Ray after its shutdown starts another instance.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Else a cluster whose Python differs in the patch version alone is refused.
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
    "RAY_TRAIN_V2_ENABLED": "1",  # from 2.51 on by default
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nobody reads these gauges
    # How often Ray Train's controller takes a report from the worker: every two seconds by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # A share is dealt to a slot that is free. If the slot is taken meanwhile, try another one soon.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # An actor for each Train run, which hears of nodes that are about to be taken away. The driver
    # watches for all runs.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# The raylet connects to the object store that it has just started, and retries after a second if
# the store is not ready. These wait equally long in total, in shorter steps.
_PROMPT = {
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
}
_CONNECT_SECONDS = 5.0
# What people have instead of the address of a cluster's head.
_DASHBOARD = "the dashboard's address, which is for `ray job submit`"
_SCHEMES = {
    "http": _DASHBOARD,
    "https": _DASHBOARD,
    "ray": "an address of Ray Client, over which Ray Train does not run",
}
# What a worker maps besides the object store: PyTorch, and the stacks of many threads. Measured on
# two cores, with a store of 6.2 GiB: a limit of 14 GiB ended runs, and one of 15 GiB was enough.
_ADDRESS_SPACE = 8 * 2**30


@contextmanager
def ray_session(
    address: str | None,
    *,
    local_cpus: int | None = None,
    verbose: bool = False,
    meanwhile: Callable[[], None] | None = None,
) -> Iterator[bool]:
    """Connect to the Ray cluster at `address`, or start a local instance; disconnect at the end.

    A local instance has a port and a temporary folder of its own, so it neither finds nor is found
    by another Ray on the host.

    Args:
        address: ``host:port`` or ``auto``, not ``ray://…``; None starts a local instance.
        local_cpus: CPUs of a local instance; None for as many as the machine has.
        verbose: let Ray and the workers print.
        meanwhile: called in a thread while Ray starts or connects, which is mostly waiting, to
            import what is needed next. What it raises is ignored.

    Yields:
        Whether Ray is an own instance. If this process is connected already, that connection is
        used, and left open.

    Raises:
        BadInput: no cluster answers at `address`, or it refuses this process's token; or
            ``ulimit -v`` leaves too little for a local instance.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if not verbose:  # while it is imported in a notebook, Ray asks for ipywidgets, as tqdm does
        logging.getLogger("ray.widgets").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "IProgress not found", module=r"tqdm\.")
    import ray  # takes a second, and reads the environment

    if ray.is_initialized():
        yield False
        return
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.CRITICAL,
    }
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        if not verbose:
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            warnings.filterwarnings("ignore", module=r"ray\.")
            stack.enter_context(silent_daemons())
        with _signals_held_back(), ThreadPoolExecutor(max_workers=1) as beside:
            if meanwhile is not None:  # an import that fails here fails again where it is needed
                beside.submit(meanwhile)
            if address is None:
                _start_own(stack, local_cpus, options)
            else:
                _connect(stack, address, options)
        yield address is None


def _start_own(stack: ExitStack, local_cpus: int | None, options: dict[str, Any]) -> None:
    check_address_space()
    start_with_few_daemons(
        partial(_start_instance, stack, local_cpus, options),
        log_monitor=options["log_to_driver"],
    )


def _start_instance(stack: ExitStack, local_cpus: int | None, options: dict[str, Any]) -> None:
    import ray

    temporary = stack.enter_context(scratch_dir())
    stack.enter_context(own_token())
    stack.callback(ray.shutdown)  # before the folder is removed, and the token forgotten
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    # Ray Train's placement-group cleaner finds its cluster by RAY_ADDRESS, and would otherwise
    # take any other cluster on the host for its own. Workers inherit these variables.
    variables = {
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}",
        **{name: os.environ.get(name, value) for name, value in _PROMPT.items()},
        **allocator(os.environ),
    }
    # Ray's processes must find raykfold also where only a script has looked for it.
    path = python_path("raykfold")
    if path is not None:
        variables["PYTHONPATH"] = path
    stack.enter_context(_environment(variables))
    ray.init(
        address="local",
        num_cpus=local_cpus,
        include_dashboard=False,
        _temp_dir=str(temporary),
        **options,
    )


def check_address_space() -> None:
    """Check that the process may have as much address space as a local Ray needs.

    Raises:
        BadInput: ``ulimit -v`` allows less.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = object_store_bytes() + _ADDRESS_SPACE
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise BadInput(
            f"ulimit -v {limit // 1024}: is too little address space for Ray, which maps its "
            f"object store into every process; expected at least {needed // 1024}, or unlimited"
        )


def _connect(stack: ExitStack, address: str, options: dict[str, Any]) -> None:
    """Connect to a cluster.

    Raises:
        BadInput: no cluster answers at `address`, which may be of another kind, or it refuses this
            process's token, or has other versions.
    """
    import ray

    scheme, mark, _ = address.lower().partition("://")
    if mark:
        host = None
        with suppress(ValueError):  # brackets that are not closed
            host = urlsplit(address).hostname
        example = f"[{host}]" if host and ":" in host else host or "HOST"
        what = _SCHEMES.get(scheme, f"no address of a cluster begins with {scheme}://")
        none = "no address" if source_of_address(address) == "--address" else "unset RAY_ADDRESS"
        raise BadInput(
            f"{name_of_address(address)}: {what}; expected HOST:PORT of the head node, such as "
            f"{example}:6379, on a node of the cluster, or {none} for a local instance of Ray"
        )
    # Ask for the port, the token and the versions first: `ray.init` retries for long.
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():  # else a word that Ray resolves, like "auto"
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise BadInput(
                f"{name_of_address(address)}: no Ray cluster answers there ({error})"
            ) from None
        check_cluster(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if "AuthenticationError" in f"{error!r} {error.__cause__}":
            raise token_refused(address) from None
        if "Version mismatch" in str(error):  # of a cluster that was found by a word like "auto"
            raise BadInput(
                f"{name_of_address(address)}: {one_line(error)}; expected the same versions in both"
            ) from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"{name_of_address(address)}: no Ray cluster answers there ({reason})"
        ) from None
    # Ray Train's placement-group cleaner must find this cluster, not another one on the host.
    here = ray.get_runtime_context().gcs_address
    stack.enter_context(_environment({"RAY_ADDRESS": here}))


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM that arrive inside at the end, to the handlers of before.

    A `ray.init` cut short leaves threads behind, and one such start in ten ended in a segmentation
    fault. Once connected, Ray handles SIGTERM itself, and would end the process in its own way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda number, _: held.append(number)) for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for received in held:
        signal.raise_signal(received)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

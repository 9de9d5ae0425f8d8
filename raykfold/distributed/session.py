"""A connection to Ray: a cluster that was named, or an instance of our own for this process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from raykfold.config.environment import allocator
from raykfold.errors import BadInput
from raykfold.files.scratch import scratch_dir

# Ray reads these when it is imported or started; a value that the user has set stays.
_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a FutureWarning for every worker
    # Else a thread that is late, and calls Ray after its end, starts another.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",  # gauges that nobody scrapes
    # Ray Train's controller takes one report away per interval; two seconds by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # A share is dealt to a slot that is free: if it is taken meanwhile, look for another soon.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # An actor for each Train run, to hear of nodes that are about to be taken away: the driver
    # looks for all of them.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# The raylet connects to its object store, which it has just started; if that is not there yet, it
# tries again a second later. As long in all, and sooner.
_PROMPT = {
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
}
_CONNECT_SECONDS = 5.0
_NODE_SECONDS = 30.0  # that Ray gives a node to start, too
_LOOK_SECONDS = 0.02
_GET_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what `ray.init` asks first, too
_TOKEN_WANTED = (
    "want RAY_AUTH_MODE=token, and the cluster's own token in RAY_AUTH_TOKEN, in the file that "
    "RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
)


@contextmanager
def ray_session(
    address: str | None,
    *,
    local_cpus: int | None = None,
    verbose: bool = False,
    meanwhile: Callable[[], None] | None = None,
) -> Iterator[bool]:
    """Connect to the Ray cluster at `address`, or start one of our own; leave it at the end.

    An instance of our own has a port and a temporary folder that nobody else has, so it neither
    finds nor is found by another Ray on the host.

    Args:
        address: ``host:port``, ``ray://…`` excluded; None starts an instance of our own.
        local_cpus: CPUs that an instance of our own offers, as many as the machine has by default.
        verbose: let Ray and the workers print.
        meanwhile: called in a thread while Ray starts or connects, which is mostly waiting; to
            import what is needed next. What it raises is lost.

    Yields:
        Whether the instance is our own. A connection that this process has already is used as it
        is, and left as it is.

    Raises:
        BadInput: there is no cluster at `address`, or it refuses this process's token.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray  # takes a second, and reads the environment

    if ray.is_initialized():
        yield False
        return
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.CRITICAL,
    }
    if not verbose:
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=r"ray\.")
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        if not verbose:
            stack.enter_context(_daemons_silenced())
        with _signals_held_back(), _at_the_same_time(meanwhile):
            if address is None:
                with _few_daemons(log_monitor=verbose):
                    _start_own(stack, local_cpus, options)
            else:
                _join(stack, address, options)
        yield address is None


def _start_own(stack: ExitStack, local_cpus: int | None, options: dict[str, Any]) -> None:
    import ray

    temporary = stack.enter_context(scratch_dir())
    stack.callback(ray.shutdown)  # before the folder goes
    port = _free_port()
    # Ray Train's placement-group cleaner finds its cluster by RAY_ADDRESS, and would otherwise
    # take whatever other cluster the host has. Workers inherit all of it.
    host = ray.util.get_node_ip_address()
    stack.enter_context(
        _environment(
            {
                "RAY_GCS_SERVER_PORT": str(port),
                "RAY_ADDRESS": f"{host}:{port}",
                **{name: os.environ.get(name, value) for name, value in _PROMPT.items()},
                **allocator(os.environ),
            }
        )
    )
    ray.init(
        address="local",
        num_cpus=local_cpus,
        include_dashboard=False,
        _temp_dir=str(temporary),
        **options,
    )


def _join(stack: ExitStack, address: str, options: dict[str, Any]) -> None:
    import ray

    _check_reachable(address)
    _check_token(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        if "AuthenticationError" in f"{error!r} {error.__cause__}":
            raise _token_refused(address) from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"--address {address}: no Ray cluster answers there ({reason})") from None
    # Ray Train's placement-group cleaner must find this cluster, not another one on the host.
    here = ray.get_runtime_context().gcs_address
    stack.enter_context(_environment({"RAY_ADDRESS": here}))


@contextmanager
def _at_the_same_time(work: Callable[[], None] | None) -> Iterator[None]:
    if work is None:
        yield
        return

    def run() -> None:
        with suppress(Exception):  # who imports it again will hear of it
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextmanager
def _daemons_silenced() -> Iterator[None]:
    """Ray has a driver print what the daemons of any node say when they die, stacks and all.

    No option turns that off; a run says in a line of its own what became of its workers.
    """
    from ray._private import worker

    with replaced(worker, {"print_to_stdstream": _nothing}):
        yield


@contextmanager
def _few_daemons(*, log_monitor: bool) -> Iterator[None]:
    """What `ray.init` starts inside is what runs tasks and actors, and no more.

    An instance of our own has no dashboard, never grows, and without `log_to_driver` nobody reads
    the logs: yet Ray starts a server for each, waits for the first one, and no option of
    `ray.init` turns them off. Without what `ray[default]` adds, it starts its agent in a smaller
    way, as where only `ray` is installed.
    """
    from ray._private import node, services, utils

    unused = {"start_api_server": _nothing, "start_monitor": _nothing}
    if not log_monitor:
        unused["start_log_monitor"] = _nothing
    missing = {"get_dashboard_dependency_error": lambda: ImportError("not wanted")}
    patient = services.get_node

    def get_node(gcs_address: str, node_id: str) -> Any:
        _wait_for_node(gcs_address, node_id)
        return patient(gcs_address, node_id)

    with (
        replaced(node.Node, unused),
        replaced(utils, missing),
        replaced(services, {"get_node": get_node}),
    ):
        yield


def _wait_for_node(gcs_address: str, node_id: str) -> None:
    """Until the raylet has registered, for which Ray by itself looks once a second.

    If it does not, Ray finds that out again, and says so.
    """
    from ray._private import services, state

    nodes = state.GlobalState()
    nodes._initialize_global_state(services._get_gcs_client_options(gcs_address))
    deadline = time.monotonic() + _NODE_SECONDS
    while time.monotonic() < deadline:
        if any(row["NodeID"] == node_id for row in nodes.node_table()):
            return
        time.sleep(_LOOK_SECONDS)


def _nothing(*_: Any, **__: Any) -> None:
    pass


@contextmanager
def replaced(owner: Any, attributes: Mapping[str, Any]) -> Iterator[None]:
    """The attributes of a module or class of Ray's are these inside."""
    before = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """SIGINT and SIGTERM inside are delivered at the end, to the handlers of before.

    A `ray.init` cut short leaves threads of its own behind, and one start in ten so interrupted
    ended in a segmentation fault. Once connected, Ray has taken SIGTERM for itself, and would end
    the process its own way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread only
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


def _check_reachable(address: str) -> None:
    """`ray.init` itself tries for minutes.

    Raises:
        BadInput: nobody listens at `address`.
    """
    port = _port_of(address)
    if port is None:
        return
    host = address.rpartition(":")[0].strip("[]")
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise BadInput(f"--address {address}: no Ray cluster answers there ({error})") from None


def _check_token(address: str) -> None:
    """`ray.init` itself asks once a second for twenty, with a line of its own each time.

    What this cannot tell is left to `ray.init`.

    Raises:
        BadInput: the cluster at `address` refuses the token, or is no Ray cluster.
    """
    if not _port_of(address):
        return
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel  # with the token, and TLS where it is on
    from ray.exceptions import AuthenticationError

    try:
        # Ray's own channels take no proxy either.
        channel = init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)])
        with channel:
            channel.unary_unary(_GET_CLUSTER_ID)(b"", timeout=_CONNECT_SECONDS)
    except AuthenticationError as error:  # there is none to send
        raise BadInput(f"--address {address}: {_first_sentence(error)}; {_TOKEN_WANTED}") from None
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise _token_refused(address) from None
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED):
            raise BadInput(
                f"--address {address}: no Ray cluster answers there ({error.details()})"
            ) from None


def _token_refused(address: str) -> BadInput:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    what = "refuses this token" if is_token_auth_enabled() else "wants a token, and none was sent"
    return BadInput(f"--address {address}: the cluster {what}; {_TOKEN_WANTED}")


def _first_sentence(error: Exception) -> str:
    return str(error).partition(". ")[0]


def _port_of(address: str) -> int | None:
    """None for a word that Ray resolves, like "auto"."""
    _, colon, port = address.rpartition(":")
    return int(port) if colon and port.isdecimal() else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]

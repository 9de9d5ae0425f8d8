"""A connection to Ray: a cluster that was named, or an instance of our own for this process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from raykfold.environment import allocator
from raykfold.errors import BadInput
from raykfold.scratch import scratch_dir

# Ray reads these when it is imported or started; a value that the user has set stays.
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a FutureWarning for every worker
    # Else a thread that is late, and calls Ray after its end, starts another.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",  # gauges that nobody scrapes
}
_CONNECT_SECONDS = 5.0
_GET_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what `ray.init` asks first, too
_TOKEN_WANTED = (
    "want RAY_AUTH_MODE=token, and the cluster's own token in RAY_AUTH_TOKEN, in the file that "
    "RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
)


@contextmanager
def ray_session(
    address: str | None, *, local_cpus: int | None = None, verbose: bool = False
) -> Iterator[bool]:
    """Connect to the Ray cluster at `address`, or start one of our own; leave it at the end.

    An instance of our own has a port and a temporary folder that nobody else has, so it neither
    finds nor is found by another Ray on the host.

    Args:
        address: ``host:port``, ``ray://…`` excluded; None starts an instance of our own.
        local_cpus: CPUs that an instance of our own offers, as many as the machine has by default.
        verbose: let Ray and the workers print.

    Yields:
        Whether the instance is our own. A connection that this process has already is used as it
        is, and left as it is.

    Raises:
        BadInput: there is no cluster at `address`, or it refuses this process's token.
    """
    for name, value in _QUIET.items():
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
        with _signals_held_back():
            if address is None:
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
def _daemons_silenced() -> Iterator[None]:
    """Ray has a driver print what the daemons of any node say when they die, stacks and all.

    No option turns that off; a run says in a line of its own what became of its workers.
    """
    from ray._private import worker

    printer = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = printer


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

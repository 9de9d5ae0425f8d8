"""Everything that relies on parts of Ray that are not public, and the public way around each.

A minor release of Ray may move or change any of these parts. Each hook therefore asks for the part
that it needs by `part`. Where this Ray has no such part, or one that takes or returns something
else, `with_fallback` calls what uses Ray's public interface only: slower or with fewer messages,
and to the same result. No hook compares version numbers; `untested_version` alone does. What each
hook gains was measured on Ray 2.60 and two CPU cores, by ``tests/benchmarks/hooks.py``.

Ray is imported within the functions: a session imports this module before it has set up Ray, and
a share's Train controller imports it without what trains.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import pkgutil
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from raykfold.config.environment import name_of_address
from raykfold.errors import BadInput
from raykfold.text import one_line

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)

# The oldest and the newest minor version that `make test-versions` tries.
OLDEST_TESTED, NEWEST_TESTED = (2, 49), (2, 60)

_TESTED = " to ".join(f"{major}.{minor}" for major, minor in (OLDEST_TESTED, NEWEST_TESTED))
_NODE_SECONDS = 30.0  # how long Ray waits for a node to start
_LOOK_SECONDS = 0.02
_ANSWER_SECONDS = 5.0
# What a part of Ray that has changed raises where it is used as before.
_CHANGED = (AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)
_GET_VALUE = "/ray.rpc.InternalKVGcsService/InternalKVGet"
_CLUSTER_METADATA = {"key": b"CLUSTER_METADATA", "namespace": b"cluster"}
_AUTH_MODE = "RAY_AUTH_MODE"
_TOKEN_EXPECTED = (
    "expected RAY_AUTH_MODE=token, and the cluster's own token in RAY_AUTH_TOKEN, in the file that "
    "RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
)


def part(path: str, of: Any = None) -> Any:
    """Return a part of Ray: a module, or an attribute of one, by its full name.

    Args:
        path: the name.
        of: what the part is an attribute of, if that is no module.

    Raises:
        ImportError, AttributeError: this Ray has none.
    """
    return pkgutil.resolve_name(path) if of is None else getattr(of, path)


def with_fallback(fallback: Callable[P, T]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that relies on private parts of Ray.

    Args:
        fallback: called instead if a part is missing or has changed. It takes the same arguments,
            and relies on no private part.
    """

    def decorate(hook: Callable[P, T]) -> Callable[P, T]:
        @wraps(hook)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return hook(*args, **kwargs)
            except _CHANGED as error:
                _log_once(hook.__qualname__, repr(error))
            return fallback(*args, **kwargs)

        return call

    return decorate


@cache
def _log_once(hook: str, error: str) -> None:
    _log.info("%s: this Ray has other private parts (%s); its public way is used", hook, error)


def _do_nothing(*_: Any, **__: Any) -> Any:
    """Stand in for a function of Ray's that need not do anything, or a part that need not exist."""


def part_or_none(path: str, of: Any = None) -> Any:
    """Return what `part` returns; None if this Ray has no such part."""
    try:
        return part(path, of)
    except (ImportError, AttributeError):
        return None


def supported_arguments(called: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Return those of the arguments that this Ray's function or class takes."""
    parameters = inspect.signature(called).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


@with_fallback(lambda path, **changes: _do_nothing)
def replace(path: str, **changes: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace attributes of a module or class of Ray, all or none; return what puts them back.

    Args:
        path: its full name.
        changes: attribute → a function from its present value to the new one. An attribute that
            this Ray lacks is not added.
    """
    owner = part(path)
    before = {name: vars(owner)[name] for name in changes if name in vars(owner)}
    after = {name: changes[name](value) for name, value in before.items()}
    with ExitStack() as undo:
        for name, value in after.items():
            setattr(owner, name, value)
            undo.callback(setattr, owner, name, before[name])
        return undo.pop_all().close


def _leave_out(function: Any) -> Any:
    """Return what replaces a function of Ray's whose work is not needed."""
    return _do_nothing


# --- The version of Ray -------------------------------------------------------------------------


def untested_version() -> str | None:
    """Return what to say of a Ray that is newer than those tested; None if it is not."""
    import ray

    minor = re.match(r"(\d+)\.(\d+)", ray.__version__)
    if minor is None or tuple(map(int, minor.groups())) <= NEWEST_TESTED:
        return None
    return f"Ray {ray.__version__} is newer than those that raykfold was tested with ({_TESTED})"


@contextmanager
def imports_from_ray() -> Iterator[None]:
    """Import inside what imports Ray's public parts.

    Raises:
        BadInput: this Ray lacks one.
    """
    import ray

    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise BadInput(
            f"ray {ray.__version__}: {one_line(error)}; expected one of those that raykfold was "
            f"tested with ({_TESTED})"
        ) from None


# --- Start of a local Ray, and the connection to a cluster ------------------------------------


def start_with_few_daemons(start: Callable[[], None], *, log_monitor: bool) -> None:
    """Call `start`, which calls `ray.init`, and let that start only what runs tasks and actors.

    Gains 2.4 s and 160 MB a start. An instance of our own has no dashboard (1.1 s), never grows
    (1.0 s), and nobody reads its logs (0.3 s) unless `log_to_driver` is on. Ray starts a daemon for
    each of these, and looks only once a second whether its node has registered (0.4 s). No option
    of `ray.init` changes that.

    Args:
        start: called again, with all of Ray's daemons, if Ray does not start with few. Its own
            processes, folder and port must be new each time. Daemons of the first start may stay:
            Ray ends them when this process ends.
        log_monitor: start the daemon that reads the logs.
    """
    import ray

    try:
        with _few_daemons(log_monitor=log_monitor):
            start()
    except BadInput:
        raise
    except Exception as error:  # a failed start of Ray's is of any kind
        _log.info("Ray does not start with few daemons (%r): starting all of them", error)
        ray.shutdown()
        start()


@contextmanager
def _few_daemons(*, log_monitor: bool) -> Iterator[None]:
    unused = ["start_api_server", "start_monitor"]
    if not log_monitor:
        unused.append("start_log_monitor")

    def prompt(get_node: Any) -> Any:
        def get_node_promptly(*where: Any, **named: Any) -> Any:  # Ray looks once a second
            _wait_for_node(*where, **named)
            return get_node(*where, **named)

        return get_node_promptly

    with ExitStack() as stack:
        stack.callback(replace("ray._private.node.Node", **dict.fromkeys(unused, _leave_out)))
        stack.callback(replace("ray._private.services", get_node=prompt))
        yield


@with_fallback(_do_nothing)
def _wait_for_node(gcs_address: str, node_id: str) -> None:
    """Return once the node has registered, or after the time after which Ray gives it up."""
    nodes = part("ray._private.state.GlobalState")()
    options = part("ray._private.services._get_gcs_client_options")(gcs_address)
    nodes._initialize_global_state(options)
    deadline = time.monotonic() + _NODE_SECONDS
    while time.monotonic() < deadline:
        if any(row["NodeID"] == node_id for row in nodes.node_table()):
            return
        time.sleep(_LOOK_SECONDS)


@contextmanager
def own_token() -> Iterator[None]:
    """Give a local Ray that starts and ends inside a token of its own, which no file holds.

    `ray.init` would take the user's token, and write one to ~/.ray/auth_token if there is none.
    It then fails where that cannot be written, and after it every `ray start` of the user asks
    for a token. The variable is public; the private parts make this process, which remembers its
    first token, forget it. Without them a process that also connects to a cluster may send the
    wrong one.
    """
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_TOKEN", _AUTH_MODE)}
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _forget_token()
    try:
        yield
    finally:
        started_in = os.environ.get(_AUTH_MODE)  # `ray.init` sets the mode for this process
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _forget_token()
        if started_in != before[_AUTH_MODE]:
            _read_settings_again()


@with_fallback(_do_nothing)
def _read_settings_again() -> None:
    part("ray._raylet.Config.initialize")("")


@with_fallback(_do_nothing)
def _forget_token() -> None:
    """Let the next connection look for its token."""
    part("ray._raylet.AuthenticationTokenLoader").instance().reset_cache()


@with_fallback(lambda: 0)
def object_store_bytes() -> int:
    """Return how much every process of a local Ray maps for the object store; 0 if unknown.

    Without it, a limit on address space (``ulimit -v``) that is too low ends the process in C++,
    with a stack of 50 lines, or lets the start hang.
    """
    available = part("ray._private.utils.estimate_available_memory")()
    return int(part("ray._private.utils.resolve_object_store_memory")(available))


@contextmanager
def silent_daemons() -> Iterator[None]:
    """Keep what daemons write as they die, stack traces included, out of the driver's output.

    No option of Ray's turns it off. A run reports in one line what became of a worker.
    """
    with ExitStack() as stack:
        stack.callback(replace("ray._private.worker", print_to_stdstream=_leave_out))
        yield


@with_fallback(_do_nothing)
def check_cluster(address: str) -> None:
    """Check that the cluster at `address` takes this process's token and has the same versions.

    Gains 20 s and 20 lines: so long, and with a line a second, `ray.init` asks a cluster that
    refuses the token; where versions are far apart, it gives up after 50 s without naming them.
    Whatever this check cannot tell is left to `ray.init`.

    Args:
        address: ``host:port``.

    Raises:
        BadInput: the cluster refuses the token, has another Ray or Python, or is not a Ray cluster;
            or TLS is on and its files cannot be read.
    """
    grpc, protocol = part("grpc"), "ray.core.generated.gcs_service_pb2"
    request = part(f"{protocol}.InternalKVGetRequest")
    reply = part(f"{protocol}.InternalKVGetReply")
    refusal = part_or_none("ray.exceptions.AuthenticationError") or ()
    try:
        with _open_channel(address) as channel:
            ask = channel.unary_unary(_GET_VALUE, request.SerializeToString, reply.FromString)
            answer = ask(request(**_CLUSTER_METADATA), timeout=_ANSWER_SECONDS)
    except refusal as error:  # there is no token to send
        what = str(error).partition(". ")[0]
        raise BadInput(f"{name_of_address(address)}: {what}; {_TOKEN_EXPECTED}") from None
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise token_refused(address) from None
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED):
            raise BadInput(
                f"{name_of_address(address)}: no Ray cluster answers there ({error.details()})"
            ) from None
        return
    metadata = json.loads(answer.value)
    _check_versions(address, str(metadata["ray_version"]), str(metadata["python_version"]))


def _open_channel(address: str) -> Any:
    """Return a gRPC channel with the token, and with TLS where that is on.

    Raises:
        BadInput: TLS is on and its files cannot be read.
    """
    # The second is Ray's before 2.52, which has no tokens.
    open_channel = part_or_none("ray._private.grpc_utils.init_grpc_channel") or part(
        "ray._private.utils.init_grpc_channel"
    )
    try:
        # Ray's own channels use no proxy either.
        return open_channel(address, options=[("grpc.enable_http_proxy", 0)])
    except (OSError, RuntimeError) as error:
        what = one_line(error).rstrip(".")
        raise BadInput(
            f"RAY_USE_TLS={os.environ.get('RAY_USE_TLS', '')}: {what}; expected a "
            "readable file in each of RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT, "
            "or RAY_USE_TLS=0 for a cluster without TLS"
        ) from None


def _check_versions(address: str, ray_version: str, python_version: str) -> None:
    """Compare the versions of a cluster with those here: pickles and messages go between the two.

    Raises:
        BadInput: another Ray, or a Python that `ray.init` does not take for the same.
    """
    import ray

    python = platform.python_version()
    level = _python_match_level()
    numbers = 2 if level == "minor" else 3
    same_python = python_version.split(".")[:numbers] == python.split(".")[:numbers]
    if ray_version != ray.__version__ or not same_python:
        raise BadInput(
            f"{name_of_address(address)}: the cluster has Ray {ray_version} and Python "
            f"{python_version}, this process Ray {ray.__version__} and Python {python}; expected "
            f"the same Ray and the same {level} version of Python"
        )


@with_fallback(lambda: "minor")
def _python_match_level() -> str:
    """Return whether `ray.init` wants the same "minor" or the same "patch" version of Python.

    Before 2.52 Ray reads no variable: it always wants the same patch version.
    """
    check = part("ray._private.utils.check_version_info")
    fixed = inspect.signature(check).parameters["python_version_match_level"].default
    return str(fixed or os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch"))


def token_refused(address: str) -> BadInput:
    """Return the error for a cluster that refuses this process's token, or the lack of one."""
    none_sent = "requires a token, and none was sent"
    what = "refuses this token" if _sends_token() else none_sent
    return BadInput(f"{name_of_address(address)}: the cluster {what}; {_TOKEN_EXPECTED}")


@with_fallback(lambda: True)
def _sends_token() -> bool:
    folder = "ray._private.authentication.authentication_utils"
    return bool(part(f"{folder}.is_token_auth_enabled")())


# --- What the nodes have ----------------------------------------------------------------------


def _resources_spread() -> dict[str, dict[str, float]]:
    """Return the sum of what is free, spread over the nodes as far as each could hold it."""
    import ray

    left = ray.available_resources()
    free: dict[str, dict[str, float]] = {}
    for row in ray.nodes():
        if row["Alive"]:
            has = {n: min(amount, left.get(n, 0.0)) for n, amount in row["Resources"].items()}
            left = {name: amount - has.get(name, 0.0) for name, amount in left.items()}
            free[row["NodeID"]] = has
    return free


@with_fallback(_resources_spread)
def free_resources() -> dict[str, dict[str, float]]:
    """Return what each node has free: node id → resource → amount.

    Ray's public call gives the sum over all nodes, and a worker cannot be split over two. Without
    the private one, the sum is spread over the nodes. A share that is then dealt to a slot that is
    not there fails to start, and its folds are dealt again.
    """
    by_node = part("ray._private.state.available_resources_per_node")()
    return {node: dict(free) for node, free in by_node.items()}


@with_fallback(lambda resource: 0.0)
def resource_limit(resource: str) -> float:
    """Return how much of a resource the autoscaler could give the cluster; 0 if that is unknown."""
    limits = part("ray._private.state.state").get_max_resources_from_cluster_config()
    return float((limits or {}).get(resource, 0.0))


@with_fallback(lambda: set[str]())
def draining_nodes() -> set[str]:
    """Return the ids of nodes that are about to be taken away. Saves the rounds since a checkpoint.

    Without it a node's folds do not move in time, and are dealt again after its death.
    """
    return set(part("ray._private.state.state").get_draining_nodes())


_COORDINATOR = "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client"


class Autoscaler:
    """Asks the cluster's autoscaler for room for workers.

    Ray Train's coordinator adds up the requests of all runs. Without it, the public call is used,
    which knows one request for each cluster: that of the run that asked last.

    Args:
        name: who asks; no other run may have it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._client: Any = None

    @property
    @with_fallback(lambda self: 20.0)
    def interval(self) -> float:
        """How often a request has to be repeated in order not to lapse, in seconds."""
        return float(part(f"{_COORDINATOR}.AUTOSCALING_REQUESTS_INTERVAL_S"))

    def _ask_publicly(self, resources: Mapping[str, float], workers: int) -> None:
        from ray.autoscaler.sdk import request_resources

        self._client = None  # so that this request is the one that is withdrawn
        # Before 2.57 it takes whole numbers only.
        bundle = {name: math.ceil(amount) for name, amount in resources.items()}
        request_resources(bundles=[bundle] * workers)

    @with_fallback(_ask_publicly)
    def ask(self, resources: Mapping[str, float], workers: int) -> None:
        """Ask for so many workers, of these resources each."""
        import ray.train

        if self._client is None:
            client = part(f"{_COORDINATOR}.TrainAutoscalingCoordinatorClient")
            self._client = client(self._name)
        scaling = ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu="GPU" in resources,
            resources_per_worker=dict(resources),
        )
        self._client.send_resource_request(scaling, workers)

    def _withdraw_publicly(self) -> None:
        self._ask_publicly({}, 0)  # replaces the one request that there is

    @with_fallback(_withdraw_publicly)
    def withdraw(self) -> None:
        """Withdraw what was asked for."""
        part("cancel_resource_request", of=self._client)()


# --- Ray Train: one worker, and no actor that it has no use for -------------------------------

_TRAIN = "ray.train.v2._internal"
_WORKER_GROUP = f"{_TRAIN}.execution.worker_group"


def slot_name(share: str) -> str:
    """Return the name of a share's placement group."""
    return f"raykfold-{share}"


class ControllerHandle:
    """Runs a trainer's Train controller so that it can be killed, and leaves out what it can spare.

    Where the trainer lacks what this needs, it runs as Ray Train runs it.

    Args:
        trainer: a `DataParallelTrainer` of Ray Train, whose `fit` was not called yet.
        share: names the placement group of its worker.
        selector: labels of the nodes where the worker may run, if the trainer takes none. Without
            it a worker can start on a node that will soon be gone, and be dealt again.
        plain: run as Ray Train runs it in any case.
    """

    def __init__(
        self,
        trainer: Any,
        share: str,
        *,
        selector: Mapping[str, str] | None = None,
        plain: bool = False,
    ) -> None:
        self._share = share
        self._selector = selector
        self._plain = plain
        self._controller: Any = None
        self._killed = False
        self._run_by_default = part_or_none("_initialize_and_run_controller", trainer)
        if self._run_by_default is not None:
            trainer._initialize_and_run_controller = self._run

    def kill(self) -> bool:
        """End the run now: `fit` raises. Returns whether there is a controller that can be killed.

        A run that has not begun does not begin.
        """
        self._killed = True
        if self._controller is not None:
            import ray

            ray.kill(self._controller)
        return self._controller is not None

    def _run(self, *args: Any, **parts: Any) -> Any:
        """Do as Ray Train's `_initialize_and_run_controller`, with a controller that is known."""
        import ray

        if not (self._killed or self._plain or args):
            self._controller = self._start(**parts)
        if self._killed:  # before this, or meanwhile
            if self._controller is not None:
                ray.kill(self._controller)
            raise RuntimeError("stopped before it began")
        if self._controller is None:
            return self._run_by_default(*args, **parts)
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())

    @with_fallback(_do_nothing)
    def _start(self, **parts: Any) -> Any:
        """Return the controller's actor; None if it cannot be started in this way."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        controller_class = share_controller()
        if controller_class is None:
            return None
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        controller = ray.remote(controller_class).options(
            num_cpus=0,
            scheduling_strategy=here,
            runtime_env={"env_vars": part(f"{_TRAIN}.constants.get_env_vars_to_propagate")()},
        )
        callbacks = useful_callbacks(parts["callbacks"])
        ask_for_nothing(parts.get("scaling_policy"))
        return controller.remote(self._share, self._selector, **{**parts, "callbacks": callbacks})


def useful_callbacks(callbacks: list[Any]) -> list[Any]:
    """Return Ray Train's callbacks without two that start an actor each. Gains 110 MB apiece.

    Features come from a file and not through Ray Data. The driver frees the slot of a
    dead controller itself, if it can find the slot by its name.

    Args:
        callbacks: those of a trainer whose controller is a `share_controller`.
    """
    unused = {"DatasetsCallback"}
    if slot_options("any"):
        unused.add("PlacementGroupCleanerCallback")
    return [each for each in callbacks if type(each).__name__ not in unused]


def _no_options(share: str, selector: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {}


@with_fallback(_no_options)
def slot_options(share: str, selector: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what to add where Ray Train makes a share's placement group; empty without a name."""
    make_group = part(f"{_WORKER_GROUP}.worker_group.placement_group")
    named = supported_arguments(make_group, name=slot_name(share))
    labels = {"bundle_label_selector": [dict(selector)]} if selector else {}
    return {**named, **supported_arguments(make_group, **labels)} if named else {}


@with_fallback(_do_nothing)
def ask_for_nothing(policy: Any) -> None:
    """Let a scaling policy ask nobody for a worker's resources.

    The driver asks the autoscaler for all workers, and has seen a slot for this one. Ray Train
    would ask for the same resources once more, and the cluster could grow by a node that nobody
    needs. Also gains the actor that it starts to ask: 110 MB, once for all shares.
    """
    names = ("after_controller_start", "_maybe_send_resource_request", "_cancel_resource_request")
    for name in names:
        part(name, of=policy)
    for name in names:
        setattr(policy, name, _do_nothing)


@cache
@with_fallback(_do_nothing)
def share_controller() -> Any:
    """Return Ray Train's controller class, changed for a share; None if Ray lacks what it needs."""
    controller = part(f"{_TRAIN}.execution.controller.TrainController")

    class ShareController(controller):  # type: ignore[misc, valid-type]
        def __init__(self, share: str, selector: Mapping[str, str] | None, **parts: Any) -> None:
            lighten_controller(share, selector)
            super().__init__(**parts)

    return ShareController


def lighten_controller(share: str, selector: Mapping[str, str] | None = None) -> None:
    """Change Ray Train for one share, for good: called in the process of its controller.

    - The placement group gets a name, by which the driver gives the slot back when the controller
      is killed. Ray Train's own way is an actor more for each run, with 110 MB and 1.8 s of CPU.
    - A worker without an environment of its own can be one of Ray's idle processes, and starts in
      0.2 s instead of 1.0 (of CPU: 1.2 s sooner). Ray Train gives it one, with settings that it
      inherits anyhow.
    - The actor where the workers of a group meet, `SynchronizationActor`, is left out, because
      one worker has nobody to meet. Gains 110 MB and 0.8 s of CPU a share.
    """
    group = f"{_WORKER_GROUP}.worker_group"

    options = slot_options(share, selector)

    def name_slot(make_group: Any) -> Any:
        def placement_group(*args: Any, **given: Any) -> Any:
            return make_group(*args, **{**given, **options})

        return placement_group

    replace(group, placement_group=name_slot)

    def leave_out_settings(with_settings: Any) -> Any:
        def environment(custom_runtime_env: Any) -> Any:
            return with_settings(custom_runtime_env) if custom_runtime_env else {}

        return staticmethod(with_fallback(with_settings)(environment))

    replace(f"{group}.WorkerGroup", _get_worker_runtime_env=leave_out_settings)

    def end_meeting(shutdown: Any) -> Any:
        def end(actor: Any, *rest: Any) -> None:
            if not isinstance(actor, Meeting):
                shutdown(actor, *rest)

        return end

    if Meeting.can_stand_in():
        replace(f"{_WORKER_GROUP}.state", _shutdown_sync_actor=end_meeting)
        replace(group, SynchronizationActor=lambda _: Meeting)


class _Answer:
    """A method of `Meeting`: its answer is the argument of this name, or True."""

    def __init__(self, name: str | None = None) -> None:
        self._name = name

    def remote(self, *_: Any, **arguments: Any) -> Any:
        import ray

        return ray.put(arguments[self._name] if self._name is not None else True)


# Only Ray's own tests call these of the actor's methods.
_UNUSED_METHODS = {
    "get_counter",
    "get_last_released_seq",
    "get_reduced_data",
    "get_required_ranks",
    "get_world_size",
}


class Meeting:
    """Stands in for Ray Train's `SynchronizationActor` where a group has one worker.

    It is both the actor class that the controller uses and the handle that the worker is given.
    """

    broadcast_from_rank_zero = _Answer("data")
    set_required_ranks = reset = _Answer()

    @staticmethod
    @with_fallback(lambda: False)
    def can_stand_in() -> bool:
        """Return whether the actor has no method that is missing here, and can be left out."""
        part(f"{_WORKER_GROUP}.state._shutdown_sync_actor")
        actor = part(f"{_WORKER_GROUP}.worker_group.SynchronizationActor")
        kind = actor.__ray_metadata__.modified_class
        functions = inspect.getmembers(kind, inspect.isfunction)
        methods = {name for name, _ in functions if not name.startswith("_")} - _UNUSED_METHODS
        data = inspect.signature(kind.broadcast_from_rank_zero).parameters["data"]
        return methods <= set(dir(Meeting)) and data.kind is data.POSITIONAL_OR_KEYWORD

    @staticmethod
    def options(**_: Any) -> type[Meeting]:
        return Meeting

    @staticmethod
    def remote(**_: Any) -> Meeting:
        return Meeting()


def report_in_place(metrics: dict[str, Any], checkpoint: Any) -> None:
    """Report to Ray Train with a checkpoint that is where it belongs.

    Before Ray 2.50 `ray.train.report` would copy it there once more, unless the storage of its
    session leaves it. Where that cannot be changed either, the copy is what counts.
    """
    import ray.train

    modes = part_or_none("ray.train.CheckpointUploadMode")
    if modes is not None:
        ray.train.report(metrics, checkpoint, checkpoint_upload_mode=modes.NO_UPLOAD)
        return
    storage: Any = ray.train.get_context().get_storage()
    if part_or_none("persist_current_checkpoint", storage) is not None:
        storage.persist_current_checkpoint = lambda checkpoint, name: checkpoint
    ray.train.report(metrics, checkpoint)


# --- What Ray Train's errors tell -------------------------------------------------------------


def health_failure(error: BaseException) -> BaseException | None:
    """Return what a failed check of a worker's health found; None if the error is another one."""
    found: BaseException | None = part_or_none("health_check_failure", error)
    return found


def is_failed_start(error: BaseException) -> bool:
    """Return whether a worker did not start."""
    return type(error).__name__ == "WorkerGroupStartupFailedError"


def is_lost_slot(error: BaseException) -> bool:
    """Return whether there was no room for a worker when it was to start."""
    return type(error).__name__ == "WorkerGroupStartupTimeoutError"


def error_in_worker(failure: Exception) -> Exception:
    """Return the exception that the training function raised, which Ray Train has wrapped."""
    return part_or_none("_base_exc", failure) or failure

"""Everything that relies on parts of Ray that are not public, and the public way around each.

A minor release of Ray may move any of these parts. Each hook therefore asks for the part that it
needs, and where this Ray has no such part, the run goes the way of Ray's public interface: slower
or with fewer messages, and to the same result. No hook compares version numbers. What each hook
gains was measured on Ray 2.60 and two CPU cores.

Ray is imported within the functions: a session imports this module before it has set up Ray, and
a share's Train controller imports it without what trains.
"""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from typing import Any

from raykfold.config.environment import name_of_address
from raykfold.errors import BadInput

_NODE_SECONDS = 30.0  # how long Ray waits for a node to start
_LOOK_SECONDS = 0.02
_ANSWER_SECONDS = 5.0
_GET_VALUE = "/ray.rpc.InternalKVGcsService/InternalKVGet"
_CLUSTER_METADATA = {"key": b"CLUSTER_METADATA", "namespace": b"cluster"}
_AUTH_MODE = "RAY_AUTH_MODE"
_TOKEN_EXPECTED = (
    "expected RAY_AUTH_MODE=token, and the cluster's own token in RAY_AUTH_TOKEN, in the file that "
    "RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
)


def part(path: str) -> Any:
    """Return a module of Ray, or an attribute of one, by its full name; None if there is none."""
    with suppress(ImportError, AttributeError):
        return pkgutil.resolve_name(path)
    return None


def known(called: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Return those of the arguments that this Ray's function or class takes."""
    parameters = inspect.signature(called).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def replace(owner: Any, attributes: Mapping[str, Any]) -> Callable[[], None]:
    """Replace those of the attributes that `owner` has; return what puts them back.

    Args:
        owner: a module or a class; None has no attributes.
    """
    before = {
        name: vars(owner)[name] for name in attributes if name in getattr(owner, "__dict__", {})
    }
    for name in before:
        setattr(owner, name, attributes[name])

    def undo() -> None:
        for name, value in before.items():
            setattr(owner, name, value)

    return undo


def _nothing(*_: Any, **__: Any) -> None:
    """Stand in for a function of Ray's that need not do anything."""


# --- Start of a local Ray, and the connection to a cluster ------------------------------------


@contextmanager
def few_daemons(*, log_monitor: bool) -> Iterator[None]:
    """Make `ray.init` start only what runs tasks and actors. Gains 1.6 s a start.

    An instance of our own has no dashboard, never grows, and nobody reads its logs unless
    `log_to_driver` is on. Ray starts a daemon for each of these, waits for the first, and looks
    only once a second whether its node has registered. No option of `ray.init` changes that.

    Args:
        log_monitor: start the daemon that reads the logs.
    """
    unused = {"start_api_server": _nothing, "start_monitor": _nothing}
    if not log_monitor:
        unused["start_log_monitor"] = _nothing
    # As where only `ray` is installed and not `ray[default]`: the node's agent then does less.
    missing = {"get_dashboard_dependency_error": lambda: ImportError("not needed")}
    services = part("ray._private.services")
    get_node: Any = getattr(services, "get_node", None)

    def get_node_promptly(gcs_address: str, node_id: str) -> Any:
        with suppress(ImportError, AttributeError, KeyError, TypeError):  # Ray looks once a second
            _wait_for_node(gcs_address, node_id)
        return get_node(gcs_address, node_id)

    with ExitStack() as stack:
        stack.callback(replace(part("ray._private.node.Node"), unused))
        stack.callback(replace(part("ray._private.utils"), missing))
        stack.callback(replace(services, {"get_node": get_node_promptly}))
        yield


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
        read_again = part("ray._raylet.Config.initialize")
        if read_again is not None and started_in != before[_AUTH_MODE]:
            read_again("")


def _forget_token() -> None:
    """Let the next connection look for its token."""
    loader = part("ray._raylet.AuthenticationTokenLoader")
    if loader is not None:
        loader.instance().reset_cache()


def object_store_bytes() -> int:
    """Return how much every process of a local Ray maps for the object store; 0 if unknown.

    Without it, a limit on address space (``ulimit -v``) that is too low ends the process in C++,
    with a stack of 50 lines, or lets the start hang.
    """
    available = part("ray._private.utils.estimate_available_memory")
    resolve = part("ray._private.utils.resolve_object_store_memory")
    return int(resolve(available())) if available and resolve else 0


def _wait_for_node(gcs_address: str, node_id: str) -> None:
    """Return once the node has registered, or after the time after which Ray gives it up."""
    from ray._private import services, state

    nodes = state.GlobalState()
    nodes._initialize_global_state(services._get_gcs_client_options(gcs_address))
    deadline = time.monotonic() + _NODE_SECONDS
    while time.monotonic() < deadline:
        if any(row["NodeID"] == node_id for row in nodes.node_table()):
            return
        time.sleep(_LOOK_SECONDS)


@contextmanager
def silent_daemons() -> Iterator[None]:
    """Keep what daemons write as they die, stack traces included, out of the driver's output.

    No option of Ray's turns it off. A run reports in one line what became of a worker.
    """
    with ExitStack() as stack:
        stack.callback(replace(part("ray._private.worker"), {"print_to_stdstream": _nothing}))
        yield


def check_cluster(address: str) -> None:
    """Check that the cluster at `address` takes this process's token and has the same versions.

    Gains 20 s and 20 lines: so long, and with a line a second, `ray.init` asks a cluster that
    refuses the token; where versions are far apart, it gives up after 50 s without naming them.
    Whatever this check cannot tell is left to `ray.init`.

    Args:
        address: ``host:port``.

    Raises:
        BadInput: the cluster refuses the token, has another Ray or Python, or is not a Ray cluster.
    """
    grpc, protocol = part("grpc"), part("ray.core.generated.gcs_service_pb2")
    request = getattr(protocol, "InternalKVGetRequest", None)
    reply = getattr(protocol, "InternalKVGetReply", None)
    # With the token, and TLS where it is on. Before 2.52 Ray has no tokens.
    open_channel = part("ray._private.grpc_utils.init_grpc_channel")
    if open_channel is None and not os.environ.get("RAY_USE_TLS"):
        open_channel = getattr(grpc, "insecure_channel", None)
    if grpc is None or open_channel is None or request is None or reply is None:
        return
    refusal = part("ray.exceptions.AuthenticationError") or ()
    try:
        # Ray's own channels use no proxy either.
        with open_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
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
    with suppress(ValueError, KeyError, TypeError):
        metadata = json.loads(answer.value)
        _check_versions(address, str(metadata["ray_version"]), str(metadata["python_version"]))


def _check_versions(address: str, ray_version: str, python_version: str) -> None:
    """Compare the versions of a cluster with those here: pickles and messages go between the two.

    Raises:
        BadInput: another Ray, or another minor version of Python.
    """
    import ray

    python = platform.python_version()
    same_python = python_version.split(".")[:2] == python.split(".")[:2]
    if ray_version != ray.__version__ or not same_python:
        raise BadInput(
            f"{name_of_address(address)}: the cluster has Ray {ray_version} and Python "
            f"{python_version}, this process Ray {ray.__version__} and Python {python}; expected "
            "the same Ray and the same minor version of Python"
        )


def token_refused(address: str) -> BadInput:
    """Return the error for a cluster that refuses this process's token, or the lack of one."""
    is_sent = part("ray._private.authentication.authentication_utils.is_token_auth_enabled")
    if is_sent is None or is_sent():
        what = "refuses this token"
    else:
        what = "requires a token, and none was sent"
    return BadInput(f"{name_of_address(address)}: the cluster {what}; {_TOKEN_EXPECTED}")


# --- What the nodes have ----------------------------------------------------------------------


def free_resources() -> dict[str, dict[str, float]]:
    """Return what each node has free: node id → resource → amount.

    Ray's public call gives the sum over all nodes, and a worker cannot be split over two. Without
    the private one, the sum is spread over the nodes as far as each could hold it. A share that is
    then dealt to a slot that is not there fails to start, and its folds are dealt again.
    """
    import ray

    by_node = part("ray._private.state.available_resources_per_node")
    if by_node is not None:
        return dict(by_node())
    left = ray.available_resources()
    free: dict[str, dict[str, float]] = {}
    for row in ray.nodes():
        if row["Alive"]:
            has = {n: min(amount, left.get(n, 0.0)) for n, amount in row["Resources"].items()}
            left = {name: amount - has.get(name, 0.0) for name, amount in left.items()}
            free[row["NodeID"]] = has
    return free


def resource_limit(resource: str) -> float:
    """Return how much of a resource the autoscaler could give the cluster; 0 if that is unknown."""
    ask: Any = getattr(
        part("ray._private.state.state"), "get_max_resources_from_cluster_config", dict
    )
    return float((ask() or {}).get(resource, 0.0))


def draining_nodes() -> set[str]:
    """Return the ids of nodes that are about to be taken away. Saves the rounds since a checkpoint.

    Without it a node's folds do not move in time, and are dealt again after its death.
    """
    ask = getattr(part("ray._private.state.state"), "get_draining_nodes", dict)
    return set(ask())


class Autoscaler:
    """Asks the cluster's autoscaler for room for workers.

    Ray Train's coordinator adds up the requests of all runs. Without it, the public call is used,
    which knows one request for each cluster: that of the run that asked last.

    Args:
        name: who asks; no other run may have it.
    """

    def __init__(self, name: str) -> None:
        folder = "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client"
        client = part(f"{folder}.TrainAutoscalingCoordinatorClient")
        self._client = client(name) if client is not None else None
        # How often a request has to be repeated in order not to lapse.
        self.interval: float = part(f"{folder}.AUTOSCALING_REQUESTS_INTERVAL_S") or 20.0

    def ask(self, resources: Mapping[str, float], workers: int) -> None:
        """Ask for so many workers, of these resources each."""
        import ray.train
        from ray.autoscaler.sdk import request_resources

        if self._client is None:
            request_resources(bundles=[dict(resources)] * workers)
            return
        scaling = ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu="GPU" in resources,
            resources_per_worker=dict(resources),
        )
        self._client.send_resource_request(scaling, workers)

    def withdraw(self) -> None:
        """Withdraw what was asked for."""
        if self._client is None:
            self.ask({}, 0)  # replaces the one request that there is
        else:
            self._client.cancel_resource_request()


# --- Ray Train: one worker, and no actor that it has no use for -------------------------------

_TRAIN = "ray.train.v2._internal"
_WORKER_GROUP = f"{_TRAIN}.execution.worker_group"
_ENVIRONMENT = f"{_TRAIN}.constants.get_env_vars_to_propagate"


def slot_name(share: str) -> str:
    """Return the name of a share's placement group."""
    return f"raykfold-{share}"


class ControllerHandle:
    """Runs a trainer's Train controller so that it can be killed, and leaves out what it can spare.

    Where the trainer lacks what this needs, it runs as Ray Train runs it.

    Args:
        trainer: a `DataParallelTrainer` of Ray Train, whose `fit` was not called yet.
        share: names the placement group of its worker.
        own_instance: Ray was started by this process, and its processes share its environment.
        selector: labels of the nodes where the worker may run, if the trainer takes none. Without
            it a worker can start on a node that will soon be gone, and be dealt again.
    """

    def __init__(
        self,
        trainer: Any,
        share: str,
        *,
        own_instance: bool,
        selector: Mapping[str, str] | None = None,
    ) -> None:
        self._share = share
        self._selector = selector
        self._own_instance = own_instance
        self._controller: Any = None
        self._killed = False
        self._run_plainly: Any = getattr(trainer, "_initialize_and_run_controller", None)
        if self._run_plainly is not None:
            trainer._initialize_and_run_controller = self._run
        callbacks = getattr(trainer, "_create_default_callbacks", None)
        if callbacks is not None:
            # The slot can be found by its name if the group of the worker gets one.
            names_slot = (
                self._run_plainly is not None
                and part(f"{_WORKER_GROUP}.worker_group.placement_group") is not None
                and share_controller() is not None
            )
            trainer._create_default_callbacks = lambda: useful_callbacks(callbacks(), names_slot)

    def kill(self) -> bool:
        """End the run now: `fit` raises. Returns whether there is a controller that can be killed.

        A run that has not begun does not begin.
        """
        self._killed = True
        if self._controller is not None:
            import ray

            ray.kill(self._controller)
        return self._controller is not None

    def _run(self, **parts: Any) -> Any:
        """Do as Ray Train's `_initialize_and_run_controller`, with a controller that is known."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self._killed:
            raise RuntimeError("stopped before it began")
        controller_class = share_controller()
        if controller_class is None:
            return self._run_plainly(**parts)
        ask_for_nothing(parts.get("scaling_policy"))
        # An instance of our own has these settings already. Its idle processes, which save the
        # start of one, run what has no environment of its own.
        environment = {} if self._own_instance else {"env_vars": part(_ENVIRONMENT)()}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        controller = ray.remote(controller_class).options(
            num_cpus=0, scheduling_strategy=here, runtime_env=environment
        )
        self._controller = controller.remote(self._share, self._selector, **parts)
        if self._killed:  # meanwhile
            ray.kill(self._controller)
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())


def useful_callbacks(callbacks: list[Any], names_slot: bool) -> list[Any]:
    """Return Ray Train's callbacks without two that start an actor each. Gains 3 s of CPU apiece.

    Features come through the object store and not through Ray Data. The driver gives the slot of
    a dead controller back itself.

    Args:
        callbacks: those of a trainer.
        names_slot: whether the driver can find the slot of the trainer's worker by its name.
    """
    unused = {"DatasetsCallback"}
    if names_slot:
        unused.add("PlacementGroupCleanerCallback")
    return [each for each in callbacks if type(each).__name__ not in unused]


def ask_for_nothing(policy: Any) -> None:
    """Let a scaling policy ask nobody for a worker's resources. Gains 3 s to the first step.

    The driver has seen a slot for the worker. Ray Train would start an actor to ask for it, and
    wait for that actor before it starts the worker.
    """
    if all(
        hasattr(policy, name) for name in ("after_controller_start", "_maybe_send_resource_request")
    ):
        policy.after_controller_start = policy._maybe_send_resource_request = _nothing
        policy._cancel_resource_request = _nothing


@cache
def share_controller() -> Any:
    """Return Ray Train's controller class, changed for a share; None if Ray lacks what it needs."""
    controller = part(f"{_TRAIN}.execution.controller.TrainController")
    if controller is None or part(_ENVIRONMENT) is None:
        return None

    class ShareController(controller):  # type: ignore[misc, valid-type]
        def __init__(self, share: str, selector: Mapping[str, str] | None, **parts: Any) -> None:
            lighten_controller(share, selector)
            super().__init__(**parts)

    return ShareController


def lighten_controller(share: str, selector: Mapping[str, str] | None = None) -> None:
    """Change Ray Train for one share, for good: called in the process of its controller.

    - The placement group gets a name, by which the driver gives the slot back when the controller
      is killed. Ray Train's own way is an actor more for each run, with 3 s of CPU.
    - A worker without an environment of its own can be one of Ray's idle processes, and starts in
      0.2 s instead of 1.0. Ray Train gives it one, with settings that it inherits anyhow.
    - The actor where the workers of a group meet, `SynchronizationActor`, is left out, because
      one worker has nobody to meet. Gains 1 s and 110 MB a share.
    """
    group, state = part(f"{_WORKER_GROUP}.worker_group"), part(f"{_WORKER_GROUP}.state")
    make_group = getattr(group, "placement_group", _nothing)
    options = known(make_group, bundle_label_selector=[dict(selector)]) if selector else {}
    named = partial(make_group, name=slot_name(share), **options)
    replace(group, {"placement_group": named})

    workers = getattr(group, "WorkerGroup", None)
    with_settings = getattr(workers, "_get_worker_runtime_env", None)

    def environment(custom_runtime_env: Any) -> Any:
        return with_settings(custom_runtime_env) if custom_runtime_env and with_settings else {}

    replace(workers, {"_get_worker_runtime_env": staticmethod(environment)})

    end_meeting = getattr(state, "_shutdown_sync_actor", None)
    if end_meeting is not None:

        def end(actor: Any) -> None:
            if not isinstance(actor, Meeting):
                end_meeting(actor)

        replace(state, {"_shutdown_sync_actor": end})
        replace(group, {"SynchronizationActor": Meeting})


class _Answer:
    """A method of `Meeting`: its answer is the argument of this name, or True."""

    def __init__(self, name: str | None = None) -> None:
        self._name = name

    def remote(self, *_: Any, **arguments: Any) -> Any:
        import ray

        return ray.put(arguments[self._name] if self._name is not None else True)


class Meeting:
    """Stands in for Ray Train's `SynchronizationActor` where a group has one worker.

    It is both the actor class that the controller uses and the handle that the worker is given.
    """

    broadcast_from_rank_zero = _Answer("data")
    set_required_ranks = reset = _Answer()

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

    modes = part("ray.train.CheckpointUploadMode")
    if modes is not None:
        ray.train.report(metrics, checkpoint, checkpoint_upload_mode=modes.NO_UPLOAD)
        return
    storage: Any = ray.train.get_context().get_storage()
    if hasattr(storage, "persist_current_checkpoint"):
        storage.persist_current_checkpoint = lambda checkpoint, name: checkpoint
    ray.train.report(metrics, checkpoint)


# --- What Ray Train's errors tell -------------------------------------------------------------


def health_failure(error: BaseException) -> BaseException | None:
    """Return what a failed check of a worker's health found; None if the error is another one."""
    return getattr(error, "health_check_failure", None)


def is_failed_start(error: BaseException) -> bool:
    """Return whether a worker did not start."""
    return type(error).__name__ == "WorkerGroupStartupFailedError"


def is_lost_slot(error: BaseException) -> bool:
    """Return whether there was no room for a worker when it was to start."""
    return type(error).__name__ == "WorkerGroupStartupTimeoutError"


def error_in_worker(failure: Exception) -> Exception:
    """Return the exception that the training function raised, which Ray Train has wrapped."""
    return getattr(failure, "_base_exc", failure)

"""Each hook into Ray's private parts, and the public way where this Ray lacks the part."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import grpc_utils, node, services, utils
from ray._private.authentication import authentication_utils
from ray._private.state import state as global_state
from ray.train.v2._internal import constants
from ray.train.v2._internal.execution import controller, scaling_policy
from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor
from ray.train.v2._internal.execution.worker_group import (
    WorkerGroup,
    WorkerGroupStateBuilder,
    state,
)
from support.outcome import Outcome, assert_same
from support.shell import command, environment

from raykfold.distributed import ray_private
from raykfold.distributed.ray_private import (
    Autoscaler,
    ControllerHandle,
    Meeting,
    ask_for_nothing,
    check_cluster,
    draining_nodes,
    free_resources,
    lighten_controller,
    own_token,
    part,
    part_or_none,
    resource_limit,
    share_controller,
    silent_daemons,
    start_with_few_daemons,
    token_refused,
    useful_callbacks,
    with_fallback,
)
from raykfold.errors import BadInput

# As Any: a type checker takes the names that they import for their own, or knows none of theirs.
grpc: Any = importlib.import_module("grpc")
gcs_service_pb2: Any = importlib.import_module("ray.core.generated.gcs_service_pb2")
worker: Any = importlib.import_module("ray._private.worker")
worker_group: Any = importlib.import_module(f"{state.__package__}.worker_group")
COORDINATOR = f"{scaling_policy.__name__}.autoscaling_coordinator_client"


@pytest.fixture(autouse=True)
def fresh() -> None:
    share_controller.cache_clear()


@pytest.mark.parametrize("given", [None, "0" * 64])
def test_a_local_ray_has_its_own_token_and_the_process_forgets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str | None
) -> None:
    loader = part("ray._raylet.AuthenticationTokenLoader").instance()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    if given is not None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", given)
    loader.reset_cache()
    with own_token():
        own = os.environ["RAY_AUTH_TOKEN"]
        assert len(own) == 64 and own != given
        assert loader.has_token(ignore_auth_mode=True)
    assert os.environ.get("RAY_AUTH_TOKEN") == given
    assert loader.has_token(ignore_auth_mode=True) is (given is not None)
    assert list(tmp_path.iterdir()) == []


def test_without_the_parts_a_local_ray_has_its_own_token_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_private, "part", gone)
    with own_token():
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ


def missing(patch: pytest.MonkeyPatch, module: str) -> None:
    """Make the import of a module fail, as where Ray has none of that name."""
    package, _, name = module.rpartition(".")
    patch.setitem(sys.modules, module, None)
    patch.delattr(sys.modules[package], name, raising=False)


def gone(path: str, of: Any = None) -> Any:
    """Stand in for `part` where Ray has none of them."""
    raise AttributeError(path)


def test_a_part_is_found_by_its_name_or_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert part("ray._private.services") is services
    assert part("ray._private.node.Node") is node.Node
    assert part("start_monitor", of=node.Node) is node.Node.start_monitor
    assert part_or_none("ray._private.state.state") is global_state
    assert part_or_none("ray._private.node.Nodes") is None
    missing(monkeypatch, "ray._private.node")
    assert part_or_none("ray._private.node") is part_or_none("ray._private.node.Node") is None


def test_where_a_part_has_changed_the_fallback_is_called_and_other_errors_are_raised() -> None:
    def hook(raised: Exception) -> str:
        raise raised

    def fallback(raised: Exception) -> str:
        return "fallback"

    call = with_fallback(fallback)(hook)
    changed = (TypeError("takes 2 arguments"), AttributeError(), KeyError("NodeID"), ImportError())
    assert [call(error) for error in changed] == ["fallback"] * 4
    for error in (BadInput("refused"), ray.exceptions.RaySystemError("away"), OSError()):
        with pytest.raises(type(error)):
            call(error)


def test_a_part_that_is_not_there_is_no_fallback_and_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", ray_private.__name__):
        assert part_or_none("ray._private.not_there") is None
    assert caplog.messages == []


class Checked(type):
    """A kind of class whose attributes refuse text, as some of C++ do."""

    def __setattr__(cls, name: str, value: Any) -> None:
        if isinstance(value, str):
            raise TypeError("an integer is required")
        super().__setattr__(name, value)


class Owner(metaclass=Checked):
    first, second = 1, 2


@pytest.mark.parametrize("second", [lambda before: before["changed"], lambda before: "refused"])
def test_attributes_are_replaced_all_or_none(second: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "Owner", Owner, raising=False)
    path = "ray._private.services.Owner"
    ray_private.replace(path, first=lambda before: before + 10, second=second)
    assert (Owner.first, Owner.second) == (1, 2)
    undo = ray_private.replace(path, first=lambda before: before + 10, third=second)
    assert (Owner.first, Owner.second, hasattr(Owner, "third")) == (11, 2, False)
    undo()
    assert Owner.first == 1


# --- version ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "is_newer"),
    [("2.9.3", False), ("2.60.0", False), ("2.60.1", False), ("2.61.0rc1", True),
     ("3.0.0.dev0", True), ("unknown", False)],
)  # fmt: skip
def test_of_a_newer_ray_one_line_is_said(
    version: str, is_newer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "__version__", version)
    monkeypatch.setattr(ray_private, "NEWEST_TESTED", (2, 60))
    said = ray_private.untested_version()
    assert (said is not None) is is_newer
    assert said is None or said.startswith(f"Ray {version} is newer than those")


def test_the_versions_that_are_called_tested_are_those_that_are_tried() -> None:
    root = Path(__file__).parents[2]
    (newest,) = re.findall(r"^ray==(\d+)\.(\d+)", (root / "constraints.txt").read_text(), re.M)
    assert tuple(map(int, newest)) == ray_private.NEWEST_TESTED
    tried = re.findall(r'"ray==(\d+)\.(\d+)', (root / "tests/versions.py").read_text())
    assert min(tuple(map(int, each)) for each in tried) == ray_private.OLDEST_TESTED


def test_a_ray_without_a_public_part_is_refused_in_one_line() -> None:
    with pytest.raises(BadInput) as caught, ray_private.imports_from_ray():
        importlib.import_module("ray.train.v3")
    expected = rf"ray {ray.__version__}: No module named 'ray\.train\.v3'; expected one of .*"
    assert re.fullmatch(expected, str(caught.value))
    with pytest.raises(ImportError), ray_private.imports_from_ray():
        importlib.import_module("raykfold.nothing")  # not Ray's fault


# --- start and connection -----------------------------------------------------------------------

DAEMONS = {
    "start_api_server": node.Node,
    "start_monitor": node.Node,
    "start_log_monitor": node.Node,
}
STARTED_ANYHOW = {**DAEMONS, "get_node": services}


def test_daemons_are_left_out_while_ray_starts_only() -> None:
    before = {name: getattr(owner, name) for name, owner in STARTED_ANYHOW.items()}

    def start() -> None:
        changed = {n for n, owner in STARTED_ANYHOW.items() if getattr(owner, n) != before[n]}
        assert changed == set(STARTED_ANYHOW) - {"start_log_monitor"}

    start_with_few_daemons(start, log_monitor=True)
    assert {name: getattr(owner, name) for name, owner in STARTED_ANYHOW.items()} == before


@pytest.mark.parametrize("name", STARTED_ANYHOW)
def test_a_daemon_that_ray_starts_otherwise_is_left_to_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = STARTED_ANYHOW[name]
    monkeypatch.delattr(owner, name)

    def start() -> None:
        assert not hasattr(owner, name)
        assert all(hasattr(each, other) for other, each in STARTED_ANYHOW.items() if other != name)

    start_with_few_daemons(start, log_monitor=False)
    assert not hasattr(owner, name)


@pytest.mark.parametrize(
    "failure",
    [
        TypeError("cannot unpack non-iterable NoneType object"),
        Exception("The current node timed out during startup."),  # of this kind are Ray's own
        RuntimeError("the raylet has died"),
        OSError("no such file: daemon.log"),
    ],
)
def test_a_ray_that_does_not_start_with_few_daemons_starts_once_more_with_all(
    failure: Exception,
) -> None:
    original = node.Node.start_monitor
    tried = []

    def start() -> None:
        tried.append(node.Node.start_monitor is original)
        if not tried[-1] or len(tried) > 2:
            raise failure

    start_with_few_daemons(start, log_monitor=False)
    assert tried == [False, True]
    with pytest.raises(type(failure)):
        start_with_few_daemons(start, log_monitor=False)
    assert tried == [False, True, False, True]


def test_a_wrong_input_is_not_tried_again() -> None:
    tried = []

    def start() -> None:
        tried.append("start")
        raise BadInput("no room")

    with pytest.raises(BadInput):
        start_with_few_daemons(start, log_monitor=False)
    assert tried == ["start"]


@pytest.mark.parametrize(
    ("where", "named"),
    [
        (("host:1", "abc"), {}),
        (("host:1",), {}),
        (("host:1", "abc", 30), {}),
        (("host:1",), {"node_id": "abc"}),
        ((), {"address": "host:1", "node": "abc"}),
    ],
)
def test_a_node_is_waited_for_in_ray_s_way_where_ours_is_not_there(
    where: tuple[Any, ...], named: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "get_node", lambda *where, **named: (where, named))
    monkeypatch.setattr(services, "_get_gcs_client_options", lambda address, client: None)
    seen = []
    start_with_few_daemons(
        lambda: seen.append(services.get_node(*where, **named)), log_monitor=False
    )
    assert seen == [(where, named)]


def test_daemons_are_silent_inside_if_ray_prints_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "print_to_stdstream", "loud")
    with silent_daemons():
        assert worker.print_to_stdstream({}, ignore_prefix=False) is None
    assert worker.print_to_stdstream == "loud"
    monkeypatch.delattr(worker, "print_to_stdstream")
    with silent_daemons():
        assert not hasattr(worker, "print_to_stdstream")


def test_a_cluster_is_not_asked_where_its_language_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing(monkeypatch, "ray.core.generated.gcs_service_pb2")
    check_cluster("256.256.256.256:1")  # nobody is asked


@pytest.fixture
def gcs() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of what answers like a cluster's head, and the versions that it tells."""
    versions = {"ray_version": ray.__version__, "python_version": platform.python_version()}

    def metadata(request: Any, context: Any) -> Any:
        return gcs_service_pb2.InternalKVGetReply(value=json.dumps(versions).encode())

    method = grpc.unary_unary_rpc_method_handler(
        metadata,
        request_deserializer=gcs_service_pb2.InternalKVGetRequest.FromString,
        response_serializer=gcs_service_pb2.InternalKVGetReply.SerializeToString,
    )
    service = "ray.rpc.InternalKVGcsService"
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {"InternalKVGet": method})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", versions
        server.stop(None).wait()


def other_patch() -> str:
    minor, _, patch = platform.python_version().rpartition(".")
    return f"{minor}.{patch}7"


def test_a_python_of_another_patch_version_is_refused_where_ray_refuses_it(
    gcs: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, versions = gcs
    versions["python_version"] = other_patch()
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    check_cluster(address)

    def refused() -> str:
        with pytest.raises(BadInput) as caught:
            check_cluster(address)
        return str(caught.value)

    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch")
    assert f"and Python {other_patch()}, this process Ray " in refused()
    assert refused().endswith("expected the same Ray and the same patch version of Python")

    # As before Ray 2.52, which reads no variable.
    def check_version_info(metadata: Any, python_version_match_level: str = "patch") -> None: ...

    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    monkeypatch.setattr(utils, "check_version_info", check_version_info)
    assert refused().endswith("the same patch version of Python")

    monkeypatch.delattr(utils, "check_version_info")  # left to `ray.init`
    check_cluster(address)


def test_a_cluster_with_another_ray_or_minor_python_is_refused_with_both_versions(
    gcs: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, versions = gcs
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    here = dict(versions)
    for other in ({"ray_version": "2.9.3"}, {"python_version": "3.8.20"}):
        versions.update(here | other)
        with pytest.raises(BadInput) as caught:
            check_cluster(address)
        assert str(caught.value) == (
            f"--address {address}: the cluster has Ray {versions['ray_version']} and Python "
            f"{versions['python_version']}, this process Ray {here['ray_version']} and Python "
            f"{here['python_version']}; expected the same Ray and the same minor version of Python"
        )


@pytest.mark.parametrize("older", [False, True])
def test_tls_without_readable_certificates_is_refused_in_one_line(
    older: bool,
    gcs: tuple[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    address, _ = gcs
    if older:  # where Ray has it before 2.52
        monkeypatch.setattr(utils, "init_grpc_channel", grpc_utils.init_grpc_channel, raising=False)
        missing(monkeypatch, grpc_utils.__name__)
    files = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
    monkeypatch.setenv("RAY_USE_TLS", "0")
    for name in files:
        monkeypatch.delenv(name, raising=False)
    check_cluster(address)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with pytest.raises(BadInput, match=r"^RAY_USE_TLS=1: If .* set; expected a readable file in"):
        check_cluster(address)
    for name in files:
        monkeypatch.setenv(name, str(tmp_path / name))
    with pytest.raises(BadInput, match=rf"^RAY_USE_TLS=1: .*{files[0]}'; expected a readable"):
        check_cluster(address)


def test_a_refused_token_is_told_from_one_that_was_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for sent, words in {True: "refuses this token;", False: "and none was sent;"}.items():
        monkeypatch.setattr(authentication_utils, "is_token_auth_enabled", lambda sent=sent: sent)
        assert words in str(token_refused("host:1"))
    missing(monkeypatch, authentication_utils.__name__)
    assert "host:1: the cluster refuses this token;" in str(token_refused("host:1"))


# --- nodes --------------------------------------------------------------------------------------


def test_free_resources_are_by_node_or_spread_over_the_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private import state as state_module

    exact = {"a": {"CPU": 0.0}, "b": {"CPU": 3.0, "GPU": 1.0}}
    monkeypatch.setattr(state_module, "available_resources_per_node", lambda: exact)
    assert free_resources() == exact

    monkeypatch.delattr(state_module, "available_resources_per_node")
    rows = [
        {"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0}},
        {"NodeID": "gone", "Alive": False, "Resources": {"CPU": 64.0}},
        {"NodeID": "b", "Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: rows)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0, "GPU": 1.0})
    spread = {"a": {"CPU": 2.0}, "b": {"CPU": 1.0, "GPU": 1.0}}
    assert free_resources() == spread
    for changed in (lambda cluster: exact, lambda: {"a": 0.0}, lambda: None):
        monkeypatch.setattr(state_module, "available_resources_per_node", changed, raising=False)
        assert free_resources() == spread


def test_no_node_drains_and_none_can_come_where_ray_does_not_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = type(global_state)
    monkeypatch.setattr(kind, "get_draining_nodes", lambda _: {"a": 7})
    monkeypatch.setattr(kind, "get_max_resources_from_cluster_config", lambda _: {"GPU": 8})
    assert (draining_nodes(), resource_limit("GPU")) == ({"a"}, 8.0)
    monkeypatch.setattr(kind, "get_max_resources_from_cluster_config", lambda _: None)
    assert resource_limit("GPU") == 0.0
    monkeypatch.delattr(kind, "get_draining_nodes")
    monkeypatch.delattr(kind, "get_max_resources_from_cluster_config")
    assert (draining_nodes(), resource_limit("GPU")) == (set(), 0.0)
    changed = {"raising": False}
    monkeypatch.setattr(kind, "get_draining_nodes", lambda _: None, **changed)
    monkeypatch.setattr(kind, "get_max_resources_from_cluster_config", lambda _: [8], **changed)
    assert (draining_nodes(), resource_limit("GPU")) == (set(), 0.0)


def test_the_autoscaler_is_asked_through_ray_train_or_publicly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    class Client:
        def __init__(self, name: str) -> None:
            asked.append(name)

        def send_resource_request(self, scaling: Any, workers: int) -> None:
            asked.append((scaling.total_resources["GPU"], workers))

        def cancel_resource_request(self) -> None:
            asked.append("cancelled")

    monkeypatch.setattr(f"{COORDINATOR}.TrainAutoscalingCoordinatorClient", Client)
    monkeypatch.setattr(
        "ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(bundles)
    )
    for name in ("through", "publicly"):
        autoscaler = Autoscaler(name)
        assert autoscaler.interval == 20.0
        autoscaler.ask({"CPU": 1.0, "GPU": 1.0}, 2)
        autoscaler.withdraw()
        missing(monkeypatch, COORDINATOR)
    assert {type(amount) for amount in asked[3][0].values()} == {int}
    assert asked == ["through", (2.0, 2), "cancelled", [{"CPU": 1.0, "GPU": 1.0}] * 2, []]


def test_a_request_of_the_public_kind_is_withdrawn_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Client:
        def __init__(self, name: str) -> None:
            pass

        def send_resource_request(self, scaling: Any, workers: int, labels: Any) -> None:
            pass

        def cancel_resource_request(self) -> None:
            asked.append("cancelled")

    monkeypatch.setattr(f"{COORDINATOR}.TrainAutoscalingCoordinatorClient", Client)
    monkeypatch.setattr(f"{COORDINATOR}.AUTOSCALING_REQUESTS_INTERVAL_S", {"train": 20})
    monkeypatch.setattr(
        "ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(bundles)
    )
    autoscaler = Autoscaler("changed")
    assert autoscaler.interval == 20.0
    autoscaler.ask({"CPU": 1.0}, 2)
    autoscaler.withdraw()
    assert asked == [[{"CPU": 1}] * 2, []]


# --- Ray Train ----------------------------------------------------------------------------------


class OtherTrainer:
    """What a `ControllerHandle` makes use of in a trainer of Ray Train."""

    def __init__(self) -> None:
        self.ran: list[tuple[Any, ...]] = []

    def _initialize_and_run_controller(self, *args: Any, **parts: Any) -> str:
        self.ran.append((*args, parts))
        return "by default"


def default_callbacks() -> list[Any]:
    names = ("BackendSetupCallback", "DatasetsCallback", "PlacementGroupCleanerCallback")
    return [type(name, (), {})() for name in names]


def names(callbacks: list[Any]) -> list[str]:
    return [type(each).__name__ for each in callbacks]


def test_callbacks_with_an_actor_of_their_own_are_left_out() -> None:
    assert names(useful_callbacks(default_callbacks())) == ["BackendSetupCallback"]


def other_group(bundles: Any) -> Any:
    """Stand in for a `placement_group` that takes no name."""
    return bundles


@pytest.mark.parametrize("instead", [None, other_group])
def test_a_slot_without_a_name_is_given_back_by_ray_train(
    instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(worker_group, "placement_group")
    if instead is not None:
        monkeypatch.setattr(worker_group, "placement_group", instead, raising=False)
    kept = ["BackendSetupCallback", "PlacementGroupCleanerCallback"]
    assert names(useful_callbacks(default_callbacks())) == kept


def no_context() -> Any:
    raise AttributeError("no node id")


@pytest.mark.parametrize(
    ("owner", "name", "instead", "args"),
    [
        (controller, "TrainController", None, ()),
        (constants, "get_env_vars_to_propagate", None, ()),
        (constants, "get_env_vars_to_propagate", lambda names: {}, ()),
        (ray, "get_runtime_context", no_context, ()),
        (controller, "TrainController", controller.TrainController, ("by position",)),
    ],
)
def test_a_controller_runs_by_default_with_all_callbacks_where_it_cannot_be_changed(
    owner: Any,
    name: str,
    instead: Any,
    args: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = SimpleNamespace(get_node_id=lambda: "0" * 56)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    if instead is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, instead)
    trainer = OtherTrainer()
    handle = ControllerHandle(trainer, "share")
    scaling: Any = ray.train.ScalingConfig(num_workers=1)
    policy = scaling_policy.FixedScalingPolicy(scaling)
    callbacks = default_callbacks()
    parts = {"scaling_policy": policy, "callbacks": callbacks}
    assert trainer._initialize_and_run_controller(*args, **parts) == "by default"
    assert trainer.ran == [(*args, parts)]
    assert len(callbacks) == 3
    assert "after_controller_start" not in vars(policy)
    assert not handle.kill()


@pytest.mark.parametrize("plain", [False, True])
def test_a_run_that_was_killed_does_not_begin(plain: bool) -> None:
    trainer = OtherTrainer()
    assert not ControllerHandle(trainer, "share", plain=plain).kill()
    with pytest.raises(RuntimeError, match="before it began"):
        trainer._initialize_and_run_controller(callbacks=[])
    assert trainer.ran == []


def test_a_run_that_is_killed_while_it_cannot_be_changed_does_not_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = OtherTrainer()
    handle = ControllerHandle(trainer, "share")

    def kill_meanwhile() -> Any:
        handle.kill()
        raise AttributeError("no node id")

    monkeypatch.setattr(ray, "get_runtime_context", kill_meanwhile)
    with pytest.raises(RuntimeError, match="before it began"):
        trainer._initialize_and_run_controller(callbacks=[])
    assert trainer.ran == []


def test_a_trainer_of_another_make_is_left_as_it_is() -> None:
    trainer = SimpleNamespace(fit=None)
    handle = ControllerHandle(trainer, "share")
    assert vars(trainer) == {"fit": None}
    assert not handle.kill()


def test_a_scaling_policy_asks_for_nothing_or_is_left_as_it_is() -> None:
    scaling: Any = ray.train.ScalingConfig(num_workers=1)
    policy: Any = scaling_policy.FixedScalingPolicy(scaling)
    ask_for_nothing(policy)
    policy = pickle.loads(pickle.dumps(policy))  # on its way to the controller
    policy.after_controller_start(train_run_context=None)  # which would start an actor
    assert policy.make_decision_for_non_running_worker_group().num_workers == 1
    policy._cancel_resource_request()

    other = SimpleNamespace(after_controller_start="its own")
    ask_for_nothing(other)
    assert vars(other) == {"after_controller_start": "its own"}


@pytest.fixture
def controller_process(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What is changed for good in a controller's process is put back after a test."""
    for owner, name in (
        (worker_group, "placement_group"),
        (worker_group, "SynchronizationActor"),
        (state, "_shutdown_sync_actor"),
        (WorkerGroup, "_get_worker_runtime_env"),
    ):
        monkeypatch.setattr(owner, name, vars(owner)[name])
    return monkeypatch


def test_a_slot_has_the_name_of_its_share_and_the_labels_that_it_can_have(
    controller_process: pytest.MonkeyPatch,
) -> None:
    def labelled(bundles: Any, name: str = "", bundle_label_selector: Any = None) -> Any:
        return bundles, name, bundle_label_selector

    def named(bundles: Any, name: str = "") -> Any:
        return bundles, name

    elsewhere = {"ray.io/node-id": "!in(a)"}
    for make_group, expected in (
        (labelled, ([], "raykfold-share", [elsewhere])),
        (named, ([], "raykfold-share")),
        (other_group, []),
    ):
        controller_process.setattr(worker_group, "placement_group", make_group)
        lighten_controller("share", elsewhere)
        assert worker_group.placement_group(bundles=[]) == expected


def test_a_worker_has_an_environment_of_its_own_only_where_one_is_asked_for(
    controller_process: pytest.MonkeyPatch,
) -> None:
    controller_process.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    lighten_controller("share")
    assert WorkerGroup._get_worker_runtime_env({}) == {}
    asked = WorkerGroup._get_worker_runtime_env({"env_vars": {"HF_TOKEN": ""}})
    assert asked["env_vars"]["HF_TOKEN"] == ""
    assert asked["env_vars"]["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.1"


def test_no_actor_is_started_for_workers_to_meet_and_none_is_killed(
    controller_process: pytest.MonkeyPatch,
) -> None:
    killed: list[Any] = []
    controller_process.setattr(ray, "kill", killed.append)
    lighten_controller("share")
    assert worker_group.SynchronizationActor is Meeting
    for actor in (Meeting.remote(), "an actor"):
        builder = WorkerGroupStateBuilder()
        builder.with_placement_group_handle(SimpleNamespace(shutdown=list))  # type: ignore[arg-type]
        builder.with_sync_actor(actor)  # type: ignore[arg-type]
        builder.shutdown()
    assert killed == ["an actor"]


@pytest.mark.parametrize(
    ("owner", "name", "others"),
    [
        (worker_group, "placement_group", 3),
        (WorkerGroup, "_get_worker_runtime_env", 3),
        (state, "_shutdown_sync_actor", 2),  # without it the actor stays, too
        (worker_group, "SynchronizationActor", 2),
    ],
)
def test_each_change_of_the_controller_stands_for_itself(
    owner: Any, name: str, others: int, controller_process: pytest.MonkeyPatch
) -> None:
    places = (
        (worker_group, "placement_group"),
        (worker_group, "SynchronizationActor"),
        (state, "_shutdown_sync_actor"),
        (WorkerGroup, "_get_worker_runtime_env"),
    )
    before = [vars(each).get(attribute) for each, attribute in places]
    controller_process.delattr(owner, name)
    lighten_controller("share")
    assert not hasattr(owner, name)
    after = [vars(each).get(attribute) for each, attribute in places]
    changed = [new for old, new in zip(before, after, strict=True) if new not in (None, old)]
    assert len(changed) == others


def test_a_worker_that_is_alone_hears_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "put", lambda value: value)
    handle = pickle.loads(pickle.dumps(Meeting.options(label_selector={}).remote(timeout_s=1)))
    said = handle.broadcast_from_rank_zero.remote(world_rank=0, world_size=1, data="folder")
    assert said == "folder"
    assert handle.set_required_ranks.remote([0]) is True
    assert handle.reset.remote() is True


def other_actor(**methods: Any) -> Any:
    """Return an actor class like Ray Train's own, with other methods."""
    actor: Any = SynchronizationActor
    kind = type("Other", (actor.__ray_metadata__.modified_class,), methods)
    return SimpleNamespace(__ray_metadata__=SimpleNamespace(modified_class=kind))


def test_no_stand_in_meets_workers_that_ask_for_more(
    controller_process: pytest.MonkeyPatch,
) -> None:
    assert Meeting.can_stand_in()
    for changed in (
        {"gather": lambda self: None},
        {"get_agreement": lambda self: None},
        {"broadcast_from_rank_zero": lambda self, payload: None},
    ):
        actor = other_actor(**changed)
        controller_process.setattr(worker_group, "SynchronizationActor", actor)
        lighten_controller("share")
        assert worker_group.SynchronizationActor is actor


LIGHT = """
import sys
import raykfold.distributed.callback
import raykfold.distributed.ray_private
print("torch" in sys.modules)
"""


def test_what_a_controller_imports_does_not_import_what_trains() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


AS_THOUGH = """
import sys
from raykfold.distributed import ray_private
{change}
from raykfold.run import main
sys.exit(main(sys.argv[1:]))
"""
NONE_THERE = """
ray_private.NEWEST_TESTED = (2, 48)
def part(path, of=None):
    raise AttributeError(path)
ray_private.part = part
"""
ALL_CHANGED = """
class Changed:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Changed()
    def __call__(self):
        return 7
own = ray_private.part
ray_private.part = lambda path, of=None: Changed() if of is None else own(path, of)
"""
OTHER_CONTROLLER = """
import os
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
from ray.train.v2._internal.execution.controller import TrainController
class Other(TrainController):
    def __init__(self, *args, **parts):
        super().__init__(parts)
ray_private.share_controller = lambda: Other
"""
# The actor where workers meet has another method, which the worker calls when it first reports.
OTHER_MEETING = """
import os
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
class Other(ray_private.share_controller()):
    def __init__(self, *args, **parts):
        super().__init__(*args, **parts)
        from ray.train.v2._internal.execution.worker_group import worker_group
        from raykfold.distributed import ray_private
        class Meeting(ray_private.Meeting):
            broadcast_from_rank_zero = None
            options = staticmethod(lambda **_: Meeting)
            remote = staticmethod(lambda **_: Meeting())
        worker_group.SynchronizationActor = Meeting
ray_private.share_controller = lambda: Other
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [NONE_THERE, ALL_CHANGED, OTHER_CONTROLLER, OTHER_MEETING],
    ids=["none there", "all changed", "other controller", "other meeting"],
)
def test_a_run_on_a_ray_without_any_of_these_parts_or_with_others_comes_to_the_same(
    change: str, outcome: Outcome, data_dir: Path, tmp_path: Path
) -> None:
    arguments = command(data_dir, tmp_path, "--local_cpus", "2")[3:]
    done = subprocess.run(
        [sys.executable, "-c", AS_THOUGH.format(change=change), *arguments],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(outcome, Outcome.of(tmp_path))
    assert done.stdout.count(" is newer than those ") == (change is NONE_THERE)
    switched = re.findall("workers did not (.+); trying Ray Train's default start", done.stdout)
    expected = {OTHER_CONTROLLER: ["start"], OTHER_MEETING: ["complete a round"]}
    assert switched == expected.get(change, [])

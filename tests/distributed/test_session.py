from __future__ import annotations

import os
import platform
import re
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # Ray brings it along
import pytest
import ray
from fakes.hub_server import HubServer
from support.outcome import Outcome, assert_same_folds, files_that_hold
from support.shell import run

from raykfold.distributed.session import ray_session
from raykfold.errors import BadInput

JOIN = """
import sys
from raykfold.config.command import exit_code
from raykfold.distributed.session import ray_session

def join():
    with ray_session(sys.argv[1]):
        print("joined")
    return 0

sys.exit(exit_code(join, stopped="stopped"))
"""


def test_an_address_where_nobody_listens_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for variable, name in (("", "--address"), (address, "RAY_ADDRESS")):
            monkeypatch.setenv("RAY_ADDRESS", variable)
            with pytest.raises(BadInput, match=f"^{name} {address}: no Ray"), ray_session(address):
                raise AssertionError("connected to nobody")


@pytest.mark.parametrize(
    ("address", "said", "example"),
    [
        ("http://10.0.0.1:8265", "the dashboard's address, which is for `ray job", "10.0.0.1"),
        ("https://ray.example.org/", "the dashboard's address, which is", "ray.example.org"),
        ("HTTP://ray.example.org", "the dashboard's address, which is", "ray.example.org"),
        ("http://[::1]:8265/#/jobs", "the dashboard's address, which is", "[::1]"),
        ("http://[::1", "the dashboard's address, which is", "HOST"),
        ("ray://10.0.0.1:10001", "an address of Ray Client", "10.0.0.1"),
        ("tcp://10.0.0.1:6379", "no address of a cluster begins with tcp://", "10.0.0.1"),
        ("ray://", "an address of Ray Client", "HOST"),
    ],
)
def test_an_address_of_another_kind(
    monkeypatch: pytest.MonkeyPatch, address: str, said: str, example: str
) -> None:
    sources = {"--address": ("10.0.0.9:6379", "no address"), "RAY_ADDRESS": (address, "unset")}
    for name, (variable, remedy) in sources.items():
        monkeypatch.setenv("RAY_ADDRESS", variable)
        with pytest.raises(BadInput) as caught, ray_session(address):
            raise AssertionError("connected")
        assert str(caught.value).startswith(f"{name} {address}: {said}")
        expected = f"expected HOST:PORT of the head node, such as {example}:6379, on a node"
        assert expected in str(caught.value) and f", or {remedy} " in str(caught.value)


def test_a_password_in_an_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://me:secret@10.0.0.1:8265"
    for variable in ("", address):
        monkeypatch.setenv("RAY_ADDRESS", variable)
        with pytest.raises(BadInput, match=r"as 10\.0\.0\.1:6379") as caught, ray_session(address):
            raise AssertionError("connected")
        assert "secret" not in str(caught.value)


OWN = """
import os
import ray
import psutil  # type: ignore[import-untyped]  # Ray brings it along
from raykfold.distributed.session import ray_session

ran = []
with ray_session(None, local_cpus=1, meanwhile=lambda: ran.append("ran") or 1 / 0):
    names = [" ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)]
    known = ("gcs_server", "raylet/raylet", "monitor.py", "log_monitor.py", "dashboard.py")
    print(*(name for name in known if any(f"{name} " in f"{cmd} " for cmd in names)))
    print(ray.get(ray.remote(lambda: 3).remote()), *ran)
print(len(psutil.Process().children()), [name for name in os.environ if "RAY_AUTH" in name])
"""


def test_an_instance_of_our_own_has_no_daemons_but_those_that_it_needs(tmp_path: Path) -> None:
    """And needs no home for its token; what is done meanwhile ends nothing when it fails."""
    home = tmp_path / "home"
    home.touch()  # where a folder is expected
    done = subprocess.run(
        [sys.executable, "-c", OWN],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(HOME=str(home)),
    )
    expected = ["gcs_server raylet/raylet", "3 ran", "0 []"]
    assert done.stdout.splitlines() == expected, done.stderr


def test_too_little_address_space_is_one_line() -> None:
    """Ray ends the process in C++ then, or hangs."""
    script = JOIN.replace("sys.argv[1]", "None").replace("def join", f"{LIMIT}\ndef join")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    expected = r"raykfold: ulimit -v 3145728: is too little .* at least \d{7,}, or unlimited\n"
    assert re.fullmatch(expected, done.stderr)


LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, resource.RLIM_INFINITY))
"""


def test_a_server_that_is_no_ray_cluster_is_said_at_once() -> None:
    """As for the port of Ray's dashboard, which speaks HTTP."""
    server = [sys.executable, "-c", SERVER]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            done = join(f"127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()
    assert done.returncode == 2
    assert re.fullmatch(r"raykfold: --address \S+: no Ray cluster answers there .*\n", done.stderr)


SERVER = """
import http.server
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where processes of the cluster report their environment."""
    return tmp_path_factory.mktemp("told")


@pytest.fixture(scope="module")
def cluster(told: Path) -> Iterator[tuple[str, str]]:
    """Where a cluster that wants a token listens, and the token.

    It has a head with two CPUs and nothing else, and was started with a token of the Hub around.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(32)
    # Short: Ray puts UNIX sockets below, and their paths end at 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="rkt-", dir="/tmp") as folder,
        subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--port", str(port), "--num-cpus", "2", "--temp-dir", folder),
                *("--include-dashboard", "false", "--disable-usage-stats"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(
                RAY_AUTH_MODE="token",
                RAY_AUTH_TOKEN=token,
                HF_TOKEN=HubServer.token,
                ENVIRONMENTS=str(told),
                PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
            ),
        ) as head,
    ):
        try:
            assert head.stdout is not None
            said = ""
            for line in head.stdout:
                said += line
                if "Ray runtime started" in line:
                    break
            address = re.search(r"Local node.*?(\d+(?:\.\d+){3})", said)
            assert address, said
            yield f"{address[1]}:{port}", token
        finally:
            # Asked to end, Ray waits half a minute for a raylet that has had workers.
            for process in (*psutil.Process(head.pid).children(recursive=True), head):
                process.kill()
            head.communicate(timeout=60)


def environment(**changes: str) -> dict[str, str]:
    """Ours without a word of Ray in it, and without a home where a token may be."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | changes


def join(address: str, script: str = JOIN, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, address],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**changes),
    )


def test_a_token_that_the_cluster_refuses_is_said_in_one_line_and_at_once(
    cluster: tuple[str, str], tmp_path: Path
) -> None:
    """`ray.init` by itself prints a line a second for twenty seconds."""
    address, token = cluster
    empty = tmp_path / "empty"
    empty.touch()
    wanted = "; expected RAY_AUTH_MODE=token, and the cluster's own token in RAY_AUTH_TOKEN, "
    for what, variables in {
        "the cluster refuses this token": {"RAY_AUTH_TOKEN": "0" * 64},
        "the cluster requires a token, and none was sent": {
            "RAY_AUTH_MODE": "disabled",
            "RAY_AUTH_TOKEN": token,
        },
        "Token authentication is enabled but": {"HOME": str(tmp_path)},
        f"RAY_AUTH_TOKEN_PATH is set but .*{empty}": {"RAY_AUTH_TOKEN_PATH": str(empty)},
    }.items():
        done = join(address, **{"RAY_AUTH_MODE": "token", **variables})
        assert done.returncode == 2, done.stderr
        line = f"raykfold: --address {re.escape(address)}: {what}.*{re.escape(wanted)}.*\n"
        assert re.fullmatch(line, done.stderr)


def test_workers_of_a_named_cluster_give_the_same_bits_and_have_no_secrets(
    outcome: Outcome, cluster: tuple[str, str], told: Path, data_dir: Path, tmp_path: Path
) -> None:
    address, token = cluster
    network = ("--model", "support.networks:ReportsEnvironment")
    arguments = ("--address", address, "--folds", "1,2,3", *network)
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "ENVIRONMENTS": str(told)}
    refused = run(data_dir, tmp_path / "out", *arguments, **wrong)
    assert refused.returncode == 2
    assert "the cluster refuses this token" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()

    right = {**wrong, "RAY_AUTH_TOKEN": token, "HF_TOKEN": HubServer.token}
    done = run(data_dir, tmp_path / "out", *arguments, **right)
    assert done.returncode == 0, done.stderr
    assert_same_folds(outcome, tmp_path / "out")
    assert len(list(told.iterdir())) >= 3  # of the driver and two workers
    assert files_that_hold(HubServer.token, told) == []


OTHER_PATCH = """
import platform
import ray._private.utils
version = platform.python_version() + "7"
platform.python_version = lambda: version
ray._private.utils.compute_version_info = lambda: (ray.__version__, version)
"""


def test_the_cluster_s_own_token_opens_it_also_to_another_patch_version_of_python(
    cluster: tuple[str, str], tmp_path: Path
) -> None:
    address, token = cluster
    file = tmp_path / "auth_token"
    file.write_text(token)
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
    done = join(address, script=OTHER_PATCH + JOIN, **variables)
    assert (done.returncode, done.stdout) == (0, "joined\n"), done.stderr


def test_a_cluster_of_another_version_that_ray_finds_is_refused_with_both(
    cluster: tuple[str, str],
) -> None:
    """As with `test_ray_private.py` where the address names it."""
    address, token = cluster
    other = JOIN.replace("def join", 'import ray\nray.__version__ = "2.49.2"\ndef join')
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_ADDRESS": address}
    done = join("auto", script=other, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    python = re.escape(platform.python_version())
    there = rf"Ray: {re.escape(ray.__version__)} Python: {python}"
    assert re.fullmatch(
        rf"raykfold: --address auto: Version mismatch: .* {there} .* Ray: 2\.49\.2 "
        rf"Python: {python}; expected the same versions in both\n",
        done.stderr,
    )


CHECK = """
import sys
from raykfold.config.command import exit_code
from raykfold.distributed.session import ray_session

def check():
    with ray_session(sys.argv[1]):
        from raykfold.distributed.code import DriverCode
        from raykfold.distributed.deal import WorkerSize
        from raykfold.distributed.preflight import check_code

        sys.path.insert(0, sys.argv[2])
        size = WorkerSize(cpus=1, gpus=0)
        check_code(DriverCode.of(["raykfold.models:AudioCNN", "everywhere:Net"]), size)
        print("everywhere")
        check_code(DriverCode.of(["everywhere:Net", "driver_only:Net"]), size)
    return 0

sys.exit(exit_code(check, stopped="stopped"))
"""


def test_a_network_that_a_node_cannot_import_is_said_before_workers_start(
    cluster: tuple[str, str], tmp_path: Path
) -> None:
    address, token = cluster
    (tmp_path / "everywhere.py").write_text("import torch\nNet = torch.nn.Linear\n")
    (tmp_path / "driver_only.py").write_text(
        "import os\nassert 'DRIVER' in os.environ, 'no driver'\nfrom everywhere import Net\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", CHECK, address, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(DRIVER="1", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token),
    )
    assert (done.returncode, done.stdout) == (2, "everywhere\n"), done.stderr
    assert re.fullmatch(
        r"raykfold: --model driver_only:Net: cannot be imported on node \S+ \(AssertionError: "
        r"no driver\); expected .*--working-dir, which carries it\n",
        done.stderr,
    )

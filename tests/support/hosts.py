"""Simulate several hosts on one machine: network namespaces with an address and a Ray node each.

    with Hosts(4) as hosts:
        hosts.start_head()
        hosts.join(*hosts.workers, cpus=1)
        hosts[2].power_off()

The hosts are connected by a bridge in a namespace of its own, apart from any real network. They
share the machine's file system, as a cluster with NFS does; `Host.private` gives one host a folder
that the others do not see. Needs root and Debian's iproute2.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import pytest

from support.shell import environment

PORT = 6379
DASHBOARD = 8265
_NETWORK = "10.77.0"
# By default Ray starts a worker process per CPU in advance, which only delays others on two cores.
_RAY_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

needs_hosts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="several hosts need root and `ip` (apt-get install iproute2)",
)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def pids_in(namespace: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


def power_off(namespace: str) -> None:
    """Kill every process in a namespace."""
    while pids := pids_in(namespace):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


class Host:
    """A network namespace with one address."""

    def __init__(self, hosts: Hosts, number: int) -> None:
        self.number = number
        self.name = f"{hosts.name}-{number}"
        self.address = f"{_NETWORK}.{number + 1}"
        self.folder = hosts.folder / str(number)
        self._hosts = hosts
        self._private: dict[Path, int] = {}

    @property
    def _port(self) -> str:
        """Name of the bridge's end of this host's cable."""
        return f"port{self.number}"

    def plug_in(self) -> None:
        """Create the namespace and connect it to the bridge."""
        switch = self._hosts.switch
        self.folder.mkdir(exist_ok=True)
        ip("netns", "add", self.name)
        ip("-n", switch, "link", "add", self._port, "type", "veth",
           "peer", "name", "eth0", "netns", self.name)  # fmt: skip
        ip("-n", switch, "link", "set", self._port, "up", "master", "bridge")
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        """Within this context, drop packets to and from this host; no connection is closed."""
        ip("-n", self._hosts.switch, "link", "set", self._port, "nomaster")
        try:
            yield
        finally:
            ip("-n", self._hosts.switch, "link", "set", self._port, "master", "bridge")

    def private(self, folder: Path, megabytes: int = 2000) -> None:
        """Give what this host starts from now on an empty folder in place of `folder`.

        It is a disk of its own, with room for so many megabytes.
        """
        self._private[folder] = megabytes

    def files(self, folder: Path, pattern: str) -> list[Path]:
        """Return paths, readable from anywhere, of what the host's Ray node has in a folder."""
        for pid in self.processes("raylet"):
            return list(Path(f"/proc/{pid}/root{folder}").glob(pattern))
        return []

    def command(self, *arguments: str) -> list[str]:
        """Return a command that runs `arguments` on this host."""
        inside = list(arguments)
        for folder, megabytes in self._private.items():
            mount = f'mount -t tmpfs -o size={megabytes}m private "{folder}" && exec "$@"'
            inside = ["unshare", "--mount", "sh", "-c", mount, "sh", *inside]
        return ["ip", "netns", "exec", self.name, *inside]

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end and capture what it prints."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self._hosts.environment,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command on this host; its two streams come as one."""
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._hosts.environment,
            start_new_session=True,
        )

    def pids(self) -> list[int]:
        """Return the ids of the processes on this host."""
        return pids_in(self.name)

    def processes(self, title: str) -> list[int]:
        """Return the ids of this host's processes with `title` in their command line."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):  # it has just ended
                if title in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                    found.append(pid)
        return found

    def kill(self, title: str, number: int = signal.SIGKILL) -> list[int]:
        """Send a signal to this host's processes with `title` in their command line.

        Returns:
            Their process ids.
        """
        struck = self.processes(title)
        for pid in struck:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return struck

    def power_off(self) -> None:
        """Kill every process on this host."""
        power_off(self.name)

    def received_bytes(self) -> int:
        """Return how many bytes have reached this host over the network."""
        shown = subprocess.run(
            self.command("cat", "/sys/class/net/eth0/statistics/rx_bytes"),
            capture_output=True,
            text=True,
            check=True,
        )
        return int(shown.stdout)

    def unplug(self) -> None:
        """Kill every process on this host, and delete its namespace."""
        self.power_off()
        ip("netns", "del", self.name)


class Hosts:
    """A context of `count` hosts that reach only each other; their processes end with it."""

    def __init__(self, count: int, **settings: str) -> None:
        self.name = f"rkf-{os.getpid()}-{secrets.token_hex(2)}"
        self.switch = f"{self.name}-switch"
        # Short: Ray puts UNIX sockets below, and their paths end at 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="rkh-", dir="/tmp"))
        self._hosts = [Host(self, number) for number in range(count)]
        self._nodes: list[subprocess.Popen[str]] = []
        self.environment = environment(
            **_RAY_SETTINGS, RAY_AUTH_TOKEN=secrets.token_hex(32), **settings
        )

    def __enter__(self) -> Hosts:
        _sweep()
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for host in self._hosts:
            host.plug_in()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for host in self._hosts:
            host.unplug()
        ip("netns", "del", self.switch)
        for node in self._nodes:
            node.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __getitem__(self, number: int) -> Host:
        return self._hosts[number]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts)

    @property
    def head(self) -> Host:
        return self._hosts[0]

    @property
    def workers(self) -> list[Host]:
        """Every host but the head."""
        return self._hosts[1:]

    @property
    def address(self) -> str:
        """Address of the cluster, for nodes and drivers."""
        return f"{self.head.address}:{PORT}"

    def start_head(self, *arguments: str) -> None:
        """Start a cluster; the head, the first host, offers no CPU."""
        self._ray(
            self.head, 0, "--head", "--port", str(PORT),
            "--include-dashboard", "true", "--dashboard-host", self.head.address,
            "--dashboard-port", str(DASHBOARD), *arguments,
        )  # fmt: skip

    def join(self, *joining: Host, cpus: int = 1, gpus: int = 0) -> None:
        """Start Ray nodes on hosts, all at once, and add them to the cluster."""
        arguments = ("--address", self.address, "--num-gpus", str(gpus))
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: self._ray(host, cpus, *arguments), joining))

    def repair(self) -> None:
        """Start a node on each host that has lost its own, as one does that was cut off."""
        lost = [host for host in self.workers if not host.processes("raylet")]
        for host in lost:
            host.power_off()
        self.join(*lost)

    def _ray(self, host: Host, cpus: int, *arguments: str) -> None:
        folder = Path(tempfile.mkdtemp(dir=host.folder))  # a node that returns is a new one
        node = host.start(
            *(*RAY, "start", "--block"),
            *("--num-cpus", str(cpus), "--object-store-memory", str(200 * 2**20)),
            *("--node-ip-address", host.address, "--temp-dir", str(folder)),
            *arguments,
        )
        self._nodes.append(node)
        assert node.stdout is not None
        lines = []
        for line in node.stdout:
            lines.append(line)
            if "Ray runtime started" in line:
                return
        raise AssertionError("".join(lines))


def _sweep() -> None:
    """Delete the namespaces of test processes that were killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    for name, pid in re.findall(r"^(rkf-(\d+)-\S+)", listed.stdout, re.MULTILINE):
        if not Path(f"/proc/{pid}").exists():
            power_off(name)
            ip("netns", "del", name)


def wait_for(met: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until `met` returns something true.

    Raises:
        AssertionError: it did not within `seconds`; `what` says what it stands for.
    """
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


RAY = (sys.executable, "-m", "ray.scripts.scripts")


def job_command(hosts: Hosts, what: str, *arguments: str) -> tuple[str, ...]:
    """Return a `ray job` command, such as submit or stop, for the cluster of these hosts."""
    address = f"http://{hosts.head.address}:{DASHBOARD}"
    return (*RAY, "job", what, "--address", address, *arguments)


def driver_pids(head: Host) -> list[int]:
    """Return the ids of the drivers on the head, without the shells in which Ray runs them."""
    start = f"{sys.executable}\0-m\0raykfold.run\0"
    return [
        pid
        for pid in head.processes("raykfold.run")
        if Path(f"/proc/{pid}/cmdline").read_text(errors="replace").startswith(start)
    ]


def drain(hosts: Hosts, host: Host, *, seconds: int) -> bool:
    """Announce, as a cloud does before it takes a node away, that `host` leaves soon.

    Returns:
        whether the cluster has this node and accepts the notice.
    """
    ask = (
        f"import ray; ray.init(address='{hosts.address}', logging_level=50);"
        "print([n['NodeID'] for n in ray.nodes()"
        f" if n['Alive'] and n['NodeManagerAddress'] == '{host.address}'])"
    )
    node = re.search(r"'(\w+)'", hosts.head.run(sys.executable, "-c", ask).stdout)
    if node is None:
        return False
    drained = hosts.head.run(
        *(*RAY, "drain-node", "--address", hosts.address),
        *("--node-id", node[1], "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)),
    )
    return drained.returncode == 0

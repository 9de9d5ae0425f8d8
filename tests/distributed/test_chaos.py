"""Strike runs on several hosts with random faults, and compare them with a plain loop.

    python tests/distributed/test_chaos.py --minutes 60 --seed 1 [--faults 100]

Runs of five folds and fourteen epochs are done in sequence on a head and four hosts with one CPU
each. Every few seconds a fault is drawn and strikes; a job that was killed is submitted again. A
run that has ended must equal, to the bit, a plain loop without Ray, and must have trained no
committed epoch again. As a script it continues until the time or the number of faults is reached;
the test strikes a few faults.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.hosts import Hosts, drain, driver_pids, job_command, needs_hosts, wait_for
from support.outcome import assert_as_without_ray
from support.shell import command
from support.small_data import CLASSES, small_arrays

from raykfold.data.reading import write_feature_set

FOLDS, EPOCHS, WORKERS = (1, 2, 3, 4, 5), 14, 4
ARGUMENTS = (
    *("--model", "support.networks:Unhurried"),
    *("--epochs", str(EPOCHS), "--early_stopping_patience", str(EPOCHS)),
)
_LONGEST_RUN_SECONDS = 600


class Job:
    """A submitted run, whose output is read as it comes."""

    def __init__(self, hosts: Hosts, data_dir: Path, model_dir: Path) -> None:
        arguments = ("--", *command(data_dir, model_dir, *ARGUMENTS))
        self._process: subprocess.Popen[str] = hosts.head.start(
            *job_command(hosts, "submit", *arguments)
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(self._process.stdout)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def identifier(self) -> str | None:
        match = re.search(r"raysubmit_\w+", self.output)
        return match[0] if match else None

    def ended(self) -> int | None:
        """Return its exit code, or None while it runs."""
        return self._process.poll()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


class Chaos:
    """A cluster, its runs, and the faults that can strike them."""

    def __init__(self, hosts: Hosts, data_dir: Path, chance: random.Random) -> None:
        self.struck: Counter[str] = Counter()
        self.runs = 0
        self._hosts = hosts
        self._data_dir = data_dir
        self._chance = chance
        self._struck_at: dict[str, int] = {}  # epochs of each fold when workers were killed
        self._began = time.monotonic()

    def run(self, model_dir: Path, more: Callable[[], bool]) -> None:
        """Do one run, and strike it as long as `more` returns True.

        Raises:
            AssertionError: its results differ from those of a plain loop.
        """
        self._struck_at = {}
        jobs = [Job(self._hosts, self._data_dir, model_dir)]
        deadline = time.monotonic() + _LONGEST_RUN_SECONDS
        try:
            while jobs[-1].ended() is None:
                assert time.monotonic() < deadline, jobs[-1].output
                self._pause(jobs[-1])
                if jobs[-1].ended() is None and more():
                    kind = self._strike(model_dir, jobs[-1])
                    if kind in ("driver", "job stop", "head"):
                        jobs[-1].close()
                        jobs.append(Job(self._hosts, self._data_dir, model_dir))
        finally:
            for job in jobs:
                job.close()
        self._compare(model_dir, jobs)

    def _pause(self, job: Job) -> None:
        until = time.monotonic() + self._chance.uniform(1, 10)
        while time.monotonic() < until and job.ended() is None:
            time.sleep(0.1)

    def _compare(self, model_dir: Path, jobs: list[Job]) -> None:
        output = "".join(job.output for job in jobs)
        assert jobs[-1].ended() == 0, output
        committed = Counter(re.findall(r"^fold (\d+)  epoch (\d+)/", output, re.MULTILINE))
        assert [epoch for epoch, times in committed.items() if times > 1] == [], output
        assert_as_without_ray(
            model_dir, self._data_dir, folds=FOLDS, epochs=EPOCHS, patience=EPOCHS
        )
        self.runs += 1
        self._say(f"run {self.runs}: the same bits")

    # --- faults ----------------------------------------------------------------------------

    def _strike(self, model_dir: Path, job: Job) -> str:
        """Draw a fault, strike, and return its name; it counts if it found something to strike."""
        kinds: dict[str, Callable[[], bool]] = {
            "worker": lambda: self._kill("TrainWorker", 1),
            "workers": lambda: self._kill("TrainWorker", WORKERS),
            "controller": lambda: self._kill("ShareController", 1),
            "node": self._node,
            "link, for seconds": lambda: self._cut(1, 8),
            "link, for longer": lambda: self._cut(15, 40),
            "drain": self._drain,
            "driver": self._driver,
            "job stop": lambda: self._stop(job),
            "head": self._head,
        }
        epochs = epochs_done(model_dir)
        # The run blames a fold whose worker dies twice in one epoch, so each fold must have done an
        # epoch since workers were last killed.
        if any(epochs.get(fold, 0) <= done < EPOCHS for fold, done in self._struck_at.items()):
            del kinds["worker"], kinds["workers"]
        kind = self._chance.choice(list(kinds))
        if kind in ("worker", "workers"):
            self._struck_at = {str(fold): epochs.get(str(fold), 0) for fold in FOLDS}
        if kinds[kind]():
            self.struck[kind] += 1
            self._say(f"{sum(self.struck.values())}: {kind}")
        return kind

    def _kill(self, title: str, count: int) -> bool:
        pids = [pid for host in self._hosts for pid in host.processes(title)]
        for pid in self._chance.sample(pids, min(count, len(pids))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def _node(self) -> bool:
        """Kill a node, and start it again after a while."""
        host = self._chance.choice(self._hosts.workers)
        host.power_off()
        time.sleep(self._chance.uniform(0, 10))
        self._hosts.join(host)
        return True

    def _cut(self, shortest: float, longest: float) -> bool:
        host = self._chance.choice(self._hosts.workers)
        with host.cut_off():
            time.sleep(self._chance.uniform(shortest, longest))
        self._hosts.repair()
        return True

    def _drain(self) -> bool:
        host = self._chance.choice(self._hosts.workers)
        drained = drain(self._hosts, host, seconds=6)
        if drained:
            time.sleep(6)
        host.power_off()
        self._hosts.join(host)
        return drained

    def _driver(self) -> bool:
        pids = driver_pids(self._hosts.head)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def _stop(self, job: Job) -> bool:
        if job.identifier:
            self._hosts.head.run(*job_command(self._hosts, "stop", job.identifier))
        return job.identifier is not None

    def _head(self) -> bool:
        """Kill the whole cluster, and start a new one."""
        for host in self._hosts:
            host.power_off()
        self._hosts.start_head()
        self._hosts.join(*self._hosts.workers)
        return True

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {text}", flush=True)


def epochs_done(model_dir: Path) -> dict[str, int]:
    """Return the epochs that each fold has done, or {} before the run has written any."""
    try:
        state = json.loads((model_dir / "training_state.json").read_text())
    except FileNotFoundError:
        return {}
    return {fold: row["epochs_done"] for fold, row in state["folds"].items()}


def strike(seed: int, faults: int, minutes: float) -> Chaos:
    """Do runs until so many faults have struck, or the time is up."""
    ends = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder, Hosts(WORKERS + 1) as hosts:
        data_dir = Path(folder) / "sounds"
        write_feature_set(data_dir, *small_arrays(), CLASSES, {"kind": "log_mel"})
        hosts.start_head()
        hosts.join(*hosts.workers)
        chaos = Chaos(hosts, data_dir, random.Random(seed))

        def more() -> bool:
            return time.monotonic() < ends and sum(chaos.struck.values()) < faults

        while more():
            chaos.run(Path(folder) / f"run{chaos.runs}", more)
            wait_for(lambda: not driver_pids(hosts.head), "the end of the driver")
    return chaos


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_hosts
def test_random_faults_leave_the_same_bits() -> None:
    chaos = strike(seed=4, faults=4, minutes=3)
    assert chaos.runs >= 1
    assert sum(chaos.struck.values()) >= 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--faults", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chaos = strike(arguments.seed, arguments.faults, arguments.minutes)
    print(f"{sum(chaos.struck.values())} faults in {chaos.runs} runs, all with the same bits:")
    for kind, times in sorted(chaos.struck.items()):
        print(f"  {kind:20} {times}")


if __name__ == "__main__":
    main()

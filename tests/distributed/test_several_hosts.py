"""Runs on a cluster of several hosts, parts of which fail.

Each host is a network namespace with a Ray node of its own (see support/hosts.py). One is the head,
where jobs run; the others have a CPU each for a worker.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.s3_server import CREDENTIALS
from support.hosts import Host, Hosts, drain, driver_pids, job_command, needs_hosts, wait_for
from support.outcome import assert_as_without_ray
from support.shell import command, read_until

import raykfold
from raykfold.data.reading import write_feature_set

pytestmark = needs_hosts

EPOCHS, FOLDS = 14, (1, 2, 3)
# Late arguments win: what `command` says of epochs and patience is for other tests.
UNHURRIED = (
    *("--model", "support.networks:Unhurried", "--folds", "1,2,3"),
    *("--epochs", str(EPOCHS), "--early_stopping_patience", str(EPOCHS)),
)


@contextmanager
def cluster(workers: int) -> Iterator[Hosts]:
    """Start a head and `workers` hosts with one CPU each."""
    with Hosts(workers + 1) as hosts:
        hosts.start_head()
        hosts.join(*hosts.workers)
        yield hosts


@pytest.fixture(scope="module")
def three_hosts() -> Iterator[Hosts]:
    """A head and three hosts with one CPU each; the last does not see what is in `unshared`.

    Nor does it see what the others have in `data_of`.
    """
    with Hosts(4, **CREDENTIALS) as hosts:
        hosts[3].private(unshared(hosts))
        hosts[3].private(data_of(hosts))
        hosts.start_head()
        hosts.join(*hosts.workers)
        yield hosts


@pytest.fixture
def shared_cluster(three_hosts: Hosts) -> Hosts:
    """The shared cluster, with a node on each host again after an earlier test killed some."""
    three_hosts.repair()
    return three_hosts


def unshared(hosts: Hosts) -> Path:
    folder = hosts.folder / "unshared"
    folder.mkdir(exist_ok=True)
    return folder


def data_of(hosts: Hosts) -> Path:
    folder = hosts.folder / "data"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def submitted(
    hosts: Hosts, data_dir: Path, model_dir: Path, *arguments: str, sent: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Submit a run with `ray job submit` on the head; `sent` are flags of that command."""
    what = (*sent, "--", *command(data_dir, model_dir, *arguments))
    job = hosts.head.start(*job_command(hosts, "submit", *what))
    try:
        yield job
    finally:
        job.kill()
        job.communicate()


def finish(job: subprocess.Popen[str]) -> str:
    """Wait for a job to succeed, and return the rest of its output."""
    assert job.stdout is not None
    output = job.stdout.read()  # not communicate(): it passes over what was read ahead
    assert job.wait() == 0, output
    return output


def wait_for_epoch(model_dir: Path, fold: int, epoch: int) -> None:
    """Wait until an epoch, from 0, is committed: its weights are among the outputs then."""
    weights = model_dir / f"checkpoints/fold_{fold}/epoch_{epoch}.safetensors"
    wait_for(weights.exists, f"epoch {epoch} of fold {fold}", seconds=90)


def committed(output: str) -> list[tuple[str, str]]:
    """Return the (fold, epoch) of each epoch that a driver has printed, in order."""
    return re.findall(r"^fold (\d+)  epoch (\d+)/", output, re.MULTILINE)


def assert_each_epoch_once(output: str, epochs: int) -> None:
    """Assert that every epoch was committed once: none that was committed was trained again."""
    assert "quarantined" not in output
    expected = sorted((str(fold), str(epoch + 1)) for fold in FOLDS for epoch in range(epochs))
    assert sorted(committed(output)) == expected


# --- on one cluster ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_submitted_job_gives_the_same_bits_after_a_worker_and_a_node_have_died(
    shared_cluster: Hosts, data_dir: Path, tmp_path: Path
) -> None:
    """Submit with the working directory, as the README does. A node needs a copy of the data."""
    hosts, epochs = shared_cluster, 9
    data = shutil.copytree(data_dir, data_of(hosts) / "sounds")
    root = Path(raykfold.__file__).parents[1]
    sent = ("--runtime-env", str(root / "cluster/runtime_env.yaml"), "--working-dir", str(root))
    scratch = data_of(hosts) / "scratch"
    arguments = (*UNHURRIED, "--epochs", str(epochs), "--scratch_dir", str(scratch), "--verbose")
    with submitted(hosts, data, tmp_path, *arguments, sent=sent) as job:
        lines = read_until(job, r"fold 1  epoch 1/")
        for fold in FOLDS:
            wait_for_epoch(tmp_path, fold, 1)
        assert all(len(host.processes("TrainWorker")) == 1 for host in hosts.workers)
        assert hosts[1].kill("TrainWorker")
        hosts[2].power_off()
        for end in ("Worker unexpectedly exits", rf"its node {hosts[2].address} is gone"):
            if not any(re.search(end, line) for line in lines):
                lines += read_until(job, rf"the worker of fold \d ended: {end}")
        hosts.join(hosts[2])
        lines.append(finish(job))
    output = "".join(lines)
    assert "Average Best Validation Accuracy" in output
    assert set(re.findall(r"node (\S+) copies", output)) == {hosts[3].address}
    assert hosts[3].files(scratch.parent, "*") and not hosts[3].files(scratch, "*")
    assert_each_epoch_once(output, epochs)
    assert_as_without_ray(tmp_path, data_dir, folds=FOLDS, epochs=epochs, patience=EPOCHS)


@pytest.mark.slow
def test_a_link_that_is_cut_and_a_controller_that_dies_change_nothing(
    shared_cluster: Hosts, data_dir: Path, tmp_path: Path
) -> None:
    hosts, epochs = shared_cluster, 8
    arguments = (*UNHURRIED, "--epochs", str(epochs))
    with submitted(hosts, data_dir, tmp_path, *arguments) as job:
        lines = read_until(job, r"fold 1  epoch 1/")
        with hosts[3].cut_off():
            time.sleep(3)
        for fold in FOLDS:
            wait_for_epoch(tmp_path, fold, 1)
        assert hosts.head.kill("ShareController")
        lines.append(finish(job))
    output = "".join(lines)
    assert "ended: its Ray Train controller died" in output
    assert_each_epoch_once(output, epochs)
    assert_as_without_ray(tmp_path, data_dir, folds=FOLDS, epochs=epochs, patience=epochs)


@pytest.mark.slow
def test_a_storage_that_the_nodes_do_not_share_is_found_before_training(
    shared_cluster: Hosts, data_dir: Path, tmp_path: Path
) -> None:
    hosts = shared_cluster
    storage = unshared(hosts) / "ray"
    arguments = ("--address", hosts.address, "--storage_path", str(storage))
    done = hosts.head.run(*command(data_dir, tmp_path / "out", *arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert f"--storage_path {storage}" in done.stderr
    assert f"not seen by {hosts[3].address};" in done.stderr
    assert list(unshared(hosts).iterdir()) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_wait_for_slots_says_what_is_needed_and_times_out(
    shared_cluster: Hosts, data_dir: Path, tmp_path: Path
) -> None:
    hosts = shared_cluster
    arguments = ("--address", hosts.address, "--cpus_per_worker", "8", "--wait_timeout", "5")
    done = hosts.head.run(*command(data_dir, tmp_path / "out", *arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    # The head offers no CPU; the nodes that the other tests have killed are not counted.
    there = r"\(a worker takes 8 CPUs; 4 nodes with 3 of 3 CPUs free\)"
    waiting = r"folds 1, 2, 3, 4, 5 waiting"
    assert re.search(rf"for [34] s, no free slot in Ray; {waiting} {there}", done.stdout)
    assert re.search(
        rf"--wait_timeout 5: in that time, no free slot in Ray; .*{there}", done.stderr
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_ends_a_wait_for_slots(
    shared_cluster: Hosts, data_dir: Path, tmp_path: Path
) -> None:
    hosts = shared_cluster
    arguments = ("--address", hosts.address, "--use_gpu", "true")
    driver = hosts.head.start(*command(data_dir, tmp_path / "out", *arguments))
    try:
        read_until(driver, r"a worker takes 1 CPU and a GPU; .* and 0 of 0 GPUs free")
        driver.send_signal(signal.SIGINT)
        output, _ = driver.communicate(timeout=30)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 130, output


# --- slow ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_resumes_after_a_stop_and_the_death_of_its_driver_and_head(
    data_dir: Path, tmp_path: Path
) -> None:
    """Stop the job, kill the driver, then kill the head; the same command resumes each time."""
    with cluster(3) as hosts:
        with submitted(hosts, data_dir, tmp_path, *UNHURRIED) as job:
            lines = read_until(job, r"fold 1  epoch 2/")
            identifier = re.search(r"raysubmit_\w+", "".join(lines))
            assert identifier
            stopped = hosts.head.run(*job_command(hosts, "stop", identifier[0]))
            assert stopped.returncode == 0, stopped.stderr
        with submitted(hosts, data_dir, tmp_path, *UNHURRIED) as job:
            lines = read_until(job, r"fold 1: resumes after epoch \d+")
            wait_for_epoch(tmp_path, 1, 4)
            for pid in driver_pids(hosts.head):
                os.kill(pid, signal.SIGKILL)
        with submitted(hosts, data_dir, tmp_path, *UNHURRIED) as job:
            lines = read_until(job, r"fold 1: resumes after epoch [5-9]")
            wait_for_epoch(tmp_path, 1, 7)
            for host in hosts:  # those whose head has gone end sooner or later anyhow
                host.power_off()
    with (
        cluster(3) as hosts,
        submitted(hosts, data_dir, tmp_path, *UNHURRIED) as job,
    ):
        output = finish(job)
    assert re.search(r"fold 1: resumes after epoch ([89]|1\d)", output)
    assert_as_without_ray(tmp_path, data_dir, folds=FOLDS, epochs=EPOCHS, patience=EPOCHS)


@pytest.mark.slow
def test_a_node_that_is_cut_off_is_replaced_by_a_spare_slot(
    shared_cluster: Hosts, data_dir: Path, tmp_path: Path
) -> None:
    """With a spare slot, the lost fold moves there, and the other fold never pauses."""
    hosts = shared_cluster
    arguments = (*UNHURRIED, "--folds", "1,2", "--epochs", "30")
    with submitted(hosts, data_dir, tmp_path, *arguments) as job:
        lines = read_until(job, r"fold 1  epoch 2/")
        busy = next(host for host in hosts.workers if host.processes("TrainWorker"))
        with busy.cut_off():
            lines += read_until(job, rf"ended: its node {busy.address} is gone")
            time.sleep(20)  # until its fold trains elsewhere
        lines.append(finish(job))
    assert "quarantined" not in "".join(lines)
    assert_as_without_ray(tmp_path, data_dir, folds=(1, 2), epochs=30, patience=EPOCHS)


@pytest.mark.slow
def test_a_node_that_is_drained_hands_its_folds_over_in_time(
    shared_cluster: Hosts, data_dir: Path, tmp_path: Path
) -> None:
    """Two folds share a node that leaves; each is handed over after its current epoch."""
    hosts = shared_cluster
    arguments = (*UNHURRIED, "--num_workers", "1", "--folds", "1,2")
    with submitted(hosts, data_dir, tmp_path, *arguments) as job:
        lines = read_until(job, r"fold 2  epoch 2/")
        busy = next(host for host in hosts.workers if host.processes("TrainWorker"))
        assert drain(hosts, busy, seconds=12)
        lines += read_until(job, rf"node {busy.address} is leaving: folds 1, 2 will move")
        time.sleep(12)
        assert not busy.processes("TrainWorker")
        busy.power_off()
        lines.append(finish(job))
    output = "".join(lines)
    assert " ended: " not in output  # nobody died
    assert len(committed(output)) == len(set(committed(output))) == 2 * EPOCHS, output
    assert_as_without_ray(tmp_path, data_dir, folds=(1, 2), epochs=EPOCHS, patience=EPOCHS)


@pytest.mark.slow
def test_two_runs_share_slots_and_a_completed_share_frees_its_slot(
    shared_cluster: Hosts, data_dir: Path, tmp_path: Path
) -> None:
    """A run has three slots, with folds 1 and 4 on one, and completes folds 2 and 3 first."""
    hosts = shared_cluster
    folds = (1, 2, 3, 4)
    epochs = ("--epochs", "24", "--early_stopping_patience", "24")
    arguments = (*UNHURRIED, "--folds", "1,2,3,4", *epochs)
    with submitted(hosts, data_dir, tmp_path / "a", *arguments) as first:
        read_until(first, r"fold 3  epoch 1/")
        with submitted(hosts, data_dir, tmp_path / "b", *UNHURRIED, "--folds", "5") as second:
            lines = read_until(second, r"fold 5  epoch 1/")
            assert not (tmp_path / "a" / "summary.json").exists()
            finish(second)
        finish(first)
    assert any("no free slot in Ray" in line for line in lines)
    assert_as_without_ray(tmp_path / "a", data_dir, folds=folds, epochs=24, patience=24)
    assert_as_without_ray(tmp_path / "b", data_dir, folds=(5,), epochs=EPOCHS, patience=EPOCHS)


@pytest.mark.slow
def test_nodes_that_come_later_take_folds_over_if_they_see_the_storage(
    data_dir: Path, tmp_path: Path
) -> None:
    arguments = (*UNHURRIED, "--epochs", "30")
    with Hosts(4) as hosts:
        storage = unshared(hosts)
        hosts[2].private(storage)
        hosts.start_head()
        hosts.join(hosts[1])
        with submitted(
            hosts, data_dir, tmp_path, *arguments, "--storage_path", str(storage)
        ) as job:
            lines = read_until(job, r"fold 3  epoch 1/")
            hosts.join(hosts[2])
            lines += read_until(job, r"a slot is free: folds? .* will move there")
            lines += read_until(job, rf"node {hosts[2].address} is left out: it does not see")
            hosts.join(hosts[3])
            wait_for(lambda: hosts[3].processes("TrainWorker"), "a worker on the third host")
            lines.append(finish(job))
    assert not any("quarantined" in line for line in lines)
    assert_as_without_ray(tmp_path, data_dir, folds=FOLDS, epochs=30, patience=EPOCHS)


@pytest.mark.slow
def test_each_worker_has_a_gpu_of_its_own(data_dir: Path, tmp_path: Path) -> None:
    """Ray is told of two GPUs that do not exist; each share gets one, and reports it missing.

    The first two shares end before a round, so two more are started in Ray Train's own way.
    """
    with Hosts(2) as hosts:
        hosts.start_head()
        hosts.join(hosts[1], cpus=4, gpus=2)
        where = ("--address", hosts.address, "--folds", "1,2,3")
        arguments = (*where, "--max_failures", "1", "--verbose")
        done = hosts.head.run(*command(data_dir, tmp_path, *arguments))
    assert done.returncode == 3, done.stdout + done.stderr
    up = re.findall(rf"worker up on {hosts[1].address}, pid \d+, GPU (\S+)", done.stderr)
    assert sorted(up) == ["0", "0", "1", "1"]
    dealt = dict(re.findall(r"share (\S+): dealt folds? (.*)", done.stderr))
    assert sorted(dealt.values()) == ["1, 3", "1, 3", "2", "2"]
    rows = json.loads((tmp_path / "summary.json").read_text())["folds"]
    for row in rows:
        assert f"finds no CUDA on {hosts[1].address}" in row["error"]


@pytest.mark.slow
def test_a_cluster_that_can_grow_does(data_dir: Path, tmp_path: Path) -> None:
    """Ray's own autoscaler starts nodes, which are processes: none at first, two at most."""
    grows = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    config = tmp_path / "cluster.json"
    config.write_text(json.dumps(autoscaled(most_workers=2)))
    with Hosts(1, **grows) as hosts:
        hosts.start_head("--autoscaling-config", str(config))
        with submitted(hosts, data_dir, tmp_path / "out", *UNHURRIED, "--epochs", "30") as job:
            finish(job)
    assert json.loads((tmp_path / "out/summary.json").read_text())["num_workers"] == 2
    assert_as_without_ray(tmp_path / "out", data_dir, folds=FOLDS, epochs=30, patience=EPOCHS)


@pytest.mark.slow
def test_a_search_can_be_submitted_as_a_job(
    shared_cluster: Hosts, data_dir: Path, tmp_path: Path
) -> None:
    """Trials share the cluster's slots, and Ray Tune's actors stay on the driver's node."""
    config = tmp_path / "search.toml"
    config.write_text(
        f"processed_dir = '{data_dir}'\nmodel_dir = '{tmp_path / 'out'}'\nfolds = [1, 2, 3]\n"
        "epochs = 3\nearly_stopping_patience = 1\nverbose = true\n"
        "[search]\nlearning_rate = {grid = [0.005, 0.002]}\n"
    )
    what = (sys.executable, "-m", "raykfold.search", "--config", str(config))
    hosts = shared_cluster
    job = hosts.head.start(*job_command(hosts, "submit", "--", *what, "--trial_scheduler", "none"))
    output = finish(job)
    assert len(set(re.findall(r": worker up on ([\d.]+),", output))) == 3
    for row in json.loads((tmp_path / "out/search.json").read_text())["trials"]:
        rate = row["config"]["learning_rate"]
        where = Path(row["model_dir"])
        assert_as_without_ray(
            where, data_dir, folds=FOLDS, epochs=3, patience=1, learning_rate=rate
        )


def autoscaled(most_workers: int) -> dict[str, Any]:
    """Return a cluster for `ray start --autoscaling-config`, which fills in no defaults."""
    lists = (
        *("head_setup_commands", "worker_setup_commands", "setup_commands"),
        *("initialization_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
        *("head_start_ray_commands", "worker_start_ray_commands"),
    )
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0}
    return {
        "cluster_name": "growing",
        # The nodes are processes on one address, and nothing has to be installed there.
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "max_workers": most_workers,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 5,
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {**worker, "max_workers": most_workers},
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "docker": {},
        **{name: [] for name in lists},
    }


@pytest.mark.slow
def test_each_node_copies_the_features_once(tmp_path: Path) -> None:
    """One of two nodes has no room. The other's workers die while they copy. A third comes late."""
    with Hosts(4) as hosts:
        head, whole, small, late = hosts
        own = data_of(hosts)
        for host in hosts.workers:
            host.private(own, megabytes=50 if host is small else 2000)
        size = write_large(own / "large", megabytes=200)
        scratch = own / "scratch"
        arguments = (
            *("--model", "support.networks:Idle", "--scratch_dir", str(scratch)),
            *("--epochs", "30", "--early_stopping_patience", "30"),
        )
        hosts.start_head()
        hosts.join(small, cpus=2)
        address = ("--address", hosts.address)
        done = head.run(*command(own / "large", tmp_path / "none", *arguments, *address))
        assert done.returncode == 2, done.stdout + done.stderr
        assert re.fullmatch(
            rf"raykfold: --scratch_dir {scratch}: no node sees .* or can hold a copy of its "
            rf"210 MB of features \(on {small.address}, {scratch} has \d\d MB free\); .*\n",
            done.stderr,
        )

        hosts.join(whole, cpus=2)
        with submitted(hosts, own / "large", tmp_path / "out", *arguments) as job:
            wait_for(lambda: written(whole, scratch) > 10e6, "a part of the copy")
            assert head.kill("FeatureServer", signal.SIGSTOP)
            assert 10e6 < written(whole, scratch) < size
            assert whole.kill("TrainWorker")
            assert head.kill("FeatureServer", signal.SIGCONT)
            lines = read_until(job, r"fold 1  epoch 1/")
            (copy,) = whole.files(scratch, "rkf-*/shared")
            assert copy.stat().st_size == size
            hosts.join(late, cpus=2)
            before = late.received_bytes()
            wait_for(lambda: len(late.processes("TrainWorker")) == 2, "workers on the late node")
            lines.append(finish(job))
            received = late.received_bytes() - before
        output = "".join(lines)
        for host in hosts.workers:
            assert not host.files(scratch, "rkf-*")
    room = rf"{scratch} has \d\d MB free, and a copy of the features takes 210 MB"
    left_out = rf"node {small.address} is left out: it does not see \S+/features.npy, {room}"
    assert len(re.findall(left_out, output)) == 1
    assert "quarantined" not in output
    # The late node's two workers train, be it one after the other: the folds have few epochs left.
    assert json.loads((tmp_path / "out/summary.json").read_text())["num_workers"] > 2
    assert size < received < 1.1 * size
    print(f"features {size / 1e6:.1f} MB; a late node with two workers: {received / 1e6:.1f} MB")


def write_large(folder: Path, *, megabytes: int) -> int:
    """Write data whose features are zeros but for one value; return their size in bytes."""
    features = np.zeros((megabytes * 4, 64, 1024), np.float32)
    features[0, 0, 0] = 1
    number = np.arange(len(features))
    write_feature_set(folder, features, number % 2, number // 2 % 4 + 1, {0: "low", 1: "high"}, {})
    return features.nbytes


def written(host: Host, scratch: Path) -> int:
    """Return how many bytes of a copy a host has."""
    return sum(path.stat().st_size for path in host.files(scratch, "rkf-*/[ps]*"))


@pytest.mark.slow
def test_checkpoints_can_be_in_a_bucket_that_every_node_reaches(
    shared_cluster: Hosts, data_dir: Path, tmp_path: Path
) -> None:
    """Kill a worker on the way. A store address that differs on each node is refused."""
    hosts = shared_cluster
    serve = f"exec {sys.executable} -m moto.server -H 0.0.0.0 -p 5055 >/dev/null 2>&1"
    hosts.head.start("sh", "-c", serve)
    make = (
        "from pyarrow.fs import S3FileSystem;"
        "S3FileSystem(endpoint_override='127.0.0.1:5055', scheme='http',"
        " allow_bucket_creation=True).create_dir('bucket')"
    )
    wait_for(lambda: not hosts.head.run(sys.executable, "-c", make).returncode, "a bucket")
    storage = "s3://bucket/ray?endpoint_override={}:5055&scheme=http"

    own = ("--storage_path", storage.format("127.0.0.1"), "--address", hosts.address)
    done = hosts.head.run(*command(data_dir, tmp_path / "refused", *own))
    assert done.returncode == 2, done.stdout + done.stderr
    for host in hosts.workers:
        assert host.address in done.stderr
    assert "expected a store that every node reaches" in done.stderr

    shared = ("--storage_path", storage.format(hosts.head.address))
    with submitted(hosts, data_dir, tmp_path / "out", *UNHURRIED, *shared) as job:
        lines = read_until(job, r"fold 1  epoch 2/")
        assert hosts[1].kill("TrainWorker")
        lines += read_until(job, r"the worker of folds? .* ended: Worker unexpectedly exits")
        finish(job)
    assert_as_without_ray(tmp_path / "out", data_dir, folds=FOLDS, epochs=EPOCHS, patience=EPOCHS)

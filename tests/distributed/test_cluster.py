"""The files of cluster/, checked by what reads them: Ray, KubeRay's fields, bash, our parser."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

import pytest
import ray
import yaml  # type: ignore[import-untyped]
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from raykfold.config.environment import SECRETS
from raykfold.config.run_config import parse_config

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "cluster"

pytestmark = pytest.mark.skipif(
    not CLUSTER.is_dir(), reason="an installed raykfold is without cluster/"
)


def loaded(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


# --- runtime_env.yaml: what `ray job submit --working-dir .` uploads ------------------------------


def packed(
    folder: Path, runtime_env: Mapping[str, Any], target: Path, gitignore: bool = True
) -> set[str]:
    """What Ray puts into its package of `folder`, which is left in `target`."""
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    def create(working_dir: str, excludes: list[str] | None, is_file: bool = False) -> None:
        create_package(working_dir, target, include_gitignore=gitignore, excludes=excludes)

    upload_working_dir_if_needed(
        {**runtime_env, "working_dir": str(folder)}, include_gitignore=gitignore, upload_fn=create
    )
    with zipfile.ZipFile(target) as package:
        return set(package.namelist())


LARGE = (
    ".git/objects/pack/a.pack",
    ".venv/lib/python3.11/site-packages/torch/lib/libtorch.so",
    "data/us8k/features.npy",
    "runs/us8k/checkpoints/fold_1/epoch_0.safetensors",
    "wandb/run-1/files/output.log",
    "clips/dog.wav",
    "kept.pt",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This repository as it is after some work in it."""
    folder = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", ".venv", "data", "runs", "wandb", "*_cache")
    shutil.copytree(REPOSITORY, folder, ignore=ignored, symlinks=True)
    for name in LARGE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(1 << 20))
    (folder / ".env").write_text("HF_TOKEN=hf_secret")
    return folder


def test_the_upload_of_a_checkout_is_small_and_holds_the_code(
    checkout: Path, tmp_path: Path
) -> None:
    package = tmp_path / "package.zip"
    names = packed(checkout, loaded("runtime_env.yaml"), package)
    assert {"raykfold/run.py", "raykfold/py.typed", "pyproject.toml"} <= names
    assert names.isdisjoint({*LARGE, ".env"})
    assert not any(re.match(r"\.(git|venv)/|data/|runs/|wandb/", name) for name in names)
    assert package.stat().st_size < 3 << 20  # the code and its tests, 2.2 MB


def test_it_is_small_as_well_where_nothing_is_ignored(checkout: Path, tmp_path: Path) -> None:
    """A project of somebody who has no .gitignore, or tells Ray not to look at it."""
    names = packed(checkout, loaded("runtime_env.yaml"), tmp_path / "a.zip", gitignore=False)
    assert "raykfold/run.py" in names and names.isdisjoint({*LARGE, ".env"})

    without = packed(checkout, {}, tmp_path / "b.zip", gitignore=False)
    assert {"data/us8k/features.npy", "kept.pt", ".env"} <= without


def test_the_runtime_env_is_one_and_holds_no_secrets() -> None:
    runtime_env = loaded("runtime_env.yaml")
    assert set(RuntimeEnv(**runtime_env)) <= {"excludes", "env_vars"}  # so no pip, no conda
    assert not set(runtime_env.get("env_vars", {})) & set(SECRETS)


# --- ray-cluster.yaml: Ray's own check ------------------------------------------------------------


def checked_by_ray(config: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_the_launcher_takes_the_cluster_file() -> None:
    prepared = checked_by_ray(loaded("ray-cluster.yaml"))
    head = prepared["available_node_types"][prepared["head_node_type"]]
    workers = prepared["available_node_types"]["gpu"]
    assert head["max_workers"] == 0 and head["resources"] == {"CPU": 0}
    assert 0 <= workers["min_workers"] <= workers["max_workers"] == prepared["max_workers"]
    commands = [text for key, texts in prepared.items() if "commands" in key for text in texts]
    assert not any("nightly" in text or "ray[" in text for text in commands)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("available_node_types", "gpu", "min_worker"), 1),  # for min_workers
        (("available_node_types", "gpu", "min_workers"), 11),  # of max_workers: 10
        (("docker", "options"), []),  # for run_options
    ],
)
def test_the_launcher_would_refuse_a_wrong_one(path: tuple[str, ...], value: Any) -> None:
    config = loaded("ray-cluster.yaml")
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(Exception) as refused:  # noqa: PT011  (each kind of its own)
        checked_by_ray(config)
    assert not isinstance(refused.value, KeyError)


def test_each_node_of_the_launcher_has_the_token() -> None:
    config = loaded("ray-cluster.yaml")
    variables = dict(
        option.removeprefix("--env ").split("=", 1)
        for option in config["docker"]["run_options"]
        if option.startswith("--env ")
    )
    assert variables["RAY_AUTH_MODE"] == "token"
    assert str(Path(variables["RAY_AUTH_TOKEN_PATH"]).parent) in config["file_mounts"]


# --- rayjob.yaml: the fields that KubeRay documents -----------------------------------------------

# From the reference of ray.io/v1 (KubeRay 1.6 and 1.7), and of Kubernetes where it refers to that:
# what the file uses and what stands beside it there. A field that ends in ! is required.
QUANTITY = (str, int)


class MapOf:
    """Any keys, with values of one kind."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind


class OneOf:
    def __init__(self, *choices: str) -> None:
        self.choices = choices


RESOURCES = {"requests": MapOf(QUANTITY), "limits": MapOf(QUANTITY)}
SECRET_KEY = {"name!": str, "key!": str, "optional": bool}
CONTAINER = {
    "name!": str,
    "image": str,
    "imagePullPolicy": OneOf("Always", "IfNotPresent", "Never"),
    "command": [str],
    "args": [str],
    "env": [{"name!": str, "value": str, "valueFrom": {"secretKeyRef": SECRET_KEY}}],
    "envFrom": [{"secretRef": {"name!": str, "optional": bool}}],
    "resources": RESOURCES,
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool, "subPath": str}],
}
POD_TEMPLATE = {
    "metadata": {"labels": MapOf(str), "annotations": MapOf(str)},
    "spec!": {
        "containers!": [CONTAINER],
        "initContainers": [CONTAINER],
        "imagePullSecrets": [{"name!": str}],
        "nodeSelector": MapOf(str),
        "securityContext": {
            "runAsUser": int,
            "runAsGroup": int,
            "runAsNonRoot": bool,
            "fsGroup": int,
        },
        "serviceAccountName": str,
        "tolerations": [
            {
                "key": str,
                "operator": OneOf("Exists", "Equal"),
                "value": str,
                "effect": OneOf("NoSchedule", "PreferNoSchedule", "NoExecute"),
            }
        ],
        "volumes": [
            {
                "name!": str,
                "persistentVolumeClaim": {"claimName!": str, "readOnly": bool},
                "emptyDir": {"medium": str, "sizeLimit": QUANTITY},
            }
        ],
    },
}
RAY_JOB = {
    "apiVersion!": OneOf("ray.io/v1"),
    "kind!": OneOf("RayJob"),
    "metadata!": {"name!": str, "namespace": str, "labels": MapOf(str), "annotations": MapOf(str)},
    "spec!": {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "rayClusterSpec": {
            "authOptions": {"mode": OneOf("disabled", "token"), "secretName": str},
            "autoscalerOptions": {
                "resources": RESOURCES,
                "image": str,
                "imagePullPolicy": str,
                "idleTimeoutSeconds": int,
                "upscalingMode": OneOf("Default", "Aggressive", "Conservative"),
                "version": OneOf("v1", "v2"),
            },
            "enableInTreeAutoscaling": bool,
            "headGroupSpec!": {
                "enableIngress": bool,
                "rayStartParams": MapOf(str),
                "serviceType": OneOf("ClusterIP", "NodePort", "LoadBalancer"),
                "template!": POD_TEMPLATE,
            },
            "headServiceAnnotations": MapOf(str),
            "rayVersion": str,
            "suspend": bool,
            "workerGroupSpecs": [
                {
                    "groupName!": str,
                    "idleTimeoutSeconds": int,
                    "maxReplicas!": int,
                    "minReplicas!": int,
                    "numOfHosts": int,
                    "rayStartParams": MapOf(str),
                    "replicas": int,
                    "template!": POD_TEMPLATE,
                }
            ],
        },
        "submitterPodTemplate": POD_TEMPLATE,
        "submitterConfig": {"backoffLimit": int},
        "metadata": MapOf(str),
        "clusterSelector": MapOf(str),
        "entrypoint": str,
        "entrypointNumCpus": (int, float),
        "entrypointNumGpus": (int, float),
        "entrypointResources": str,
        "runtimeEnvYAML": str,
        "jobId": str,
        "shutdownAfterJobFinishes": bool,
        "submissionMode": OneOf("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
    },
}


def wrong_fields(value: Any, kind: Any, where: str = "") -> Iterator[str]:
    """What of `value`, from YAML, is not as the table has it."""
    match kind:
        case dict() if isinstance(value, dict):
            known = {name.removesuffix("!"): each for name, each in kind.items()}
            required = {name.removesuffix("!") for name in kind if name.endswith("!")}
            yield from (f"{where}.{name}: unknown" for name in value.keys() - known.keys())
            yield from (f"{where}.{name}: missing" for name in required - value.keys())
            for name in value.keys() & known.keys():
                yield from wrong_fields(value[name], known[name], f"{where}.{name}")
        case MapOf() if isinstance(value, dict):
            for name, each in value.items():
                yield from wrong_fields(each, kind.kind, f"{where}.{name}")
        case list() if isinstance(value, list):
            for index, each in enumerate(value):
                yield from wrong_fields(each, kind[0], f"{where}[{index}]")
        case OneOf():
            if value not in kind.choices:
                yield f"{where}: {value!r} is none of {kind.choices}"
        case type() | tuple():
            kinds = kind if isinstance(kind, tuple) else (kind,)
            if type(value) not in kinds:  # not isinstance: True is an int there
                yield f"{where}: {value!r} is no {kind}"
        case _:
            yield f"{where}: {value!r} is of the wrong kind"


def test_the_ray_job_has_the_fields_that_kuberay_documents() -> None:
    assert list(wrong_fields(loaded("rayjob.yaml"), RAY_JOB)) == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda job: job["spec"].update(backofLimit=1), ".spec.backofLimit: unknown"),
        (lambda job: job["spec"].pop("rayClusterSpec") and job.pop("kind"), ".kind: missing"),
        (
            lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(
                {"num-cpus": 0}
            ),
            ".spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus: 0 is no <class 'str'>",
        ),
        (
            lambda job: job["spec"]["rayClusterSpec"].update(workerGroupSpecs={}),
            ".spec.rayClusterSpec.workerGroupSpecs: {} is of the wrong kind",
        ),
    ],
)
def test_a_wrong_ray_job_would_be_found(change: Callable[[Any], Any], wrong: str) -> None:
    job = loaded("rayjob.yaml")
    change(job)
    assert list(wrong_fields(job, RAY_JOB)) == [wrong]


def test_the_ray_job_is_a_run_on_gpus_that_can_be_retried() -> None:
    spec = loaded("rayjob.yaml")["spec"]
    program, *arguments = shlex.split(spec["entrypoint"])[2:]
    config = parse_config(arguments, {})
    assert program == "raykfold.run"
    runtime_env = RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))
    parse_config(arguments, runtime_env["env_vars"])
    assert not set(runtime_env["env_vars"]) & set(SECRETS)

    head = spec["rayClusterSpec"]["headGroupSpec"]
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert config.use_gpu  # which the cluster need not have when the run starts
    assert 0 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (head, workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        claims = {each["name"] for each in pod["volumes"] if "persistentVolumeClaim" in each}
        for path in (config.processed_dir, config.model_path):
            above = Path(str(path)).parents
            assert any(mounted.get(str(parent)) in claims for parent in above)
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "env" not in container  # and so no secrets


# --- Dockerfile -----------------------------------------------------------------------------------


def test_the_image_is_of_our_ray_and_is_given_what_it_copies() -> None:
    lines = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    arguments = dict(rest.split("=") for step, rest in steps if step == "ARG" and "=" in rest)
    (image,) = (Template(rest).substitute(arguments) for step, rest in steps if step == "FROM")
    assert image == f"rayproject/ray:{ray.__version__}-py311-gpu"
    assert [rest for step, rest in steps if step == "USER"] == []  # Ray's image is not root's
    copied = [
        name
        for step, rest in steps
        if step == "COPY"
        for name in rest.split()[:-1]
        if not name.startswith("--")
    ]
    assert all((REPOSITORY / name).exists() for name in copied)
    assert {"raykfold", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"} == set(copied)


def test_all_speak_of_the_same_version_of_ray() -> None:
    constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(rf"^ray=={re.escape(ray.__version__)}\s", constraints, re.MULTILINE)
    assert loaded("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__


# --- slurm.sh, with commands that stand for Slurm's -----------------------------------------------

SCRIPT = CLUSTER / "slurm.sh"

# A step runs its command once for each task, and a signal to it goes to each.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$CALLS"
tasks=1
while [[ $1 == --* ]]; do
  case $1 in --ntasks=*) tasks=${1#*=} ;; esac
  shift
done
pids=()
for ((task = 0; task < tasks; task++)); do
  SLURM_PROCID=$task "$@" &
  pids+=($!)
done
trap 'kill "${pids[@]}"' TERM
wait "${pids[@]}"
wait "${pids[@]}"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$CALLS"
[[ $1 != show ]] || printf '%s\\n' node-1 node-2 node-3
"""
# In Ray's and raykfold's place; anything else goes to the real one.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"scripts start"*)
    echo "node $* token=$(cat "$RAY_AUTH_TOKEN_PATH") HF_TOKEN=${HF_TOKEN-}" >>"$CALLS"
    [[ $* != *$BROKEN* ]] || { echo "no room for Ray"; exit 1; }
    echo "Ray runtime started"
    sleep 60 &
    trap "kill $!; echo node stopped >>'$CALLS'; exit 0" TERM
    wait $!
    ;;
  *raykfold.run*)
    stat -c 'mode %a' "$RAY_AUTH_TOKEN_PATH" >>"$CALLS"
    sleep 60 &
    trap "kill $!; echo run stopped >>'$CALLS'; exit 130" TERM
    echo "run $* HF_TOKEN=${HF_TOKEN-}" >>"$CALLS"
    [[ $* == *"--wait"* ]] || { kill $!; exit 3; }
    wait $!
    ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""


class Allocation:
    """What sbatch gives to a script: variables, and commands on the path."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.calls = folder / "calls"
        self.temporary = folder / "tmp"
        binaries = folder / "bin"
        for each in (self.home, self.temporary, binaries):
            each.mkdir()
        self.calls.touch()
        self.process: subprocess.Popen[str] | None = None
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "fake-python": PYTHON}.items():
            (binaries / name).write_text(text)
            (binaries / name).chmod(0o755)
        self.job = f"{os.getpid()}{time.monotonic_ns() % 1000:03}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYKFOLD_"))}
        self.environment = kept | {
            "PATH": f"{binaries}:{kept['PATH']}",
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "CALLS": str(self.calls),
            "SLURM_JOB_ID": self.job,
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_JOB_NODELIST": "node-[1-3]",
            "SLURM_CPUS_PER_TASK": "1",
            "HF_TOKEN": "hf_secret",
            "REAL_PYTHON": sys.executable,
            "BROKEN": "nothing",
            "PYTHON": "fake-python",
        }

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment | changes,
        )
        return self.process

    def lines(self) -> list[str]:
        return self.calls.read_text().splitlines()

    def wait_for(self, start: str) -> None:
        deadline = time.monotonic() + 30
        while not any(line.startswith(start) for line in self.lines()):
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.05)

    def left(self) -> list[Path]:
        """What a job that is over has left behind."""
        own = {self.home / folder / "matplotlib" for folder in (".cache", ".config")}  # its fonts
        files = [path for path in self.home.rglob("*") if path.is_file()]
        places = [path for path in files if not own & {*path.parents}]
        places += self.temporary.glob("raykfold-*")  # torch leaves its own
        return places + list(Path("/tmp").glob(f"rkf-{self.job}*"))


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    given = Allocation(tmp_path)
    yield given
    if given.process is not None and given.process.poll() is None:  # after a failure
        given.process.terminate()
        given.process.communicate(timeout=60)


def test_the_script_is_well_formed() -> None:
    assert SCRIPT.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SCRIPT)], check=True)


def test_a_job_starts_a_head_and_workers_and_takes_them_down(allocation: Allocation) -> None:
    job = allocation.start("--epochs", "2", "--model_dir", "/shared/a b")
    _, error = job.communicate(timeout=60)
    assert job.returncode == 3, error  # raykfold's own
    lines = allocation.lines()
    address = re.search(r"Ray at (\S+), 3 of 3 nodes", error)
    assert address, error

    head, *workers = [line for line in lines if line.startswith("node ") and " start " in line]
    assert "--head" in head and len(workers) == 2
    assert all(f"--address={address[1]}" in line for line in workers)
    folders = {re.search(r"--temp-dir=(\S+)", line)[1] for line in (head, *workers)}  # type: ignore[index]
    assert len(folders) == 3
    tokens = {re.search(r"token=(\w+)", line)[1] for line in (head, *workers)}  # type: ignore[index]
    assert [len(token) for token in tokens] == [64]
    assert not any("hf_secret" in line for line in (head, *workers))

    (run,) = [line for line in lines if line.startswith("run -m")]
    assert f"--address {address[1]} --epochs 2 --model_dir /shared/a b HF_TOKEN=hf_secret" in run
    assert "mode 600" in lines
    assert lines.count("node stopped") == 3
    assert not any("requeue" in line for line in lines)
    assert allocation.left() == []


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_job_whose_time_is_up_stops_its_run_and_is_queued_again(
    allocation: Allocation, number: signal.Signals, again: bool
) -> None:
    """Slurm sends USR1 when time is nearly up; TERM is somebody's or Slurm's own decision."""
    job = allocation.start("--wait")
    allocation.wait_for("run -m")
    job.send_signal(number)
    _, error = job.communicate(timeout=60)
    assert job.returncode == 130, error
    lines = allocation.lines()
    assert lines.count("run stopped") == 1 and lines.count("node stopped") == 3
    assert (lines[-1] == f"scontrol requeue {allocation.job}") == again
    assert allocation.left() == []


def test_a_head_that_does_not_start_ends_the_job_with_what_it_said(allocation: Allocation) -> None:
    job = allocation.start(BROKEN="--head")
    _, error = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "no room for Ray" in error and "Ray did not start on node-1" in error
    assert not any(line.startswith("run") for line in allocation.lines())
    assert allocation.left() == []


@pytest.mark.slow
def test_a_job_makes_do_with_the_nodes_that_come(allocation: Allocation) -> None:
    job = allocation.start(BROKEN="--address")
    _, error = job.communicate(timeout=60)
    assert job.returncode == 3, error
    assert "no room for Ray" in error and "1 of 3 nodes" in error


@pytest.mark.slow
def test_a_job_runs_raykfold_on_a_ray_of_its_own(allocation: Allocation) -> None:
    """A head and a worker node, both on this host: all but Slurm's commands are the real ones."""
    with tempfile.TemporaryDirectory(prefix="rkt-", dir="/tmp") as folder:
        job = allocation.start(
            *("--demo", "--epochs", "1", "--folds", "1,2", "--model_dir", f"{folder}/out"),
            PYTHON=sys.executable,
            SLURM_JOB_NUM_NODES="2",
            PYTHONPATH=str(REPOSITORY),
        )
        output, error = job.communicate(timeout=240)
        assert job.returncode == 0, output + error
        assert "2 of 2 nodes" in error
        assert Path(folder, "out/summary.json").exists()
    assert allocation.left() == []


# --- README.md ------------------------------------------------------------------------------------


def test_each_file_has_its_section() -> None:
    text = (CLUSTER / "README.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## `(\S+)`", text, re.MULTILINE)
    files = {path.name for path in CLUSTER.iterdir()} - {"README.md"}
    assert set(sections) == files and len(sections) == len(files)

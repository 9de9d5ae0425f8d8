"""What the driver can import, a worker can: through files, in processes without a Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from ray import cloudpickle

import raykfold
from raykfold.distributed.code import DriverCode
from raykfold.errors import BadInput
from raykfold.outputs.weights import load_fold

NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self, n_mels, num_classes, target_len, width=8):
        super().__init__()
        self.out = torch.nn.Linear(n_mels, num_classes)

    def forward(self, x):
        return scaled(self.out(x.mean(-1)))

class Outer:
    class Net(Net):
        pass

def scaled(x):
    return x * helper.SCALE
"""
GUARDED = NETWORK.replace("return scaled(", "with lock:\n            return scaled(")
# A script without a guard: whoever imports it runs it.
SCRIPT = f"""
import sys

here, target = sys.argv[1:]
sys.path.insert(0, f"{{here}}/first")
sys.path.append(f"{{here}}/last")
import helper
{NETWORK}
import importlib.util
import pickle
from pathlib import Path

from raykfold.config.run_config import RunConfig
from raykfold.distributed.code import DriverCode, import_task

spec = importlib.util.spec_from_file_location("loaded", f"{{here}}/elsewhere/loaded.py")
loaded = sys.modules["loaded"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loaded)
import mine

classes = (Net, Outer.Net, mine.Outer.Net, loaded.Net)
configs = [RunConfig(demo=True, model=network) for network in classes]
code = DriverCode.of(each.model for each in configs)
import json
from ray import cloudpickle
task = cloudpickle.dumps(import_task())
values = (code.before, code.after, code.classes, dict(code.by_value))
Path(target).write_bytes(pickle.dumps((code, [each.model for each in configs])))
Path(f"{{target}}.task").write_bytes(pickle.dumps((task, values)))
print(json.dumps([each.command() for each in configs]))
"""
WORKER = """
import pickle
import sys
from pathlib import Path

import torch

from raykfold.training.network import build_model

code, models = pickle.loads(Path(sys.argv[1]).read_bytes())
code.load()
for model in models:
    print(model, *build_model(model, (4, 5), 3)(torch.zeros(2, 4, 5)).shape)
import colorsys  # of the library, though a folder that the driver searches last has it too
print(*colorsys.rgb_to_hsv(0, 0, 0))
"""
NODE = """
import os
import pickle
import sys
from pathlib import Path

def outcome():
    task, values = pickle.loads(Path(sys.argv[1]).read_bytes())
    return pickle.loads(task)(*values)

print(outcome())
os.remove(Path(sys.argv[2]) / "first" / "mine.py")
sys.modules.pop("mine")
print(outcome())
sys.modules["raykfold"] = None  # as where it is not installed
print(outcome())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("first", "last", "elsewhere", "cwd"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "mine.py").write_text(f"import helper\n{NETWORK}")
    (tmp_path / "last" / "helper.py").write_text("SCALE = 2.0")
    (tmp_path / "last" / "colorsys.py").write_text("raise ImportError('not the library')")
    (tmp_path / "elsewhere" / "loaded.py").write_text(f"import helper\n{NETWORK}")
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def python(folder: Path, *arguments: object) -> list[str]:
    """Return the lines that a Python prints which has none of the folders on its path."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder / "cwd",
        env={**os.environ, "PYTHONPATH": str(Path(raykfold.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_worker_builds_what_only_the_driver_can_import(folder: Path) -> None:
    """A class of a script, one within another, and modules off the path."""
    (commands,) = python(folder, folder / "train.py", folder, folder / "code")
    names = ["__main__:Net", "__main__:Outer.Net", "mine:Outer.Net", "loaded:Net"]
    shapes = [f"{name} 2 3" for name in names]
    assert python(folder, "-c", WORKER, folder / "code") == [*shapes, "0.0 0.0 0"]

    # The commands that resume: the script's own where it has the class, else one with a path.
    # The script's arguments may be secret, and a page shows the command.
    script, nested, mine, _ = json.loads(commands)
    assert script == nested == ["python", str(folder / "train.py")]
    assert mine[0] == "env" and mine[1].startswith(f"PYTHONPATH={folder / 'first'}{os.pathsep}")
    assert mine[2:5] == ["python", "-m", "raykfold.run"] and "mine:Outer.Net" in mine

    # What a node is asked, which then lacks a module, and raykfold itself.
    every, without, nothing = python(folder, "-c", NODE, folder / "code.task", folder)
    assert every == "None"
    assert without.startswith("('--model mine:Outer.Net', \"ModuleNotFoundError")
    assert nothing.startswith("('raykfold', 'ModuleNotFoundError")


def test_a_class_that_cannot_be_sent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("loaded")
    exec(f"import threading\nlock = threading.Lock()\n{GUARDED}", vars(module))
    monkeypatch.setitem(sys.modules, "loaded", module)
    with pytest.raises(BadInput, match=r"--model loaded:Net: cannot be sent .*lock"):
        DriverCode.of(["loaded:Net(width=3)"])


def load(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load a file by its path, as a module of any name."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the import path with a module and a package."""
    (folder / "first" / "package").mkdir()
    (folder / "first" / "package" / "__init__.py").write_text("")
    (folder / "first" / "package" / "part.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(folder / "last")
    monkeypatch.syspath_prepend(folder / "first")
    return folder / "first"


@pytest.mark.parametrize("name", ["mine", "package.part", "nowhere.part"])
def test_a_class_loaded_by_its_path_is_sent_whatever_else_has_its_name(
    name: str, folder: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(name, folder / "elsewhere" / "loaded.py", monkeypatch)
    code = DriverCode.of([f"{name}:Net"])
    assert list(code.by_value) == [f"{name}:Net"]
    monkeypatch.delitem(sys.modules, name)
    assert pickle.loads(code.by_value[f"{name}:Net"])(4, 3, 5)(torch.zeros(2, 4, 5)).shape == (2, 3)


@pytest.mark.parametrize("name", ["mine", "package.part"])
def test_an_imported_class_is_not_sent(
    name: str, on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in (name, name.partition(".")[0]):
        monkeypatch.delitem(sys.modules, part, raising=False)
    before = DriverCode.of([f"{name}:Net"])
    importlib.import_module(name)
    after = DriverCode.of([f"{name}:Net"])
    for part in (name, name.partition(".")[0]):
        monkeypatch.delitem(sys.modules, part, raising=False)
    assert before == after and list(after.classes) == [f"{name}:Net"] and not after.by_value


def test_what_the_user_sends_by_value_stays_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder / "last")
    module = load("loaded", folder / "elsewhere" / "loaded.py", monkeypatch)
    cloudpickle.register_pickle_by_value(module)
    try:
        assert DriverCode.of(["loaded:Net"]).by_value
        assert "loaded" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert DriverCode.of(["loaded:Net"]).by_value
    assert "loaded" not in cloudpickle.list_registry_pickle_by_value()


@pytest.mark.slow
def test_a_script_without_a_guard_trains_its_own_class(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on from there when it is run again, with more epochs."""
    model_dir = folder / "out"
    (folder / "train.py").write_text(
        f"import sys\n{NETWORK.replace('helper.SCALE', '2.0')}\n"
        "from raykfold import RunConfig, cross_validate\n"
        "options = {'demo': True, 'folds': [1], 'local_cpus': '1', 'model': Outer.Net}\n"
        "config = RunConfig(epochs=sys.argv[2], model_dir=sys.argv[1], **options)\n"
        "summary = cross_validate(config)\n"
        "print(summary.status, summary.folds[0].epochs_run)\n"
    )
    for epochs in (1, 2):
        assert python(folder, folder / "train.py", model_dir, epochs) == [f"complete {epochs}"]
    module = ModuleType("train")
    exec(NETWORK.replace("helper.SCALE", "2.0"), vars(module))
    monkeypatch.setitem(sys.modules, "train", module)
    fold = load_fold(model_dir, 1, model="train:Outer.Net")
    assert type(fold.model) is module.Outer.Net and fold.epoch in (0, 1)

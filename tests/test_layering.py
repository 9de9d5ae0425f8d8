"""Which module may import what, over every import there is: also those within functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import raykfold

PACKAGE = Path(raykfold.__file__).parent

# A module imports only modules that stand above it. A new module is put where it belongs; some
# stand here before they are written.
ORDER = (
    "errors",
    "scratch",
    "remote",
    "paths",
    "command",
    "blueprint",
    "config",
    "space",
    "credentials",
    "environment",
    "files",
    "statistics",
    "results",
    "pickles",
    "data",
    "leakage",
    "features",
    "demo",
    "fusion",
    "models",
    "streams",
    "pace",
    "steps",
    "training",
    "checkpoint",
    "lease",
    "storage",
    "shares",
    "deaths",
    "observers",
    "artifacts",
    "archive",
    "pulse",
    "outbox",
    "ledger",
    "trials",
    "figures",
    "page",
    "report",
    "overview",
    "repository",
    "card",
    "hub",
    "tracking",
    "tensorboard",
    "weights",
    "session",
    "nodes",
    "autoscaling",
    "events",
    "relay",
    "worker",
    "trainer",
    "dealer",
    "driver",
    "scoreboard",
    "tuning",
    "findings",
    "bridge",
    "campaign",
    "run",
    "prepare",
    "predict",
    "status",
    "compare",
    "search",
)

# Libraries that only some modules know, so that the rest runs and is tested without them.
ONLY_IN = {
    "ray": {
        *("session", "nodes", "autoscaling", "events", "relay", "worker", "trainer"),
        *("dealer", "driver", "scoreboard", "tuning", "prepare"),
    },
    "huggingface_hub": {"repository", "card"},
    "wandb": {"tracking"},
    "sklearn": {"statistics"},
    "scipy": {"statistics"},
    "matplotlib": {"figures"},
    "jinja2": {"page"},
    "tensorboardX": {"tensorboard"},
    "pyarrow": {"remote"},
    "librosa": {"features"},
    "soundfile": {"features"},
}

SOURCES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = [name for name in SOURCES if name != "__init__"]  # which names what others hold


def imported(source: str) -> set[str]:
    """Every name that is imported, in full: `from a.b import c` is a.b.c."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["raykfold"] if node.level else []
            parts = [*package, *([node.module] if node.module else [])]
            names |= {".".join([*parts, alias.name]) for alias in node.names}
    return names


def libraries(source: str) -> set[str]:
    return {name.partition(".")[0] for name in imported(source)}


def misplaced(module: str, source: str) -> set[str]:
    """What `module`, if this is its source, imports from the package and may not."""
    allowed = {*ORDER[: ORDER.index(module)], "__version__"}
    ours = {name for name in imported(source) if f"{name}.".startswith("raykfold.")}
    return {name for name in ours if f"{name}.".split(".")[1] not in allowed}


def test_every_module_has_its_place() -> None:
    assert MODULES
    assert set(MODULES) <= set(ORDER), "a new module has to be put into ORDER"
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    assert misplaced(module, SOURCES[module]) == set()


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    importers = {module for module, source in SOURCES.items() if library in libraries(source)}
    assert importers <= ONLY_IN[library]


@pytest.mark.parametrize(
    "line",
    [
        "import raykfold.driver",
        "from raykfold.driver import cross_validate",
        "from raykfold import driver",
        "from raykfold import cross_validate",
        "from .driver import cross_validate",
        "from . import driver",
        "import raykfold",
        "from raykfold.data import read_feature_set",
    ],
)
def test_an_import_of_what_stands_below_is_found_within_a_function(line: str) -> None:
    assert misplaced("data", f"def inner():\n    {line}\n") != set()


@pytest.mark.parametrize("line", ["from raykfold.errors import BadData", "import numpy as np"])
def test_other_imports_are_let_through(line: str) -> None:
    assert misplaced("data", line) == set()


@pytest.mark.parametrize("line", ["import ray.train", "from ray import train", "import ray as r"])
def test_an_import_of_a_library_is_found_within_a_function(line: str) -> None:
    assert libraries(f"def inner():\n    {line}\n") == {"ray"}

"""Which folder may import which, and which library, over every import: also within functions."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import raykfold

PACKAGE = Path(raykfold.__file__).parent

# A folder, or a module beside the folders, imports only from those named before it.
ORDER = (
    *("errors", "text", "files", "config", "data"),
    *("training", "models", "observers", "state", "distributed"),
    *("pages", "outputs", "driver", "tuning", "commands"),
)
COMMANDS = ("run", "prepare", "search", "predict", "status", "report", "compare", "hub", "__main__")
# What stands before a folder, and is not for it all the same.
NOT_FOR = {"pages": "distributed", "outputs": "distributed"}
# Libraries that only these folders (or commands) know, so that the rest runs without them.
ONLY_IN = {
    "ray": {"distributed", "tuning", "prepare"},
    "torch": {"data", "training", "models", "state", "distributed", "outputs"},
    "huggingface_hub": {"outputs"},
    "wandb": {"outputs"},
    "IPython": {"outputs"},
    "tensorboardX": {"outputs"},
    "matplotlib": {"pages"},
    "jinja2": {"pages"},
    "pyarrow": {"files", "data"},
    "scipy": {"training"},
    "pandas": {"training"},
    "sklearn": {"data", "training"},
    "librosa": {"data"},
    "soundfile": {"data"},
}


def imports(source: str) -> set[str]:
    """Return every imported name in full: `from a.b import c` is a.b.c."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["raykfold"] if node.level else []
            parts = [*package, *([node.module] if node.module else [])]
            names |= {".".join([*parts, alias.name]) for alias in node.names}
    return names


def home(module: str) -> str:
    """Return the entry of `ORDER` for a module, like files.paths, or for a folder."""
    first = module.partition(".")[0]
    return "commands" if first in COMMANDS else first


def violations(module: str, source: str) -> set[str]:
    """Return what a module with this source imports from the package although it may not."""
    here = home(module)
    allowed = {*ORDER[: ORDER.index(here) + 1], "__version__"} - {NOT_FOR.get(here)}
    if here in ("commands", "errors", "text", "observers", "models", "driver"):
        allowed -= {here}  # each is a module by itself, and commands do not import each other
    ours = {name for name in imports(source) if f"{name}.".startswith("raykfold.")}
    return {name for name in ours if home(f"{name}.".split(".", 1)[1]) not in allowed}


SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"  # which names what others define
}


def test_the_package_has_these_folders_and_modules_and_no_others() -> None:
    found = {module.partition(".")[0] for module in SOURCES}
    assert found == {*ORDER, *COMMANDS} - {"commands"}


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_from_folders_named_before_its_own(module: str) -> None:
    assert violations(module, SOURCES[module]) == set()


def test_imports_make_no_circle() -> None:
    names = set(SOURCES)

    def needs(source: str) -> set[str]:
        ours = {name.removeprefix("raykfold.") for name in imports(source)}
        return {name if name in names else name.rpartition(".")[0] for name in ours} & names

    order = TopologicalSorter({module: needs(source) for module, source in SOURCES.items()})
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    importers = {
        module.partition(".")[0]
        for module, source in SOURCES.items()
        if library in {name.partition(".")[0] for name in imports(source)}
    }
    assert importers <= ONLY_IN[library]


@pytest.mark.parametrize(
    "line",
    [
        "import raykfold.driver",
        "from raykfold.driver import cross_validate",
        "from raykfold.state import ledger",
        "from raykfold import cross_validate",
        "from ..state.ledger import Ledger",
        "import raykfold",
        "from raykfold.run import main",
    ],
)
def test_an_import_of_a_later_folder_is_found_within_a_function(line: str) -> None:
    assert violations("data.feature_set", f"def inner():\n    {line}\n") != set()


@pytest.mark.parametrize(
    "line", ["from raykfold.errors import BadData", "from raykfold.files.paths import RunDir"]
)
def test_an_import_of_an_earlier_folder_is_allowed(line: str) -> None:
    assert violations("data.feature_set", line) == set()


@pytest.mark.parametrize("line", ["import ray.train", "from ray import train", "import ray as r"])
def test_an_import_of_a_library_is_found_within_a_function(line: str) -> None:
    assert {name.partition(".")[0] for name in imports(f"def inner():\n    {line}\n")} == {"ray"}

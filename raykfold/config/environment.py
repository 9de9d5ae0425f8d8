"""What processes find in their environment, and where they find modules.

Secrets stay with the driver, workers get the rest.

Secrets of outside services come from the environment (or from the services' own logins, which read
files). A process that Ray starts inherits the environment, so they are taken out of it before Ray
starts.
"""

from __future__ import annotations

import operator
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from raykfold.errors import BadInput
from raykfold.files.remote import without_password

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")

# glibc returns large blocks to the kernel as soon as they are free, and a training step frees all
# of its activations: each step then gets its memory anew, with a page fault for every 4 KiB, which
# can take as long as the arithmetic. glibc reads these variables when a process starts
# (mallopt(3)); other C libraries ignore them. Setting them from within the process would be too
# late: the arena of a thread that is not the first is limited to 64 MiB.
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}


@dataclass(frozen=True)
class Credentials:
    """Secrets of outside services; None where the environment has none."""

    hf_token: str | None = field(default=None, repr=False)
    wandb_api_key: str | None = field(default=None, repr=False)


@contextmanager
def without_secrets(environ: MutableMapping[str, str]) -> Iterator[Credentials]:
    """Take the secrets out of `environ` while the context lasts, and yield them.

    Raises:
        BadInput: a secret has a character that no secret has; a client would show it in an error.
    """
    taken = {name: environ.pop(name) for name in SECRETS if name in environ}
    try:
        for name, secret in taken.items():
            if not re.fullmatch(r"[!-~]*", secret.strip()):
                raise BadInput(
                    f"environment variable {name}: holds white space or a control character; "
                    "expected the secret alone"
                )
        hub, older_hub, wandb = (taken.get(name, "").strip() or None for name in SECRETS)
        yield Credentials(hf_token=hub or older_hub, wandb_api_key=wandb)
    finally:
        environ.update(taken)


def allocator(environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables that let a process keep freed memory; values in `environ` win."""
    return {name: environ.get(name, value) for name, value in _ALLOCATOR.items()}


def worker_runtime_env(own_instance: bool) -> dict[str, Any]:
    """Return Ray's `runtime_env` of a worker, which hides secrets and sets the allocator.

    A submitted job's environment is also that of its workers, and a cluster's nodes may have been
    started with secrets. A local instance of our own starts without them, and with the allocator's
    settings.
    """
    if own_instance:
        return {}
    variables = {**dict.fromkeys(SECRETS, ""), **_ALLOCATOR, "RAY_TRAIN_V2_ENABLED": "1"}
    return {"env_vars": variables}


def home_is_writable() -> bool:
    """Return whether this user has a home directory, and may write there."""
    home = os.path.expanduser("~")
    return os.path.isabs(home) and os.access(home, os.W_OK | os.X_OK)


def import_path() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the folders where this process finds modules that are not installed.

    Returns:
        Those that are searched before the folders of Python and of installed packages, and those
        that are searched after them.
    """
    paths = sysconfig.get_paths()
    packages = {paths["purelib"], paths["platlib"], *site.getsitepackages()}
    packages.add(site.getusersitepackages())
    installed = {paths["stdlib"], paths["platstdlib"], *packages}
    editable = set(_editable_installs(packages))
    before: list[str] = []
    after: list[str] = []
    folders = before
    for entry in dict.fromkeys(_searched()):
        if any(Path(entry).is_relative_to(folder) for folder in installed):
            folders = after
        elif entry not in editable and os.path.exists(entry):
            folders.append(entry)
    return tuple(before), tuple(after)


def _searched() -> Iterator[str]:
    """Yield the folders of this process's import path, from the root."""
    for entry in sys.path:
        if isinstance(entry, str):
            with suppress(FileNotFoundError):  # relative, and the working directory is gone
                yield os.path.abspath(entry)


def _editable_installs(packages: Iterable[str]) -> Iterator[str]:
    """Yield the folders that files among the installed packages add to every import path."""
    for folder in packages:
        for file in Path(folder).glob("*.pth"):
            lines: list[str] = []
            with suppress(OSError):  # Python, too, passes over a file that it cannot read
                lines = file.read_text(errors="replace").splitlines()
            for line in lines:
                yield os.path.abspath(os.path.join(folder, line.strip()))


def is_importable(module: str) -> bool:
    """Return whether a new process with this one's import path finds the same module.

    It may find another one by that name, if this process has loaded a file by its path.
    """
    parent = module.rpartition(".")[0]
    loaded, package = sys.modules.get(module), sys.modules.get(parent)
    if parent:
        if not is_importable(parent):
            return False
        if loaded is None:  # only its package can say
            return True
        if package is None:  # an import would have loaded it first
            return False
    path = getattr(package, "__path__", []) if parent else None
    finders = [finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec")]
    found = next((spec for find in finders if (spec := find(module, path)) is not None), None)
    if found is None or loaded is None:
        return found is not None
    # A module that is built in, or a folder without __init__.py, has no file.
    files = found.origin if found.has_location else None, getattr(loaded, "__file__", None)
    there, here = (file and os.path.realpath(file) for file in files)
    return there == here


def python_path(*modules: str) -> str | None:
    """Return the PYTHONPATH with which a new process finds the modules; None if it need not change.

    It adds folders that a script has added to its own import path, or where the script itself lies.
    """
    if _is_command(sys.modules["__main__"]):
        return None
    there = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    try:
        known = {os.getcwd(), *map(os.path.abspath, there)}
    except FileNotFoundError:  # a working directory that was deleted adds nothing
        return None
    added = {folder for folders in import_path() for folder in folders} - known
    more = []
    for package in (module.partition(".")[0] for module in modules):
        specs = ((entry, PathFinder.find_spec(package, [entry])) for entry in sys.path)
        found = [(entry, spec.has_location) for entry, spec in specs if spec is not None]
        # As in an import, a module wins over folders of its name without __init__.py before it.
        entry, _ = max(found, key=operator.itemgetter(1), default=(os.getcwd(), False))
        more.append(os.path.abspath(entry))
    more = [folder for folder in dict.fromkeys(more) if folder in added]
    return os.pathsep.join([*more, *there]) if more else None


def script_command(name: str | None = None) -> list[str] | None:
    """Return the command of the script that this process runs; None in a notebook.

    It is without the script's arguments: they may hold a secret, and others see the command.

    Args:
        name: a class; None is returned where the script does not define it.
    """
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None) or ""
    if _is_command(main) or not os.path.exists(file):
        return None
    try:
        operator.attrgetter(name or "__name__")(main)
    except AttributeError:
        return None
    if main.__spec__ is not None and main.__spec__.parent:  # python -m package.module
        return ["python", "-m", main.__spec__.name]
    return ["python", os.path.abspath(file)]


def _is_command(main: ModuleType) -> bool:
    """Return whether a main module is one of raykfold's commands, and not a user's script."""
    spec = getattr(main, "__spec__", None)
    return spec is not None and spec.name.startswith("raykfold.")


def name_of_address(address: str) -> str:
    """Return an address with its source: ``--address head:6379``."""
    return f"{source_of_address(address)} {without_password(address)}"


def source_of_address(address: str) -> str:
    """Return ``RAY_ADDRESS`` or ``--address``."""
    return "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") == address else "--address"

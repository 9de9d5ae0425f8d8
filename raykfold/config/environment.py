"""What a worker finds in its environment, beside what Ray puts there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raykfold.config.credentials import SECRETS

# The C library gives large blocks back to the kernel as soon as they are free, and a training step
# frees all of its activations: so each step gets its memory anew, with a page fault for every
# 4 KiB, which can take as long as the arithmetic. glibc reads these when a process starts
# (mallopt(3)); other C libraries pass them over. From within the process it would be too late: the
# arena of a thread that is not the first is limited to 64 MiB, and gives back what is larger.
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}


def allocator(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that let a process keep memory that is freed; what `environ` sets stays."""
    return {name: environ.get(name, value) for name, value in _ALLOCATOR.items()}


def worker_runtime_env(own_instance: bool) -> dict[str, Any]:
    """Ray's `runtime_env` of a worker, which hides secrets from it and sees to its memory.

    A submitted job's environment is also that of its workers, and a cluster's nodes may have been
    started with secrets. An instance of our own was started without them, and with the rest.
    """
    hidden = dict.fromkeys(SECRETS, "")
    return {} if own_instance else {"env_vars": {**hidden, **_ALLOCATOR}}

"""What processes find in their environment: secrets stay with the driver, workers get the rest.

Secrets of outside services come from the environment (or from the services' own logins, which read
files). A process that Ray starts inherits the environment, so they are taken out of it before Ray
starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from raykfold.errors import BadInput

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
    return {} if own_instance else {"env_vars": {**dict.fromkeys(SECRETS, ""), **_ALLOCATOR}}

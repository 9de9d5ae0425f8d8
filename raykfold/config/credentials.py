"""The secrets of outside services, kept where only the driver can use them.

They come from the environment (or from the services' own logins, which read files). A process that
Ray starts inherits the environment: so they are taken out of it before Ray is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from raykfold.errors import BadInput

_HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_WANDB = ("WANDB_API_KEY",)
SECRETS = (*_HUB, *_WANDB)


@dataclass(frozen=True)
class Credentials:
    """None where the environment has none."""

    hf_token: str | None = field(default=None, repr=False)
    wandb_api_key: str | None = field(default=None, repr=False)


@contextmanager
def taken_out_of(environ: MutableMapping[str, str]) -> Iterator[Credentials]:
    """The secrets that `environ` has, which are missing from it inside.

    Raises:
        BadInput: one has a character that no secret has; it would show in an error of a client.
    """
    taken = {name: environ.pop(name) for name in SECRETS if name in environ}
    try:
        for name, secret in taken.items():
            if not re.fullmatch(r"[!-~]*", secret.strip()):
                raise BadInput(
                    f"environment variable {name}: holds white space or a control character; want "
                    "the secret alone"
                )
        yield Credentials(hf_token=_first(taken, _HUB), wandb_api_key=_first(taken, _WANDB))
    finally:
        environ.update(taken)


def _first(values: MutableMapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((values[name].strip() for name in names if values.get(name, "").strip()), None)

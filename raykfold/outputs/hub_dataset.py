"""Data sets from dataset repositories on the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from raykfold.data.reading import FILE_NAMES, missing_arrays
from raykfold.errors import BadData
from raykfold.outputs.hub_client import Refused, fetch_dataset
from raykfold.outputs.sync import Unavailable

_FETCHED = ".fetched-"


def fetch_missing(
    processed_dir: Path, repo_id: str, token: str | None, say: Callable[[str], None]
) -> None:
    """Download what `processed_dir` lacks of a data set from a dataset repository.

    A file is there whole or not at all, and those that are there stay.

    Raises:
        BadData: the repository cannot be read, or lacks it too.
    """
    lacking = missing_arrays(processed_dir)
    if not lacking:
        return
    say(f"{processed_dir} lacks {', '.join(lacking)}: fetching from the dataset {repo_id} (Hub)")
    if processed_dir.exists() and not processed_dir.is_dir():
        raise BadData(f"--processed_dir {processed_dir}: is no folder")
    # A name that stays, for a fetch that was cut short to go on, but not with another's files.
    aside = processed_dir / f"{_FETCHED}{repo_id.replace('/', '--')}"
    choices = [
        names for names in FILE_NAMES if not any((processed_dir / name).exists() for name in names)
    ]
    # The arrays come last: while one is missing, the next call fetches what is.
    for file in reversed(_fetch_with_patience(repo_id, choices, aside, token, say)):
        os.replace(file, processed_dir / file.name)
    for left in processed_dir.glob(f"{_FETCHED}*"):
        shutil.rmtree(left)
    lacking = missing_arrays(processed_dir)
    if lacking:
        files = ", ".join(f"{name}.npy (or .pkl)" for name in lacking)
        raise BadData(f"--hf_repo_id {repo_id}: the dataset has no {files}")


def _fetch_with_patience(
    repo_id: str,
    choices: Sequence[Sequence[str]],
    folder: Path,
    token: str | None,
    say: Callable[[str], None],
) -> list[Path]:
    pauses = iter((1.0, 4.0, 16.0))
    while True:
        try:
            return fetch_dataset(repo_id, choices, folder, token, progress=sys.stderr.isatty())
        except Refused as refused:
            raise BadData(f"--hf_repo_id {repo_id}: {refused}") from refused
        except Unavailable as unavailable:
            pause = next(pauses, None)
            if pause is None:
                raise BadData(
                    f"--hf_repo_id {repo_id}: cannot be fetched now ({unavailable}); the same "
                    "command goes on with it"
                ) from unavailable
            say(f"Hub: not to be reached now ({unavailable}); tried again")
            time.sleep(max(pause, unavailable.retry_after or 0.0))

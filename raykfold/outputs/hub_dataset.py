"""Data sets from dataset repositories on the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from raykfold.data.reading import (
    FILE_NAMES,
    file_list,
    missing_arrays,
    names_a_file,
    unread_files,
)
from raykfold.errors import BadData
from raykfold.outputs.hub_client import DatasetRepository, patiently

_FETCHED = ".fetched-"


def fetch_missing(
    processed_dir: Path, repo_id: str, token: str | None, say: Callable[[str], None]
) -> None:
    """Download from a dataset repository what `processed_dir` lacks of a data set.

    A file is there completely or not at all, and existing files are not touched.

    Raises:
        BadData: the repository cannot be read, or lacks an array as well; or `processed_dir` is a
            file.
    """
    if names_a_file(processed_dir.name):
        raise BadData(f"--processed_dir {processed_dir}: with --hf_repo_id, expected a folder")
    lacking = missing_arrays(processed_dir)
    if not lacking:
        return
    say(f"{processed_dir} lacks {', '.join(lacking)}: fetching from the dataset {repo_id} (Hub)")
    if processed_dir.exists() and not processed_dir.is_dir():
        raise BadData(f"--processed_dir {processed_dir}: is not a folder")

    # Download into a folder beside the files. Its name is fixed, so that a fetch that was
    # interrupted continues, and holds the repository, so that it does not mix in another's files.
    folder = processed_dir / f"{_FETCHED}{repo_id.replace('/', '--')}"
    choices = [
        names for names in FILE_NAMES if not any((processed_dir / name).exists() for name in names)
    ]

    def fetch() -> tuple[list[Path], set[str]]:
        repository = DatasetRepository(repo_id, token, progress=sys.stderr.isatty())
        commit, there = repository.contents()
        found = (next((name for name in names if name in there), None) for names in choices)
        # A file that holds several arrays is found for each of them.
        wanted = list(dict.fromkeys(name for name in found if name is not None))
        # Each commit has its own folder, so files of an earlier one are not mixed in.
        return repository.download(wanted, commit, local_dir=folder / commit), there

    files, there = patiently(fetch, f"--hf_repo_id {repo_id}", say)

    # Move the arrays last: while one is missing, the next call fetches what is missing.
    for file in reversed(files):
        os.replace(file, processed_dir / file.name)
    for left in processed_dir.glob(f"{_FETCHED}*"):
        shutil.rmtree(left)
    lacking = missing_arrays(processed_dir)
    if lacking:
        raise BadData(
            f"--hf_repo_id {repo_id}: the dataset has no {file_list(lacking)}{unread_files(there)}"
        )

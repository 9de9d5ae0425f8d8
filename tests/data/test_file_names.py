"""Which folders are looked into for a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raykfold.data.file_names import files_below, subfolders


def test_subfolders_are_sorted_and_followed_through_links(tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    for name in ("b", "a", ".hidden", "__MACOSX"):
        (folder / name).mkdir(parents=True)
    (folder / "file").touch()
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "to itself").symlink_to(folder / "to itself")
    (folder / "nowhere").symlink_to(folder / "absent")
    assert [each.name for each in subfolders(folder)] == ["a", "b", "elsewhere"]
    assert subfolders(folder / "file") == subfolders(folder / "absent") == []


def test_names_in_both_unicode_forms_have_one_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.wav", "u\u0308.wav", "\u00fc.wav"]
    for name in names:
        (tmp_path / name).touch()
    scandir = os.scandir
    for reverse in (False, True):

        @contextmanager
        def listed(path: str, reverse: bool = reverse) -> Iterator[list[os.DirEntry[str]]]:
            with scandir(path) as entries:
                yield sorted(entries, key=lambda entry: entry.name, reverse=reverse)

        monkeypatch.setattr(os, "scandir", listed)
        assert [path.name for path in files_below(tmp_path)] == names

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raykfold.errors import StorageError
from raykfold.files.atomic import (
    Damaged,
    link_file,
    read_folder,
    read_manifest,
    write_file,
    write_folder,
)

FILES = {"state.pt": b"a" * 1000, "model.safetensors": b"b" * 10}


def test_a_folder_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_folder(tmp_path / "fold_1", FILES, {"epochs_run": 3})
    assert read_folder(tmp_path / "fold_1") == FILES
    assert read_manifest(tmp_path / "fold_1")["epochs_run"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["fold_1"]


def test_a_folder_replaces_the_former_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "fold_1", FILES, {})
    write_folder(tmp_path / "fold_1", {"other": b"c"}, {})
    assert read_folder(tmp_path / "fold_1") == {"other": b"c"}
    assert [path.name for path in tmp_path.iterdir()] == ["fold_1"]


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["removed", "truncated", "altered", "empty"])
def test_any_damage_is_seen(tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "fold_1"
    write_folder(folder, FILES, {})
    content = (folder / name).read_bytes()
    if damage == "removed":
        (folder / name).unlink()
    elif damage == "truncated":
        (folder / name).write_bytes(content[:-1])
    elif damage == "altered":
        (folder / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        (folder / name).write_bytes(b"")
    with pytest.raises(Damaged, match="fold_1"):
        read_folder(folder)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    # A file size limit makes write fail part of the way, as a full disk does.
    script = """
import resource, signal, sys
from pathlib import Path
from raykfold.errors import StorageError
from raykfold.files.atomic import write_file, write_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
root = Path(sys.argv[1])
for write in (
    lambda: write_file(root / "summary.json", b"x" * 5000),
    lambda: write_folder(root / "fold_1", {"state.pt": b"x" * 5000}, {}),
):
    try:
        write()
    except StorageError as error:
        print(error)
"""
    write_file(tmp_path / "summary.json", b"old")
    write_folder(tmp_path / "fold_1", FILES, {})
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("cannot be written") == 2
    assert (tmp_path / "summary.json").read_bytes() == b"old"
    assert read_folder(tmp_path / "fold_1") == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold_1", "summary.json"]


def test_a_path_below_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/below"):
        write_file(tmp_path / "file" / "below", b"")


def refuse(patch: pytest.MonkeyPatch, name: str, number: int, *, only_folders: bool) -> None:
    """Make `os.<name>` fail as on a file system that lacks the call."""
    real = getattr(os, name)

    def call(target: Any, *arguments: Any, **options: Any) -> Any:
        if not only_folders or stat.S_ISDIR(os.stat(target).st_mode):
            raise OSError(number, os.strerror(number))
        return real(target, *arguments, **options)

    patch.setattr(os, name, call)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.ENOTSUP])
@pytest.mark.parametrize("name", ["fsync", "open"])
def test_a_file_system_that_cannot_flush_a_folder_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    refuse(monkeypatch, name, number, only_folders=True)
    refuse(monkeypatch, "link", number, only_folders=False)
    for content in (b"one", b"two"):
        write_file(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
        write_folder(tmp_path / "folder", {"file": content}, {})
        assert read_folder(tmp_path / "folder") == {"file": content}
        link_file(tmp_path / "file", tmp_path / "link")
        assert (tmp_path / "link").read_bytes() == content


def test_a_disk_that_fails_to_flush_a_folder_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "fsync", errno.EIO, only_folders=True)
    with pytest.raises(StorageError, match="Input/output error"):
        write_file(tmp_path / "file", b"")


@pytest.mark.parametrize(
    ("name", "number", "lacks"),
    [
        ("fsync", errno.EINVAL, "does not flush a file to the disk (Invalid argument)"),
        ("replace", errno.EEXIST, "does not replace a file by a rename (File exists)"),
        ("replace", errno.ENOTSUP, "does not replace a file by a rename (Operation not supported)"),
    ],
)
def test_what_a_file_system_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, lacks: str
) -> None:
    refuse(monkeypatch, name, number, only_folders=False)
    with pytest.raises(StorageError, match=re.escape(f"its file system {lacks}; expected another")):
        write_file(tmp_path / "file", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_linked_file_follows_its_source_when_that_is_replaced(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "deep" / "b"
    for content in (b"one", b"two", b"two"):
        write_file(source, content)
        link_file(source, target)
        link_file(source, target)
        assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_files_are_readable_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", b"")
        write_folder(tmp_path / "b", FILES, {})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "b" / "state.pt").stat().st_mode & 0o777 == 0o640

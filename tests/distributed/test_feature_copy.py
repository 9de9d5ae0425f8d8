"""Copies of the features on the disk of a node. Across hosts: see test_several_hosts.py."""

from __future__ import annotations

import errno
import fcntl
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raykfold.data.feature_file import FeatureFile, temporary_feature_file
from raykfold.distributed.feature_copy import (
    FeatureServer,
    FeatureSource,
    copy_features,
    remove_copies,
)
from raykfold.errors import StorageError

SOMEBODY = object()  # a server, where it is only asked whether there is one
FEATURES = np.random.default_rng(0).normal(size=(5, 400, 300)).astype(np.float32)  # 2.4 MB


def source_of(file: FeatureFile, scratch: Path, server: object = SOMEBODY) -> FeatureSource:
    return FeatureSource(file, scratch, "session", server)


def test_a_copy_has_the_same_bytes(tmp_path: Path) -> None:
    counted = []
    with temporary_feature_file(FEATURES, tmp_path) as file:
        server = FeatureServer(file)
        copy_features(file.nbytes, server.chunk, tmp_path / "copy", lambda: counted.append(1))
        copied = replace(file, path=tmp_path / "copy", stamp=None)
        np.testing.assert_array_equal(copied.open(), FEATURES)
    assert len(counted) == 2  # of chunks of 2 MiB
    copied.path.unlink()
    copied.check()  # nobody else writes to it, and a map stays


def test_chunks_that_are_too_short_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="3 of 4 bytes came"):
        copy_features(4, lambda start: np.zeros(3, np.uint8), tmp_path / "copy", lambda: None)


def test_two_chunks_are_on_their_way_at_once_and_no_more(tmp_path: Path) -> None:
    both, held = threading.Barrier(2, timeout=20), []
    most = 0

    def chunk(start: int) -> np.ndarray:
        nonlocal most
        held.append(start)
        most = max(most, len(held))
        both.wait()  # each waits for another one
        held.remove(start)
        return np.zeros(2 * 2**20, np.uint8)

    copy_features(8 * 2**21, chunk, tmp_path / "copy", lambda: None)
    assert most == 2


def test_a_source_that_changes_ends_a_copy(tmp_path: Path) -> None:
    with temporary_feature_file(FEATURES, tmp_path) as file:
        server = FeatureServer(replace(file, stamp=(0, 0, 0)))
        with pytest.raises(StorageError, match="has changed since the run started"):
            copy_features(file.nbytes, server.chunk, tmp_path / "copy", lambda: None)


def test_what_keeps_a_node_from_having_the_features(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with temporary_feature_file(FEATURES, tmp_path) as file:
        assert source_of(file, tmp_path / "file").obstacle() is None  # it sees the driver's
        elsewhere = replace(file, path=tmp_path / "elsewhere")
        assert source_of(elsewhere, tmp_path / "new").obstacle() is None
        nowhere = source_of(elsewhere, tmp_path / "file" / "scratch").obstacle()
        assert nowhere == f"{tmp_path}/file/scratch cannot be written (Not a directory)"
        large = replace(elsewhere, shape=(10**15, 400, 300))
        lacking = source_of(large, tmp_path / "new").obstacle()
        assert lacking is not None and f"{tmp_path}/new has " in lacking and "free" in lacking
        assert source_of(large, tmp_path, server=None).obstacle() is None
    assert list((tmp_path / "new").iterdir()) == []


def test_leftovers_of_killed_runs_go_before_room_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, own = tmp_path / "rkf-dead", tmp_path / "rkf-session"
    for folder in (left, own):
        folder.mkdir()
        (folder / ".owner").touch()
    (own / "shared").touch()
    monkeypatch.setattr(
        "raykfold.distributed.feature_copy.free_bytes", lambda _: 0 if left.exists() else 10**9
    )
    source = source_of(FeatureFile(tmp_path / "elsewhere", 0, (8,), "uint8", None), tmp_path)
    assert source.obstacle() is None
    assert own.exists() and left.exists()  # this session has its copy, which nobody uses now
    assert replace(source, session="next").obstacle() is None
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_locks_cannot_have_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lack)
    source = source_of(FeatureFile(tmp_path / "elsewhere", 0, (8,), "uint8", None), tmp_path)
    found = source.obstacle()
    assert found is not None and "cannot be locked: No locks available" in found
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_node_sees_is_not_copied(tmp_path: Path) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing is copied")

    with temporary_feature_file(FEATURES, tmp_path / "data") as file:
        for server in (SOMEBODY, None):
            source = source_of(file, tmp_path / "scratch", server)
            with source.on_this_node(never, never, never) as found:
                assert found == file
            remove_copies(source.session, {source.folder})
    assert not (tmp_path / "scratch").exists()

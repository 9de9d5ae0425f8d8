"""Features that workers map from a file: the same values, or a file that has changed."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raykfold.data.feature_file import FeatureFile, temporary_feature_file
from raykfold.data.feature_set import FeatureSet
from raykfold.data.reading import read_feature_set
from raykfold.errors import BadInput, StorageError

FEATURES = np.random.default_rng(0).standard_normal((20, 1, 4, 6)).astype(np.float32)
LABELS = np.arange(20) % 2
FOLDS = np.arange(20) // 2 % 2


def file_of(folder: Path, features: np.ndarray = FEATURES) -> FeatureFile | None:
    for name, values in (("features", features), ("labels", LABELS), ("folds", FOLDS)):
        np.save(folder / f"{name}.npy", values)
    return read_feature_set(folder).file


@pytest.mark.parametrize("features", [FEATURES, FEATURES[:, 0].astype(np.float16)])
def test_a_worker_maps_the_same_values(tmp_path: Path, features: np.ndarray) -> None:
    file = file_of(tmp_path, features)
    assert file is not None
    mapped = pickle.loads(pickle.dumps(file)).open()
    expected = read_feature_set(tmp_path).features
    np.testing.assert_array_equal(mapped, expected)
    assert mapped.dtype == expected.dtype and not mapped.flags.writeable
    file.check()


def test_what_no_file_holds_as_it_is(tmp_path: Path) -> None:
    assert file_of(tmp_path, FEATURES.astype(">f4")) is None
    assert file_of(tmp_path, np.asfortranarray(FEATURES[:, 0])) is None
    given = np.load(tmp_path / "features.npy", mmap_mode="c")
    assert FeatureSet.from_arrays(given, LABELS, FOLDS).file is None


def test_a_file_that_has_changed_is_noticed(tmp_path: Path) -> None:
    file, path = file_of(tmp_path), tmp_path / "features.npy"
    assert file is not None
    np.save(tmp_path / "new.npy", FEATURES)
    os.utime(tmp_path / "new.npy", ns=(0, os.stat(path).st_mtime_ns))
    os.replace(tmp_path / "new.npy", path)
    for use in (file.open, file.check):
        with pytest.raises(StorageError, match="has changed since the run started"):
            use()
    path.write_bytes(b"short")
    with pytest.raises(StorageError, match="cannot be read any more"):
        file.open()
    path.unlink()
    for use in (file.open, file.check):
        with pytest.raises(StorageError, match="cannot be read any more"):
            use()


@pytest.mark.parametrize(
    "features",
    [
        FEATURES[:, 0],
        np.asfortranarray(FEATURES[:, 0]),
        FEATURES[::2, 0, :, ::-3],
        FEATURES[:, 0] > 0,
        FEATURES.astype(np.float16),
        (FEATURES * 100).astype(np.uint8),
    ],
)
def test_arrays_are_written_to_a_file_that_goes(tmp_path: Path, features: np.ndarray) -> None:
    with temporary_feature_file(features, tmp_path / "new") as file:
        mapped = file.open()
        np.testing.assert_array_equal(mapped, features)
        assert mapped.dtype == features.dtype and mapped.flags.c_contiguous
        assert file.nbytes == mapped.nbytes == file.path.stat().st_size
        assert file.is_seen()
        os.utime(file.path, (0, 0))
        file.check()
        file.path.unlink()  # as a cleaner of old files does
        file.check()
        assert not file.is_seen()
    assert list((tmp_path / "new").iterdir()) == []


def test_arrays_for_which_there_is_no_room_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, said in ((tmp_path, r"has .* GB free"), (tmp_path / "file", "cannot be written")):
        features = FEATURES if folder.is_file() else np.broadcast_to(FEATURES[0], (10**15, 4, 6))
        with (
            pytest.raises(BadInput, match=f"--scratch_dir {folder}: {said}"),
            temporary_feature_file(features, folder),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_leftovers_of_killed_runs_go_before_room_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "rkf-dead"
    left.mkdir()
    (left / ".owner").touch()
    monkeypatch.setattr(
        "raykfold.data.feature_file.free_bytes", lambda _: 0 if left.exists() else 10**9
    )
    with temporary_feature_file(FEATURES, tmp_path) as file:
        np.testing.assert_array_equal(file.open(), FEATURES)


def test_a_scratch_dir_with_too_long_a_name_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match=r"cannot be written \(File name too long\)"),
        temporary_feature_file(FEATURES, tmp_path / ("x" * 300)),
    ):
        pass


@pytest.mark.parametrize("count", [1, 7, 480, 10**9])
def test_bytes_of_features_are_read_a_part_at_a_time(tmp_path: Path, count: int) -> None:
    file = file_of(tmp_path, FEATURES[:, 0])
    assert file is not None
    starts = range(0, file.nbytes, count)
    read = b"".join(file.read_bytes(start, count).tobytes() for start in starts)
    assert read == FEATURES.tobytes()
    longer = replace(file, shape=(21, 4, 6), stamp=None)
    with pytest.raises(StorageError, match=r"cannot be read any more \(its end is missing\)"):
        longer.read_bytes(file.nbytes - 1, 2)
    os.utime(file.path, ns=(0, 0))
    with pytest.raises(StorageError, match="has changed since the run started"):
        file.read_bytes(0, 1)

"""Features that workers map from a file: the same values, or a file that has changed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from raykfold.distributed.feature_file import FeatureFile
from raykfold.errors import StorageError

FEATURES = np.random.default_rng(0).standard_normal((200, 1, 4, 6)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "features.npy", FEATURES)
    return tmp_path / "features.npy"


@pytest.mark.parametrize("part", [slice(None), (slice(None), 0)], ids=["whole", "one channel"])
def test_a_worker_maps_the_same_values(file: Path, part: slice | tuple[slice, int]) -> None:
    features = np.load(file, mmap_mode="r")[part]
    found = FeatureFile.of(features)
    assert found is not None
    mapped = pickle.loads(pickle.dumps(found)).open()
    np.testing.assert_array_equal(mapped, FEATURES[part])
    assert mapped.dtype == np.float32 and not mapped.flags.writeable


def test_what_no_file_holds_as_it_is(file: Path) -> None:
    assert FeatureFile.of(FEATURES) is None
    assert FeatureFile.of(np.load(file, mmap_mode="r")[10:]) is None
    assert FeatureFile.of(np.load(file, mmap_mode="r")[:, :, ::2]) is None
    features = np.load(file, mmap_mode="r")
    np.save(file.with_name("new.npy"), FEATURES + 1)
    os.replace(file.with_name("new.npy"), file)
    assert FeatureFile.of(features) is None


def test_a_file_that_has_changed_is_noticed(file: Path) -> None:
    found = FeatureFile.of(np.load(file, mmap_mode="r"))
    assert found is not None
    written = os.stat(file)
    np.save(file, FEATURES[::-1])
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    with pytest.raises(StorageError, match="has changed since the run started"):
        found.open()
    np.save(file, FEATURES)
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns + 1))
    with pytest.raises(StorageError, match="has changed since the run started"):
        found.open()
    np.save(file, FEATURES[:9])
    with pytest.raises(StorageError, match="cannot be read any more"):
        found.open()
    file.unlink()
    with pytest.raises(StorageError, match="cannot be read any more"):
        found.open()

"""Arrays that are copied to the disk because memory may not hold them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.data_files import FEATURES, FOLDS, LABELS, fingerprint, save

from raykfold.data import disk_copy
from raykfold.data.leakage import find_leakage
from raykfold.data.reading import read_feature_set
from raykfold.errors import BadData


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, into which every copy goes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(disk_copy, "MOST_IN_MEMORY", 0)
    return folder


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (FEATURES.astype(">f4"), "their byte order is not this machine's"),
        (np.asfortranarray(FEATURES), "they are not in C order"),
        (np.asfortranarray(FEATURES.astype(">f4")), "their byte order is not this machine's"),
    ],
    ids=["byte order", "Fortran order", "both"],
)
def test_a_map_that_cannot_be_used_as_it_is_becomes_another_map(
    stored: np.ndarray, reason: str, tmp_path: Path, folder: Path
) -> None:
    data = read_feature_set(save(tmp_path, features_npy=stored))
    assert isinstance(data.features, np.memmap) and data.file is None
    assert data.features.flags.c_contiguous and data.features.dtype == np.float32
    np.testing.assert_array_equal(data.features, FEATURES)
    assert data.fingerprint == fingerprint(features=FEATURES)
    assert data.notes == (f"features: {reason}, so they are copied into a temporary file",)
    find_leakage(data)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_of_an_archive_is_unpacked_to_the_disk(
    compressed: bool, order: str, tmp_path: Path, folder: Path
) -> None:
    path = tmp_path / "sounds.npz"
    features = np.asarray(FEATURES, order="F" if order == "F" else "C")
    (np.savez_compressed if compressed else np.savez)(
        path, features=features, labels=LABELS, folds=FOLDS
    )
    data = read_feature_set(path)
    assert isinstance(data.features, np.memmap)
    np.testing.assert_array_equal(data.features, FEATURES)
    assert data.fingerprint == fingerprint(features=FEATURES)
    assert list(folder.iterdir()) == []

    np.savez(path, features=FEATURES.astype(object), labels=LABELS, folds=FOLDS)
    with pytest.raises(BadData, match=r"features: an array of Python objects"):
        read_feature_set(path)


def test_a_disk_without_room_is_one_line(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, features_npy=np.asfortranarray(FEATURES))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (10**9, 10**9 - 1, 1))
    with pytest.raises(BadData, match=rf"{folder}, which has 0 MB free; expected more room"):
        read_feature_set(tmp_path)

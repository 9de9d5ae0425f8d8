"""Which files are read, which are refused, and what is promised of them."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.data_files import FEATURES, FOLDS, FRAMES, LABELS, MELS, N, fingerprint, refusal, save

from raykfold.data.feature_set import FeatureSet, SoundClass, SoundDataset
from raykfold.data.reading import (
    files_to_read,
    missing_arrays,
    read_feature_set,
    write_feature_set,
)
from raykfold.errors import BadData, StorageError


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


# ---- What is read


def test_reads_arrays_classes_and_parameters(tmp_path: Path) -> None:
    mapping = {"9": "siren", "3": "dog", "7": "rain"}
    save(tmp_path, class_mapping_json=mapping, features_json={"n_fft": 1024})
    data = read_feature_set(tmp_path)
    np.testing.assert_array_equal(data.features, FEATURES)
    np.testing.assert_array_equal(data.labels, LABELS)
    np.testing.assert_array_equal(data.folds, FOLDS)
    assert data.labels.dtype == data.folds.dtype == np.int64
    assert (len(data), data.sample_shape, data.num_classes) == (N, (MELS, FRAMES), 3)
    assert data.classes == (SoundClass(3, "dog"), SoundClass(7, "rain"), SoundClass(9, "siren"))
    assert data.class_labels == (3, 7, 9)
    assert data.class_names == ("dog", "rain", "siren")
    assert data.fold_labels == (1, 2, 5)
    assert data.feature_parameters == {"n_fft": 1024}
    assert data.notes == ()
    assert data.class_indices.dtype == np.int64
    assert data.class_indices.tolist() == [0, 1, 2] * 4


def test_mapping_and_parameters_may_be_absent(tmp_path: Path) -> None:
    data = read_feature_set(save(tmp_path))
    assert data.class_names == ("3", "7", "9")
    assert data.feature_parameters == {}


def test_names_of_folds_are_in_the_file_of_the_parameters(tmp_path: Path) -> None:
    parameters = {"n_fft": 1024, "fold_names": {"1": "ann", "5": "cy"}}
    data = read_feature_set(save(tmp_path, features_json=parameters))
    assert data.fold_names == {1: "ann", 5: "cy"}
    assert data.feature_parameters == {"n_fft": 1024}
    assert data.notes == ("folds: 1 (ann), 2, 5 (cy)",)
    parameters["fold_names"] = {"1": "", "2": " ", "5": "cy"}
    assert read_feature_set(save(tmp_path, features_json=parameters)).notes == (
        "folds: 1, 2, 5 (cy)",
    )
    assert data.fingerprint == fingerprint()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["ann", "ben"], "holds a list"),
        ({"ann": 1}, "key 'ann'; it should map folds, which are integers"),
        ({"1": 1}, "the name of fold 1 is a int"),
        ({"1": "ann", "01": "ben"}, "fold 1 appears twice"),
    ],
)
def test_bad_names_of_folds(tmp_path: Path, names: Any, said: str) -> None:
    text = refusal(save(tmp_path, features_json={"fold_names": names}), "features.json")
    assert f"fold_names: {said}" in text


RECORDINGS = np.array([0, 4, 2, 0, 3, 1, 5, 3, 8, 6, 7, 7])  # of windows 0 and 3, 4 and 7


def test_windows_have_the_numbers_of_their_recordings(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[11] = labels[10]
    folder = save(tmp_path, recordings_npy=RECORDINGS.astype(np.uint16), labels_npy=labels)
    data = read_feature_set(folder)
    assert data.recordings is not None and data.recordings.dtype == np.int64
    assert data.recordings.tolist() == RECORDINGS.tolist()
    assert files_to_read(["recordings.npy", "recordings.pkl"]) == ["recordings.npy"]
    assert data.without(1).recordings is data.recordings
    assert read_feature_set(save(tmp_path / "without")).recordings is None
    write_feature_set(folder, FEATURES, LABELS, FOLDS, {3: "a", 7: "b", 9: "c"}, {})
    assert read_feature_set(folder).recordings is None  # those were of other data
    write_feature_set(
        folder, FEATURES, labels, FOLDS, data.class_mapping, {}, recordings=RECORDINGS
    )
    assert read_feature_set(folder).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("recordings", "said"),
    [
        (RECORDINGS[1:], "shape (11,); expected (12,)"),
        (RECORDINGS[:, None], "shape (12, 1); expected (12,)"),
        (RECORDINGS + 0.5, "non-integer recordings, value 0.5 at index 0"),
        (RECORDINGS.astype(bool), "recording 1 has samples of label"),
        (np.where(RECORDINGS > 0, "a.wav", ""), "no value at index 0"),
        (
            RECORDINGS,
            "recording 7 has samples of label 7 and of label 9, 10 and 11; expected one label",
        ),
        (
            np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]),
            "recording 0 has samples of label 3 and of label 9, 0 and 11; expected one label",
        ),
        (
            np.array([0, 1, 2, 3, 4, 5, 3, 7, 8, 9, 10, 11]),
            "recording 3 has samples of fold 1 and of fold 2, 3 and 6; expected one fold for all "
            "windows of a recording: they share sound",
        ),
    ],
)
def test_bad_recordings(tmp_path: Path, recordings: np.ndarray, said: str) -> None:
    assert said in refusal(save(tmp_path, recordings_npy=recordings), "recordings.npy")


def test_recordings_may_be_text_and_lie_beside_the_arrays_in_one_file(tmp_path: Path) -> None:
    clips = [f"clip {number // 2}" for number in range(N)]
    values = {"X": FEATURES, "y": np.arange(N) // 4, "folds": np.arange(N) // 2 % 2}
    np.savez(tmp_path / "data.npz", recordings=np.array(clips), **values)  # type: ignore[arg-type]
    expected = (np.arange(N) // 2).tolist()
    for file in ("data.npz", "data.pt"):
        data = read_feature_set(tmp_path / file if file == "data.pt" else tmp_path)
        assert data.recordings is not None and data.recordings.tolist() == expected
        tensors = {name: torch.from_numpy(value) for name, value in values.items()}
        torch.save({**tensors, "recordings": torch.arange(N) // 2}, tmp_path / "data.pt")


def test_recordings_are_found_beside_any_array(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(N) // 4)
    others = {"features": FEATURES, "folds": np.arange(N) // 2 % 2, "recordings": np.arange(N) // 2}
    np.savez(tmp_path / "data.npz", **others)  # type: ignore[arg-type]
    data = read_feature_set(tmp_path)
    assert data.recordings is not None and data.recordings.tolist() == (np.arange(N) // 2).tolist()


def test_small_files_that_claim_huge_arrays(tmp_path: Path) -> None:
    few = {"labels": torch.arange(4), "folds": torch.arange(4)}
    torch.save({"features": torch.zeros(1).expand(4, 10**6, 10**6), **few}, tmp_path / "a.pt")
    assert "unfold to 16000000000000" in refusal(tmp_path / "a.pt", "")
    torch.save({"features": [torch.ones(1).expand(2**42)] * 6, **few}, tmp_path / "a.pt")
    assert "unfold to" in refusal(tmp_path / "a.pt", "")
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("features", "labels", "folds"):
            np.save(tmp_path / "small.npy", np.zeros(4))
            content = (tmp_path / "small.npy").read_bytes()
            archive.writestr(f"{name}.npy", content + bytes(2**30 if name == "features" else 0))
    assert "unfold to 1073741984" in refusal(tmp_path / "b.npz", "")


def is_mapped(array: np.ndarray) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        if type(base) is np.memmap and base.base is not None and not base.flags.owndata:
            return True
        base = base.base
    return False


@pytest.mark.parametrize(
    ("shape", "note"),
    [
        ((N, MELS, FRAMES), None),
        ((N, 1, MELS, FRAMES), "features: (12, 1, 4, 6) -> (12, 4, 6)"),
        ((N, MELS, FRAMES, 1), "features: (12, 4, 6, 1) -> (12, 4, 6)"),
    ],
)
def test_npy_features_stay_mapped_and_channels_are_squeezed(
    tmp_path: Path, shape: tuple[int, ...], note: str | None
) -> None:
    data = read_feature_set(save(tmp_path, features_npy=FEATURES.reshape(shape)))
    np.testing.assert_array_equal(data.features, FEATURES)
    assert is_mapped(data.features)
    assert data.notes == ((note,) if note else ())
    assert not is_mapped(data.labels)


def test_npy_wins_over_pkl_and_json_over_pickled_mapping(tmp_path: Path) -> None:
    save(
        tmp_path,
        features_pkl=b"rubbish",
        labels_pkl=b"rubbish",
        folds_pkl=b"rubbish",
        class_mapping_json={"3": "a", "7": "b", "9": "c"},
        class_mapping_pkl=b"rubbish",
    )
    assert read_feature_set(tmp_path).class_names == ("a", "b", "c")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", ["npy", "pkl"])
def test_float_types_and_byte_orders(tmp_path: Path, dtype: str, order: str, suffix: str) -> None:
    stored = FEATURES.astype(order + dtype)
    save(tmp_path, **{"features_npy": None, f"features_{suffix}": stored})
    data = read_feature_set(tmp_path)
    assert data.features.dtype == np.dtype(dtype)
    assert data.features.dtype.isnative
    np.testing.assert_array_equal(data.features, stored)
    torch.from_numpy(np.array(data.features))
    assert data.fingerprint == fingerprint(features=FEATURES.astype(dtype))


@pytest.mark.parametrize("dtype", ["?", "|u1", "<i2", ">u2", "<i4", ">u4", "<i8", ">u8"])
def test_integers_keep_their_type_and_any_shape(tmp_path: Path, dtype: str) -> None:
    stored = np.abs(FEATURES * 100).astype(dtype).reshape(N, 2, 2, FRAMES)
    data = read_feature_set(save(tmp_path, features_npy=stored))
    assert data.features.dtype == np.dtype(dtype).newbyteorder("=")
    assert data.sample_shape == (2, 2, FRAMES) and data.features.dtype.isnative
    np.testing.assert_array_equal(data.features, stored)
    sample, _ = SoundDataset(data.features, data.class_indices)[3]
    assert sample.dtype == torch.float32
    np.testing.assert_array_equal(sample.numpy(), stored[3].astype(np.float32))


def test_fortran_ordered_npy(tmp_path: Path) -> None:
    data = read_feature_set(save(tmp_path, features_npy=np.asfortranarray(FEATURES)))
    np.testing.assert_array_equal(data.features, FEATURES)
    assert data.features.flags.c_contiguous
    assert data.fingerprint == fingerprint()


def saved(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


TENSOR = torch.from_numpy(FEATURES)
TENSORS = {
    "features": TENSOR,
    "labels": torch.from_numpy(LABELS),
    "folds": torch.from_numpy(FOLDS),
}
NAMED = np.array(["ant", "cat", "dog"] * 4)  # in the order of LABELS


def arrays(save_as: Callable[..., Any], **given: Any) -> bytes:
    """The content of a file with several arrays."""
    return saved(lambda file: save_as(file, **given))


def tensors(content: Any, **options: Any) -> bytes:
    return saved(lambda file: torch.save(content, file, **options))


ALL = {"features_npy": None, "labels_npy": None, "folds_npy": None}


@pytest.mark.parametrize(
    "contents",
    [
        {"labels_npy": NAMED},
        {"labels_npy": None, "labels_pkl": NAMED},
        {"labels_npy": None, "labels_pkl": NAMED.tolist()},
        {"labels_npy": None, "labels_npz": arrays(np.savez, arr_0=NAMED)},
        {"labels_npy": None, "labels_pt": tensors(NAMED.tolist())},
        {**ALL, "data_npz": arrays(np.savez, features=FEATURES, labels=NAMED, folds=FOLDS)},
        {**ALL, "data_npz": arrays(np.savez_compressed, X=FEATURES, y=NAMED, folds=FOLDS, a=1)},
        {**ALL, "data_npz": arrays(np.savez, X=FEATURES, y=NAMED), "folds_npy": FOLDS},
        {**ALL, "data_pt": tensors({**TENSORS, "labels": NAMED.tolist()})},
    ],
    ids=range(9),
)
def test_text_labels_and_files_of_several_arrays(tmp_path: Path, contents: dict[str, Any]) -> None:
    folder = save(tmp_path, **contents)
    data = read_feature_set(folder)
    assert data.class_mapping == {0: "ant", 1: "cat", 2: "dog"}
    assert data.fingerprint == fingerprint(labels=[0, 1, 2] * 4)
    assert missing_arrays(folder) == []
    there = [path.name for path in folder.iterdir()]
    assert sorted(files_to_read([*there, "audio.wav"])) == sorted(there)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_in_a_folder_and_in_one_file(tmp_path: Path, zipped: bool) -> None:
    options = {"_use_new_zipfile_serialization": zipped}
    each = {f"{name}_pt": tensors(tensor, **options) for name, tensor in TENSORS.items()}
    assert read_feature_set(save(tmp_path / "each", **ALL, **each)).fingerprint == fingerprint()
    (tmp_path / "sounds.pt").write_bytes(tensors(TENSORS, **options))
    assert read_feature_set(tmp_path / "sounds.pt").fingerprint == fingerprint()


def test_one_file_is_the_data(tmp_path: Path) -> None:
    file = tmp_path / "sounds.npz"
    file.write_bytes(arrays(np.savez, X=FEATURES, y=LABELS, folds=FOLDS))
    save(tmp_path, class_mapping_json={"8": "of other data"}, labels_npy=None)
    assert read_feature_set(file).fingerprint == fingerprint()
    file.write_bytes(arrays(np.savez, X=FEATURES, y=LABELS[:9], folds=FOLDS))
    with pytest.raises(BadData) as caught:
        read_feature_set(file)
    assert str(caught.value).startswith(
        f"{file}: X has 12 samples, {file}: y 9 and {file}: folds 12; all should have the same"
    )


# ---- What is refused


GOOD_NPY = io.BytesIO()
np.save(GOOD_NPY, FEATURES)
ZIP = io.BytesIO()
np.savez(ZIP, features=FEATURES)


@pytest.mark.parametrize("missing", [["features"], ["labels", "folds"]])
def test_missing_files_are_listed_with_the_ways_on(tmp_path: Path, missing: list[str]) -> None:
    save(tmp_path, **{f"{name}_npy": None for name in missing})
    text = refusal(tmp_path, "")
    for name in ("features", "labels", "folds"):
        assert (f"{name}.npy" in text) == (name in missing)
    for way in ("python -m raykfold.prepare", "--demo"):
        assert way in text


def test_a_missing_folder_says_what_it_should_hold(tmp_path: Path) -> None:
    text = refusal(tmp_path / "nowhere", "")
    assert "no such folder" in text
    assert "--demo" in text
    assert all(f"{name}.npy" in text for name in ("features", "labels", "folds"))


def test_a_folder_in_place_of_a_file_is_a_missing_file(tmp_path: Path) -> None:
    save(tmp_path, features_npy=None)
    (tmp_path / "features.npy").mkdir()
    assert "lacks features.npy" in refusal(tmp_path, "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00" + bytes(200),
        GOOD_NPY.getvalue()[:60],
        GOOD_NPY.getvalue()[:-1],
        GOOD_NPY.getvalue()[:200],
        ZIP.getvalue(),
        pickle.dumps(FEATURES),
        b"hello" * 100,
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (999999, 64, 64)}\n", bytes(64)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4, 1)}\n"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4, 4)}\n", bytes(64)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4, 4)}\n", bytes(64)),
        npy("{'descr': '<f4', 'fortran_order': False\n", bytes(96)),
        npy("{" * 500 + "\n", bytes(96)),
        npy("__import__('os').system('true')\n", bytes(96)),
    ],
)
@pytest.mark.filterwarnings("error")
def test_damaged_npy(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, features_npy=content)
    assert "numpy.save" in refusal(tmp_path, "features.npy")
    save(tmp_path, labels_npy=content, features_npy=FEATURES)
    refusal(tmp_path, "labels.npy")


def with_value(value: float, dtype: Any = np.float32) -> np.ndarray:
    features = FEATURES.astype(dtype)
    features[7, 2, 3] = features[9, 1, 1] = value
    return features


@pytest.mark.parametrize("suffix", ["npy", "pkl"])
@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        ("features", FEATURES[:, 0, 0], r"shape \(12,\); .*\(samples, n_mels, time\) of spectro"),
        ("features", np.float32(1).reshape(()), r"shape \(\)|holds a float32"),
        ("features", FEATURES[:, :0], r"shape \(12, 0, 6\)"),
        ("features", FEATURES[:11], r"11 samples, .*labels\.npy 12 and .*folds\.npy 12"),
        ("features", FEATURES.astype(complex), "dtype complex128; .*integers or bools|dtype c16"),
        ("features", with_value(2**24 + 1, int), r"2 of 288 .*integers.* 16777217 in sample 7, at"),
        ("features", with_value(-(2**63), int), r"-9223372036854775808 in sample 7, at \[2, 3\]"),
        ("features", FEATURES.astype(np.uint64), r"184467440737\d+ in sample 0.*to 16777216, or"),
        ("features", with_value(np.nan), r"2 of 288 .*nan in sample 7, at \[2, 3\]"),
        ("features", with_value(np.inf), r"2 of 288 .*inf in sample 7, at \[2, 3\]"),
        ("features", with_value(-np.inf, np.float16), r"2 of 288 .*-inf in sample 7"),
        ("features", with_value(1e300, np.float64), r"2 of 288 .*1e\+300 in sample 7"),
        ("features", with_value(np.nan)[:, None], r"nan in sample 7, at \[2, 3\]"),
        ("labels", LABELS[:9], r"12 samples, .*labels\.\w+ 9 and .*folds\.npy 12"),
        ("folds", FOLDS[:9], r"12 samples, .*labels\.npy 12 and .*folds\.\w+ 9;.* same number"),
        ("labels", LABELS[:, None], r"shape \(12, 1\); labels should be one-dimensional"),
        ("folds", FOLDS.reshape(3, 4), r"shape \(3, 4\); folds should be one-dimensional"),
        ("labels", LABELS + 0.5, r"non-integer labels, value 3\.5 at index 0; .*integers"),
        ("folds", np.where(FOLDS == 5, np.nan, FOLDS), r"non-integer folds, value nan at index 8"),
        ("folds", np.where(FOLDS == 5, np.inf, FOLDS), r"non-integer folds, value inf at index 8"),
        (
            "labels",
            LABELS.astype(float),
            r"float64, non-integer labels;.*labels\.astype\(numpy\.int",
        ),
        ("labels", LABELS * 1j, r"dtype complex128; labels should be integers, text or|dtype c16"),
        ("labels", LABELS.astype(np.uint64) + 2**63, r"value 9223372036854775817; .*64-bit"),
        ("folds", np.full(N, 4), r"fold 4 only; .*two"),
        ("labels", np.full(N, 4), r"class 4 only; .*two"),
    ],
)
def test_values_that_cannot_be_used(
    tmp_path: Path, file: str, value: Any, said: str, suffix: str
) -> None:
    save(tmp_path, **{f"{file}_npy": None, f"{file}_{suffix}": value})
    text = refusal(tmp_path, f"{file}.{suffix}")
    assert re.search(said, text), text


RAGGED = np.empty(N, object)
RAGGED[:] = [FEATURES[n, :, : 3 + n % 3] for n in range(N)]


@pytest.mark.parametrize(
    ("file", "value", "remedy"),
    [
        ("features", RAGGED, "cut or pad all samples to one shape"),
        ("features", FEATURES.astype(object), "cut or pad all samples to one shape"),
        ("labels", np.array(["dog", "cat", "ant"] * 4, object), "labels.astype(str)"),
        ("folds", np.array(["ann", "ben", "cy"] * 4, object), "folds.astype(str)"),
    ],
)
def test_arrays_of_objects(tmp_path: Path, file: str, value: Any, remedy: str) -> None:
    text = refusal(save(tmp_path, **{f"{file}_npy": value}), f"{file}.npy")
    assert "an array of Python objects (dtype object), not of numbers" in text and remedy in text
    if file == "features":  # labels and folds may be objects in memory, where they need no pickle
        with pytest.raises(BadData, match=r"^features: an array of Python objects") as caught:
            FeatureSet.from_arrays(value, LABELS, FOLDS)
        assert remedy in str(caught.value)
    save(tmp_path / "pkl", **{f"{file}_npy": None, f"{file}_pkl": value})
    assert "holds an array of Python objects" in refusal(tmp_path / "pkl", f"{file}.pkl")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"


@pytest.mark.parametrize("suffix", ["npy", "pkl"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            saved(lambda file: torch.save(TENSOR, file)),
            "a file of torch.save; rename it to features.pt",
        ),
        (
            saved(lambda file: torch.save(TENSOR, file, _use_new_zipfile_serialization=False)),
            "a file of torch.save; rename it to features.pt",
        ),
        (ZIP.getvalue(), "a file of numpy.savez; rename it to features.npz"),
        (gzip.compress(GOOD_NPY.getvalue()), "compressed with gzip; unpack it"),
        (POINTER, "a pointer of Git LFS in place of the file; fetch the file with `git lfs pull`"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file; save its array"),
        (b"PK\x03\x04" + bytes(100), "a zip archive; unpack it"),
    ],
    ids=range(7),
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, said: str, suffix: str) -> None:
    save(tmp_path, **{"features_npy": None, f"features_{suffix}": content})
    assert f"features.{suffix}: {said}" in refusal(tmp_path, f"features.{suffix}")


@pytest.mark.parametrize(
    "content",
    [
        saved(lambda file: torch.save({3: "dog"}, file)),
        saved(lambda file: torch.save({3: "dog"}, file, _use_new_zipfile_serialization=False)),
        GOOD_NPY.getvalue(),
        gzip.compress(pickle.dumps({3: "dog"})),
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        b"rubbish",
        pickle.dumps(Path("dog")),
    ],
    ids=range(7),
)
def test_names_of_classes_belong_into_json(tmp_path: Path, content: bytes) -> None:
    text = refusal(save(tmp_path, class_mapping_pkl=content), "class_mapping.pkl")
    assert text.endswith('; save the names as class_mapping.json, {"0": "dog", ...}')


def test_a_pointer_to_names_of_classes(tmp_path: Path) -> None:
    text = refusal(save(tmp_path, class_mapping_pkl=POINTER), "class_mapping.pkl")
    assert text.endswith("fetch the file with `git lfs pull`")


def test_a_pickled_tensor(tmp_path: Path) -> None:
    text = refusal(
        save(tmp_path, features_npy=None, features_pkl=pickle.dumps(TENSOR)), "features.pkl"
    )
    assert "holds a torch tensor (" in text and "tensor.numpy()" in text


def test_npy_and_pkl_in_place_of_each_other(tmp_path: Path) -> None:
    save(tmp_path / "npy", features_npy=pickle.dumps(FEATURES))
    assert "a pickle under another name; rename it to features.pkl" in refusal(
        tmp_path / "npy", "features.npy"
    )
    save(tmp_path / "pkl", features_npy=None, features_pkl=GOOD_NPY.getvalue())
    assert refusal(tmp_path / "pkl", "features.pkl").endswith(
        "features.pkl: an .npy file under another name; rename it to features.npy"
    )


class Runs:
    """Whose unpickling runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("npz", arrays(np.savez, X=FEATURES, labels=LABELS), "lacks folds; it holds X, labels"),
        ("npz", arrays(np.savez, a=FEATURES), "lacks features (or X); it holds a"),
        ("npz", arrays(np.savez, X=FEATURES, features=FEATURES), "holds both features and X"),
        (
            "npz",
            arrays(np.savez, X=FEATURES, y=NAMED.astype(object), folds=FOLDS),
            "y: an array of Python objects (dtype object), not of numbers; save text as labels.as",
        ),
        (
            "npz",
            arrays(np.savez, X=FEATURES)[:-90],
            "damaged, or not an .npz file of plain numbers",
        ),
        (
            "npz",
            arrays(np.savez, X=FEATURES).replace(b"NUMPY", b"NUMPI"),
            "damaged, or not an .npz",
        ),
        ("npz", b"", "(not a zip archive, or its end is missing); make it again with numpy.savez"),
        ("npz", b"hello" * 99, "(not a zip archive, or its end is missing); make it again with"),
        ("npz", GOOD_NPY.getvalue(), "an .npy file under another name; save its arrays with num"),
        ("npz", pickle.dumps(Runs()), "a pickle under another name; save its arrays with numpy"),
        ("npz", tensors(TENSORS), "a file of torch.save; rename it to data.pt"),
        ("pt", ZIP.getvalue(), "a file of numpy.savez; rename it to data.npz"),
        ("pt", tensors(torch.nn.Linear(2, 2)), "holds torch.nn.modules.linear.Linear, which is re"),
        ("pt", tensors(torch.nn.Linear(2, 2).state_dict()), "lacks features (or X); it holds weig"),
        ("pt", tensors({"X": FEATURES}), "holds numpy._core.multiarray._reconstruct, which is re"),
        (
            "pt",
            tensors((TENSOR, TENSOR)),
            "holds a tuple; expected a dict of tensors, torch.save({",
        ),
        ("pt", tensors(Runs()), "holds "),
        ("pt", pickle.dumps(Runs()), "a pickle under another name; save its arrays with numpy.sav"),
        (
            "pt",
            tensors(TENSORS)[:-90],
            "damaged, or not a .pt file of tensors (RuntimeError); make",
        ),
        ("pt", b"", "damaged, or not a .pt file of tensors"),
        ("pt", b"hello" * 99, "damaged, or not a .pt file of tensors"),
        (
            "pt",
            tensors({**TENSORS, "X": TENSOR}),
            "holds both features and X; expected one of them",
        ),
        (
            "pt",
            tensors({**TENSORS, "features": TENSOR.to_sparse()}),
            "features: not an array of numbers (can't convert Sparse",
        ),
    ],
    ids=range(23),
)
def test_files_of_several_arrays_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = refusal(save(tmp_path / "folder", **ALL, **{f"data_{name}": content}), f"data.{name}")
    assert said in text
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "sounds.npz",
            "no such file; expected an .npz or .pt file with features, labels and folds",
        ),
        (
            "folds.npy",
            "is a file; expected an .npz or .pt file with features, labels and folds, or",
        ),
    ],
)
def test_a_file_in_place_of_the_folder(tmp_path: Path, name: str, said: str) -> None:
    assert f"{name}: {said}" in refusal(save(tmp_path) / name, "")


def test_files_that_are_not_read_are_mentioned(tmp_path: Path) -> None:
    save(tmp_path, features_npy=None)
    assert "is not read" not in refusal(tmp_path, "")
    (tmp_path / "sounds.npz").write_bytes(ZIP.getvalue())
    assert (
        "lacks features.npy (or .npz, .pt, .pkl); sounds.npz is not read: save each array with "
        "numpy.save under such a name, or name an .npz or .pt file that has all as --processed_dir"
    ) in refusal(tmp_path, "")
    for name in ("X.npy", "Features.NPY", "features.pth", "a.h5", "notes.txt"):
        (tmp_path / name).write_bytes(b"not looked into")
    for name in (".features.npy.123", "._X.npy", ".cache.pkl"):  # of macOS and of programs
        (tmp_path / name).write_bytes(b"not looked into")
    assert "; Features.NPY, X.npy, a.h5, features.pth and 1 more are not read: save" in refusal(
        tmp_path, ""
    )


def test_no_samples(tmp_path: Path) -> None:
    save(tmp_path, features_npy=FEATURES[:0], labels_npy=LABELS[:0], folds_npy=FOLDS[:0])
    assert "no samples" in refusal(tmp_path, "features.npy")
    empty = {f"{name}_pkl": pickle.dumps([]) for name in ("features", "labels", "folds")}
    save(tmp_path / "lists", features_npy=None, labels_npy=None, folds_npy=None, **empty)
    assert "no samples" in refusal(tmp_path / "lists", "features.pkl")


@pytest.mark.filterwarnings("error")
def test_values_are_checked_far_into_a_large_file(tmp_path: Path) -> None:
    features = np.zeros((40, 512, 512), np.float32)  # 42 MB
    features[37, 511, 511] = np.nan
    folds = np.arange(40) % 4
    save(tmp_path, features_npy=features, labels_npy=folds, folds_npy=folds)
    text = refusal(tmp_path, "features.npy")
    assert "1 of 10485760 " in text
    assert "in sample 37, at [511, 511];" in text


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["dog", "cat"]', "holds a list"),
        (b"3", "holds a int"),
        (b'{"3": "a", "3": "b"}', "twice"),
        (b'{"3": "a", "03": "b"}', "label 3 appears twice"),
        (b'{"dog": 3, "cat": 7}', "key 'dog'"),
        (b'{"3.0": "a"}', "key '3.0'"),
        (b'{"99999999999999999999": "a"}', "key '99999999999999999999'"),
        (b'{"9223372036854775808": "a"}', "key '9223372036854775808'"),
        (b'{"3": "a", "7": 5, "9": "c"}', "name of label 7 is a int"),
        (b'{"3": "a", "9": "c"}', "label 7, found in"),
        (b"{}", "label 3, found in"),
    ],
)
def test_bad_class_mapping(tmp_path: Path, mapping: bytes, said: str) -> None:
    assert said in refusal(save(tmp_path, class_mapping_json=mapping), "class_mapping.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'{"a": 1, "a": 2}'])
def test_bad_feature_parameters(tmp_path: Path, content: bytes) -> None:
    assert "JSON object" in refusal(save(tmp_path, features_json=content), "features.json")


def test_fingerprint_is_the_same_from_npy_and_pkl_and_memory(tmp_path: Path) -> None:
    prints = {fingerprint()}
    for file in ("features", "labels", "folds"):
        content = {"features": FEATURES, "labels": LABELS, "folds": FOLDS}[file]
        folder = save(tmp_path / file, **{f"{file}_npy": None, f"{file}_pkl": content})
        prints.add(read_feature_set(folder).fingerprint)
    prints.add(read_feature_set(save(tmp_path / "npy")).fingerprint)
    assert len(prints) == 1
    assert len(bytes.fromhex(prints.pop())) >= 16


# ---- Writing


def written(folder: Path, features: Any = FEATURES) -> FeatureSet:
    names = {3: "dog", 7: "räin", 9: "siren"}
    write_feature_set(folder, features, LABELS, FOLDS, names, {"n_fft": 512})
    return read_feature_set(folder)


def test_how_folds_were_made_is_said_and_is_no_parameter_of_features(tmp_path: Path) -> None:
    rule = {"method": "StratifiedKFold", "folds": 2, "seed": 3}
    write_feature_set(tmp_path, FEATURES, LABELS, FOLDS, {}, {"n_fft": 512}, fold_rule=rule)
    (tmp_path / "class_mapping.json").unlink()
    data = read_feature_set(tmp_path)
    assert data.feature_parameters == {"n_fft": 512}
    assert "folds made by StratifiedKFold, folds 2, seed 3" in data.notes
    assert data.fingerprint == fingerprint()
    (tmp_path / "features.json").write_text('{"fold_rule": ["by hand"]}')
    with pytest.raises(BadData, match=r"features\.json: fold_rule: holds a list; it should be an"):
        read_feature_set(tmp_path)


CLASSES = {3: "dog", 7: "rain", 9: "siren"}


@pytest.mark.parametrize(("suffix", "as_file"), [(".npy", True), (".pkl", False)])
def test_a_kill_at_any_step_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, as_file: bool
) -> None:
    def write(folder: Path, new: bool) -> None:
        features: Any = FEATURES + new
        folder.mkdir(parents=True, exist_ok=True)
        if as_file:
            features = folder.parent / "features.npy"
            np.save(features, FEATURES + new)
        labels = np.roll(LABELS, new)
        recordings = np.arange(N)[:: -1 if new else 1]
        write_feature_set(folder, features, labels, FOLDS, CLASSES, {}, recordings=recordings)

    def stopped(call: Any, steps: Iterator[bool]) -> Any:
        def called(*args: Any, **options: Any) -> None:
            if next(steps, False):
                raise KeyboardInterrupt
            call(*args, **options)

        return called

    def prints(folder: Path) -> tuple[str, list[int]]:
        data = read_feature_set(folder)
        assert data.recordings is not None
        return data.fingerprint, data.recordings.tolist()

    monkeypatch.setattr(os, "fsync", lambda handle: None)  # takes long, and a kill needs none
    replace, unlink = os.replace, Path.unlink
    for name, new in (("old", False), ("new", True)):
        write(tmp_path / name / "data", new)
        write(tmp_path / name / "data", new)  # over itself
    refused: list[str] = []
    for step in range(1, 12):
        folder = tmp_path / str(step) / "data"
        write(folder, False)
        if suffix == ".pkl":
            (folder / "features.npy").unlink()
            (folder / "features.pkl").write_bytes(pickle.dumps(FEATURES))
        steps = iter([*[False] * (step - 1), True])

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", stopped(replace, steps))
            patch.setattr(Path, "unlink", stopped(unlink, steps))
            write(folder, True)
        try:
            assert prints(folder) in (prints(tmp_path / each / "data") for each in ("old", "new"))
        except BadData as error:
            refused.append(str(error))
        write(folder, True)
        assert prints(folder) == prints(tmp_path / "new" / "data")
    assert len(refused) > 3
    expected = r"lacks features\.npy" if suffix == ".npy" else r"features\.npy: .*make it again"
    assert all(re.search(expected, text) for text in refused)


def test_recordings_of_an_earlier_data_set_do_not_stay(tmp_path: Path) -> None:
    everything = np.arange(len(LABELS))
    write_feature_set(tmp_path, FEATURES, LABELS, FOLDS, {}, {}, recordings=everything)
    assert np.load(tmp_path / "recordings.npy").tolist() == list(range(len(LABELS)))
    write_feature_set(tmp_path, FEATURES, LABELS, FOLDS, {}, {})
    assert not (tmp_path / "recordings.npy").exists()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    data = written(folder)
    np.testing.assert_array_equal(data.features, FEATURES)
    assert data.class_names == ("dog", "räin", "siren")
    assert data.feature_parameters == {"n_fft": 512}
    assert sorted(path.name for path in folder.iterdir()) == [
        "class_mapping.json",
        "features.json",
        "features.npy",
        "folds.npy",
        "labels.npy",
    ]


def test_writing_replaces_files_that_others_have_mapped(tmp_path: Path) -> None:
    first = written(tmp_path)
    second = written(tmp_path, features=FEATURES + 1)
    np.testing.assert_array_equal(first.features, FEATURES)
    np.testing.assert_array_equal(second.features, FEATURES + 1)


def test_failed_writing_leaves_the_former_files(tmp_path: Path) -> None:
    written(tmp_path)
    objects = np.array([None] * N, dtype=object)
    with pytest.raises(ValueError, match="allow_pickle"):
        write_feature_set(tmp_path, FEATURES + 1, LABELS, objects, {}, {})
    assert len(list(tmp_path.iterdir())) == 5
    np.testing.assert_array_equal(read_feature_set(tmp_path).features, FEATURES)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/below"):
        written(tmp_path / "file" / "below")

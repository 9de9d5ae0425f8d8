"""Which files are read, which are refused, and what is promised of them."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.data_files import FEATURES, FOLDS, FRAMES, LABELS, MELS, N, fingerprint, refusal, save

from raykfold.data.feature_set import FeatureSet, SoundClass
from raykfold.data.reading import read_feature_set, write_feature_set
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
    assert (len(data), data.n_mels, data.time, data.num_classes) == (N, MELS, FRAMES, 3)
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


def test_of_two_axes_of_length_one_the_second_is_the_channel() -> None:
    data = FeatureSet.from_arrays(np.ones((N, 1, 4, 1), np.float32), LABELS, FOLDS)
    assert data.features.shape == (N, 4, 1)


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


def test_fortran_ordered_npy(tmp_path: Path) -> None:
    data = read_feature_set(save(tmp_path, features_npy=np.asfortranarray(FEATURES)))
    np.testing.assert_array_equal(data.features, FEATURES)
    assert is_mapped(data.features)
    assert data.fingerprint == fingerprint()


# ---- What is refused


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


GOOD_NPY = io.BytesIO()
np.save(GOOD_NPY, FEATURES)
ZIP = io.BytesIO()
np.savez(ZIP, features=FEATURES)


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
        ("features", FEATURES[0], r"shape \(4, 6\); .*\(samples, n_mels, time\)"),
        ("features", FEATURES[:, None, None], r"shape \(12, 1, 1, 4, 6\)"),
        ("features", FEATURES.reshape(N, 2, 2, 6), r"shape \(12, 2, 2, 6\).*\(samples, 1, n_mels"),
        ("features", np.float32(1).reshape(()), r"shape \(\)|holds a float32"),
        ("features", FEATURES[:, :0], r"shape \(12, 0, 6\)"),
        ("features", FEATURES[:11], r"11 samples, .*labels\.npy 12 and .*folds\.npy 12"),
        ("features", (FEATURES * 100).astype(np.int16), r"dtype int16; .*float32"),
        ("features", FEATURES > 0, r"dtype bool; .*float32"),
        ("features", with_value(np.nan), r"2 of 288 .*nan in sample 7, at mel band 2, frame 3"),
        ("features", with_value(np.inf), r"2 of 288 .*inf in sample 7, at mel band 2, frame 3"),
        ("features", with_value(-np.inf, np.float16), r"2 of 288 .*-inf in sample 7"),
        ("features", with_value(1e300, np.float64), r"2 of 288 .*1e\+300 in sample 7"),
        ("features", with_value(np.nan)[:, None], r"nan in sample 7, at mel band 2, frame 3"),
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
        ("labels", LABELS > 3, r"dtype bool, non-integer labels"),
        ("labels", LABELS.astype(str), r"text; labels should be integers.*class_mapping\.json"),
        (
            "folds",
            FOLDS.astype(str),
            r"text; folds should be .*numpy\.unique\(folds.*features\.json",
        ),
        ("labels", LABELS.astype("S"), r"text; labels should be integers|array of dtype S21"),
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
        ("labels", np.array(["dog", "cat", "ant"] * 4, object), "class_mapping.json"),
        ("folds", np.array(["ann", "ben", "cy"] * 4, object), "numpy.unique(folds"),
    ],
)
def test_arrays_of_objects(tmp_path: Path, file: str, value: Any, remedy: str) -> None:
    text = refusal(save(tmp_path, **{f"{file}_npy": value}), f"{file}.npy")
    assert "an array of Python objects (dtype object), not of numbers" in text and remedy in text
    arrays = {"features": FEATURES, "labels": LABELS, "folds": FOLDS, file: value}
    with pytest.raises(BadData, match=f"^{file}: an array of Python objects") as caught:
        FeatureSet.from_arrays(**arrays)
    assert remedy in str(caught.value)
    save(tmp_path / "pkl", **{f"{file}_npy": None, f"{file}_pkl": value})
    assert "holds an array of Python objects" in refusal(tmp_path / "pkl", f"{file}.pkl")


def saved(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


TENSOR = torch.from_numpy(FEATURES)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"


@pytest.mark.parametrize("suffix", ["npy", "pkl"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (saved(lambda file: torch.save(TENSOR, file)), "a file of torch.save; save tensor.numpy()"),
        (
            saved(lambda file: torch.save(TENSOR, file, _use_new_zipfile_serialization=False)),
            "a file of torch.save; save tensor.numpy()",
        ),
        (ZIP.getvalue(), "a file of numpy.savez; save its array with numpy.save as features.npy"),
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


def test_files_that_are_not_read_are_mentioned(tmp_path: Path) -> None:
    save(tmp_path, features_npy=None)
    assert "is not read" not in refusal(tmp_path, "")
    (tmp_path / "features.npz").write_bytes(ZIP.getvalue())
    assert "lacks features.npy (or .pkl); features.npz is not read: save each array" in refusal(
        tmp_path, ""
    )
    for name in ("X.npy", "Features.NPY", "features.pt", "a.h5", "notes.txt"):
        (tmp_path / name).write_bytes(b"not looked into")
    for name in (".features.npy.123", "._X.npy", ".cache.pkl"):  # of macOS and of programs
        (tmp_path / name).write_bytes(b"not looked into")
    assert "; Features.NPY, X.npy, a.h5, features.npz and 1 more are not read: save" in refusal(
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
    assert "in sample 37, at mel band 511, frame 511" in text


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


def test_arrays_in_memory_are_checked_alike_and_named_as_asked() -> None:
    with pytest.raises(BadData, match=r"^labels: shape \(12, 1\)"):
        FeatureSet.from_arrays(FEATURES, LABELS[:, None], FOLDS)
    with pytest.raises(BadData, match=r"^the labels: shape \(12, 1\)"):
        FeatureSet.from_arrays(FEATURES, LABELS[:, None], FOLDS, names={"labels": "the labels"})
    with pytest.raises(BadData, match=r"^features: not an array of numbers"):
        FeatureSet.from_arrays([[[1.0]], [[1.0, 2.0]]], [0, 1], [0, 1])
    with pytest.raises(BadData, match=r"^class_mapping: key 'x'"):
        FeatureSet.from_arrays(FEATURES, LABELS, FOLDS, class_mapping={"x": "a"})
    data = FeatureSet.from_arrays(FEATURES.tolist(), LABELS.tolist(), FOLDS.tolist())
    assert data.features.dtype == np.float64


def changed_bit() -> np.ndarray:
    features = FEATURES.copy()
    features.view(np.uint32)[11, 3, 5] ^= 1
    return features


def swapped_labels() -> np.ndarray:
    labels = LABELS.copy()
    labels[[0, 1]] = labels[[1, 0]]
    return labels


@pytest.mark.parametrize(
    "other",
    [
        {"features": changed_bit()},
        {"features": FEATURES.reshape(N, FRAMES, MELS)},
        {"features": FEATURES.astype(np.float64)},
        {"features": FEATURES.astype(np.float16)},
        {"features": FEATURES[::-1]},
        {"labels": swapped_labels()},
        {"labels": LABELS + 1},
        {"folds": FOLDS[::-1]},
        {"labels": FOLDS, "folds": LABELS},
        {"class_mapping": {3: "a", 7: "b", 9: "c", 10: "d"}},
    ],
    ids=range(10),
)
def test_fingerprint_differs(other: dict[str, Any]) -> None:
    assert fingerprint(**other) != fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        {"features": FEATURES[:, None]},
        {"features": FEATURES[..., None]},
        {"features": np.asfortranarray(FEATURES)},
        {"features": FEATURES.astype(">f4")},
        {"labels": LABELS.astype(np.int8)},
        {"labels": LABELS.astype(">i4"), "folds": FOLDS.astype(np.uint16)},
        {"labels": LABELS.tolist()},
        {"class_mapping": {3: "a", 7: "b", 9: "c"}},
        {"class_mapping": {"9": "x", "7": "y", "3": "z"}},
        {"feature_parameters": {"n_fft": 1}},
        {"fold_names": {1: "ann"}},
    ],
    ids=range(11),
)
def test_fingerprint_is_of_the_values(other: dict[str, Any]) -> None:
    assert fingerprint(**other) == fingerprint()


def test_fingerprint_is_the_same_from_npy_and_pkl_and_memory(tmp_path: Path) -> None:
    prints = {fingerprint()}
    for file in ("features", "labels", "folds"):
        content = {"features": FEATURES, "labels": LABELS, "folds": FOLDS}[file]
        folder = save(tmp_path / file, **{f"{file}_npy": None, f"{file}_pkl": content})
        prints.add(read_feature_set(folder).fingerprint)
    prints.add(read_feature_set(save(tmp_path / "npy")).fingerprint)
    assert len(prints) == 1
    assert len(bytes.fromhex(prints.pop())) >= 16


def test_fingerprint_covers_every_part_of_a_large_file() -> None:
    features = np.zeros((40, 512, 512), np.float16)  # 21 MB, in more than one piece
    folds = np.arange(40) % 4
    prints = [fingerprint(features, folds, folds)]
    for sample in (0, 20, 39):
        features[sample, -1, -1] = 1
        prints.append(fingerprint(features, folds, folds))
    assert len(set(prints)) == 4


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

"""What `feature_set` reads, refuses and promises, through its public names and real files."""

from __future__ import annotations

import builtins
import codecs
import io
import json
import os
import pickle
import re
import resource
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raykfold.data.feature_set import FeatureSet, SoundClass, SoundDataset, Split
from raykfold.data.reading import feature_set_from_arrays, read_feature_set, write_feature_set
from raykfold.errors import BadData, BadInput, StorageError

N, MELS, FRAMES = 12, 4, 6
FEATURES = np.random.default_rng(0).standard_normal((N, MELS, FRAMES)).astype(np.float32)
LABELS = np.array([3, 7, 9] * 4)
FOLDS = np.repeat([1, 2, 5], 4)
PROTOCOLS = range(6)
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda array: array,
    "Fortran order": np.asfortranarray,
    "axes permuted": lambda array: np.ascontiguousarray(array.transpose(1, 0, 2)).transpose(
        1, 0, 2
    ),
    "strided": lambda array: np.repeat(array, 2, axis=2)[:, :, ::2],
}


def save(folder: Path, **contents: Any) -> Path:
    """Write good files, but for those in `contents`: name_suffix=array, object, bytes or None."""
    files = {"features_npy": FEATURES, "labels_npy": LABELS, "folds_npy": FOLDS, **contents}
    folder.mkdir(exist_ok=True)
    for key, content in files.items():
        stem, suffix = key.rsplit("_", 1)
        path = folder / f"{stem}.{suffix}"
        if content is None:
            continue
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif suffix == "npy":
            np.save(path, content)
        elif suffix == "pkl":
            path.write_bytes(pickle.dumps(content))
        else:
            path.write_text(json.dumps(content))
    return folder


def refusal(folder: Path, file: str) -> str:
    """The text with which `folder` is refused: one line that names `file`."""
    with pytest.raises(BadData) as caught:
        read_feature_set(folder)
    text = str(caught.value)
    assert str(folder / file) in text
    assert text.isprintable()
    assert len(text) < 700
    return text


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def numpy_1(pickled: bytes) -> bytes:
    """The same pickle as NumPy 1 would write it: its modules have no underscore."""
    protocol = pickled[1]
    if protocol < 4:
        return pickled.replace(b"numpy._core.", b"numpy.core.")
    assert pickled[2:3] == pickle.FRAME
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        pickled = pickled.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
    return pickled[:2] + pickled[11:]  # without the frame, whose length no longer holds


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


def test_class_indices_count_classes_without_samples(tmp_path: Path) -> None:
    save(tmp_path, class_mapping_json={"-1": "none", "3": "a", "7": "b", "8": "c", "9": "d"})
    data = read_feature_set(tmp_path)
    assert data.class_labels == (-1, 3, 7, 8, 9)
    assert data.class_indices.tolist() == [1, 2, 4] * 4


def test_splits_hold_one_fold_out_in_sample_order() -> None:
    folds = np.array([2, 1] * 6)
    data = feature_set_from_arrays(FEATURES, LABELS, folds)
    split = data.split(2)
    assert split.fold == 2
    assert split.validation.tolist() == [0, 2, 4, 6, 8, 10]
    assert split.train.tolist() == [1, 3, 5, 7, 9, 11]
    assert split.train.dtype == split.validation.dtype == np.int64
    with pytest.raises(BadInput, match=r"fold 3.* 1, 2"):
        data.split(3)


def test_warns_of_folds_whose_training_lacks_a_class() -> None:
    labels = np.array([0, 1] * 4 + [0, 2, 4, 2])
    names = {0: "dog", 1: "rain", 2: "siren", 3: "cat", 4: "hen"}
    lines = feature_set_from_arrays(FEATURES, labels, FOLDS, class_mapping=names).warnings()
    assert lines == [
        "no sample in any fold is of class 3 (cat)",
        "fold 5: its training split has no sample of classes 2 (siren), 4 (hen)",
    ]
    assert feature_set_from_arrays(FEATURES, LABELS, FOLDS).warnings() == []


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
    data = feature_set_from_arrays(np.ones((N, 1, 4, 1), np.float32), LABELS, FOLDS)
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


# ---- Pickles


@pytest.mark.parametrize("written_by", ["NumPy 1", "NumPy 2"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickled_features(tmp_path: Path, protocol: int, layout: str, written_by: str) -> None:
    features = LAYOUTS[layout](FEATURES)
    pickled = pickle.dumps(features, protocol)
    if written_by == "NumPy 1" and protocol >= 2:
        pickled = numpy_1(pickled)
        assert b"_core" not in pickled
    data = read_feature_set(save(tmp_path, features_npy=None, features_pkl=pickled))
    np.testing.assert_array_equal(data.features, FEATURES)
    assert data.features.flags.c_contiguous
    assert data.fingerprint == fingerprint()


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i2", ">i8"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickled_labels(tmp_path: Path, protocol: int, dtype: str) -> None:
    pickled = pickle.dumps(LABELS.astype(dtype), protocol)
    data = read_feature_set(save(tmp_path, labels_npy=None, labels_pkl=pickled))
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == LABELS.tolist()
    assert data.fingerprint == fingerprint()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "labels",
    [LABELS.tolist(), tuple(LABELS.tolist()), list(LABELS), list(LABELS.astype(np.uint8))],
    ids=["list", "tuple", "list of int64", "list of uint8"],
)
def test_pickled_sequences_of_integers(tmp_path: Path, labels: Any, protocol: int) -> None:
    save(tmp_path, labels_npy=None, labels_pkl=pickle.dumps(labels, protocol))
    assert read_feature_set(tmp_path).labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickled_list_of_arrays_is_stacked(tmp_path: Path, protocol: int) -> None:
    save(tmp_path, features_npy=None, features_pkl=pickle.dumps(list(FEATURES), protocol))
    data = read_feature_set(tmp_path)
    np.testing.assert_array_equal(data.features, FEATURES)
    assert data.fingerprint == fingerprint()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "mapping",
    [
        {3: "a", 7: "é", 9: "c"},
        {"3": "a", "7": "é", "9": "c"},
        {np.int64(3): np.str_("a"), np.int64(7): np.str_("é"), np.int64(9): np.str_("c")},
        OrderedDict([(9, "c"), (7, "é"), (3, "a")]),
    ],
    ids=["int", "str", "NumPy", "ordered"],
)
def test_pickled_mapping(tmp_path: Path, mapping: dict[Any, str], protocol: int) -> None:
    save(tmp_path, class_mapping_pkl=pickle.dumps(mapping, protocol))
    names = read_feature_set(tmp_path).class_names
    assert names == ("a", "é", "c")
    assert {type(name) for name in names} == {str}


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def tampered(function: Any, shape: Any, state: Any = None, kind: Any = np.ndarray) -> Calls:
    return Calls(function, kind, shape, b"b", state=state)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", ["top", "item", "argument"])
@pytest.mark.parametrize("function", ["os.system", "builtins.eval", "builtins.open", "numpy.save"])
def test_foreign_code_does_not_run(
    tmp_path: Path, function: str, place: str, protocol: int
) -> None:
    marker = tmp_path / "ran"
    evil: Any = {
        "os.system": Calls(os.system, f"touch {marker}"),
        "builtins.eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.open": Calls(builtins.open, str(marker), "w"),
        "numpy.save": Calls(np.save, str(marker), 1),
    }[function]
    reconstruct = FEATURES.__reduce__()[0]
    pickled = pickle.dumps(
        {"top": evil, "item": [FEATURES, evil], "argument": tampered(reconstruct, evil)}[place],
        protocol,
    )
    save(tmp_path, features_npy=None, features_pkl=pickled)
    text = refusal(tmp_path, "features.pkl")
    # Protocols below 3 name the modules of Python 2.
    module, name = function.split(".")
    assert any(f" {m}.{name}" in text for m in (module, os.system.__module__, "__builtin__", "io"))
    assert not marker.exists()
    assert not marker.with_suffix(".npy").exists()
    pickle.loads(pickle.dumps(evil))
    assert marker.exists() or marker.with_suffix(".npy").exists()  # it would have run


@pytest.mark.parametrize(
    "evil",
    [
        Calls(np.fromfile, "/etc/hostname"),
        Calls(np.load, "x.npy", "r", True),
        Calls(np.memmap, "/tmp/raykfold-never", "u1", "w+", 0, (9,)),
        Calls(getattr, "text", "upper"),
        Calls(np.dtype("f4").__class__, "f4"),
        torch.zeros(3),
        Path("x"),
        {1, 2},
    ],
    ids=lambda evil: str(getattr(evil, "reduced", [type(evil)])[0])[:40],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_foreign_objects_are_named(tmp_path: Path, evil: Any, protocol: int) -> None:
    save(tmp_path, labels_npy=None, labels_pkl=pickle.dumps(evil, protocol))
    text = refusal(tmp_path, "labels.pkl")
    assert "refused" in text
    assert "numpy.save" in text


def test_the_foreign_object_is_named_in_full(tmp_path: Path) -> None:
    save(tmp_path, labels_npy=None, labels_pkl=Calls(np.fromfile, "/etc/hostname"))
    assert f"foreign object {np.fromfile.__module__}.fromfile" in refusal(tmp_path, "labels.pkl")


def test_no_codec_is_looked_up(tmp_path: Path) -> None:
    looked_up = []

    def search(name: str) -> None:
        looked_up.append(name)

    codecs.register(search)
    try:
        save(tmp_path, labels_npy=None, labels_pkl=Calls(codecs.encode, "x", "raykfold_probe"))
        assert "encode" in refusal(tmp_path, "labels.pkl")
        assert looked_up == []
        with pytest.raises(LookupError):
            pickle.loads((tmp_path / "labels.pkl").read_bytes())
        assert looked_up == ["raykfold_probe"]
    finally:
        codecs.unregister(search)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_persistent_ids_are_refused(tmp_path: Path, protocol: int) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return "elsewhere" if isinstance(item, list) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump([1])
    save(tmp_path, labels_npy=None, labels_pkl=buffer.getvalue())
    assert "PERSID" in refusal(tmp_path, "labels.pkl")


RECONSTRUCT: Any = FEATURES.__reduce__()[0]
FROMBUFFER: Any = FEATURES.__reduce_ex__(5)[0]
SCALAR: Any = np.int64(1).__reduce__()[0]
OBJECTS = np.array([Path("x"), None], dtype=object)
HUGE = 10**12
DTYPE = np.dtype("i8")


@pytest.mark.parametrize(
    "evil",
    [
        tampered(RECONSTRUCT, (HUGE,)),
        tampered(RECONSTRUCT, (0,)),
        tampered(RECONSTRUCT, (0,), kind=np.dtype),
        tampered(RECONSTRUCT, (0,), state=(1, (HUGE,), DTYPE, False, b"")),
        tampered(RECONSTRUCT, (0,), state=(1, (2,), DTYPE, False, [1, 2])),
        tampered(RECONSTRUCT, (0,), state=(1, (-2,), DTYPE, False, bytes(16))),
        tampered(RECONSTRUCT, (0,), state=(1, (1,) * 100, DTYPE, False, bytes(8))),
        tampered(RECONSTRUCT, (0,), state={"shape": 3}),
        Calls(np.ndarray, (HUGE,), DTYPE),
        Calls(FROMBUFFER, b"", DTYPE, (HUGE,), "C"),
        Calls(FROMBUFFER, bytes(16), DTYPE, (2,), "A"),
        Calls(FROMBUFFER, bytes(16), DTYPE, (2,), "K", (5,)),
        Calls(FROMBUFFER, 7, DTYPE, (2,), "C"),
        Calls(SCALAR, DTYPE, b"123"),
        Calls(np.dtype, f"({HUGE},)f8", False, True),
        Calls(np.dtype, [("a", "O")], False, True),
        Calls(np.dtype, "O8", False, True),
        Calls(np.dtype, "f4", False, True, state=(3, "<", (DTYPE, (9,)), None, None, -1, -1, 0)),
        OBJECTS,
        [OBJECTS],
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.array([1j]),
        [[1, 2], [3, 4]],
        [1, "x", None],
        ["dog", "cat"],
        {1: 2},
        "text",
        None,
        5,
        [2**70],
    ],
    ids=range(31),
)
@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_pickles_that_are_no_plain_array(tmp_path: Path, evil: Any, protocol: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    save(tmp_path, labels_npy=None, labels_pkl=pickle.dumps(evil, protocol))
    refusal(tmp_path, "labels.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_arrays_of_objects_are_called_so(tmp_path: Path) -> None:
    save(tmp_path, labels_npy=None, labels_pkl=OBJECTS)
    assert "array of Python objects" in refusal(tmp_path, "labels.pkl")
    save(tmp_path, labels_npy=OBJECTS)
    assert "Python objects" in refusal(tmp_path, "labels.npy")


GOOD_PICKLE = pickle.dumps(LABELS, 5)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x80",
        b"\x80\x05.",
        b"\x80\x05b.",
        b"\x80\x05(.",
        b"\x80\x05e.",
        b"\x80\x05h\x07.",
        b"\x80\x05NN\x93.",
        b"\x80\x05NNR.",
        b"\x80\x05Nq\x00" + b"](h\x00h\x00eq\x00" * 60 + b"N\x93.",  # 2 ** 60 items to print
        b"\x80\x05)Na.",
        b"\x80\x05K\x01KsNs.",
        b"\x80\x05(K\x01(K\x02e.",
        b"\x80\x05\x82\x01.",
        b"\x1f\x8b\x08 gzip",
        b"hello, world",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"I" + b"9" * 5000 + b"\n.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x05\x8e" + struct.pack("<Q", 2**63 - 1) + b"x.",
        b"\x80\x05\x95" + struct.pack("<Q", 2**62) + b"N.",
        b"\x80\x02cnumpy\nno\x1b[2Jsuch\n.",
        pickle.dumps("\n\x1b" * 1000),
        *(GOOD_PICKLE[:end] for end in range(1, len(GOOD_PICKLE), 9)),
    ],
)
def test_garbage_instead_of_a_pickle(tmp_path: Path, garbage: bytes) -> None:
    save(tmp_path, labels_npy=None, labels_pkl=garbage)
    refusal(tmp_path, "labels.pkl")


def test_every_altered_byte_of_a_pickle_is_read_or_refused(tmp_path: Path) -> None:
    save(tmp_path, labels_npy=None)
    random = np.random.default_rng(1)
    outcomes = {"read": 0, "refused": 0}
    for position in range(len(GOOD_PICKLE)):
        altered = bytearray(GOOD_PICKLE)
        altered[position] = random.integers(256)
        (tmp_path / "labels.pkl").write_bytes(altered)
        try:
            read_feature_set(tmp_path)
            outcomes["read"] += 1
        except BadData:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


def test_a_far_memo_index_takes_no_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    save(tmp_path, labels_npy=None, labels_pkl=b"\x80\x02Nr\xff\xff\xff\x07.")
    assert "LONG_BINPUT 134217727" in refusal(tmp_path, "labels.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_deep_key_does_not_end_the_process(tmp_path: Path) -> None:
    deep = b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."
    save(tmp_path, class_mapping_pkl=deep)
    assert "key" in refusal(tmp_path, "class_mapping.pkl")


def test_lists_within_lists_are_not_unfolded(tmp_path: Path) -> None:
    nested: Any = "x"
    for _ in range(60):
        nested = [nested, nested]
    save(tmp_path, class_mapping_pkl={3: nested, 7: "b", 9: "c"})
    assert "label 3 is a list" in refusal(tmp_path, "class_mapping.pkl")
    save(tmp_path, labels_npy=None, labels_pkl=nested)
    (tmp_path / "labels.npy").unlink()
    assert "a list of list" in refusal(tmp_path, "labels.pkl")


def test_few_bytes_that_unfold_to_many_are_refused(tmp_path: Path) -> None:
    save(tmp_path, features_npy=None, features_pkl=[np.zeros((64, 1000))] * 3000)
    assert "unfold to 1536000000" in refusal(tmp_path, "features.pkl")
    text = "x" * 100_000
    encoded = [Calls(codecs.encode, text, "latin1") for _ in range(1000)]
    save(tmp_path, features_npy=None, features_pkl=encoded)
    assert "more bytes" in refusal(tmp_path, "features.pkl")


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
np.savez(ZIP, FEATURES)


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
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (12, 1, 1)}\n", bytes(96)),
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


def test_no_samples(tmp_path: Path) -> None:
    save(tmp_path, features_npy=FEATURES[:0], labels_npy=LABELS[:0], folds_npy=FOLDS[:0])
    assert "no samples" in refusal(tmp_path, "features.npy")
    empty = {f"{name}_pkl": pickle.dumps([]) for name in ("features", "labels", "folds")}
    save(tmp_path / "lists", features_npy=None, labels_npy=None, folds_npy=None, **empty)
    assert "no samples" in refusal(tmp_path / "lists", "features.pkl")


def test_pickled_samples_that_differ_in_shape(tmp_path: Path) -> None:
    save(tmp_path, features_npy=None, features_pkl=[*FEATURES[:11], FEATURES[11, :, :5]])
    text = refusal(tmp_path, "features.pkl")
    assert "(4, 5)" in text
    assert "(4, 6)" in text


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
        (b'{"3": "a", "03": "b"}', "label 3 stands twice"),
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


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ([1, 2], "holds a list"),
        (LABELS, "holds a NumPy array"),
        ({True: "a"}, "of type bool"),
        ({3: "a", "3": "b"}, "label 3 stands twice"),
        ({3: "a", 7: "b", 9: None}, "name of label 9 is a NoneType"),
        ({3: "a", 7: "b", 9: LABELS}, "name of label 9 is a NumPy array"),
        ({2**80: "a"}, "of type int"),
        ({1.0: "a"}, "of type float"),
    ],
)
def test_bad_pickled_mapping(tmp_path: Path, mapping: Any, said: str) -> None:
    assert said in refusal(save(tmp_path, class_mapping_pkl=mapping), "class_mapping.pkl")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'{"a": 1, "a": 2}'])
def test_bad_feature_parameters(tmp_path: Path, content: bytes) -> None:
    assert "JSON object" in refusal(save(tmp_path, features_json=content), "features.json")


def test_arrays_in_memory_are_checked_alike_and_named_as_asked() -> None:
    with pytest.raises(BadData, match=r"^labels: shape \(12, 1\)"):
        feature_set_from_arrays(FEATURES, LABELS[:, None], FOLDS)
    with pytest.raises(BadData, match=r"^the labels: shape \(12, 1\)"):
        feature_set_from_arrays(FEATURES, LABELS[:, None], FOLDS, names={"labels": "the labels"})
    with pytest.raises(BadData, match=r"^features: no array of numbers"):
        feature_set_from_arrays([[[1.0]], [[1.0, 2.0]]], [0, 1], [0, 1])
    with pytest.raises(BadData, match=r"^class_mapping: key 'x'"):
        feature_set_from_arrays(FEATURES, LABELS, FOLDS, class_mapping={"x": "a"})
    data = feature_set_from_arrays(FEATURES.tolist(), LABELS.tolist(), FOLDS.tolist())
    assert data.features.dtype == np.float64


# ---- Fingerprint


def fingerprint(
    features: Any = FEATURES, labels: Any = LABELS, folds: Any = FOLDS, **others: Any
) -> str:
    return feature_set_from_arrays(features, labels, folds, **others).fingerprint


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
    ],
    ids=range(10),
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


# ---- SoundDataset


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64"])
@pytest.mark.filterwarnings("error")
def test_dataset_gives_float32_samples_and_long_labels(tmp_path: Path, dtype: str) -> None:
    data = read_feature_set(save(tmp_path, features_npy=FEATURES.astype(dtype)))
    dataset = SoundDataset(data.features, data.class_indices)
    assert len(dataset) == N
    sample, label = dataset[4]
    assert (sample.dtype, sample.shape) == (torch.float32, (MELS, FRAMES))
    assert (label.dtype, label.shape, label.item()) == (torch.long, (), 1)
    np.testing.assert_allclose(sample.numpy(), FEATURES[4], atol=2e-3)
    with pytest.raises(IndexError):
        dataset[N]


def test_dataset_through_a_loader_on_a_device() -> None:
    dataset = SoundDataset(FEATURES, LABELS, device="cpu")
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=5))
    assert [batch[0].shape[0] for batch in batches] == [5, 5, 2]
    features, labels = batches[0]
    assert features.dtype == torch.float32
    assert features.shape == (5, MELS, FRAMES)
    assert labels.dtype == torch.long
    assert labels.tolist() == LABELS[:5].tolist()
    np.testing.assert_array_equal(torch.cat([batch[0] for batch in batches]).numpy(), FEATURES)
    assert SoundDataset(FEATURES, LABELS, device="meta")[0][0].device.type == "meta"


def test_dataset_samples_are_copies() -> None:
    features = FEATURES.copy()
    SoundDataset(features, LABELS)[0][0].zero_()
    np.testing.assert_array_equal(features, FEATURES)


def test_dataset_wants_a_label_for_each_sample() -> None:
    with pytest.raises(ValueError, match="12 features, but 11 labels"):
        SoundDataset(FEATURES, LABELS[:11])


# --- inner validation -------------------------------------------------------------------------


def data_with_folds(folds: Sequence[int], labels: Sequence[int]) -> FeatureSet:
    features = np.zeros((len(folds), 2, 2), dtype=np.float32)
    return feature_set_from_arrays(features, np.array(labels), np.array(folds))


def test_the_inner_split_is_the_fold_after_the_one_that_is_held_out() -> None:
    folds = [1, 2, 3, 7, 9] * 4
    data = data_with_folds(folds, [0] * 10 + [1] * 10)
    for fold, following in {1: 2, 2: 3, 3: 7, 7: 9, 9: 1}.items():
        split = data.split(fold, inner=True)
        assert set(data.folds[split.inner].tolist()) == {following}
        assert len(split.inner) == len(split.validation) == 4
        assert_apart_and_whole(split, len(folds))


def assert_apart_and_whole(split: Split, samples: int) -> None:
    """Each sample is in one of the three."""
    together = np.concatenate([split.train, split.validation, split.inner])
    assert sorted(together.tolist()) == list(range(samples))
    for part in (split.train, split.validation, split.inner):
        assert part.tolist() == sorted(part.tolist())


def test_with_few_folds_the_inner_split_is_a_fifth_of_each_class() -> None:
    data = data_with_folds([1, 2, 3, 4] * 20, [0] * 40 + [1] * 36 + [2] * 4)
    split = data.split(2, inner=True, seed=5)
    assert_apart_and_whole(split, 80)
    counts = np.bincount(data.labels[split.inner])
    assert counts.tolist() == [6, 5, 1]  # of 30, 27 and 3
    assert not np.isin(2, data.folds[split.inner])
    again, other = data.split(2, inner=True, seed=5), data.split(2, inner=True, seed=6)
    assert again.inner.tolist() == split.inner.tolist() != other.inner.tolist()


def test_a_class_of_one_sample_stays_in_training() -> None:
    data = data_with_folds([1, 1, 1, 1, 2, 2], [0, 0, 0, 1, 0, 1])
    split = data.split(2, inner=True)
    assert data.labels[split.inner].tolist() == [0]
    assert 1 in data.labels[split.train]


def test_a_fold_that_is_left_out_has_no_part_in_any_split(small_data: FeatureSet) -> None:
    rest = small_data.without(2)
    assert rest.fold_labels == (1, 3, 4, 5)
    assert rest.features is small_data.features
    for fold in rest.fold_labels:
        split = rest.split(fold, inner=True)
        parts = np.concatenate([split.train, split.validation, split.inner])
        assert sorted(parts.tolist()) == np.flatnonzero(small_data.folds != 2).tolist()
        assert set(small_data.folds[split.validation].tolist()) == {fold}


def test_a_fold_that_is_left_out_cannot_be_held_out(small_data: FeatureSet) -> None:
    with pytest.raises(BadInput, match=r"fold 2: not in the data, whose folds are 1, 3, 4, 5$"):
        small_data.without(2).split(2)
    with pytest.raises(BadInput, match="fold 7: not in the data"):
        small_data.without(7)


def test_data_without_a_fold_has_a_fingerprint_of_its_own(small_data: FeatureSet) -> None:
    prints = {each.fingerprint for each in (small_data, *map(small_data.without, (1, 2)))}
    assert len(prints) == 3
    assert small_data.without(1).fingerprint in prints


def test_an_inner_split_that_lacks_a_class_is_said_in_a_line() -> None:
    """One sample would choose the epoch, and nobody had been told."""
    folds = np.array([1] + [2] * 2 + [3] * 3 + [4] * 3 + [5] * 3)
    labels = np.array([0, 0, 1] + [0, 1, 2] * 3)
    data = feature_set_from_arrays(FEATURES, labels, folds)
    assert data.warnings(inner=True) == [
        "2 of 5 inner validation splits lack a class that is trained on; that of fold 5 has no "
        "sample of classes 1 (1), 2 (2)"
    ]
    assert data.warnings() == data.warnings([], inner=True) == []


def test_too_few_samples_for_an_inner_split_are_refused() -> None:
    data = data_with_folds([1, 1, 2, 2], [0, 1, 0, 1])
    with pytest.raises(BadInput, match="--select inner: fold 1 leaves no class with two samples"):
        data.split(1, inner=True)


def test_a_class_that_the_inner_split_takes_from_training_is_warned_of() -> None:
    data = data_with_folds([1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 3], [0] * 5 + [1] * 5 + [2])
    assert not any("fold 2" in line for line in data.warnings())
    assert any("fold 2: its training split has no sample" in x for x in data.warnings(inner=True))

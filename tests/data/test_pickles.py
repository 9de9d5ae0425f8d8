"""Which pickles are read, and which are refused, without code of theirs running."""

from __future__ import annotations

import builtins
import codecs
import io
import os
import pickle
import resource
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.data_files import FEATURES, LABELS, fingerprint, refusal, save

from raykfold.data.reading import read_feature_set
from raykfold.errors import BadData

PROTOCOLS = range(6)
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda array: array,
    "Fortran order": np.asfortranarray,
    "axes permuted": lambda array: np.ascontiguousarray(array.transpose(1, 0, 2)).transpose(
        1, 0, 2
    ),
    "strided": lambda array: np.repeat(array, 2, axis=2)[:, :, ::2],
}


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
    # Where the function says that it is from; protocols below 3 name the modules of Python 2.
    module, name = function.split(".")
    modules = (module, evil.reduced[0].__module__, "__builtin__", "io")
    assert any(f" {m}.{name}" in text for m in modules)
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


@pytest.mark.parametrize(
    ("pickled", "named"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x07.", "LONG_BINPUT 134217727"),
        (b"Np134217727\n.", "PUT 134217727"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**31) + b"N.", "FRAME 2147483648"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**31) + b"N.", "expected 2147483648 bytes"),
        (b"\x80\x05\x8e" + struct.pack("<Q", 2**31) + b"N.", "expected 2147483648 bytes"),
    ],
)
def test_numbers_beyond_the_file_take_no_memory(tmp_path: Path, pickled: bytes, named: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    save(tmp_path, labels_npy=None, labels_pkl=pickled)
    assert named in refusal(tmp_path, "labels.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    ("pickled", "opcode"),
    [
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        (b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93)}\x92.", "NEWOBJ_EX"),
        (b"(K\x05i__builtin__\nbytes\n.", "INST"),
        (b"(c__builtin__\nbytes\nK\x05o.", "OBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x04\x8f.", "EMPTY_SET"),
        (b"K\x01K\x020.", "POP"),
    ],
)
def test_opcodes_that_no_array_needs_are_refused(
    tmp_path: Path, pickled: bytes, opcode: str
) -> None:
    save(tmp_path, labels_npy=None, labels_pkl=pickled)
    assert f"the opcode {opcode}," in refusal(tmp_path, "labels.pkl")


@pytest.mark.parametrize("name", ["numpy\ndtype", "numpy\nndarray", "_codecs\nencode"])
def test_names_take_no_state(tmp_path: Path, name: str) -> None:
    """Else a pickle could change what the next one meets under that name."""
    state = b"}X\x08\x00\x00\x00__call__K\x01s"
    save(tmp_path, labels_npy=None, labels_pkl=b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
    assert "a state for " in refusal(tmp_path, "labels.pkl")


def test_a_deep_key_does_not_end_the_process(tmp_path: Path) -> None:
    for depth, said in ((300_000, "too much for a key"), (9_000, "key of type tuple")):
        deep = b"\x80\x02})" + b"\x85" * depth + b"Ns."
        save(tmp_path, class_mapping_pkl=deep)
        assert said in refusal(tmp_path, "class_mapping.pkl")


def test_a_key_of_shared_tuples_does_not_take_for_ever(tmp_path: Path) -> None:
    key: tuple[Any, ...] = (1,)
    for _ in range(60):
        key = (key, key)
    # No dict with this key can be made to be pickled: {, the tuple, 1, SETITEM.
    dumped = pickle.dumps(key, 3)
    pickled = dumped[:2] + pickle.EMPTY_DICT + dumped[2:-1] + b"K\x01s."
    save(tmp_path, class_mapping_pkl=pickled)
    assert "too much for a key" in refusal(tmp_path, "class_mapping.pkl")


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


def test_pickled_samples_that_differ_in_shape(tmp_path: Path) -> None:
    save(tmp_path, features_npy=None, features_pkl=[*FEATURES[:11], FEATURES[11, :, :5]])
    text = refusal(tmp_path, "features.pkl")
    assert "(4, 5)" in text
    assert "(4, 6)" in text


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ([1, 2], "holds a list"),
        (LABELS, "holds a NumPy array"),
        ({3: "a", "3": "b"}, "label 3 appears twice"),
        ({3: "a", 7: "b", 9: None}, "name of label 9 is a NoneType"),
        ({3: "a", 7: "b", 9: LABELS}, "name of label 9 is a NumPy array"),
        ({2**80: "a"}, "of type int"),
        ({1.0: "a"}, "of type float"),
    ],
)
def test_bad_pickled_mapping(tmp_path: Path, mapping: Any, said: str) -> None:
    assert said in refusal(save(tmp_path, class_mapping_pkl=mapping), "class_mapping.pkl")

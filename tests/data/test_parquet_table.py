"""Which columns of a Parquet dataset are audio, label, fold and group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.parquet_data import audio, class_label, parquet

from raykfold.data.layouts import Listing
from raykfold.data.made_folds import FoldRequest
from raykfold.data.parquet_audio import ParquetCell
from raykfold.data.parquet_table import (
    ColumnNames,
    Features,
    card_features,
    list_parquet,
)
from raykfold.errors import BadData

N = 6
SOUNDS = audio([b"sound"] * N, [f"{row}.wav" for row in range(N)])
# The columns of ashraq/esc50 and of danavery/urbansound8K.
ESC50: dict[str, Any] = {
    "filename": [f"1-{row}-A.wav" for row in range(N)],
    "fold": [1, 1, 2, 2, 3, 3],
    "target": [14, 0, 14, 0, 36, 36],
    "category": ["chirping_birds", "dog", "chirping_birds", "dog", "vacuum", "vacuum"],
    "esc10": [False, True, False, True, False, False],
    "src_file": [100, 101, 102, 103, 104, 104],
    "take": ["A", "A", "A", "A", "A", "B"],
    "audio": SOUNDS,
}
URBANSOUND8K: dict[str, Any] = {
    "audio": audio([b"sound"] * N),
    "slice_file_name": [f"{row}-3-0-0.wav" for row in range(N)],
    "fsID": [7, 7, 8, 8, 9, 9],
    "start": [0.0, 1.5, 0.0, 2.5, 0.0, 3.5],
    "end": [4.0, 5.5, 4.0, 6.5, 4.0, 7.5],
    "salience": [1, 2, 1, 2, 1, 1],
    "fold": [10, 10, 2, 2, 5, 5],
    "classID": [3, 3, 8, 8, 3, 8],
    "class": ["dog_bark", "dog_bark", "siren", "siren", "dog_bark", "siren"],
}
PLAIN = {"audio": SOUNDS, "label": list("abcabc"), "fold": [1, 1, 1, 2, 2, 2]}


def table_of(
    folder: Path,
    *files: Mapping[str, Any],
    features: Mapping[str, Any] | None = None,
    split_names: tuple[str, ...] = (),
    declared: Features | None = None,
    made_folds: FoldRequest | None = None,
    named: Mapping[str, str] | None = None,
) -> Listing:
    """List files of these columns; each is a split if the splits are named."""
    paths = [folder / f"{place}.parquet" for place in range(len(files))]
    for path, columns in zip(paths, files, strict=True):
        path.write_bytes(parquet(columns, features))
    splits = dict(zip(split_names, ([path] for path in paths), strict=bool(split_names)))
    return list_parquet(
        splits or {"train": paths},
        "dataset team/sounds",
        ColumnNames(**(named or {})),
        declared or Features(),
        made_folds,
    )


def labels(table: Listing) -> list[int]:
    return [recording.label for recording in table.recordings]


def folds(table: Listing) -> list[int]:
    return [recording.fold for recording in table.recordings]


# ---- Found


def test_esc50(tmp_path: Path) -> None:
    table = table_of(tmp_path, ESC50, ESC50)
    assert labels(table) == ESC50["target"] * 2 and folds(table) == ESC50["fold"] * 2
    assert table.class_names == {0: "dog", 14: "chirping_birds", 36: "vacuum"}
    assert table.fold_names == {}
    assert table.notes == ("columns: audio audio, label target (named by category), fold fold",)
    cells = [recording.path for recording in table.recordings]
    assert cells[5] == ParquetCell(tmp_path / "0.parquet", "audio", 5, "5.wav")
    assert cells[6] == ParquetCell(tmp_path / "1.parquet", "audio", 0, "0.wav")


def test_urbansound8k(tmp_path: Path) -> None:
    table = table_of(tmp_path, URBANSOUND8K)
    assert labels(table) == URBANSOUND8K["classID"] and folds(table) == URBANSOUND8K["fold"]
    assert table.class_names == {3: "dog_bark", 8: "siren"}
    # The name is of the column beside, for lack of a path.
    assert str(table.recordings[2].path) == f"{tmp_path / '0.parquet'}, row 2 (2-3-0-0.wav)"


@pytest.mark.parametrize(
    ("columns", "same_fold", "name"),
    [
        ({**URBANSOUND8K, "classID": [3, 8, 3, 8, 3, 8]}, "112233", "fsID"),
        ({**PLAIN, "src_file": list("xyzxyz")}, "123123", "src_file"),
        (
            {**PLAIN, "src_file": list("xyzxyz"), "Speaker ID": list("pqrrqp")},
            "123321",
            "Speaker ID",
        ),
    ],
)
def test_groups_are_found_where_folds_are_to_be_made(
    tmp_path: Path, columns: dict[str, Any], same_fold: str, name: str
) -> None:
    columns = {**columns, "class": list("ababab"), "label": list("ababab"), "classID": [0, 1] * 3}
    table = table_of(tmp_path, columns, made_folds=FoldRequest(3))
    assert folds(table) == [int(fold) for fold in same_fold]
    assert table.fold_rule["groups"] == f"column {name}" and len(table.fold_names) == 3
    assert table.notes[0].endswith(f"group {name}") and "are not used" in table.notes[1]


def test_folds_are_made_without_groups(tmp_path: Path) -> None:
    columns = {"audio": SOUNDS, "label": list("aaabbb")}
    table = table_of(tmp_path, columns, made_folds=FoldRequest(3))
    assert sorted(zip(labels(table), folds(table), strict=True)) == [
        (label, fold) for label in (0, 1) for fold in (1, 2, 3)
    ]
    assert "groups" not in table.fold_rule and "folds made" in table.notes[1]


def test_groups_by_the_names_of_files(tmp_path: Path) -> None:
    names = [f"{digit}_{speaker}_0.wav" for speaker in ("theo", "ann") for digit in "012"]
    columns = {"audio": audio([b"sound"] * N, names), "label": list("012012"), "speaker": [1] * N}
    request = FoldRequest(2, group_pattern="_(?P<group>[^_]+)_")
    table = table_of(tmp_path, columns, made_folds=request)
    assert folds(table) == [1, 1, 1, 2, 2, 2] and table.fold_names == {1: "theo", 2: "ann"}
    columns = {**columns, "audio": audio([b"sound"] * N, [*names[:3], "", None, names[5]])}
    with pytest.raises(
        BadData, match=r"--group_pattern .*, row 3, has no name .* 2 of 6 rows; exp"
    ):
        table_of(tmp_path, columns, made_folds=request)


@pytest.mark.parametrize("values", [[0] * N, [None] * N, pa.nulls(N, pa.string())])
def test_a_column_of_one_group_is_none_unless_it_is_named(tmp_path: Path, values: Any) -> None:
    columns = {"audio": SOUNDS, "label": list("aaabbb"), "speaker_id": values}
    table = table_of(tmp_path, columns, made_folds=FoldRequest(3))
    assert "groups" not in table.fold_rule and sorted(folds(table)) == [1, 1, 2, 2, 3, 3]
    assert table.notes[1].startswith("the column speaker_id has one value in all rows")
    with pytest.raises(BadData):
        table_of(tmp_path, columns, made_folds=FoldRequest(3, group_column="speaker_id"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (list("xyxyxy"), "2 groups only by column speaker_id; expected at least as many"),
        ([*"xyzxy", None], "row 5: no group in the column speaker_id, as in 1 of 6"),
        ([["x"]] * N, r"column speaker_id is of type list<.*one group a recording"),
    ],
)
def test_groups_that_are_found_can_be_declined(tmp_path: Path, values: Any, message: str) -> None:
    columns = {"audio": SOUNDS, "label": list("aaabbb"), "speaker_id": values}
    with pytest.raises(
        BadData, match=rf"{message}.*, or --group_column none to make folds without"
    ):
        table_of(tmp_path, columns, made_folds=FoldRequest(3))
    table = table_of(tmp_path, columns, made_folds=FoldRequest(3, group_column="none"))
    assert "groups" not in table.fold_rule and sorted(folds(table)) == [1, 1, 2, 2, 3, 3]


def test_the_schema_names_classes_and_audio(tmp_path: Path) -> None:
    columns = {
        "clip": SOUNDS,
        "picture": audio([b"picture"] * N),
        "genre": [1, 0, 1, 2, 0, 0],
        "speaker_id": [0, 1] * 3,
        "category": list("xxyyyy"),  # would be a label if nothing were declared
        "fold": list("bbaabb"),
    }
    features = {
        "clip": {"_type": "Audio", "sampling_rate": 16000},
        "genre": class_label("blues", "jazz", "rock", "polka"),
        "speaker_id": class_label("ann", "ben"),
        "fold": {"dtype": "string", "_type": "Value"},
    }
    table = table_of(tmp_path, columns, features=features)
    assert table.class_names == {0: "blues", 1: "jazz", 2: "rock"}
    assert labels(table) == [1, 0, 1, 2, 0, 0]
    assert folds(table) == [2, 2, 1, 1, 2, 2] and table.fold_names == {1: "a", 2: "b"}
    assert table.notes[0] == "columns: audio clip, label genre, fold fold"


def test_the_readme_names_classes_too(tmp_path: Path) -> None:
    info = {
        "features": [
            {"name": "audio", "dtype": {"audio": {"sampling_rate": 44100}}},
            {"name": "label", "dtype": {"class_label": {"names": {"0": "cat", "1": "dog"}}}},
            {"name": "fold", "dtype": "int64"},
        ],
        "splits": [],
    }
    assert card_features(info).audio == {"audio"}
    columns = {**PLAIN, "label": [0, 1, 0, 1, 1, 1]}
    table = table_of(tmp_path, columns, declared=card_features(info))
    assert table.class_names == {0: "cat", 1: "dog"}


NESTED: Any = "lol"
for _ in range(30):
    NESTED = [NESTED] * 10  # as YAML's aliases do: no computer holds it as text


@pytest.mark.parametrize(
    "info",
    [
        *(None, [], {"features": "x"}, {"features": [None, {"a": 1}]}),
        {"features": [{"name": "label", "dtype": {"class_label": {"names": ["a", NESTED]}}}]},
        {"features": [{"name": "label", "dtype": {"class_label": {"names": {"0": NESTED}}}}]},
        {"features": [{"name": NESTED, "dtype": {"class_label": {"names": ["a"]}}}]},
        {"features": [{"name": "label", "dtype": {"class_label": {"names": [16**9999]}}}]},
    ],
)
def test_a_readme_that_says_nothing_of_the_columns(info: object) -> None:
    assert card_features(info).class_names == {}


@pytest.mark.parametrize(
    ("values", "numbers", "names"),
    [
        (list("cabcab"), [2, 0, 1, 2, 0, 1], {0: "a", 1: "b", 2: "c"}),
        ([" x", "x", "y ", "y", "x", "x"], [0, 0, 1, 1, 0, 0], {0: "x", 1: "y"}),
        (list("770077"), [7, 7, 0, 0, 7, 7], {0: "0", 7: "7"}),
        ([True, False, True, True, True, True], [1, 0, 1, 1, 1, 1], {0: "False", 1: "True"}),
        ([2.0, 4.0, 2.0, 2.0, 4.0, 4.0], [2, 4, 2, 2, 4, 4], {2: "2", 4: "4"}),
        (pa.array(list("ababab")).dictionary_encode(), [0, 1, 0, 1, 0, 1], {0: "a", 1: "b"}),
    ],
)
def test_labels_of_every_kind(
    tmp_path: Path, values: Any, numbers: list[int], names: dict[int, str]
) -> None:
    table = table_of(tmp_path, {**PLAIN, "label": values})
    assert labels(table) == numbers and table.class_names == names
    assert [type(label) for label in labels(table)] == [int] * N


@pytest.mark.parametrize("column", ["labels", "classID", "class_name", "Category", "intent_class"])
def test_names_of_labels(tmp_path: Path, column: str) -> None:
    columns = {"audio": SOUNDS, column: list("abcabc"), "fold": PLAIN["fold"], "speaker": [1] * N}
    assert (
        table_of(tmp_path, columns).notes[0].startswith(f"columns: audio audio, label {column}, ")
    )


def test_columns_that_are_named(tmp_path: Path) -> None:
    columns = {**ESC50, "other": audio([b"other"] * N), "site": [1, 2, 1, 2, 1, 2]}
    named = {"audio": "other", "label": "esc10", "fold": "site"}
    table = table_of(tmp_path, columns, named=named)
    assert table.notes[0] == "columns: audio other, label esc10, fold site"
    assert table.class_names == {0: "False", 1: "True"} and folds(table) == [1, 2] * 3
    assert table.recordings[0].path == ParquetCell(tmp_path / "0.parquet", "other", 0, "1-0-A.wav")
    request = FoldRequest(2, group_column="take")
    table = table_of(
        tmp_path, {**ESC50, "take": list("AABBAB")}, made_folds=request, named={"label": "category"}
    )
    assert folds(table) == [1, 1, 2, 2, 1, 2] and table.fold_names == {1: "A", 2: "B"}


def test_a_speaker_is_a_label_only_if_it_is_named(tmp_path: Path) -> None:
    columns = {"audio": SOUNDS, "speaker_id": [0, 1] * 3, "fold": [1, 1, 1, 2, 2, 2]}
    features = {"speaker_id": class_label("ann", "ben")}
    with pytest.raises(BadData, match="no column of labels"):
        table_of(tmp_path, columns, features=features)
    table = table_of(tmp_path, columns, features=features, named={"label": "speaker_id"})
    assert table.class_names == {0: "ann", 1: "ben"}


def test_splits_that_are_folds(tmp_path: Path) -> None:
    columns = {"audio": SOUNDS, "label": PLAIN["label"]}
    table = table_of(tmp_path, columns, columns, split_names=("fold1", "fold2"))
    assert folds(table) == [1] * N + [2] * N and table.notes[0].endswith("fold by split")


# ---- Refused


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"label": [1]}, {}, "has no Audio column, .*; its columns are label$"),
        (
            {**PLAIN, "audio": audio([None] * N, list("abcdef"))},
            {},
            r"Audio column audio \(struct<bytes.*\) holds no bytes; .* not their paths alone",
        ),
        ({**PLAIN, "audio": list("abcdef")}, {"audio": "audio"}, r"audio \(string\) holds no byt"),
        ({**PLAIN, "b": SOUNDS}, {}, "columns audio, b hold audio; .* --audio_column"),
        (
            PLAIN,
            {"audio": "sound"},
            "--audio_column sound: .*no such column; .* audio, label, fold",
        ),
        (PLAIN, {"label": "x"}, "--label_column x: dataset team/sounds has no such column"),
        (PLAIN, {"fold": "x"}, "--fold_column x: dataset team/sounds has no such column"),
        (
            {**PLAIN, "category": list("aabbcc")},
            {},
            "columns label, category could be the label, and are not one to one; .*--label_column",
        ),
        (
            {"audio": SOUNDS, "fold": [1] * N, "text": list("abcdef")},
            {},
            "has no column of labels;",
        ),
        (
            {**PLAIN, "label": [["a"], ["b"]] * 3},
            {},
            r"no column of labels \(label is of type list<.*string>\); .*--label_column NAME",
        ),
        (
            {**PLAIN, "label": [["a"]] * N},
            {"label": "label"},
            "is of type list<.* one label a reco",
        ),
        (
            {**PLAIN, "label": ["a", "b", None, "", " ", "c"]},
            {},
            "row 2: no label in the column label, as in 3 of 6 rows; expected one in every row$",
        ),
        ({**PLAIN, "label": [0.5] * N}, {}, "column label holds 0.5; expected whole numbers or na"),
        ({**PLAIN, "label": [1.0, None] * 3}, {}, "row 1: no label"),
        ({**PLAIN, "label": [1.0, float("nan")] * 3}, {}, "row 1: no label"),
        (
            {"audio": SOUNDS, "label": [1] * N},
            {},
            "no column of folds; .*--fold_column.*--make_fol",
        ),
        (
            {**PLAIN, "fold": ["1", "two"] * 3},
            {},
            "row 1: fold 'two'; expected a whole number",
        ),
        ({**PLAIN, "fold": [1, None] * 3}, {}, "row 1: no fold in the column fold"),
        ({name: values[:0] for name, values in PLAIN.items()}, {}, "holds no rows"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, columns: dict[str, Any], named: dict[str, str], message: str
) -> None:
    with pytest.raises(BadData, match=message) as caught:
        table_of(tmp_path, columns, named=named)
    assert "\n" not in str(caught.value)


def test_labels_that_a_split_lacks_are_refused(tmp_path: Path) -> None:
    features = {"label": class_label("a", "b")}
    columns = {**PLAIN, "label": [0, 1] * 3}
    unlabelled = {**PLAIN, "label": [-1] * N}
    with pytest.raises(BadData, match=r"6 of 12 rows, all in split test; .*--split"):
        table_of(tmp_path, columns, unlabelled, features=features, split_names=("train", "test"))
    beyond = {**PLAIN, "label": [0, 2] * 3}
    with pytest.raises(BadData, match="ClassLabel column label holds 2; expected 0 to 1"):
        table_of(tmp_path, beyond, features=features)


@pytest.mark.parametrize("column", ["label", "fold", "speaker"])
def test_files_that_name_their_classes_otherwise_are_refused(tmp_path: Path, column: str) -> None:
    columns = {**PLAIN, "label": [0, 1] * 3, "fold": [0, 0, 0, 1, 1, 1], "speaker": [0, 1] * 3}
    request = FoldRequest(2) if column == "speaker" else None
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train", "more", "test")}
    for path, names in zip(paths.values(), ("ab", "", "ba"), strict=True):
        path.write_bytes(parquet(columns, {column: class_label(*names)} if names else None))

    def listing(*splits: str) -> Listing:
        files = {split: [paths[split]] for split in splits}
        return list_parquet(files, "it", ColumnNames(), Features(), request)

    assert len(listing("train", "more").recordings) == 2 * N  # which says nothing of its classes
    for first, last, names in (("train", "test", "b, a, but a, b"), ("test", "train", "a, b, but")):
        with pytest.raises(
            BadData, match=rf"^.*{last}\.parquet: .* {column} are {names}"
        ) as caught:
            listing(first, "more", last)
        assert str(paths[first]) in str(caught.value)


@pytest.mark.parametrize(
    ("column", "values", "types"),
    [
        ("label", [0, 1] * 3, "int64, but string"),
        ("label", pa.array([0.5, 1.0] * 3), "double, but string"),
        ("fold", list("aaabbb"), "string, but int64"),
        ("audio", [b"sound"] * N, r"binary, but struct<bytes.*path"),
        ("audio", pa.array([{"bytes": b"sound"}] * N), "struct<bytes: binary>, but struct<by"),
        ("audio", pa.array([{"path": "a.wav"}] * N), "struct<path: string>, but struct<by"),
    ],
)
def test_files_of_other_types_are_refused(
    tmp_path: Path, column: str, values: Any, types: str
) -> None:
    with pytest.raises(
        BadData, match=rf"1\.parquet: the column {column} is of type {types}.*0\.pa"
    ):
        table_of(tmp_path, PLAIN, {**PLAIN, column: values})


def test_types_that_are_read_alike(tmp_path: Path) -> None:
    large = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string()), ("x", pa.int8())])
    other = {
        "audio": pa.array([{"bytes": b"sound"}] * N, large),
        "label": pa.array(PLAIN["label"]).dictionary_encode(),
        "fold": pa.array(PLAIN["fold"], pa.int8()),
    }
    nameless = {"audio": pa.array([{"bytes": b"sound", "path": None}] * N)}
    table = table_of(tmp_path, PLAIN, other, {**PLAIN, **nameless})
    assert labels(table) == [0, 1, 2] * 6 and folds(table) == PLAIN["fold"] * 3


@pytest.mark.parametrize("column", ["label", "fold"])
@pytest.mark.parametrize("values", [pa.array([2**63] * N, pa.uint64()), [1e300] * N])
def test_numbers_beyond_64_bits_are_refused(tmp_path: Path, column: str, values: Any) -> None:
    with pytest.raises(BadData, match=rf"column {column} holds \d+; expected numbers that fit 64"):
        table_of(tmp_path, {**PLAIN, column: values})


def test_more_rows_than_a_file_can_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"0\.parquet: has 100000 rows in \d+ bytes; expected an aud"):
        table_of(tmp_path, {"x": [0] * 100_000})


def test_a_file_that_lacks_a_column_is_refused(tmp_path: Path) -> None:
    for lacking in PLAIN:
        other = {name: values for name, values in PLAIN.items() if name != lacking}
        with pytest.raises(BadData, match=rf"1\.parquet: lacks the column {lacking}"):
            table_of(tmp_path, PLAIN, other)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet at all, and no more than that"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"x\.parquet: cannot be read as Parquet \(") as caught:
        list_parquet({"train": [path]}, "it", ColumnNames(), Features())
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    whole = parquet(PLAIN)
    path = tmp_path / "x.parquet"
    for content in (whole[: len(whole) // 2], whole[:50] + bytes(200) + whole[250:]):
        path.write_bytes(content)
        with pytest.raises(BadData, match=r"x\.parquet: cannot be read as Parquet \("):
            list_parquet({"train": [path]}, "it", ColumnNames(), Features())

"""Which recordings are found in audio folders; the recordings are never opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from raykfold.data.layouts import LAYOUTS, Listing, list_recordings
from raykfold.errors import BadInput


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not looked into")


def write_table(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def rows(listing: Listing) -> list[tuple[str, int, int]]:
    """Return file name, label and fold of each recording, in order."""
    return [(each.path.name, each.label, each.fold) for each in listing.recordings]


@pytest.mark.parametrize("folder", ["", "recordings"])
def test_fsdd(tmp_path: Path, folder: str) -> None:
    for name in ("7_theo_10.wav", "7_theo_9.wav", "0_theo_0.wav", "0_ann_0.wav", "3_jo_b_1.wav"):
        touch(tmp_path / folder / name)
    touch(tmp_path / folder / "readme.wav")
    listing = list_recordings("fsdd", tmp_path)
    assert rows(listing) == [
        ("0_ann_0.wav", 0, 1),
        ("0_theo_0.wav", 0, 3),
        ("3_jo_b_1.wav", 3, 2),
        ("7_theo_10.wav", 7, 3),
        ("7_theo_9.wav", 7, 3),
    ]
    assert listing.class_names == {0: "0", 3: "3", 7: "7"}
    assert listing.fold_names == {1: "ann", 2: "jo_b", 3: "theo"}
    assert Path(listing.source) == tmp_path / folder


def test_esc50(tmp_path: Path) -> None:
    table = tmp_path / "meta" / "esc50.csv"
    header = "filename,fold,target,category,esc10"
    write_table(table, header, "1-b.wav,1,14,rooster,False", "2-a.wav,2,0,dog,True")
    touch(tmp_path / "audio" / "2-a.wav")
    listing = list_recordings("esc50", tmp_path)
    assert rows(listing) == [("1-b.wav", 14, 1), ("2-a.wav", 0, 2)]
    assert listing.recordings[0].path == tmp_path / "audio" / "1-b.wav"
    assert list(listing.class_names.items()) == [(0, "dog"), (14, "rooster")]
    assert listing.source == str(table)


def test_urbansound8k(tmp_path: Path) -> None:
    write_table(
        tmp_path / "metadata" / "UrbanSound8K.csv",
        "slice_file_name,fsID,start,fold,classID,class",
        "100.wav,100,1.5,10,3,dog_bark",
        "101.wav,101,0.0,2,8,siren",
    )
    touch(tmp_path / "audio" / "fold10" / "100.wav")
    listing = list_recordings("urbansound8k", tmp_path)
    assert rows(listing) == [("100.wav", 3, 10), ("101.wav", 8, 2)]
    assert listing.recordings[1].path == tmp_path / "audio" / "fold2" / "101.wav"
    assert listing.class_names == {3: "dog_bark", 8: "siren"}


def test_csv_labels_that_are_names_are_numbered_alphabetically(tmp_path: Path) -> None:
    touch(tmp_path / "sub folder" / "b.wav")
    write_table(
        tmp_path / "metadata.csv", "path,label,fold", "a.wav,dog,1", "sub folder/b.wav,cat,2"
    )
    listing = list_recordings("csv", tmp_path)
    assert rows(listing) == [("a.wav", 1, 1), ("b.wav", 0, 2)]
    assert listing.recordings[1].path == tmp_path / "sub folder" / "b.wav"
    assert listing.class_names == {0: "cat", 1: "dog"}


def test_csv_labels_that_are_numbers_stay(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    table = tmp_path / "elsewhere.csv"
    write_table(table, "fold,note,label,path", "4,x,30,a.wav", "5,y,-2,b.wav")
    listing = list_recordings("csv", tmp_path, table)
    assert rows(listing) == [("a.wav", 30, 4), ("b.wav", -2, 5)]
    assert listing.class_names == {-2: "-2", 30: "30"}


# ---- What is refused


@pytest.mark.parametrize("layout", ["csv", "esc50", "urbansound8k", "fsdd"])
def test_an_empty_folder(tmp_path: Path, layout: str) -> None:
    """Each layout says what it expects."""
    expected = {
        "csv": "metadata.csv",
        "esc50": "meta/esc50.csv",
        "urbansound8k": "metadata/UrbanSound8K.csv",
        "fsdd": "<digit>_<speaker>_<take>.wav",
    }
    assert LAYOUTS.keys() == expected.keys()
    with pytest.raises(BadInput) as caught:
        list_recordings(layout, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert expected[layout] in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "lacks the column path, label, fold"),
        (["path,fold", "a.wav,1"], "lacks the column label"),
        (["path,label,fold"], "lists no recordings"),
        (["path,label,fold", "a.wav,dog,one"], "line 2: fold 'one'; expected a whole number"),
        (["path,label,fold", "a.wav,dog,1", "b.wav,cat,"], "line 3: no fold"),
        (["path,label,fold", "a.wav,dog,1", "b.wav,cat"], "line 3: no fold"),
        (["path,label,fold", "a.wav,dog,1", ",cat,2"], "line 3: no path"),
        (["path,label,fold", "a.wav,dog,1", "b.wav,cat,1"], "all recordings are in fold 1"),
        (["path,label,fold", "a.wav,dog,1", "b.wav,dog,2"], "all recordings are in class 0"),
        (["path,label,fold", "a.wav,dog,1", "b.wav,cat,2"], "none of the 2 recordings"),
    ],
)
def test_wrong_tables(tmp_path: Path, lines: list[str], message: str) -> None:
    table = tmp_path / "metadata.csv"
    write_table(table, *lines)
    with pytest.raises(BadInput) as caught:
        list_recordings("csv", tmp_path)
    assert str(table) in str(caught.value)
    assert message in str(caught.value)


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes(b"path,label,fold\n\xff\xfe,\x81,1\n")
    with pytest.raises(BadInput, match="not a CSV file in UTF-8"):
        list_recordings("csv", tmp_path)


def test_a_class_of_two_names(tmp_path: Path) -> None:
    table = tmp_path / "meta" / "esc50.csv"
    write_table(table, "filename,fold,target,category", "a.wav,1,0,dog", "b.wav,2,0,cat")
    with pytest.raises(BadInput, match="line 3: target 0 is 'cat', but 'dog' in an earlier row"):
        list_recordings("esc50", tmp_path)

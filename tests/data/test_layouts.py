"""Which recordings are found in audio folders; the recordings are never opened."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from raykfold.data.layouts import LAYOUTS, Listing, list_recordings
from raykfold.data.made_folds import FoldRequest
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


def folder_of(tmp_path: Path, *names: str, **request: Any) -> Listing:
    for name in names:
        touch(tmp_path / name)
    return list_recordings("folder", tmp_path, made_folds=FoldRequest(2, **request))


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    listing = folder_of(tmp_path, *(f"{c}/{n}.wav" for c in ("dog", "Cat", "ant") for n in (2, 10)))
    assert [(name, label) for name, label, _ in rows(listing)] == [
        *(("10.wav", 0), ("2.wav", 0)),  # Cat
        *(("10.wav", 1), ("2.wav", 1)),
        *(("10.wav", 2), ("2.wav", 2)),
    ]
    assert listing.class_names == {0: "Cat", 1: "ant", 2: "dog"}
    assert sorted(each.fold for each in listing.recordings) == [1, 1, 1, 2, 2, 2]
    assert listing.fold_rule == {"method": "StratifiedKFold", "folds": 2, "seed": 0}
    assert listing.notes == ("folds made: StratifiedKFold, folds 2, seed 0",)
    assert listing.source == str(tmp_path)


def test_folders_of_numbers_are_these_labels(tmp_path: Path) -> None:
    listing = folder_of(tmp_path, *(f"{label}/{n}.wav" for label in (10, 9) for n in "ab"))
    assert [(name, label) for name, label, _ in rows(listing)] == [
        *(("a.wav", 9), ("b.wav", 9), ("a.wav", 10), ("b.wav", 10))
    ]
    assert listing.class_names == {9: "9", 10: "10"}


def test_what_lies_deeper_is_of_the_class_above(tmp_path: Path) -> None:
    names = ["yes/a/1.wav", "yes/b/c/2.FLAC", "yes/3.m4a", "no/a/4.mp3", "no/5.ogg"]
    listing = folder_of(tmp_path, *names)
    assert [(name, label) for name, label, _ in rows(listing)] == [
        *(("5.ogg", 0), ("4.mp3", 0), ("3.m4a", 1), ("1.wav", 1), ("2.FLAC", 1))
    ]


@pytest.mark.parametrize("parent", ["", "genres", "Data/genres_original"])
def test_where_folders_of_classes_lie(tmp_path: Path, parent: str) -> None:
    touch(tmp_path / "Data" / "features.csv")
    touch(tmp_path / "images" / "blues" / "1.png")
    touch(tmp_path / "__MACOSX" / parent / "blues" / "1.wav")
    names = (f"{name}/{n}.wav" for name in ("blues", "rock") for n in (1, 2))
    listing = folder_of(tmp_path / "", *(str(Path(parent, name)) for name in names))
    assert listing.class_names == {0: "blues", 1: "rock"}
    assert listing.source == str(tmp_path / parent)
    where = [f"the data set is in {tmp_path / parent}"] if parent else []
    assert [*listing.notes[:-1]] == [
        *where,
        f"2 files left out, not audio by their names, such as {tmp_path}/Data/features.csv",
    ]


def test_what_is_of_no_class_is_left_out(tmp_path: Path) -> None:
    names = [f"{name}/{n}.wav" for name in ("yes", "no") for n in "123"]
    others = ["_background_noise_/tap.wav", "intro.wav", ".cache/x/1.wav", "no/._1.wav"]
    listing = folder_of(tmp_path, *names, *others)
    assert len(listing.recordings) == 6 and listing.class_names == {0: "no", 1: "yes"}
    assert listing.notes[:2] == (
        f"1 recording in no folder of a class left out, such as {tmp_path}/intro.wav",
        "1 recording in a folder whose name begins with _ left out, such as "
        f"{tmp_path}/_background_noise_/tap.wav",
    )


def test_splits_are_joined(tmp_path: Path) -> None:
    names = [f"{split}/{c}/{n}.wav" for split in ("test", "Train") for c in "ab" for n in (1, 2)]
    listing = folder_of(tmp_path, *names, "test/unlabelled.wav", "intro.wav")
    assert [str(each.file_name.relative_to(tmp_path)) for each in listing.recordings] == [
        *(f"{split}/a/{n}.wav" for split in ("Train", "test") for n in (1, 2)),
        *(f"{split}/b/{n}.wav" for split in ("Train", "test") for n in (1, 2)),
    ]
    assert "the folders Train, test are joined: folds take the place of splits" in listing.notes


def test_a_link_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "yes" / "1.wav")
    (tmp_path / "yes" / "again").symlink_to(tmp_path)
    (tmp_path / "maybe").symlink_to(tmp_path / "yes", target_is_directory=True)
    listing = folder_of(tmp_path, "no/1.wav", "no/2.wav", "yes/2.wav")
    assert listing.class_names == {0: "maybe", 1: "no", 2: "yes"}
    assert len(listing.recordings) == 6


def test_folders_of_classes_need_folds_to_be_made(tmp_path: Path) -> None:
    for name in ("yes/1.wav", "no/1.wav"):
        touch(tmp_path / name)
    with pytest.raises(BadInput, match="have no folds; expected --make_folds 5"):
        list_recordings("folder", tmp_path)


def test_recordings_without_folders_of_classes(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"1 recording in no folder of a class.*<class>/<name>"):
        folder_of(tmp_path, "1.wav")


@pytest.mark.parametrize("header", ["path,label,speaker", "path,label,Speaker,fold"])
def test_folds_for_a_table(tmp_path: Path, header: str) -> None:
    touch(tmp_path / "0.wav")
    fold = "," if "fold" in header else ""  # the first is empty, which does not matter
    lines = [f"{n}.wav,{n % 2},{'abc'[n // 4]}{fold and fold + 'x' * n}" for n in range(12)]
    write_table(tmp_path / "metadata.csv", header, *lines)
    request = FoldRequest(3, group_column="speaker")
    listing = list_recordings("csv", tmp_path, made_folds=request)
    assert [each.fold for each in listing.recordings] == [1] * 4 + [2] * 4 + [3] * 4
    assert listing.fold_names == {1: "a", 2: "b", 3: "c"}
    rule = "LeaveOneGroupOut, folds 3, groups column speaker"
    table = tmp_path / "metadata.csv"
    replaced = f"the folds of {table} are not used: --make_folds makes others"
    assert listing.notes == (*([replaced] if "fold" in header else []), f"folds made: {rule}")


def test_folds_in_place_of_those_of_a_data_set(tmp_path: Path) -> None:
    header = "slice_file_name,fsID,fold,classID,class"
    row = "{0}-{1}.wav,{0},{2},{3},c{3}"
    lines = [row.format(n // 2, n, n % 10 + 1, n // 2 % 2) for n in range(20)]
    write_table(tmp_path / "UrbanSound8K.csv", header, *lines)
    touch(tmp_path / "fold1" / "0-0.wav")
    by_column, by_name = FoldRequest(4, 0, "fsID"), FoldRequest(4, 0, None, r"(\d+)-")
    one, other = (
        list_recordings("urbansound8k", tmp_path, made_folds=request)
        for request in (by_column, by_name)
    )
    assert rows(one) == rows(other)
    assert all(rows(one)[n][2] == rows(one)[n + 1][2] for n in range(0, 20, 2))


def test_a_table_that_lacks_the_column_of_groups(tmp_path: Path) -> None:
    write_table(tmp_path / "metadata.csv", "path,label,singer", "a.wav,x,", "b.wav,y,ann")
    request = FoldRequest(2, group_column="speaker")
    with pytest.raises(BadInput, match="lacks the column speaker; its columns are path, label, si"):
        list_recordings("csv", tmp_path, made_folds=request)
    with pytest.raises(BadInput, match="line 2: no singer"):
        list_recordings("csv", tmp_path, made_folds=FoldRequest(2, group_column="singer"))


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


@pytest.mark.parametrize(
    ("table", "audio"),
    [
        ("metadata/UrbanSound8K.csv", "audio"),
        ("UrbanSound8K.csv", ""),  # as on Kaggle
        ("UrbanSound8K.csv", "audio"),
        ("urbansound8k.csv", ""),
    ],
)
@pytest.mark.parametrize("parent", ["", "UrbanSound8K", "urbansound8k/1"])
def test_where_urbansound8k_lies(tmp_path: Path, table: str, audio: str, parent: str) -> None:
    base = tmp_path / parent
    header = "slice_file_name,fold,classID,class"
    write_table(base / table, header, "100.wav,10,3,dog_bark", "101.wav,2,8,siren")
    touch(base / audio / "fold10" / "100.wav")
    touch(base / audio / "fold2" / "101.wav")
    listing = list_recordings("urbansound8k", tmp_path)
    assert rows(listing) == [("100.wav", 3, 10), ("101.wav", 8, 2)]
    assert not listing.missing
    assert listing.notes == ((f"the data set is in {base}",) if parent else ())
    assert listing.recordings[0].path == base / audio / "fold10" / "100.wav"
    assert listing.source == str(base / table)


@pytest.mark.parametrize(
    ("table", "audio"),
    [("meta/esc50.csv", "audio"), ("esc50.csv", "audio/audio"), ("esc50.csv", "audio/audio/44100")],
)
@pytest.mark.parametrize("parent", ["", "ESC-50-master"])
def test_where_esc50_lies(tmp_path: Path, table: str, audio: str, parent: str) -> None:
    base = tmp_path / parent
    write_table(base / table, "filename,fold,target,category", "1.wav,1,0,dog", "2.wav,2,1,cat")
    touch(base / audio / "1.wav")
    touch(base / audio / "2.wav")
    touch(tmp_path / "__MACOSX" / table)  # of the zip
    listing = list_recordings("esc50", tmp_path)
    assert [each.path for each in listing.recordings] == [
        base / audio / "1.wav",
        base / audio / "2.wav",
    ]
    assert not listing.missing


@pytest.mark.parametrize("parent", ["free-spoken-digit-dataset-master", "unzipped/fsdd"])
@pytest.mark.parametrize("folder", ["", "recordings"])
def test_fsdd_below_the_folder(tmp_path: Path, parent: str, folder: str) -> None:
    for name in ("0_ann_0.wav", "1_ben_0.wav"):
        touch(tmp_path / parent / folder / name)
    touch(tmp_path / "__MACOSX" / "recordings" / "._0_ann_0.wav")
    listing = list_recordings("fsdd", tmp_path)
    assert rows(listing) == [("0_ann_0.wav", 0, 1), ("1_ben_0.wav", 1, 2)]


def test_recordings_with_other_names_are_mentioned(tmp_path: Path) -> None:
    for name in ("0_ann_0.wav", "1_ben_0.wav", "10_ben_0.wav", "._0_ann_0.wav", "notes.txt"):
        touch(tmp_path / name)
    (note,) = list_recordings("fsdd", tmp_path).notes
    assert note.startswith(f"1 file in {tmp_path} left out, such as 10_ben_0.wav")


def test_two_data_sets_below_the_folder(tmp_path: Path) -> None:
    for parent in ("one", "other"):
        touch(tmp_path / parent / "0_ann_0.wav")
        touch(tmp_path / parent / "1_ben_0.wav")
    with pytest.raises(BadInput, match="are two data sets; expected one, such as --audio_dir"):
        list_recordings("fsdd", tmp_path)
    touch(tmp_path / "0_cy_0.wav")
    touch(tmp_path / "1_cy_0.wav")
    touch(tmp_path / "1_di_0.wav")
    assert len(list_recordings("fsdd", tmp_path).recordings) == 3  # the nearest


NFC, NFD = (unicodedata.normalize(form, "hündin/Ärger") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [
        (f"{NFC}.wav", f"{NFD}.wav"),
        (f"{NFD}.wav", f"{NFC}.wav"),
        (f"{NFC}.wav", f"{NFD.upper()}.WAV"),
        ("sub/a.wav", "sub/a.WAV"),
        ("sub/a.wav", "Sub/A.wav"),
        ("sub\\a.wav", "sub/a.wav"),
        ("./sub/../sub/a.wav", "sub/a.Wav"),
    ],
)
def test_other_spellings_of_a_name_are_found(tmp_path: Path, listed: str, on_disk: str) -> None:
    touch(tmp_path / on_disk)
    touch(tmp_path / "b.wav")
    write_table(tmp_path / "metadata.csv", "path,label,fold", f"{listed},dog,1", "b.wav,cat,2")
    listing = list_recordings("csv", tmp_path)
    assert not listing.missing
    assert listing.recordings[0].file_name.samefile(tmp_path / on_disk)
    (note,) = listing.notes
    assert note.startswith("1 recording found under another spelling")


def test_a_spelling_that_may_be_of_another_recording_is_not_taken(tmp_path: Path) -> None:
    for name in ("a.wav", "B.wav", "b.WAV", "e.wav"):
        touch(tmp_path / name)
    # a.wav is the third row's; either of B.wav and b.WAV might be b.wav.
    lines = ["A.wav,dog,1", "b.wav,cat,1", "a.wav,cat,2", "e.wav,cat,3", "f/g.wav,cat,3"]
    write_table(tmp_path / "metadata.csv", "path,label,fold", *lines)
    listing = list_recordings("csv", tmp_path)
    assert listing.missing == {0, 1, 4} and listing.notes == ()


def test_a_recording_may_be_listed_twice(tmp_path: Path) -> None:
    touch(tmp_path / "a.WAV")
    write_table(tmp_path / "metadata.csv", "path,label,fold", "a.wav,dog,1", "a.wav,cat,2")
    assert not list_recordings("csv", tmp_path).missing


def of_folds(tmp_path: Path, *folds: str) -> Listing:
    lines = [f"{n}.wav,{n % 2},{fold}" for n, fold in enumerate(folds)]
    write_table(tmp_path / "metadata.csv", "path,label,fold", *lines)
    touch(tmp_path / "0.wav")
    return list_recordings("csv", tmp_path)


@pytest.mark.parametrize("form", ["{}", "{}.0", "{}.", "fold{}", "Fold {}", "fold_{}", "FOLD-{}.0"])
def test_folds_that_are_numbers(tmp_path: Path, form: str) -> None:
    listing = of_folds(tmp_path, *(form.format(number) for number in (2, 10, 2, 3)))
    assert [each.fold for each in listing.recordings] == [2, 10, 2, 3]
    assert listing.fold_names == {}


@pytest.mark.parametrize(
    ("folds", "numbers", "names"),
    [
        (["cy", "ann", "ben", "ann"], [3, 1, 2, 1], {1: "ann", 2: "ben", 3: "cy"}),
        (["s10", "s2", "s1"], [3, 2, 1], {1: "s1", 2: "s2", 3: "s10"}),
        (["12a", "7b", "1c"], [3, 2, 1], {1: "1c", 2: "7b", 3: "12a"}),
        (["s1", "s01", "s001"], [3, 2, 1], {1: "s001", 2: "s01", 3: "s1"}),
        (["s" + 5000 * "1", "s1"], [2, 1], {1: "s1", 2: "s" + 5000 * "1"}),
        ([NFC, NFD, "a"], [2, 2, 1], {1: "a", 2: NFC}),
    ],
)
def test_folds_that_are_names(
    tmp_path: Path, folds: list[str], numbers: list[int], names: dict[int, str]
) -> None:
    listing = of_folds(tmp_path, *folds)
    assert [each.fold for each in listing.recordings] == numbers
    assert listing.fold_names == names


@pytest.mark.parametrize("odd", ["None", "NA", "inf", "nan", "1.5", "l", "7b", 5000 * "1"])
def test_one_odd_fold_among_numbers(tmp_path: Path, odd: str) -> None:
    for folds in (["1", odd, "2", odd], ["fold1", odd, "fold2"]):
        with pytest.raises(BadInput, match=r"metadata.csv, line 3: fold '.*'; expected a whole"):
            of_folds(tmp_path, *folds)


@pytest.mark.parametrize("parent", ["", "a", "a/b"])
def test_where_a_table_of_recordings_lies(tmp_path: Path, parent: str) -> None:
    write_table(tmp_path / parent / "metadata.csv", "path,label,fold", "a.wav,x,1", "b.wav,y,2")
    touch(tmp_path / parent / "a.wav")
    expected = (f"the data set is in {tmp_path / parent}",) if parent else ()
    assert list_recordings("csv", tmp_path).notes == expected


def test_both_slashes_name_one_file(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.wav")
    write_table(tmp_path / "metadata.csv", "path,label,fold", "x\\a.wav,dog,1", "x/a.wav,cat,2")
    listing = list_recordings("csv", tmp_path)
    assert not listing.missing
    assert {each.path for each in listing.recordings} == {tmp_path / "x" / "a.wav"}


def test_labels_that_are_numbers_of_pandas(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    write_table(tmp_path / "metadata.csv", "path,label,fold", "a.wav,3.0,1", "b.wav,10.0,2")
    listing = list_recordings("csv", tmp_path)
    assert rows(listing) == [("a.wav", 3, 1), ("b.wav", 10, 2)]
    assert listing.class_names == {3: "3", 10: "10"}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["path,label,fold", "PATH,Label,Fold", " Fold , label,Path"])
def test_separators_and_capitals(tmp_path: Path, separator: str, header: str) -> None:
    columns = header.split(",")
    cells = {"path": '"a, or b; or c.wav"', "label": "dog", "fold": "1"}
    others = {"path": "d.wav", "label": "cat", "fold": "2"}
    lines = [[row[name.strip().lower()] for name in columns] for row in (cells, others)]
    blank = [""] * 3  # as spreadsheets leave below a table
    write_table(tmp_path / "metadata.csv", *map(separator.join, [columns, *lines, blank]))
    touch(tmp_path / "d.wav")
    assert rows(list_recordings("csv", tmp_path)) == [("a, or b; or c.wav", 1, 1), ("d.wav", 0, 2)]


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=|", "sep=\t"])
def test_the_separator_that_excel_writes_first(tmp_path: Path, first: str) -> None:
    lines = ["path;label;fold", '"a;|\t.wav";x,y;1', "b.wav;z,y;2", "c.wav;z,y;1.5"]
    separator = first.strip('"')[-1]
    table = [first, *(line.replace(";", separator) for line in lines)]
    write_table(tmp_path / "metadata.csv", *table[:-1])
    touch(tmp_path / "b.wav")
    assert list_recordings("csv", tmp_path).class_names == {0: "x,y", 1: "z,y"}
    write_table(tmp_path / "metadata.csv", *table)
    with pytest.raises(BadInput, match=r"line 5: fold '1\.5'"):
        list_recordings("csv", tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_line_break_in_a_header(tmp_path: Path, separator: str) -> None:
    columns = ['"note\n(in words)"', "path", "label", "fold"]
    lines = [columns, ["x", "a.wav", "dog", "1"], ["y", "b.wav", "cat", "2"]]
    write_table(tmp_path / "metadata.csv", *map(separator.join, lines))
    touch(tmp_path / "b.wav")
    assert rows(list_recordings("csv", tmp_path)) == [("a.wav", 1, 1), ("b.wav", 0, 2)]


def test_empty_cells_beyond_the_columns_do_no_harm(tmp_path: Path) -> None:
    write_table(tmp_path / "metadata.csv", "path,label,fold", "a.wav,dog,1,, ", "b.wav,cat,2,")
    touch(tmp_path / "b.wav")
    assert len(list_recordings("csv", tmp_path).recordings) == 2


def test_a_column_of_the_very_name_wins(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    write_table(tmp_path / "metadata.csv", "Fold,path,label,fold", "8,a.wav,dog,1", "9,b.wav,cat,2")
    assert [each.fold for each in list_recordings("csv", tmp_path).recordings] == [1, 2]


# ---- What is refused


@pytest.mark.parametrize("layout", ["csv", "folder", "esc50", "urbansound8k", "fsdd"])
def test_an_empty_folder(tmp_path: Path, layout: str) -> None:
    """Each layout says what it expects."""
    expected = {
        "csv": "metadata.csv",
        "folder": "<class>/<name>.wav",
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
        (["path,label,fold", "a.wav,dog,1.5", "b.wav,cat,2"], "line 2: fold '1.5'; expected a"),
        (["path,label,fold", "a.wav,dog,ann", "b.wav,cat,nan"], "line 3: fold 'nan'; expected a"),
        (
            ["path,label,fold", "a.wav,dog,ann", "b.wav,cat,ann"],
            "all recordings are in fold 1 (ann)",
        ),
        (["file,class,split", "a.wav,dog,1"], "its columns are file, class, split; expected path"),
        (["file;class;fold", "a.wav;dog;1"], "its columns are file, class, fold; expected path"),
        (["path,label,fold", "a.wav,dog,1", "b.wav,cat,"], "line 3: no fold; expected one, or"),
        (["path,label", "a.wav,dog"], "expected path, label, fold, or --make_folds 5, which"),
        (["path,label,fold", "a.wav,dog,1", "b.wav,cat"], "line 3: no fold"),
        (["path,label,fold", "a.wav,dog,1", ",cat,2"], "line 3: no path"),
        (
            ["path,label,fold,note", "a.wav,dog,1,", "b, c.wav,3,2,1"],
            "line 3: 5 cells under 4 columns; quote a cell that holds ','",
        ),
        (["path,fold,label,fold", "a.wav,1,dog,2"], "has the column fold 2 times; expected one"),
        (["path,Fold,label,FOLD", "a.wav,1,dog,2"], "has the column fold 2 times; expected one"),
        (["path,label,fold", "a.wav,dog,1", "b.wav,cat,1"], "all recordings are in fold 1"),
        (["path,label,fold", "a.wav,dog,1", "b.wav,dog,2"], "all recordings are in class 0 (dog)"),
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

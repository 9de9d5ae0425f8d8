"""Lists the recordings of an audio folder, for five ways to lay one out.

    listing = list_recordings("esc50", Path("ESC-50-master"))

Labels and folds come from a table or from the names of files and folders, or folds are made; the
recordings themselves are not opened.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raykfold.data.audio import FFMPEG_SUFFIXES
from raykfold.data.file_names import FileNames, files_below, names_in, subfolders
from raykfold.data.log_mel import DIGITS, ESC50, URBANSOUND8K, FeatureParameters
from raykfold.data.made_folds import FoldRequest, make_folds
from raykfold.data.parquet_audio import ParquetCell
from raykfold.data.tables import (
    Row,
    by_numbers_within,
    fold_number,
    number_names,
    read_table,
    whole_number,
)
from raykfold.errors import BadData, BadInput
from raykfold.text import count_of, with_name

_FSDD_NAME = re.compile(r"(\d)_(.+)_(\d+)\.wav", re.IGNORECASE)
_FRACTION = re.compile(r"[+-]?\d*\.\d+|nan", re.IGNORECASE)  # no name of a fold
_DEPTH = 2  # how far below the folder that the user names a data set is looked for
# Files that are taken for recordings where no table and no form of names says which are.
_AUDIO_SUFFIXES = {
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au"),
    *(".snd", ".caf", ".w64", ".rf64", ".sph", ".nist"),
    *FFMPEG_SUFFIXES,
} - {".ts"}  # which is as a rule TypeScript
# Folders for splits, above the folders of classes.
_SPLITS = ("train", "training", "valid", "validation", "val", "dev", "eval", "test", "testing")


@dataclass(frozen=True)
class Recording:
    """One audio file, its class and its fold.

    Attributes:
        path: of the file, or the cell of a Parquet file that holds it.
        label: of its class.
        fold: 0 if it has none until folds are made.
        group: what belongs in one fold, if a column says so.
    """

    path: Path | ParquetCell
    label: int
    fold: int
    group: str | None = None

    @property
    def file_name(self) -> Path:
        """The path of the file; of a cell the name that the file had, which may be empty."""
        return self.path if isinstance(self.path, Path) else Path(self.path.name)


@dataclass(frozen=True)
class Listing:
    """The recordings of an audio folder, in the order that the features will have.

    Attributes:
        recordings: one for each sample.
        class_names: label → name.
        source: the table or folder they were found in, for messages.
        fold_names: fold → what it stands for, for folds that have a name.
        fold_rule: how folds were made, if they were.
        missing: indices of the recordings that do not exist.
        notes: lines to show the user.
    """

    recordings: Sequence[Recording]
    class_names: Mapping[int, str]
    source: str
    fold_names: Mapping[int, str] = field(default_factory=dict)
    fold_rule: Mapping[str, Any] = field(default_factory=dict)
    missing: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A way to lay out an audio folder.

    Attributes:
        help: one line for the command's help.
        defaults: the usual feature parameters for such recordings.
        find: lists the recordings of a folder under the names that they should have; the other
            arguments are those of `list_recordings`.
        has_table: whether labels come from a table, which may have a column of groups.
    """

    help: str
    defaults: FeatureParameters
    find: Callable[[Path, Path | None, FoldRequest | None], Listing]
    has_table: bool = True


def list_recordings(
    layout: str, audio_dir: Path, table: Path | None = None, made_folds: FoldRequest | None = None
) -> Listing:
    """Return the recordings of `audio_dir`, at least one of which exists.

    What the layout asks for may also lie in a folder, or in a folder of a folder, of `audio_dir`.
    A recording that does not have the name that it should have is found under one that differs in
    its Unicode form (NFC, NFD), in capitals, or in the slashes of its path.

    Args:
        layout: a key of `LAYOUTS`.
        audio_dir: an existing folder, as an absolute path.
        table: for the layout ``csv``, its table; ``metadata.csv`` in `audio_dir` by default.
        made_folds: the folds to make, in place of those that the recordings have.

    Raises:
        BadInput: no recording was found, or a table is missing, malformed or of no use to a
            cross-validation, or there are no folds and none can be made.
    """
    listing = LAYOUTS[layout].find(audio_dir, table, made_folds)
    if made_folds is not None:
        listing = with_made_folds(listing, audio_dir, made_folds)
    require_several(listing, listing.recordings)
    listing = _located(listing)
    if len(listing.missing) == len(listing.recordings):
        raise BadInput(
            f"--audio_dir {audio_dir}: none of the {len(listing.recordings)} recordings listed in "
            f"{listing.source} exists; expected {listing.recordings[0].path} and so on"
        )
    return listing


def with_made_folds(listing: Listing, audio_dir: Path, request: FoldRequest) -> Listing:
    """Return the listing with the folds that are to be made.

    Args:
        listing: with the groups of the recordings, if they are in a column.
        audio_dir: the folder whose name and place do not count in a `group_pattern`.
        request: the folds.

    Raises:
        BadData: they cannot be made.
    """
    recordings = listing.recordings
    groups: list[str] | None = None
    if request.group_pattern is not None:
        paths = [audio_dir / each.file_name for each in recordings]
        groups = request.groups_of_paths(paths, audio_dir)
    elif request.group_column is not None:
        groups = [each.group or "" for each in recordings]
    made = make_folds(
        [each.label for each in recordings],
        request.folds,
        request.seed,
        groups,
        grouped_by=request.grouped_by,
        class_names=listing.class_names,
    )
    notes = listing.notes
    if len({each.fold for each in recordings}) > 1:
        notes += (f"the folds of {listing.source} are not used: --make_folds makes others",)
    return replace(
        listing,
        recordings=[
            replace(each, fold=fold)
            for each, fold in zip(recordings, made.folds.tolist(), strict=True)
        ],
        fold_names=made.names,
        fold_rule=made.rule,
        notes=(*notes, *made.notes),
    )


def require_several(listing: Listing, recordings: Sequence[Recording]) -> None:
    """Check that `recordings`, of `listing`, are of two folds and two classes at least.

    Raises:
        BadData: they are not.
    """
    folds = {recording.fold for recording in recordings}
    labels = {recording.label for recording in recordings}
    for noun, values, names in (
        ("fold", folds, listing.fold_names),
        ("class", labels, listing.class_names),
    ):
        if len(values) == 1:
            some = "" if len(recordings) == len(listing.recordings) else " that can be read"
            raise BadData(
                f"{listing.source}: all recordings{some} are in {noun} "
                f"{with_name(values.pop(), names)}; a cross-validation needs at least two"
            )


def _located(listing: Listing) -> Listing:
    """Return the listing with the paths under which its recordings exist."""
    names = FileNames()
    paths = [names.find(recording.file_name) for recording in listing.recordings]
    # Of two rows, x\a.wav and x/a.wav are one file.
    wanted = [str(recording.path).replace("\\", "/") for recording in listing.recordings]
    taken = Counter(path for path, _ in set(zip(paths, wanted, strict=True)))
    recordings, missing, respelt = [], [], []
    for index, (recording, path) in enumerate(zip(listing.recordings, paths, strict=True)):
        # A file that is wanted twice, under two names, is not the one that both rows mean.
        if path is None or (path != recording.path and taken[path] > 1):
            missing.append(index)
        elif path != recording.path:
            respelt.append(f"{path} for {recording.path}")
            recording = replace(recording, path=path)
        recordings.append(recording)
    notes = listing.notes
    if respelt:
        notes += (
            f"{count_of(len(respelt), 'recording')} found under another spelling (Unicode form, "
            f"capitals or slashes), such as {respelt[0]}",
        )
    return replace(listing, recordings=recordings, missing=frozenset(missing), notes=notes)


def _nearest(
    audio_dir: Path, below: Sequence[str], locate: Callable[[Path], Path | None]
) -> tuple[Path, Path] | None:
    """Return the folder that holds a data set, `audio_dir` or one below it, and what marks it.

    Args:
        below: where the mark may lie in such a folder.
        locate: returns the mark at a path, or None.

    Raises:
        BadInput: several folders hold one, none of them nearer than the others.
    """
    bases = [audio_dir]
    for _ in range(_DEPTH + 1):
        marks = [(base, mark) for base in bases for name in below if (mark := locate(base / name))]
        holders = list(dict.fromkeys(base for base, _ in marks))
        if len(holders) > 1:
            raise BadInput(
                f"--audio_dir {audio_dir}: {marks[0][1]} and {marks[-1][1]} are two data sets; "
                f"expected one, such as --audio_dir {holders[0]}"
            )
        if marks:
            return marks[0]
        bases = [folder for base in bases for folder in subfolders(base)]
    return None


def _find_table(audio_dir: Path, below: Sequence[str]) -> tuple[Path, Path]:
    """Return the folder that holds a table, and the table; where it should be, if none does."""
    return _nearest(audio_dir, below, FileNames().find) or (audio_dir, audio_dir / below[0])


def _where(audio_dir: Path, base: Path) -> tuple[str, ...]:
    """Return a note where a data set lies below the folder that the user named."""
    return () if base == audio_dir else (f"the data set is in {base}",)


def _fullest(places: Sequence[Sequence[Path]]) -> Sequence[Path]:
    """Return the paths, one for each recording, of the place where most of them exist."""
    names = FileNames()
    return max(places, key=lambda paths: sum(names.find(path) is not None for path in paths))


def _find_csv(audio_dir: Path, table: Path | None, made_folds: FoldRequest | None) -> Listing:
    notes: tuple[str, ...] = ()
    if table is None:
        base, table = _find_table(audio_dir, ["metadata.csv"])
        audio_dir, notes = base, _where(audio_dir, base)
    group_column = _group_column(made_folds)
    wanted = ("fold",) if made_folds is None else ()
    rows = read_table(
        table,
        ("path", "label", *wanted, *group_column),
        "give it with --csv FILE",
        optional=("fold",),
        instead={"fold": "--make_folds 5, which makes five folds"},
    )
    numbers, class_names = labels_of(row["label"] for row in rows)
    fold_names: dict[int, str] = {}
    if made_folds is None:
        folds, fold_names = folds_of(rows)
    else:  # only to say that they are not used
        folds, _ = number_names((row.get("fold", "") for row in rows), first=0)
    recordings = [
        Recording(audio_dir / row["path"], label, fold, *(row[name] for name in group_column))
        for row, label, fold in zip(rows, numbers, folds, strict=True)
    ]
    return Listing(recordings, class_names, str(table), fold_names, notes=notes)


def _group_column(made_folds: FoldRequest | None) -> tuple[str, ...]:
    """Return the column of groups, if the user names one."""
    column = made_folds.group_column if made_folds else None
    return () if column is None else (column,)


def labels_of(texts: Iterable[str]) -> tuple[list[int], dict[int, str]]:
    """Return labels, and label → name: of whole numbers themselves, else in alphabetical order."""
    texts = list(texts)
    labels = [whole_number(text) for text in texts]
    if None in labels:
        return number_names(texts, first=0)
    numbers = [label for label in labels if label is not None]
    return numbers, {label: str(label) for label in sorted(set(numbers))}


def folds_of(rows: Sequence[Row]) -> tuple[list[int], dict[int, str]]:
    """Return the fold of each row, and fold → name where the table has names of folds."""
    folds = [fold_number(row["fold"]) for row in rows]
    if None not in folds:
        return [fold for fold in folds if fold is not None], {}
    names = [row for row, fold in zip(rows, folds, strict=True) if fold is None]
    if len(names) < len(rows):  # names of all would give the folds other numbers
        raise BadData(
            f"{names[0].where}: fold {names[0]['fold']!r}; expected a whole number or fold<k>, as "
            "in other rows, or a name in every row"
        )
    for row in rows:
        if _FRACTION.fullmatch(row["fold"]):
            raise BadData(f"{row.where}: fold {row['fold']!r}; expected a whole number or a name")
    return number_names((row["fold"] for row in rows), first=1, key=by_numbers_within)


def _find_fsdd(audio_dir: Path, _: Path | None, made_folds: FoldRequest | None) -> Listing:
    found = _nearest(audio_dir, ["", "recordings"], _folder_of_digits)
    if found is None:
        raise BadInput(
            f"--audio_dir {audio_dir}: no recordings found; expected "
            "<digit>_<speaker>_<take>.wav there or in recordings/"
        )
    base, folder = found
    files = sorted(folder.iterdir())
    matches = [(file, match) for file in files if (match := _FSDD_NAME.fullmatch(file.name))]
    folds, fold_names = number_names((match[2] for _, match in matches), first=1)
    recordings = [
        Recording(file, int(match[1]), fold)
        for (file, match), fold in zip(matches, folds, strict=True)
    ]
    class_names = {digit: str(digit) for digit in sorted({each.label for each in recordings})}
    matched = {file for file, _ in matches}
    others = [
        file.name
        for file in files
        if file.suffix.lower() == ".wav" and file not in matched and not file.name.startswith(".")
    ]
    notes = _where(audio_dir, base)
    if others:
        notes += (
            f"{count_of(len(others), 'file')} in {folder} left out, such as {others[0]}; expected "
            "names like <digit>_<speaker>_<take>.wav",
        )
    return Listing(recordings, class_names, str(folder), fold_names, notes=notes)


def _folder_of_digits(folder: Path) -> Path | None:
    return folder if any(map(_FSDD_NAME.fullmatch, names_in(folder))) else None


def _find_folder(audio_dir: Path, _: Path | None, made_folds: FoldRequest | None) -> Listing:
    files = files_below(audio_dir)
    audio = [file for file in files if file.suffix.lower() in _AUDIO_SUFFIXES]
    notes: tuple[str, ...] = ()
    if len(audio) < len(files):
        other = next(file for file in files if file.suffix.lower() not in _AUDIO_SUFFIXES)
        count = count_of(len(files) - len(audio), "file")
        notes += (f"{count} left out, not audio by their names, such as {other}",)
    # Each recording by the names of the folders that it lies in, below the one of all classes.
    base = audio_dir
    below = {file: file.relative_to(base).parts for file in audio}
    for _depth in range(_DEPTH):
        tops = {parts[0] for parts in below.values()}
        if len(tops) != 1 or any(len(parts) < 3 for parts in below.values()):
            break
        base = base / tops.pop()
        below = {file: parts[1:] for file, parts in below.items()}
    notes = (*_where(audio_dir, base), *notes)
    splits = sorted({parts[0] for parts in below.values() if len(parts) > 1})
    if (
        len(splits) > 1
        and all(split.casefold() in _SPLITS for split in splits)
        and any(len(parts) > 2 for parts in below.values())
    ):
        notes += (f"the folders {', '.join(splits)} are joined: folds take the place of splits",)
        below = {file: parts[1:] for file, parts in below.items()}
    # A file in no folder has no class, and neither has one in a folder like _background_noise_.
    for what, is_left_out in (
        ("in no folder of a class", lambda parts: len(parts) < 2),
        ("in a folder whose name begins with _", lambda parts: parts[0].startswith("_")),
    ):
        left_out = [file for file, parts in below.items() if is_left_out(parts)]
        if left_out:
            count = count_of(len(left_out), "recording")
            notes += (f"{count} {what} left out, such as {left_out[0]}",)
            below = {file: parts for file, parts in below.items() if not is_left_out(parts)}
    if not below:
        found = f"; {notes[-1]}" if notes else ""
        raise BadInput(
            f"--audio_dir {audio_dir}: no recordings of a class found{found}; expected a folder "
            "for each class, <class>/<name>.wav"
        )
    if made_folds is None:
        raise BadInput(
            f"--audio_dir {audio_dir}: folders of classes have no folds; expected --make_folds 5 "
            "to make five folds"
        )
    numbers, class_names = labels_of(parts[0] for parts in below.values())
    recordings = [
        Recording(file, label, fold=0) for file, label in zip(below, numbers, strict=True)
    ]
    recordings.sort(key=lambda each: each.label)  # stable: within a class, by path
    return Listing(recordings, class_names, str(base), notes=notes)


def _find_esc50(audio_dir: Path, _: Path | None, made_folds: FoldRequest | None) -> Listing:
    base, table = _find_table(audio_dir, ["meta/esc50.csv", "esc50.csv"])
    columns = ("filename", "fold", "target", "category", *_group_column(made_folds))
    rows = read_table(table, columns, "--audio_dir should hold meta/esc50.csv and audio/")
    # The second and third are those of Kaggle.
    folders = [base / below for below in ("audio", "audio/audio", "audio/audio/44100", "")]
    paths = _fullest([[folder / row["filename"] for row in rows] for folder in folders])
    notes = _where(audio_dir, base)
    return _of_table(rows, paths, table, "target", "category", notes, _group_column(made_folds))


def _find_urbansound8k(audio_dir: Path, _: Path | None, made_folds: FoldRequest | None) -> Listing:
    base, table = _find_table(audio_dir, ["metadata/UrbanSound8K.csv", "UrbanSound8K.csv"])
    columns = ("slice_file_name", "fold", "classID", "class", *_group_column(made_folds))
    rows = read_table(
        table, columns, "--audio_dir should hold metadata/UrbanSound8K.csv and audio/fold<k>/"
    )
    names = [Path(f"fold{_fold(row)}", row["slice_file_name"]) for row in rows]
    # The second is that of Kaggle.
    paths = _fullest([[folder / name for name in names] for folder in (base / "audio", base)])
    notes = _where(audio_dir, base)
    return _of_table(rows, paths, table, "classID", "class", notes, _group_column(made_folds))


def _of_table(
    rows: Sequence[Row],
    paths: Sequence[Path],
    table: Path,
    label_column: str,
    name_column: str,
    notes: tuple[str, ...],
    group_column: Sequence[str],
) -> Listing:
    recordings = [
        Recording(path, row.integer(label_column), _fold(row), *map(row.get, group_column))
        for row, path in zip(rows, paths, strict=True)
    ]
    names = _class_names(rows, label_column, name_column)
    return Listing(recordings, names, str(table), notes=notes)


LAYOUTS: Mapping[str, Layout] = {
    "csv": Layout(
        "A table with columns path (below AUDIO_DIR), label and fold; a label or fold is a number "
        "or a name. With --make_folds, fold may be missing.",
        URBANSOUND8K,
        _find_csv,
    ),
    "folder": Layout(
        "A folder for each class, like those of GTZAN and Speech Commands; needs --make_folds.",
        URBANSOUND8K,
        _find_folder,
        has_table=False,
    ),
    "fsdd": Layout(
        "Free Spoken Digit Dataset: <digit>_<speaker>_<take>.wav; each speaker is a fold.",
        DIGITS,
        _find_fsdd,
        has_table=False,
    ),
    "esc50": Layout("ESC-50: meta/esc50.csv and audio/, or as on Kaggle.", ESC50, _find_esc50),
    "urbansound8k": Layout(
        "UrbanSound8K: metadata/UrbanSound8K.csv and audio/fold<k>/, or as on Kaggle.",
        URBANSOUND8K,
        _find_urbansound8k,
    ),
}


def _fold(row: Row) -> int:
    """Return the number in the column ``fold``: ``1``, ``1.0`` or ``fold1``."""
    number = fold_number(row["fold"])
    if number is None:
        raise BadData(f"{row.where}: fold {row['fold']!r}; expected a whole number or fold<k>")
    return number


def _class_names(rows: Sequence[Row], label_column: str, name_column: str) -> dict[int, str]:
    names: dict[int, str] = {}
    for row in rows:
        label, name = row.integer(label_column), row[name_column]
        if names.setdefault(label, name) != name:
            raise BadData(
                f"{row.where}: {label_column} {label} is {name!r}, but {names[label]!r} in an "
                "earlier row"
            )
    return dict(sorted(names.items()))

"""Lists the recordings of an audio folder, for four ways to lay one out.

    listing = list_recordings("esc50", Path("ESC-50-master"))

Labels and folds come from a table or from file names; the recordings themselves are not opened.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from raykfold.data.file_names import FileNames, names_in, subfolders
from raykfold.data.log_mel import DIGITS, ESC50, URBANSOUND8K, FeatureParameters
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


@dataclass(frozen=True)
class Recording:
    """One audio file, its class and its fold."""

    path: Path
    label: int
    fold: int


@dataclass(frozen=True)
class Listing:
    """The recordings of an audio folder, in the order that the features will have.

    Attributes:
        recordings: one for each sample.
        class_names: label → name.
        source: the table or folder they were found in, for messages.
        fold_names: fold → what it stands for, for folds that have a name.
        missing: indices of the recordings that do not exist.
        notes: lines to show the user.
    """

    recordings: Sequence[Recording]
    class_names: Mapping[int, str]
    source: str
    fold_names: Mapping[int, str] = field(default_factory=dict)
    missing: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A way to lay out an audio folder.

    Attributes:
        help: one line for the command's help.
        defaults: the usual feature parameters for such recordings.
        find: lists the recordings of a folder under the names that they should have; the second
            argument is the CSV table the user named, if any.
    """

    help: str
    defaults: FeatureParameters
    find: Callable[[Path, Path | None], Listing]


def list_recordings(layout: str, audio_dir: Path, table: Path | None = None) -> Listing:
    """Return the recordings of `audio_dir`, at least one of which exists.

    What the layout asks for may also lie in a folder, or in a folder of a folder, of `audio_dir`.
    A recording that does not have the name that it should have is found under one that differs in
    its Unicode form (NFC, NFD), in capitals, or in the slashes of its path.

    Args:
        layout: a key of `LAYOUTS`.
        audio_dir: an existing folder, as an absolute path.
        table: for the layout ``csv``, its table; ``metadata.csv`` in `audio_dir` by default.

    Raises:
        BadInput: no recording was found, or a table is missing, malformed or of no use to a
            cross-validation.
    """
    listing = LAYOUTS[layout].find(audio_dir, table)
    require_several(listing, listing.recordings)
    listing = _located(listing)
    if len(listing.missing) == len(listing.recordings):
        raise BadInput(
            f"--audio_dir {audio_dir}: none of the {len(listing.recordings)} recordings listed in "
            f"{listing.source} exists; expected {listing.recordings[0].path} and so on"
        )
    return listing


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
    paths = [names.find(recording.path) for recording in listing.recordings]
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


def _find_csv(audio_dir: Path, table: Path | None) -> Listing:
    notes: tuple[str, ...] = ()
    if table is None:
        base, table = _find_table(audio_dir, ["metadata.csv"])
        audio_dir, notes = base, _where(audio_dir, base)
    rows = read_table(table, ("path", "label", "fold"), "give it with --csv FILE")
    labels = [whole_number(row["label"]) for row in rows]
    if None in labels:
        numbers, class_names = number_names((row["label"] for row in rows), first=0)
    else:
        numbers = [label for label in labels if label is not None]
        class_names = {label: str(label) for label in sorted(set(numbers))}
    folds, fold_names = _folds(rows)
    recordings = [
        Recording(audio_dir / row["path"], label, fold)
        for row, label, fold in zip(rows, numbers, folds, strict=True)
    ]
    return Listing(recordings, class_names, str(table), fold_names, notes=notes)


def _folds(rows: Sequence[Row]) -> tuple[list[int], dict[int, str]]:
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


def _find_fsdd(audio_dir: Path, _: Path | None) -> Listing:
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


def _find_esc50(audio_dir: Path, _: Path | None) -> Listing:
    base, table = _find_table(audio_dir, ["meta/esc50.csv", "esc50.csv"])
    columns = ("filename", "fold", "target", "category")
    rows = read_table(table, columns, "--audio_dir should hold meta/esc50.csv and audio/")
    # The second and third are those of Kaggle.
    folders = [base / below for below in ("audio", "audio/audio", "audio/audio/44100", "")]
    paths = _fullest([[folder / row["filename"] for row in rows] for folder in folders])
    return _of_table(rows, paths, table, "target", "category", _where(audio_dir, base))


def _find_urbansound8k(audio_dir: Path, _: Path | None) -> Listing:
    base, table = _find_table(audio_dir, ["metadata/UrbanSound8K.csv", "UrbanSound8K.csv"])
    columns = ("slice_file_name", "fold", "classID", "class")
    rows = read_table(
        table, columns, "--audio_dir should hold metadata/UrbanSound8K.csv and audio/fold<k>/"
    )
    names = [Path(f"fold{_fold(row)}", row["slice_file_name"]) for row in rows]
    # The second is that of Kaggle.
    paths = _fullest([[folder / name for name in names] for folder in (base / "audio", base)])
    return _of_table(rows, paths, table, "classID", "class", _where(audio_dir, base))


def _of_table(
    rows: Sequence[Row],
    paths: Sequence[Path],
    table: Path,
    label_column: str,
    name_column: str,
    notes: tuple[str, ...],
) -> Listing:
    recordings = [
        Recording(path, row.integer(label_column), _fold(row))
        for row, path in zip(rows, paths, strict=True)
    ]
    names = _class_names(rows, label_column, name_column)
    return Listing(recordings, names, str(table), notes=notes)


LAYOUTS: Mapping[str, Layout] = {
    "csv": Layout(
        "A table with columns path (below AUDIO_DIR), label and fold; a label or fold is a number "
        "or a name.",
        URBANSOUND8K,
        _find_csv,
    ),
    "fsdd": Layout(
        "Free Spoken Digit Dataset: <digit>_<speaker>_<take>.wav; each speaker is a fold.",
        DIGITS,
        _find_fsdd,
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

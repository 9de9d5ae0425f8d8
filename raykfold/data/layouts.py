"""Lists the recordings of an audio folder, for four ways to lay one out.

    listing = list_recordings("esc50", Path("ESC-50-master"))

Labels and folds come from a table or from file names; the recordings themselves are not opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raykfold.data.log_mel import DIGITS, ESC50, URBANSOUND8K, FeatureParameters
from raykfold.data.tables import WHOLE_NUMBER, Row, read_table
from raykfold.errors import BadData, BadInput

_FSDD_NAME = re.compile(r"(\d)_(.+)_(\d+)\.wav", re.IGNORECASE)


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
    """

    recordings: Sequence[Recording]
    class_names: Mapping[int, str]
    source: str
    fold_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """A way to lay out an audio folder.

    Attributes:
        help: one line for the command's help.
        defaults: the usual feature parameters for such recordings.
        find: lists the recordings of a folder; the second argument is the CSV table the user
            named, if any.
    """

    help: str
    defaults: FeatureParameters
    find: Callable[[Path, Path | None], Listing]


def list_recordings(layout: str, audio_dir: Path, table: Path | None = None) -> Listing:
    """Return the recordings of `audio_dir`, at least one of which exists.

    Args:
        layout: a key of `LAYOUTS`.
        audio_dir: an existing folder, as an absolute path.
        table: for the layout ``csv``, its table; ``metadata.csv`` in `audio_dir` by default.

    Raises:
        BadInput: no recording was found, or a table is missing, malformed or of no use to a
            cross-validation.
    """
    listing = LAYOUTS[layout].find(audio_dir, table)
    require_several(listing.recordings, listing.source)
    if not any(os.path.isfile(recording.path) for recording in listing.recordings):
        raise BadInput(
            f"--audio_dir {audio_dir}: none of the {len(listing.recordings)} recordings listed in "
            f"{listing.source} exists; expected {listing.recordings[0].path} and so on"
        )
    return listing


def require_several(recordings: Sequence[Recording], source: str) -> None:
    """Check that `recordings`, found in `source`, are of two folds and two classes at least.

    Raises:
        BadData: they are not.
    """
    folds = {recording.fold for recording in recordings}
    labels = {recording.label for recording in recordings}
    for noun, values in (("fold", folds), ("class", labels)):
        if len(values) == 1:
            raise BadData(
                f"{source}: all recordings are in {noun} {values.pop()}; "
                "a cross-validation needs at least two"
            )


def _find_csv(audio_dir: Path, table: Path | None) -> Listing:
    table = table or audio_dir / "metadata.csv"
    rows = read_table(table, ("path", "label", "fold"), "give it with --csv FILE")
    texts = [row["label"] for row in rows]
    if all(WHOLE_NUMBER.fullmatch(text) for text in texts):
        labels = [int(text) for text in texts]
        class_names = {label: str(label) for label in sorted(set(labels))}
    else:
        names = sorted(set(texts))
        labels = [names.index(text) for text in texts]
        class_names = dict(enumerate(names))
    recordings = [
        Recording(audio_dir / row["path"], label, row.integer("fold"))
        for row, label in zip(rows, labels, strict=True)
    ]
    return Listing(recordings, class_names, str(table))


def _find_fsdd(audio_dir: Path, _: Path | None) -> Listing:
    for folder in (audio_dir, audio_dir / "recordings"):
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        matches = [(file, match) for file in files if (match := _FSDD_NAME.fullmatch(file.name))]
        if matches:
            break
    else:
        raise BadInput(
            f"--audio_dir {audio_dir}: no recordings found; expected "
            "<digit>_<speaker>_<take>.wav there or in recordings/"
        )
    speakers = sorted({match[2] for _, match in matches})
    recordings = [
        Recording(file, int(match[1]), 1 + speakers.index(match[2])) for file, match in matches
    ]
    class_names = {digit: str(digit) for digit in sorted({each.label for each in recordings})}
    return Listing(recordings, class_names, str(folder), dict(enumerate(speakers, start=1)))


def _find_esc50(audio_dir: Path, _: Path | None) -> Listing:
    table = audio_dir / "meta" / "esc50.csv"
    columns = ("filename", "fold", "target", "category")
    rows = read_table(table, columns, "--audio_dir should hold meta/esc50.csv and audio/")
    recordings = [
        Recording(audio_dir / "audio" / row["filename"], row.integer("target"), row.integer("fold"))
        for row in rows
    ]
    return Listing(recordings, _class_names(rows, "target", "category"), str(table))


def _find_urbansound8k(audio_dir: Path, _: Path | None) -> Listing:
    table = audio_dir / "metadata" / "UrbanSound8K.csv"
    columns = ("slice_file_name", "fold", "classID", "class")
    rows = read_table(
        table, columns, "--audio_dir should hold metadata/UrbanSound8K.csv and audio/fold<k>/"
    )
    recordings = [
        Recording(
            audio_dir / "audio" / f"fold{row.integer('fold')}" / row["slice_file_name"],
            row.integer("classID"),
            row.integer("fold"),
        )
        for row in rows
    ]
    return Listing(recordings, _class_names(rows, "classID", "class"), str(table))


LAYOUTS: Mapping[str, Layout] = {
    "csv": Layout(
        "A table with columns path (below AUDIO_DIR), label (a number or a name) and fold.",
        URBANSOUND8K,
        _find_csv,
    ),
    "fsdd": Layout(
        "Free Spoken Digit Dataset: <digit>_<speaker>_<take>.wav; each speaker is a fold.",
        DIGITS,
        _find_fsdd,
    ),
    "esc50": Layout("ESC-50: meta/esc50.csv and audio/.", ESC50, _find_esc50),
    "urbansound8k": Layout(
        "UrbanSound8K: metadata/UrbanSound8K.csv and audio/fold<k>/.",
        URBANSOUND8K,
        _find_urbansound8k,
    ),
}


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

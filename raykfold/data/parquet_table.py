"""Lists the recordings of a dataset in Parquet files: which columns are audio, label and fold.

A column is the one that the user names; else the one that the dataset says it is (`datasets` writes
into the schema which columns are Audio and ClassLabel); else the one of such a type and name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raykfold.data.layouts import (
    Listing,
    Recording,
    folds_of,
    labels_of,
    require_several,
    with_made_folds,
)
from raykfold.data.made_folds import FoldRequest
from raykfold.data.parquet_audio import ParquetCell, ParquetFiles
from raykfold.data.tables import Row, fold_number
from raykfold.errors import BadData
from raykfold.text import comma_list, one_line, scalar_text

_LABEL_NOUNS = {
    *("label", "class", "category", "target", "genre", "emotion", "sentiment", "intent", "event"),
    *("scene", "instrument", "species", "digit", "command", "keyword"),
}
_PLURALS = {"categories": "category", "classes": "class"}
_AFTER_NOUN = {"id", "idx", "index", "number", "num", "name", "names", "text", "str", "int"}
_FOLD_NAMES = ("fold", "folds", "foldid", "cvfold", "kfold")
_GROUP_NAMES = (  # by preference
    *("speaker", "speakerid", "clientid", "subject", "subjectid", "patient", "patientid"),
    *("participant", "participantid", "actor", "actorid", "singer", "userid", "fsid", "srcfile"),
)
NO_GROUPS = "none"  # in place of a column
_UNGROUPED = f", or --group_column {NO_GROUPS} to make folds without groups"
_FILE_NAMES = ("filename", "slicefilename", "file", "path")
_MOST_LISTED = 30  # columns or classes, in a message
_UNLABELLED = -1  # how `datasets` writes a ClassLabel that is not known


@dataclass(frozen=True)
class ColumnNames:
    """The columns that the user has named; None where they are to be found."""

    audio: str | None = None
    label: str | None = None
    fold: str | None = None


@dataclass(frozen=True)
class Features:
    """What a dataset says of its columns.

    Attributes:
        audio: the Audio columns.
        class_names: ClassLabel column → names of the classes 0, 1, 2, ...
    """

    audio: frozenset[str] = frozenset()
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def list_parquet(
    splits: Mapping[str, Sequence[Path]],
    source: str,
    named: ColumnNames,
    declared: Features,
    made_folds: FoldRequest | None = None,
) -> Listing:
    """Return the recordings of Parquet files, in the order of the files and their rows.

    Folds are in a column, or each is a split, such as ``fold1``.

    Args:
        splits: split → its files.
        source: what the files are, for messages.
        named: columns that the user has named.
        declared: what is known of the columns beside what the files say.
        made_folds: the folds to make, in place of those in the table. What belongs in one fold is
            in the column that it names, else in one with a name such as ``speaker_id``. If it names
            `NO_GROUPS`, there are no groups.

    Raises:
        BadData: a file cannot be read, a column is missing or not what it should be, or the folds
            cannot be made.
    """
    table = _Table(ParquetFiles(splits), source, declared)
    audio = _audio(table, named.audio)
    fold = _by_name(table, "fold", named.fold, _FOLD_NAMES, not_these={named.label})
    group: str | None = None
    group_notes: list[str] = []
    if made_folds is not None and made_folds.group_pattern is None:
        group, group_notes = _group(table, made_folds, not_these={named.label, fold})
        made_folds = replace(made_folds, group_column=group)
    labels, class_names, label_text = _labels(table, named.label, {audio, fold, group})

    # The folds and groups, and what the user should know of the columns.
    folds, fold_text = [0] * len(labels), ""
    fold_names: dict[int, str] = {}
    if made_folds is None:
        folds, fold_names, fold_text = _folds(table, fold)
    groups: list[Any] = [None] * len(labels)
    if group is not None:
        groups = [str(value) for value in table.complete(group, "group", _UNGROUPED)]
    found = {"audio": audio, "label": label_text, "fold": fold_text, "group": group}
    notes = [f"columns: {', '.join(f'{what} {name}' for what, name in found.items() if name)}"]
    notes += group_notes
    if made_folds is not None and fold is not None:
        notes.append(f"the folds of {source} are not used: --make_folds makes others")

    listing = Listing(
        [
            Recording(*each)
            for each in zip(_cells(table, audio), labels, folds, groups, strict=True)
        ],
        class_names,
        source,
        fold_names,
        notes=tuple(notes),
    )
    if made_folds is not None:
        nameless = [each.path for each in listing.recordings if not each.file_name.name]
        if made_folds.group_pattern is not None and nameless:
            raise BadData(
                f"--group_pattern {made_folds.group_pattern!r}: {nameless[0]}, has no name of a "
                f"file, as {len(nameless)} of {len(labels)} rows; expected --group_column"
            )
        listing = with_made_folds(listing, Path("/"), made_folds)
    require_several(listing, listing.recordings)
    return listing


class _Table:
    """Parquet files, what is known of their columns, and what messages call them."""

    def __init__(self, files: ParquetFiles, source: str, declared: Features) -> None:
        if not files.rows:
            raise BadData(f"{source}: holds no rows")
        self.files = files
        self.source = source
        self.audio = schema_features(files.schema.metadata).audio | declared.audio
        # One number should stand for one class in all files.
        named: dict[str, tuple[Path, Sequence[str]]] = {}
        self._contradictions: dict[str, str] = {}  # column → what is wrong with its names
        before = None
        for path, metadata in files.metadata():
            if metadata == before:
                continue
            before = metadata
            for column, names in schema_features(metadata).class_names.items():
                first, expected = named.setdefault(column, (path, names))
                if names != expected:
                    self._contradictions.setdefault(
                        column,
                        f"{path}: the classes of the column {column} are {_some_of(names)}, but "
                        f"{_some_of(expected)} in {first}; expected the same names in the same "
                        "order in all files",
                    )
        own_names = {column: names for column, (_, names) in named.items()}
        self.class_names = {**declared.class_names, **own_names}

    @property
    def columns(self) -> list[str]:
        return list(self.files.schema.names)

    @property
    def shown(self) -> str:
        """The names of all columns, for messages."""
        return _some_of(self.columns)

    def named(self, column: str, flag: str) -> str:
        """Return the column that a flag names.

        Raises:
            BadData: there is none.
        """
        if column not in self.columns:
            raise BadData(
                f"{flag} {column}: {self.source} has no such column; its columns are {self.shown}"
            )
        return column

    def type_of(self, column: str) -> str:
        return one_line(self.files.schema.field(column).type, 80)

    def is_class_label(self, column: str) -> bool:
        return column in self.class_names and self.files.kind(column) == "integers"

    def complete(self, column: str, noun: str, otherwise: str = "") -> list[Any]:
        """Return the values of a column: numbers, truths, or text without white space around it.

        Args:
            column: the column.
            noun: what its values are, for messages.
            otherwise: what the user can do where there are none, for messages.

        Raises:
            BadData: the column is not of single values, or lacks one, or holds a number beyond 64
                bits, or the files differ in what they say of it.
        """
        if self.is_class_label(column) and column in self._contradictions:
            raise BadData(self._contradictions[column])
        kind = self.files.kind(column)
        if kind is None:
            raise BadData(
                f"{self.source}: the column {column} is of type {self.type_of(column)}; expected "
                f"one {noun} a recording, a number or a text{otherwise}"
            )
        values = self.files.values(column)
        if kind == "text":
            values = [value and value.strip() for value in values]
        none = {None, "", _UNLABELLED} if self.is_class_label(column) else {None, ""}
        empty = [row for row, each in enumerate(values) if each in none or each != each]  # NaN
        if empty:
            file, row = self.files.rows[empty[0]]
            without = {self.files.splits[each] for each in empty}
            several = len(set(self.files.splits)) > 1
            where = f", all in split {comma_list(sorted(without))}" if several else ""
            hint = "; --split takes one split" if several else ""
            raise BadData(
                f"{file}, row {row}: no {noun} in the column {column}, as in {len(empty)} of "
                f"{len(values)} rows{where}; expected one in every row{hint}{otherwise}"
            )
        if kind == "floats":  # pandas writes whole numbers so where one was missing
            odd = next((value for value in values if not float(value).is_integer()), None)
            if odd is not None:
                raise BadData(
                    f"{self.source}: the column {column} holds {odd}; expected whole numbers or "
                    "names"
                )
            values = [int(value) for value in values]
        if kind in ("floats", "integers"):
            beyond = next((value for value in values if not -(2**63) <= value < 2**63), None)
            if beyond is not None:
                raise BadData(
                    f"{self.source}: the column {column} holds {beyond}; expected numbers that fit "
                    "64-bit integers, or names"
                )
        return values

    def one_to_one(self, first: str, second: str) -> bool:
        """Return whether each value of a column goes with one value of the other."""
        one, other = self.files.values(first), self.files.values(second)
        return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


# ---- Audio


def _audio(table: _Table, given: str | None) -> str:
    files = table.files
    if given is not None:
        column = table.named(given, "--audio_column")
    else:
        declared = [each for each in table.columns if each in table.audio]
        alike = [
            each
            for each in table.columns
            if files.has_bytes(each) and (files.is_struct(each) or _plain(each) == "audio")
        ]
        found = declared or alike
        if len(found) > 1:
            raise BadData(
                f"{table.source}: the columns {comma_list(found)} hold audio; expected the one "
                "that is meant, by --audio_column"
            )
        if not found:
            raise BadData(
                f"{table.source}: has no Audio column, a struct of bytes and path; its columns are "
                f"{table.shown}"
            )
        column = found[0]
    if not files.has_bytes(column) or files.is_empty(column):
        raise BadData(
            f"{table.source}: the Audio column {column} ({table.type_of(column)}) holds no bytes; "
            "expected the audio files themselves in it, and not their paths alone (prepare folder "
            "and prepare csv read files)"
        )
    return column


def _cells(table: _Table, audio: str) -> list[ParquetCell]:
    names: Sequence[str | None] = table.files.audio_names(audio)
    beside = [each for each in table.columns if _plain(each) in _FILE_NAMES]
    if not any(names) and beside and table.files.kind(beside[0]) == "text":
        names = table.files.values(beside[0])
    return [
        ParquetCell(file, audio, row, name or "")
        for (file, row), name in zip(table.files.rows, names, strict=True)
    ]


# ---- Labels, folds and groups


def _by_name(
    table: _Table,
    noun: str,
    given: str | None,
    names: Sequence[str],
    not_these: Collection[str | None],
) -> str | None:
    """Return the column that a flag names, else the one with the first of `names`, or None."""
    if given is not None:
        return table.named(given, f"--{noun}_column")
    free = [each for each in table.columns if each not in not_these]
    return next((each for name in names for each in free if _plain(each) == name), None)


def _group(
    table: _Table, request: FoldRequest, not_these: Collection[str | None]
) -> tuple[str | None, list[str]]:
    """Return the column of groups, or None, and what the user should know of it.

    Raises:
        BadData: there is no such column, or one that nobody has named has fewer groups than folds.
    """
    given = request.group_column
    if given == NO_GROUPS:
        return None, []
    column = _by_name(table, "group", given, _GROUP_NAMES, not_these)
    if column is None or given is not None:
        return column, []
    if table.files.kind(column) is None and table.type_of(column) != "null":
        return column, []  # what is wrong with it is told where it is read
    groups = set(table.files.values(column))
    if len(groups) == 1:  # as where nobody knows who speaks
        return None, [f"the column {column} has one value in all rows: folds are without groups"]
    if len(groups) < request.folds:
        raise BadData(
            f"--make_folds {request.folds}: {len(groups)} groups only by column {column}; expected "
            f"at least as many groups as folds{_UNGROUPED}"
        )
    return column, []


def _labels(
    table: _Table, given: str | None, taken: Collection[str | None]
) -> tuple[list[int], dict[int, str], str]:
    """Return the label of each recording, label → name, and which columns say so."""
    files = table.files
    free = [
        each for each in table.columns if each not in taken and _plain(each) not in _GROUP_NAMES
    ]
    alike = [each for each in free if _is_label(each) and files.kind(each)]
    if given is not None:
        chosen = table.named(given, "--label_column")
    else:
        declared = [each for each in free if each in table.class_names and files.kind(each)]
        found = [each for each in declared if each in alike] or declared or alike
        if not found:
            nested = [each for each in free if _is_label(each)]
            some = f" ({nested[0]} is of type {table.type_of(nested[0])})" if nested else ""
            raise BadData(
                f"{table.source}: has no column of labels{some}; its columns are {table.shown}; "
                "expected --label_column NAME"
            )
        chosen = found[0]
        others = [each for each in found[1:] if not table.one_to_one(chosen, each)]
        if others:
            raise BadData(
                f"{table.source}: the columns {comma_list([chosen, *others])} could be the label, "
                "and are not one to one; expected the one that is meant, by --label_column"
            )

    # A number and its name, side by side, are one label.
    kind = files.kind(chosen)
    if kind in ("integers", "text") and not table.is_class_label(chosen):
        wanted = "text" if kind == "integers" else "integers"
        for partner in alike:
            if files.kind(partner) != wanted or not table.one_to_one(chosen, partner):
                continue
            number, name = (chosen, partner) if wanted == "text" else (partner, chosen)
            labels = table.complete(number, "label")
            class_names = dict(zip(labels, table.complete(name, "label"), strict=True))
            return labels, dict(sorted(class_names.items())), f"{number} (named by {name})"
    labels, class_names = _of_column(table, chosen)
    return labels, class_names, chosen


def _of_column(table: _Table, column: str) -> tuple[list[int], dict[int, str]]:
    """Return the label of each recording, and label → name, of one column."""
    values = table.complete(column, "label")
    if table.is_class_label(column):
        names = table.class_names[column]
        beyond = next((value for value in values if not 0 <= value < len(names)), None)
        if beyond is not None:
            raise BadData(
                f"{table.source}: the ClassLabel column {column} holds {beyond}; expected 0 to "
                f"{len(names) - 1}, which have names"
            )
        return values, {label: names[label] for label in sorted(set(values))}
    if table.files.kind(column) == "text":
        return labels_of(values)
    distinct = sorted(set(values))
    return [int(value) for value in values], {int(value): str(value) for value in distinct}


def _folds(table: _Table, column: str | None) -> tuple[list[int], dict[int, str], str]:
    """Return the fold of each recording, fold → name if the folds have names, and what says so."""
    splits = table.files.splits
    if column is None:
        numbers = {split: fold_number(split) for split in splits}
        if len(numbers) > 1 and None not in numbers.values():
            return [numbers[split] or 0 for split in splits], {}, "by split"
        raise BadData(
            f"{table.source}: has no column of folds; its columns are {table.shown}; expected "
            "--fold_column NAME, or --make_folds 5 to make five folds"
        )
    values = table.complete(column, "fold")
    if table.is_class_label(column):
        names = table.class_names[column]
        values = [names[value] if value < len(names) else value for value in values]
    rows = [
        Row({"fold": str(value)}, f"{file}, row {row}")
        for value, (file, row) in zip(values, table.files.rows, strict=True)
    ]
    return *folds_of(rows), column


def _is_label(column: str) -> bool:
    """Return whether a name such as ``classID``, ``labels`` or ``intent_class`` is of a label."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column)]
    while len(words) > 1 and words[-1] in _AFTER_NOUN:
        words.pop()
    noun = words[-1] if words else ""
    return not {noun, noun.removesuffix("s"), _PLURALS.get(noun)}.isdisjoint(_LABEL_NOUNS)


def _some_of(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return comma_list(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


# ---- What a dataset says of its columns


def schema_features(metadata: Mapping[bytes, bytes] | None) -> Features:
    """Return what `datasets` wrote into the metadata of a Parquet schema; nothing without it."""
    try:
        described = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    except ValueError:  # of somebody else's making
        return Features()
    audio, class_names = set(), {}
    for column, feature in _mapping(
        _mapping(_mapping(described).get("info")).get("features")
    ).items():
        kind, names = _mapping(feature).get("_type"), _mapping(feature).get("names")
        if kind == "Audio":
            audio.add(column)
        if kind == "ClassLabel" and (known := _names(names)) is not None:
            class_names[column] = known
    return Features(frozenset(audio), class_names)


def card_features(info: object) -> Features:
    """Return what an entry ``dataset_info`` of a README says of the columns.

    It lists ``{name: label, dtype: {class_label: {names: {'0': dog, ...}}}}``, for each column.
    """
    audio, class_names = set(), {}
    listed = _mapping(info).get("features")
    for feature in map(_mapping, listed if isinstance(listed, list) else []):
        column, dtype = scalar_text(feature.get("name")), feature.get("dtype")
        if column is None:
            continue
        if dtype == "audio" or "audio" in _mapping(dtype):
            audio.add(column)
        names = _mapping(_mapping(dtype).get("class_label")).get("names")
        if isinstance(names, Mapping):
            numbered = {scalar_text(number): name for number, name in names.items()}
            names = [numbered.get(str(number)) for number in range(len(names))]
        if (known := _names(names)) is not None:
            class_names[column] = known
    return Features(frozenset(audio), class_names)


def _names(value: object) -> tuple[str, ...] | None:
    """Return the names of classes, if the value is a list of some."""
    names = [scalar_text(name) for name in value] if isinstance(value, list) else [None]
    known = tuple(name for name in names if name is not None)
    return known if len(known) == len(names) else None


def _mapping(value: object) -> Mapping[str, Any]:
    """Return a value of a file of somebody's making, if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}

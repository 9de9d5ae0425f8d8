"""Reads Parquet files whose cells hold audio files, as those of datasets on the Hub do.

The library `datasets` writes them: an Audio column is a struct of the `bytes` of an audio file and
its `path`. `ParquetFiles` reads the other columns, without any audio, and `AudioSources` the audio,
a few recordings at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raykfold.data.audio import AudioBytes
from raykfold.errors import BadData, BadInput
from raykfold.text import one_line

_BATCH = 8  # recordings in memory at once
_BUFFER = 2**20  # bytes; without it, pyarrow reads the audio of a whole row group at once
_KINDS = (
    (pa.types.is_integer, "integers"),
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_string_view, "text"),
    (pa.types.is_boolean, "truths"),
    (pa.types.is_floating, "floats"),
)
_BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


@dataclass(frozen=True)
class ParquetCell:
    """An audio file in a Parquet file.

    Attributes:
        file: the Parquet file.
        column: name of its Audio column.
        row: from 0.
        name: the audio file's own name, where the table has it.
    """

    file: Path
    column: str
    row: int
    name: str = ""

    def __str__(self) -> str:
        name = f" ({one_line(self.name)})" if self.name else ""
        return f"{self.file}, row {self.row}{name}"


class ParquetFiles:
    """Parquet files of the same columns, one below the other.

    Args:
        splits: split → its files.

    Attributes:
        schema: of the first file.
        rows: (file, row in it) of every row.
        splits: the split of every row.

    Raises:
        BadData: a file cannot be read as Parquet, or claims more rows than it can hold.
    """

    def __init__(self, splits: Mapping[str, Sequence[Path]]) -> None:
        self._files: list[tuple[Path, pq.FileMetaData, pa.Schema]] = []
        self.rows: list[tuple[Path, int]] = []
        self.splits: list[str] = []
        for split, paths in splits.items():
            for path in paths:
                with _open(path) as file:
                    self._files.append((path, file.metadata, file.schema_arrow))
                    count = file.metadata.num_rows
                # The footer may claim any number, and equal cells take no room. Audio files do.
                if count > path.stat().st_size:
                    raise BadData(
                        f"{path}: has {count} rows in {path.stat().st_size} bytes; expected an "
                        "audio file in each"
                    )
                self.rows += [(path, row) for row in range(count)]
                self.splits += [split] * count
        self.schema: pa.Schema = self._files[0][2]
        self._read: dict[str, list[Any]] = {}

    def kind(self, column: str) -> str | None:
        """Return ``integers``, ``text``, ``truths`` or ``floats``; None for any other type."""
        return _kind(self.schema.field(column).type)

    def values(self, column: str) -> list[Any]:
        """Return the value in every row, None where there is none.

        Raises:
            BadData: a file cannot be read, or lacks the column.
        """
        return self._values(column, column)

    def audio_names(self, column: str) -> list[str | None]:
        """Return the path beside the bytes of an Audio column, in every row."""
        type_ = self.schema.field(column).type
        if not pa.types.is_struct(type_) or type_.get_field_index("path") < 0:
            return [None] * len(self.rows)
        return [cell and cell["path"] for cell in self._values(column, f"{column}.path")]

    def _values(self, column: str, leaf: str) -> list[Any]:
        if leaf not in self._read:
            values: list[Any] = []
            for path, _, _ in self.files_with(column):
                with _open(path) as file:
                    try:
                        values += file.read(columns=[leaf]).column(column).to_pylist()
                    except (OSError, pa.ArrowException) as error:
                        raise _unreadable(path, error) from None
            self._read[leaf] = values
        return self._read[leaf]

    def files_with(self, column: str) -> list[tuple[Path, pq.FileMetaData, pa.Schema]]:
        """Return all files, each with its metadata and its schema.

        Raises:
            BadData: one of them lacks the column, or has another type of it than the first one.
        """
        first, _, _ = self._files[0]
        type_ = self.schema.field(column).type
        for path, _, schema in self._files:
            if column not in schema.names:
                raise BadData(f"{path}: lacks the column {column}, which other files have")
            other = schema.field(column).type
            if not _is_read_like(other, type_):
                raise BadData(
                    f"{path}: the column {column} is of type {one_line(other, 80)}, but "
                    f"{one_line(type_, 80)} in {first}; expected one type in all files"
                )
        return self._files

    def metadata(self) -> list[tuple[Path, Mapping[bytes, bytes]]]:
        """Return the metadata in the schema of each file."""
        return [(path, schema.metadata or {}) for path, _, schema in self._files]

    def has_bytes(self, column: str) -> bool:
        """Return whether the type of a column is that of files: a struct of bytes, or bytes."""
        return _has_bytes(self.schema.field(column).type)

    def is_struct(self, column: str) -> bool:
        return bool(pa.types.is_struct(self.schema.field(column).type))

    def is_empty(self, column: str) -> bool:
        """Return whether, by the files' statistics, no cell of an Audio column has bytes."""
        return all(_is_empty(metadata, column) for _, metadata, _ in self.files_with(column))


def _kind(type_: pa.DataType) -> str | None:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return next((kind for is_type, kind in _KINDS if is_type(type_)), None)


def _is_read_like(other: pa.DataType, first: pa.DataType) -> bool:
    """Return whether values of a type can stand below those of the first file's type."""
    if pa.types.is_null(other) or pa.types.is_null(first):  # none of the cells there has a value
        return True
    if pa.types.is_struct(first):
        return pa.types.is_struct(other) and all(
            other.get_field_index(field.name) >= 0
            and _is_read_like(other.field(field.name).type, field.type)
            for field in first
        )
    if _is_bytes(first):
        return _is_bytes(other)
    return other == first or (_kind(first) is not None and _kind(other) == _kind(first))


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _unreadable(where: Path | ParquetCell, error: Exception) -> BadData:
    path = where if isinstance(where, Path) else where.file
    reason = one_line(str(error).replace(str(path), "the file"))
    return BadData(f"{where}: cannot be read as Parquet ({reason})")


def _has_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        place = type_.get_field_index("bytes")
        return place >= 0 and _is_bytes(type_.field(place).type)
    return _is_bytes(type_)


def _is_bytes(type_: pa.DataType) -> bool:
    return any(is_type(type_) for is_type in _BINARY)


def _is_empty(metadata: pq.FileMetaData, column: str) -> bool:
    paths = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    leaves = [leaf for leaf, path in enumerate(paths) if path in (column, f"{column}.bytes")]
    for group in range(metadata.num_row_groups):
        for leaf in leaves:
            chunk = metadata.row_group(group).column(leaf)
            counts = chunk.statistics
            if counts is None or not counts.has_null_count or counts.null_count < chunk.num_values:
                return False
    return True


class AudioSources:
    """Opens recordings one after the other; cells of a Parquet file that are in order, in one go.

    At most a few recordings are in memory, or what a Parquet file has in a page, if that is more.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._batches: Iterator[pa.Array] = iter(())
        self._batch: pa.Array = []
        self._first = 0  # row of the first cell in the batch

    def open(self, place: Path | ParquetCell) -> Path | AudioBytes:
        """Return what `read_audio` reads: the path of a file, or the bytes of a cell.

        Raises:
            BadData: the Parquet file cannot be read there, or the cell holds no bytes.
            BadInput: this node lacks the Parquet file.
        """
        if isinstance(place, Path):
            return place
        if place.file != self._path or place.row < self._first:
            self._start(place)
        try:
            while place.row >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = next(self._batches)
        except StopIteration:  # the file has lost rows since it was listed
            self._path = None
            raise BadData(f"{place}: the file has no such row any more") from None
        except (OSError, pa.ArrowException) as error:
            self._path = None
            raise _unreadable(place, error) from None
        content = self._batch[place.row - self._first].as_py()
        if isinstance(content, dict):  # of a struct
            content = content["bytes"]
        if not content:
            raise BadData(f"{place}: the column {place.column} holds no bytes there")
        return AudioBytes(content, str(place), place.name)

    def _start(self, place: ParquetCell) -> None:
        """Begin with the row group that holds the cell."""
        if not place.file.exists():
            raise BadInput(
                f"{place.file}: does not exist on node {gethostname()}; expected a --download_dir "
                "that every node of the cluster can read"
            )
        file = _open(place.file)
        groups = file.metadata.num_row_groups
        first, group = 0, 0
        while group < groups and first + file.metadata.row_group(group).num_rows <= place.row:
            first += file.metadata.row_group(group).num_rows
            group += 1
        self._path, self._first, self._batch = place.file, first, []
        self._batches = _batches(file, place.column, range(group, groups))


def _batches(file: pq.ParquetFile, column: str, groups: range) -> Iterator[pa.Array]:
    is_struct = pa.types.is_struct(file.schema_arrow.field(column).type)
    leaf = f"{column}.bytes" if is_struct else column
    with file:
        for group in groups:  # one after the other: damage to one is none to the row before it
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[leaf]):
                yield batch.column(0)

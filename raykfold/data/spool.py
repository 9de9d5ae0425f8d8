"""Keeps features on disk while they are made, so that a killed preparation resumes.

    processed_dir/.prepare/
    ├── features.npy    rows as they come, in the order of the recordings
    └── journal.jsonl   a line of settings, then a line for each chunk of recordings

A chunk's rows are flushed to the disk before its line in the journal, so what the journal says is
there. What lies behind that in features.npy is cut off by the next append, and nothing is before:
who mistypes a parameter loses nothing yet. Since rows come in order, features.npy is the final file
once its header has the number of rows: NumPy leaves room for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from raykfold.errors import BadInput
from raykfold.files.atomic import as_storage_error

FOLDER = ".prepare"


class Spool:
    """The features made so far for a list of recordings.

    Args:
        processed_dir: the folder of the data set, made by `opened`.
        settings: what features depend on, beside the recordings: plain values.
        recordings: a text for each recording that changes with it.
        shape: of a row.
        dtype: of the features.

    Attributes:
        windows: number of rows of each recording so far; 0 for one that could not be read.
        problems: index → why that recording could not be read.
        discarded: how many recordings an earlier preparation had done whose settings, or whose
            recordings, were others, or whose rows the disk has lost.
    """

    def __init__(
        self,
        processed_dir: Path,
        settings: Mapping[str, Any],
        recordings: Sequence[str],
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
    ) -> None:
        self.windows: list[int] = []
        self.problems: dict[int, str] = {}
        self.discarded = 0
        self._folder = processed_dir / FOLDER
        self._settings = {
            "version": 1,
            **settings,
            "shape": list(shape),
            "dtype": np.dtype(dtype).str,
        }
        self._recordings = recordings
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._made: list[Path] = []  # folders
        self._features: IO[bytes] | None = None
        self._journal: IO[bytes] | None = None
        # What an earlier preparation has left: (its first recording, where its line begins) of
        # each chunk, and where in the journal the first one ends that is not taken up.
        self._chunks: list[tuple[int, int]] = []
        self._valid_bytes = 0
        self._begun = False  # whether files are cut to that, and written
        self._worth_keeping = True  # until the journal says that nothing is there

    @property
    def done(self) -> int:
        """Number of recordings that are read, or cannot be."""
        return len(self.windows)

    @property
    def rows(self) -> int:
        """Number of rows so far."""
        return sum(self.windows)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Take up what an earlier preparation has left, and close the files at the end.

        The folder is locked in between. It is removed at the end if nothing was appended to it.

        Raises:
            BadInput: another process is preparing the same folder.
            StorageError: the files cannot be read.
        """
        try:
            self._open()
            yield
        finally:
            if self._journal is not None and not self._worth_keeping:
                self.remove()
            self._close()

    def take_back(self, index: int) -> None:
        """Give up the chunk that has recording `index`, of an earlier preparation, and all later.

        They stay on the disk until the next append.
        """
        last = max(place for place, (start, _) in enumerate(self._chunks) if start <= index)
        start, self._valid_bytes = self._chunks[last]
        del self._chunks[last:], self.windows[start:]
        self.problems = {index: text for index, text in self.problems.items() if index < start}

    def append(
        self, features: npt.NDArray[Any], windows: Sequence[int], problems: Mapping[int, str]
    ) -> None:
        """Add the rows of the next recordings.

        Args:
            features: (rows, *shape).
            windows: number of rows of each of these recordings.
            problems: index among these recordings → why it could not be read.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        features_file, journal = self._begin()
        start, stop = self.done, self.done + len(windows)
        line = {
            "recordings": self._digest(start, stop),
            "windows": list(windows),
            "problems": {str(index): text for index, text in problems.items()},
        }
        with as_storage_error(self._folder):
            if len(features):
                _write(features_file, np.ascontiguousarray(features, dtype=self._dtype).data)
            _write(journal, json.dumps(line).encode() + b"\n")
        self._worth_keeping = True
        self._add(windows, problems)

    def finish(self) -> Path:
        """Complete the features, and return their file, for `write_feature_set` to move.

        Raises:
            StorageError: the disk fails.
        """
        features, _ = self._begin()
        with as_storage_error(self._folder):
            features.seek(0)
            _write(features, self._header(self.rows))
        return self._folder / "features.npy"

    def remove(self) -> None:
        """Delete the files, and the folders made for them if nothing else is in them."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._close()  # not before: it is locked as long
        for folder in self._made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()

    # ---- The files

    def _open(self) -> None:
        with as_storage_error(self._folder):
            self._made = [folder for folder in self._folder.parents if not folder.exists()]
            self._journal = self._locked_journal()
            self._features = open(  # noqa: SIM115
                self._folder / "features.npy",
                "r+b",
                buffering=0,  # else closing the file would try again what a full disk has refused
                opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666),
            )
            self._read_journal(self._features, self._journal)

    def _locked_journal(self) -> IO[bytes]:
        path = self._folder / "journal.jsonl"
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            journal = path.open("a+b", buffering=0)
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                journal.close()
                raise BadInput(
                    f"--processed_dir {self._folder.parent}: another prepare is writing there; "
                    "expected a folder of its own for each"
                ) from None
            except OSError:  # the file system has no locks
                return journal
            # Whoever had the lock may have removed the file before it was given up.
            if os.fstat(journal.fileno()).st_nlink:
                return journal
            journal.close()

    def _close(self) -> None:
        for file in (self._features, self._journal):
            if file is not None:
                file.close()
        self._features = self._journal = None

    def _read_journal(self, features: IO[bytes], journal: IO[bytes]) -> None:
        """Read the journal as far as it is of these settings and recordings."""
        row_bytes = math.prod(self._shape) * self._dtype.itemsize
        size = os.fstat(features.fileno()).st_size - len(self._header(0))
        if size < 0:  # features.npy has become that of the data set, or there was none
            self._worth_keeping = False
            return
        journal.seek(0)
        lines = journal.read().splitlines(keepends=True)
        valid = bool(lines) and lines[0] == self._first_line()
        if valid:
            self._valid_bytes = len(lines[0])
        for line in lines[1:]:
            entry = _parse(line)
            if entry is None:  # the line that a kill has cut short
                break
            start, windows = self.done, entry["windows"]
            stop = start + len(windows)
            valid = (
                valid
                and stop <= len(self._recordings)
                and entry["recordings"] == self._digest(start, stop)
                and self.rows + sum(windows) <= size // row_bytes
            )
            if not valid:
                self.discarded += len(windows)
                continue
            self._chunks.append((start, self._valid_bytes))
            self._add(windows, {int(key): text for key, text in entry["problems"].items()})
            self._valid_bytes += len(line)
        self._worth_keeping = bool(self.done or self.discarded)

    def _begin(self) -> tuple[IO[bytes], IO[bytes]]:
        """Cut off what is not taken up, and return the files to write to."""
        features, journal = self._features, self._journal
        assert features is not None and journal is not None  # `opened`
        if not self._begun:
            with as_storage_error(self._folder):
                journal.truncate(self._valid_bytes)
                if self._valid_bytes:
                    os.fsync(journal.fileno())
                else:
                    _write(journal, self._first_line())
                header = self._header(0)
                row_bytes = math.prod(self._shape) * self._dtype.itemsize
                features.truncate(len(header) + self.rows * row_bytes)
                features.seek(0)
                _write(features, header)
                features.seek(0, os.SEEK_END)
            self._begun = True
        return features, journal

    def _first_line(self) -> bytes:
        return json.dumps(self._settings, sort_keys=True).encode() + b"\n"

    def _add(self, windows: Sequence[int], problems: Mapping[int, str]) -> None:
        self.problems |= {self.done + index: text for index, text in problems.items()}
        self.windows += windows

    def _digest(self, start: int, stop: int) -> str:
        text = "\0".join(self._recordings[start:stop])
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()

    def _header(self, rows: int) -> bytes:
        """Return the beginning of an .npy file, of the same length for any number of rows."""
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(self._dtype)
        about = {"descr": descr, "fortran_order": False, "shape": (rows, *self._shape)}
        np.lib.format.write_array_header_1_0(header, about)
        return header.getvalue()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and line.endswith(b"\n") else None


def _write(file: IO[bytes], content: bytes | memoryview) -> None:
    """Write to an unbuffered file, to the disk itself."""
    left = memoryview(content).cast("B")
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())

"""Finds files by names that are spelled differently on disk than in a table.

macOS writes accents of file names in another Unicode form (NFD) than most tables have (NFC), some
recorders write ``.WAV``, and Windows writes ``\\`` between folders.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from raykfold.errors import BadInput


class FileNames:
    """The names in folders, each folder read once."""

    def __init__(self) -> None:
        self._folders: dict[Path, Path | None] = {}
        self._entries: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: Path) -> Path | None:
        """Return where a file is that should be at `path`, or None.

        That is `path` itself where it exists, else the only one whose name, or whose folders'
        names, differ in nothing but Unicode form, capitals, or slashes.
        """
        found = self._find(path)
        if found is None and "\\" in str(path):
            return self._find(Path(str(path).replace("\\", "/")))
        return found

    def _find(self, path: Path) -> Path | None:
        folder = self._folder(path.parent)
        return None if folder is None else self._entry(folder, path.name)

    def _folder(self, path: Path) -> Path | None:
        if path not in self._folders:
            known: Path | None = path
            if not os.path.isdir(path):  # a folder may be entered without being listed
                known = self._find(path) if path != path.parent else None
            self._folders[path] = known
        return self._folders[path]

    def _entry(self, folder: Path, name: str) -> Path | None:
        if folder not in self._entries:
            entries: dict[str, list[str]] = {}
            for each in names_in(folder):
                entries.setdefault(_spelling(each), []).append(each)
            self._entries[folder] = entries
        alike = self._entries[folder].get(_spelling(name), [])
        if name in alike or (not self._entries[folder] and os.path.isfile(folder / name)):
            return folder / name
        return folder / alike[0] if len(alike) == 1 else None


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in `folder`, sorted, but for hidden ones and what macOS adds to a zip."""
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if not entry.name.startswith((".", "__MACOSX")) and _is_folder(entry)
            ]
    except OSError:  # it cannot be listed
        return []
    return [folder / name for name in sorted(names)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()  # as a rule without asking the file system again
    except OSError:  # a link that leads to itself
        return False


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and in those below it, sorted by their names in NFC.

    Hidden ones and what macOS adds to a zip are left out. A link to a folder is followed, unless
    it leads to a folder that it lies in.

    Raises:
        BadInput: a folder cannot be listed.
    """
    found = [Path(path) for path in _files_below(str(folder), ())]
    # A disk may have a name in both forms; it lists them in any order.
    return sorted(
        found, key=lambda path: ([unicodedata.normalize("NFC", p) for p in path.parts], path.parts)
    )


def _files_below(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in above:
            return
        with os.scandir(folder) as listed:
            entries = [each for each in listed if not each.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise BadInput(f"{folder}: cannot be listed ({error.strerror})") from None
    for entry in entries:
        if _is_folder(entry):
            yield from _files_below(entry.path, (*above, (stat.st_dev, stat.st_ino)))
        elif os.path.isfile(entry.path):
            yield entry.path


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder; none if it cannot be listed."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _spelling(name: str) -> str:
    """Return what is equal for names that differ in Unicode form or capitals only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

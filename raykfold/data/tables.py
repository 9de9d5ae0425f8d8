"""Reads tables of recordings: CSV files with a header, separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from raykfold.errors import BadData, BadInput
from raykfold.text import comma_list

_SEPARATORS = ",;\t"
_WHOLE_NUMBER = re.compile(r"([+-]?\d{1,18})(\.0*)?")  # pandas writes 1.0 once a cell was empty
_FOLD_NUMBER = re.compile(r"fold[ _-]?(\d{1,18})(\.0*)?", re.IGNORECASE)
_MOST_LISTED = 20  # columns, in a message


class Row(dict[str, str]):
    """The cells of a table's row by column; `where` is its file and line."""

    def __init__(self, cells: Mapping[str, str], where: str) -> None:
        super().__init__(cells)
        self.where = where

    def integer(self, column: str) -> int:
        """Return the number in a column: ``1``, ``1.0``; in the column ``fold`` also ``fold1``."""
        number = fold_number(self[column]) if column == "fold" else whole_number(self[column])
        if number is None:
            raise BadData(f"{self.where}: {column} {self[column]!r}; expected a whole number")
        return number


def whole_number(text: str) -> int | None:
    """Return the number that a text is, ``1`` or ``1.0``, or None."""
    match = _WHOLE_NUMBER.fullmatch(text)
    return int(match[1]) if match else None


def fold_number(text: str) -> int | None:
    """Return the number of a fold, ``1``, ``1.0`` or ``fold1``, or None."""
    match = _FOLD_NUMBER.fullmatch(text)
    return int(match[1]) if match else whole_number(text)


def number_names(
    texts: Iterable[str], first: int, key: Callable[[str], Any] | None = None
) -> tuple[list[int], dict[int, str]]:
    """Number the names in a column, ascending.

    Args:
        texts: one for each row.
        first: number of the first name.
        key: of the order; alphabetical by default.

    Returns:
        (a number for each text, number → name).
    """
    # One name, whichever of its two Unicode forms a row has.
    names = [unicodedata.normalize("NFC", text) for text in texts]
    ordered = sorted(set(names), key=key)
    number_of = {name: number for number, name in enumerate(ordered, start=first)}
    return [number_of[name] for name in names], dict(enumerate(ordered, start=first))


def by_numbers_within(name: str) -> list[str | int]:
    """Return a key of the order in which ``speaker 2`` comes before ``speaker 10``."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def read_table(path: Path, columns: Sequence[str], hint: str) -> list[Row]:
    """Return the rows of a CSV file with a header, in order, without its other columns.

    The separator is the one of comma, semicolon and tab that finds most columns. Capitals in the
    names of columns do not matter, where no column has the very name.

    Raises:
        BadInput: the file cannot be read (the message ends with `hint`), lacks a column or a cell,
            or has no rows.
    """
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            present, separator = _header(header, columns)
            places = {column: _place(present, column) for column in columns}
            lacking = [column for column, place in places.items() if place is None]
            if lacking:
                found = comma_list(present[:_MOST_LISTED]) or "none"
                raise BadData(
                    f"{path}: lacks the column {', '.join(lacking)}; its columns are {found}; "
                    f"expected {', '.join(columns)}"
                )
            reader = csv.reader(chain([header], file), delimiter=separator)
            next(reader)
            for cells in reader:
                if not any(map(str.strip, cells)):
                    continue
                row = Row(
                    {
                        column: cells[place].strip() if place < len(cells) else ""
                        for column, place in places.items()
                        if place is not None
                    },
                    f"{path}, line {reader.line_num}",
                )
                empty = [column for column in columns if not row[column]]
                if empty:
                    raise BadData(f"{row.where}: no {empty[0]}")
                rows.append(row)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); {hint}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path}: not a CSV file in UTF-8 ({error})") from None
    if not rows:
        raise BadData(f"{path}: lists no recordings; expected one in each row below the header")
    return rows


def _header(line: str, columns: Sequence[str]) -> tuple[list[str], str]:
    """Return the names in a header and what separates them."""
    readings = [
        ([name.strip() for name in next(csv.reader([line], delimiter=separator), [])], separator)
        for separator in _SEPARATORS
    ]
    return max(
        readings, key=lambda read: sum(_place(read[0], column) is not None for column in columns)
    )


def _place(present: Sequence[str], column: str) -> int | None:
    if column in present:
        return present.index(column)
    folded = [name.casefold() for name in present]
    return folded.index(column.casefold()) if column.casefold() in folded else None

"""Reads tables of recordings: CSV files with a header, separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raykfold.errors import BadData, BadInput
from raykfold.text import comma_list

_SEPARATORS = ",;\t"
_WHOLE_NUMBER = re.compile(r"([+-]?\d{1,18})(\.0*)?")  # pandas writes 1.0 once a cell was empty
_FOLD_NUMBER = re.compile(r"fold[ _-]?(\d{1,18})(\.0*)?", re.IGNORECASE)
_SEPARATOR_LINE = re.compile(
    r'"?sep=([^"\w\r\n])"?(\r\n?|\n)', re.IGNORECASE
)  # Excel's, above the header
_MOST_LISTED = 20  # columns, in a message


class Row(dict[str, str]):
    """The cells of a table's row by column; `where` is its file and line."""

    def __init__(self, cells: Mapping[str, str], where: str) -> None:
        super().__init__(cells)
        self.where = where

    def integer(self, column: str) -> int:
        """Return the number in a column: ``1`` or ``1.0``."""
        number = whole_number(self[column])
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


def by_numbers_within(name: str) -> tuple[list[str | int], str]:
    """Return a key of the order in which ``speaker 2`` comes before ``speaker 10``."""
    parts = re.split(r"(\d{1,640})", name)  # int() may refuse more digits
    # By the name last: s1 and s01 have the same parts.
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def read_table(
    path: Path,
    columns: Sequence[str],
    hint: str,
    optional: Sequence[str] = (),
    instead: Mapping[str, str] = MappingProxyType({}),
) -> list[Row]:
    """Return the rows of a CSV file with a header, in order, without its other columns.

    Rows have the `optional` columns that are in the table, whose cells may be empty. `instead`
    says what else than a column would do, for messages.

    The separator is the one of comma, semicolon and tab that finds most columns, or the one that a
    first line ``sep=;`` names. Capitals in the names of columns do not matter, where no column has
    the very name.

    Raises:
        BadInput: the file cannot be read (the message ends with `hint`), lacks a column or a cell,
            has a column twice or more cells than columns, or has no rows.
    """
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
        named = _SEPARATOR_LINE.match(text)
        above, separators = (1, named[1]) if named else (0, _SEPARATORS)
        text = text[named.end() :] if named else text
        headers = {separator: _header(text, separator) for separator in separators}
        separator = max(
            headers,
            key=lambda each: sum(
                bool(_places(headers[each], name)) for name in (*columns, *optional)
            ),
        )
        present = headers[separator]
        places = {column: _places(present, column) for column in columns}
        lacking = [column for column, found in places.items() if not found]
        others = {column: _places(present, column) for column in optional}
        places |= {column: found for column, found in others.items() if found}
        if lacking:
            shown = comma_list(present[:_MOST_LISTED]) or "none"
            other = "".join(f", or {instead[name]}" for name in lacking if name in instead)
            raise BadData(
                f"{path}: lacks the column {', '.join(lacking)}; its columns are {shown}; "
                f"expected {', '.join(columns)}{other}"
            )
        for column, found in places.items():
            if len(found) > 1:
                raise BadData(f"{path}: has the column {column} {len(found)} times; expected one")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        next(reader)
        for cells in reader:
            if not any(map(str.strip, cells)):
                continue
            where = f"{path}, line {reader.line_num + above}"
            if any(map(str.strip, cells[len(present) :])):
                raise BadData(
                    f"{where}: {len(cells)} cells under {len(present)} columns; quote a cell that "
                    f"holds {separator!r}"
                )
            padded = [*map(str.strip, cells), *[""] * len(present)]
            row = Row({column: padded[place] for column, (place,) in places.items()}, where)
            empty = [column for column in columns if not row[column]]
            if empty:
                other = f"; expected one, or {instead[empty[0]]}" if empty[0] in instead else ""
                raise BadData(f"{row.where}: no {empty[0]}{other}")
            rows.append(row)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); {hint}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path}: not a CSV file in UTF-8 ({error})") from None
    if not rows:
        raise BadData(f"{path}: lists no recordings; expected one in each row below the header")
    return rows


def _header(text: str, separator: str) -> list[str]:
    """Return the names in a table's header, which may be of several lines."""
    try:
        cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    except csv.Error:  # quotes that are none with another separator
        return []
    return [name.strip() for name in cells]


def _places(present: Sequence[str], column: str) -> list[int]:
    """Return where a column is: by its very name, else by one that differs in capitals."""
    places = [place for place, name in enumerate(present) if name == column]
    folded = [name.casefold() for name in present]
    return places or [place for place, name in enumerate(folded) if name == column.casefold()]

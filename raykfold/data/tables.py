"""Reads tables of recordings: CSV files with a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from raykfold.errors import BadData, BadInput

WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}")


class Row(dict[str, str]):
    """The cells of a table's row by column; `where` is its file and line."""

    def __init__(self, cells: Mapping[str, str], where: str) -> None:
        super().__init__(cells)
        self.where = where

    def integer(self, column: str) -> int:
        if not WHOLE_NUMBER.fullmatch(self[column]):
            raise BadData(f"{self.where}: {column} {self[column]!r}; expected a whole number")
        return int(self[column])


def read_table(path: Path, columns: Sequence[str], hint: str) -> list[Row]:
    """Return the rows of a CSV file with a header, in order, without its other columns.

    Raises:
        BadInput: the file cannot be read (the message ends with `hint`), lacks a column or a cell,
            or has no rows.
    """
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            present = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = present
            lacking = [column for column in columns if column not in present]
            if lacking:
                raise BadData(
                    f"{path}: lacks the column {', '.join(lacking)}; expected {', '.join(columns)}"
                )
            for cells in reader:
                row = Row(
                    {column: (cells[column] or "").strip() for column in columns},
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

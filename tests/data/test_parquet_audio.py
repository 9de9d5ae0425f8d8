"""Reading audio out of Parquet files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from support.parquet_data import audio, parquet

from raykfold.data.audio import AudioBytes
from raykfold.data.parquet_audio import AudioSources, ParquetCell
from raykfold.errors import BadData, BadInput

CONTENTS = [bytes([65 + row]) * 1000 for row in range(25)]


@pytest.fixture(params=[None, 1, 7])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A Parquet file of one row group, or of several."""
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet({"audio": audio(CONTENTS)}, row_group_size=request.param))
    return path


def content(sources: AudioSources, file: Path, row: int) -> bytes:
    source = sources.open(ParquetCell(file, "audio", row, "a.wav"))
    assert isinstance(source, AudioBytes) and source.file_name == "a.wav"
    return source.content


@pytest.mark.parametrize("rows", [range(25), range(9, 20), [3, 4, 20, 24], [24, 0, 0, 13, 12]])
def test_each_cell_is_read_in_any_order(file: Path, rows: list[int]) -> None:
    sources = AudioSources()
    assert [content(sources, file, row) for row in rows] == [CONTENTS[row] for row in rows]


def test_cells_of_several_files_and_files_that_are_none(file: Path) -> None:
    other = file.with_name("other.parquet")
    other.write_bytes(parquet({"audio": audio([b"1", b"2"])}))
    sources = AudioSources()
    assert content(sources, file, 2) == CONTENTS[2]
    assert content(sources, other, 1) == b"2"
    assert sources.open(Path("a.wav")) == Path("a.wav")
    assert content(sources, file, 3) == CONTENTS[3]


def test_a_column_of_bytes_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet({"audio": CONTENTS}))
    assert content(AudioSources(), path, 20) == CONTENTS[20]


def test_a_cell_without_bytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet({"audio": audio([b"1", None, b"", b"4"])}))
    sources = AudioSources()
    for row, reason in ((1, "no bytes there"), (2, "no bytes there"), (9, "no such row any more")):
        with pytest.raises(BadData, match=rf"x\.parquet, row {row} \(a\.wav\): .*{reason}"):
            content(sources, path, row)
    assert content(sources, path, 3) == b"4"


def test_a_damaged_file_loses_what_is_damaged_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    noise = [os.urandom(5000) for _ in range(4)]
    whole = parquet({"audio": audio(noise)}, row_group_size=1)
    start = whole.index(noise[1][:100])
    path.write_bytes(whole[: start - 60] + b"\xff" * 60 + whole[start:])
    sources = AudioSources()
    assert content(sources, path, 0) == noise[0]
    with pytest.raises(BadData, match=r"x\.parquet, row 1 \(a\.wav\): cannot be read as Parquet"):
        content(sources, path, 1)
    assert content(sources, path, 2) == noise[2]


def test_a_node_that_lacks_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"absent\.parquet: does not exist on node .*download_dir"):
        content(AudioSources(), tmp_path / "absent.parquet", 0)


def test_a_cell_can_be_sent_to_a_worker(file: Path) -> None:
    cell = ParquetCell(file, "audio", 4, "a.wav")
    assert pickle.loads(pickle.dumps(cell)) == cell

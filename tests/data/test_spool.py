"""Features on their way to the disk: whatever stops a preparation, the final bytes are the same."""

from __future__ import annotations

import io
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from raykfold.data.spool import FOLDER, Spool
from raykfold.errors import BadInput, StorageError

SHAPE = (3, 2)
RECORDINGS = [f"{name}.wav 100 1" for name in "abcdefg"]
WINDOWS = [2, 1, 0, 3, 1, 1, 1]  # c cannot be read
ROWS = np.random.default_rng(0).normal(size=(sum(WINDOWS), *SHAPE)).astype(np.float32)
PROBLEMS = {2: "c.wav: no sound \udcff"}
FILES = ("journal.jsonl", "features.npy")
CHUNKS = [(0, 2), (2, 4), (4, 7)]


def spool_in(
    folder: Path, recordings: Sequence[str] = RECORDINGS, dtype: str = "float32", n_fft: int = 8
) -> Spool:
    return Spool(folder, {"n_fft": n_fft}, recordings, SHAPE, dtype)


def append(spool: Spool, start: int, stop: int) -> None:
    first, last = sum(WINDOWS[:start]), sum(WINDOWS[:stop])
    problems = {index - start: text for index, text in PROBLEMS.items() if start <= index < stop}
    spool.append(ROWS[first:last], WINDOWS[start:stop], problems)


def complete(spool: Spool) -> bytes:
    """Append what is lacking, and return the final file."""
    for start, stop in CHUNKS:
        if start >= spool.done:
            append(spool, start, stop)
    assert spool.windows == WINDOWS and spool.problems == PROBLEMS and spool.rows == len(ROWS)
    return spool.finish().read_bytes()


def saved(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """What a preparation leaves that is killed after two of three chunks."""
    spool = spool_in(tmp_path / "half")
    with spool.opened():
        append(spool, *CHUNKS[0])
        append(spool, *CHUNKS[1])
    return tmp_path / "half"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_file_is_that_of_numpy(tmp_path: Path, dtype: str) -> None:
    spool = spool_in(tmp_path, dtype=dtype)
    with spool.opened():
        assert complete(spool) == saved(ROWS.astype(dtype))
        spool.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_kill_at_any_byte_loses_no_more_than_a_chunk(half: Path, tmp_path: Path) -> None:
    journal, features = ((half / FOLDER / name).read_bytes() for name in FILES)
    ends = [place + 1 for place, byte in enumerate(journal) if byte == ord("\n")]
    assert len(ends) == 3
    for cut in {0, *range(5, len(journal), 23), *ends, *(end - 1 for end in ends)}:
        whole = sum(end <= cut for end in ends)
        for name, content in zip(FILES, (journal[:cut], features + b"rest"), strict=True):
            (tmp_path / "cut" / FOLDER).mkdir(parents=True, exist_ok=True)
            (tmp_path / "cut" / FOLDER / name).write_bytes(content)
        spool = spool_in(tmp_path / "cut")
        with spool.opened():
            assert spool.done == [0, 0, 2, 4][whole]
            assert complete(spool) == saved(ROWS)
        shutil.rmtree(tmp_path / "cut")


def test_rows_that_a_lost_disk_cache_took_are_made_again(half: Path) -> None:
    with (half / FOLDER / "features.npy").open("r+b") as file:
        file.truncate(len(saved(ROWS[:3])) + 5)  # those of the first chunk, and a bit
    spool = spool_in(half)
    with spool.opened():
        assert (spool.done, spool.discarded) == (2, 2)
        assert complete(spool) == saved(ROWS)


@pytest.mark.parametrize(
    ("changed", "done"),
    [
        (RECORDINGS, 4),
        ([*RECORDINGS[:3], "d.wav 101 2", *RECORDINGS[4:]], 2),
        (["other.wav", *RECORDINGS[1:]], 0),
        ([*RECORDINGS, "more.wav"], 4),
        (RECORDINGS[:4], 4),
        (RECORDINGS[:3], 2),
    ],
)
def test_what_is_done_stays_up_to_the_first_change(
    half: Path, changed: list[str], done: int
) -> None:
    spool = spool_in(half, changed)
    with spool.opened():
        assert (spool.done, spool.discarded) == (done, 4 - done)
        assert spool.problems == (PROBLEMS if done == 4 else {})


def test_other_settings_start_over(half: Path) -> None:
    for spool in (spool_in(half, n_fft=16), spool_in(half, dtype="float16", n_fft=16)):
        with spool.opened():
            assert (spool.done, spool.discarded) == (0, 4)
            append(spool, 0, 4)


def test_an_interrupt_while_the_journal_is_read_loses_nothing(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("raykfold.data.spool.hashlib.sha256", interrupt)
        with pytest.raises(KeyboardInterrupt), spool_in(half).opened():
            pass
    spool = spool_in(half)
    with spool.opened():
        assert spool.windows == WINDOWS[:4] and spool.rows == sum(WINDOWS[:4])


def test_two_preparations_do_not_mix(half: Path) -> None:
    one, other = spool_in(half), spool_in(half)
    with one.opened():
        with pytest.raises(BadInput, match="another prepare is writing there"), other.opened():
            pass
        assert complete(one) == saved(ROWS)


def test_two_preparations_that_start_together_do_not_mix(tmp_path: Path) -> None:
    one, other = spool_in(tmp_path / "new"), spool_in(tmp_path / "new")
    with one.opened():
        with pytest.raises(BadInput, match="another prepare is writing there"), other.opened():
            pass
        assert complete(one) == saved(ROWS)


def test_nothing_is_cut_off_before_the_first_append(half: Path) -> None:
    """A parameter may have been mistyped, which the user sees while Ray starts."""
    other = spool_in(half, n_fft=16)
    with other.opened():
        assert (other.done, other.discarded) == (0, 4)
    spool = spool_in(half)
    with spool.opened():
        assert (spool.done, spool.discarded) == (4, 0)
        assert complete(spool) == saved(ROWS)


def test_recordings_that_can_be_read_now_are_taken_back_with_their_chunk(half: Path) -> None:
    for stopped in (True, False):
        spool = spool_in(half)
        with spool.opened():
            assert spool.problems == PROBLEMS
            spool.take_back(2)
            assert (spool.done, spool.rows, spool.problems) == (2, 3, {})
            if not stopped:
                assert complete(spool) == saved(ROWS)
    again = spool_in(half)
    with again.opened():
        assert (again.done, again.discarded) == (len(RECORDINGS), 0)
        again.take_back(0)
    again = spool_in(half)
    with again.opened():
        assert again.done == len(RECORDINGS)


def test_a_journal_whose_features_became_the_data_set_counts_nothing(half: Path) -> None:
    spool = spool_in(half)
    with spool.opened():
        complete(spool)
        spool.finish().rename(half / "features.npy")
    for _ in range(2):  # not after a start that made nothing either
        spool = spool_in(half)
        with spool.opened():
            assert (spool.done, spool.discarded) == (0, 0)


def test_nothing_is_made_before_there_are_features(tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "new" / "folder")
    with spool.opened():
        assert spool.done == 0
    assert list(tmp_path.iterdir()) == []
    with spool.opened():
        append(spool, 0, 2)
        spool.remove()
    assert list(tmp_path.iterdir()) == []


@contextmanager
def small_disk() -> Iterator[None]:
    """No file may be larger than one with the rows of the first chunk and a bit.

    That is also so for the file that pytest may be writing to: nothing else may happen within.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(saved(ROWS[:3])) + 30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    with spool.opened():
        append(spool, 0, 2)
        with (
            pytest.raises(StorageError, match=r"cannot be written \(.*resumes from it"),
            small_disk(),
        ):
            append(spool, 2, 4)
    again = spool_in(tmp_path)
    with again.opened():
        assert again.done == 2

"""Tasks that make features, without Ray: how large they are, and what a node may lack."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from raykfold.data.log_mel import FeatureParameters
from raykfold.distributed.extraction import chunk_ends, chunk_features, require_same_machine
from raykfold.errors import BadInput

SMALL = FeatureParameters(
    sample_rate=8000, seconds=0.5, n_mels=16, n_fft=256, hop_length=128, frames=32
)


def sizes_of_chunks(parameters: FeatureParameters, size: int) -> list[int]:
    ends = [0, *chunk_ends([size] * 200, 0, parameters, np.float32)]
    assert ends[-1] == 200
    return [stop - start for start, stop in pairwise(ends)]


def test_a_task_has_fewer_recordings_the_more_their_windows_overlap() -> None:
    of_samples, *_ = sizes_of_chunks(SMALL, 2**20)
    side_by_side, *_ = sizes_of_chunks(dataclasses.replace(SMALL, hop=0.5), 2**20)
    overlapping, *_ = sizes_of_chunks(dataclasses.replace(SMALL, hop=0.0625), 2**20)
    assert of_samples > side_by_side == 8 * overlapping > 8
    assert set(sizes_of_chunks(dataclasses.replace(SMALL, hop=0.001), 2**20)) == {1}


def test_what_one_recording_lacks_costs_no_other_one(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    paths = [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    for path in paths[:2]:
        soundfile.write(path, np.sin(np.arange(6000) / 9), 8000)
    cut = dataclasses.replace(SMALL, hop=0.25)
    chunk = chunk_features(tmp_path, paths, cut, np.float16)
    assert (chunk.windows, list(chunk.problems)) == ([2, 2, 0], [2])
    assert chunk.features.shape == (4, 16, 32) and chunk.features.dtype == np.float16
    require_same_machine(chunk, paths)  # the file is lacking here, too
    alone = chunk_features(tmp_path, paths[1:2], cut, np.float16)
    np.testing.assert_array_equal(alone.features, chunk.features[2:])
    # It is here, and was not where the task ran.
    paths[2].write_text("sound")
    with pytest.raises(BadInput, match=rf"c\.wav: does not exist on node {chunk.node}; expected"):
        require_same_machine(chunk, paths)


def test_a_node_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("librosa")
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x1cftypM4A and so on")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "nothing"))
        chunk = chunk_features(tmp_path, [path], SMALL, np.float32)
        assert list(chunk.problems) == [0] and chunk.features.shape == (0, 16, 32)
        require_same_machine(chunk, [path])  # nor has this machine
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(BadInput, match=rf"a\.m4a: needs ffmpeg.* on node {chunk.node}, and is her"):
        require_same_machine(chunk, [path])

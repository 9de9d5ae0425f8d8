from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from raykfold.data.audio import read_audio
from raykfold.errors import BadData, BadInput

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("librosa")


def write(path: Path, samples: np.ndarray, rate: int, **options) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def test_channels_are_averaged(tmp_path):
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (800, 2)).astype(np.float32)
    samples = read_audio(write(tmp_path / "a.wav", channels, 8000, subtype="FLOAT"), 8000)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, channels.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_formats_and_rates(tmp_path, suffix):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    samples = read_audio(write(tmp_path / f"a.{suffix}", tone, 44100), 8000)
    assert samples.shape == (8000,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    assert np.abs(samples - expected)[100:-100].max() < 0.02


def test_a_resource_fork_beside_a_recording_is_not_looked_at(tmp_path):
    """An archive made on macOS holds ``._a.mp3``, the Finder's notes on ``a.mp3``."""
    tone = np.sin(np.arange(44100) / 20)
    path = write(tmp_path / "a.mp3", tone, 44100)
    alone = read_audio(path, 8000)
    apple_double = bytes.fromhex("00051607 00020000") + bytes(16)
    (tmp_path / "._a.mp3").write_bytes(apple_double + bytes.fromhex("0000") + bytes(4096))
    np.testing.assert_array_equal(read_audio(path, 8000), alone)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_file_that_breaks_off_is_refused(monkeypatch, tmp_path, suffix):
    """As on a network drive that fails, here by a folder's descriptor in place of the file's."""

    opened = soundfile.SoundFile

    def failing(file, **options):
        sound = opened(file, **options)
        folder = os.open(tmp_path, os.O_RDONLY)
        os.dup2(folder, file if isinstance(file, int) else file.fileno())
        os.close(folder)
        return sound

    path = write(tmp_path / f"a.{suffix}", np.random.default_rng(0).normal(size=400000) / 9, 44100)
    assert len(read_audio(path, 44100)) == 400000
    monkeypatch.setattr(soundfile, "SoundFile", failing)
    with pytest.raises(BadData, match=r"cannot be read as audio"):
        read_audio(path, 44100)


def test_little_more_than_needed_is_read_of_a_long_file(tmp_path):
    path = write(tmp_path / "long.wav", np.random.default_rng(0).normal(size=80000) / 10, 16000)
    beginning = read_audio(path, 8000, seconds=1.0)
    assert 8000 < len(beginning) < 10000
    np.testing.assert_allclose(beginning[:8000], read_audio(path, 8000)[:8000], atol=1e-4)


def test_files_that_hold_no_sound_are_named(tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("this is no sound")
    empty = tmp_path / "empty.wav"
    empty.touch()
    silent = write(tmp_path / "nothing.wav", np.zeros(0), 8000)
    broken = write(tmp_path / "nan.wav", np.full(100, np.nan), 8000, subtype="FLOAT")
    reasons = {
        text: "cannot be read as audio",
        empty: "cannot be read as audio",
        silent: "holds no sound",
        broken: "NaN or infinite",
        tmp_path: "cannot be read as audio",
        tmp_path / "absent.wav": "no such file",
    }
    for path, reason in reasons.items():
        with pytest.raises(BadData) as caught:
            read_audio(path, 8000)
        assert str(path) in str(caught.value) and reason in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["librosa", "soundfile"])
def test_without_the_audio_extra_it_says_what_to_install(monkeypatch, tmp_path, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BadInput, match=r"pip install 'raykfold\[audio\]'"):
        read_audio(tmp_path / "a.wav", 8000)

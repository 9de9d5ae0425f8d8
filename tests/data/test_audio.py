from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raykfold.data.audio import AudioBytes, read_audio, require_readable
from raykfold.errors import BadData, BadInput

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("librosa")
with_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


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


@pytest.mark.parametrize("claimed", [0, 2**36 - 1])
def test_a_header_that_claims_too_much_is_refused(tmp_path, claimed):
    """0 is how a FLAC file begins that was written to a pipe: of unknown length."""
    path = write(tmp_path / "a.flac", np.random.default_rng(0).normal(size=8000) / 9, 8000)
    samples = read_audio(path, 8000)
    content = bytearray(path.read_bytes())
    content[21:26] = ((content[21] >> 4 << 36) + claimed).to_bytes(5, "big")
    path.write_bytes(content)
    with pytest.raises(
        BadData, match=r"a\.flac: by its header it has \d+ samples, more than 2 GiB"
    ):
        read_audio(path, 8000)
    np.testing.assert_array_equal(read_audio(path, 8000, seconds=0.5), samples[:4800])


def test_a_rate_that_makes_too_much_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(200_000), 1)
    with pytest.raises(BadData, match=r"a\.wav: 200000 samples at 1 Hz, .* 22050 Hz makes more"):
        read_audio(path, 22050)


# ---- Bytes


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_bytes_are_read_like_a_file(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", np.random.default_rng(0).normal(size=44100) / 9, 44100)
    cell = AudioBytes(path.read_bytes(), "sounds.parquet, row 3")
    for seconds in (None, 0.5):
        np.testing.assert_array_equal(
            read_audio(cell, 8000, seconds), read_audio(path, 8000, seconds)
        )


@pytest.mark.parametrize("content", [b"", b"this is no sound", b"RIFF\0\0\0\0WAVE"])
def test_bytes_that_are_no_sound_are_named(content):
    with pytest.raises(BadData, match=r"^sounds\.parquet, row 3: (cannot be read|holds no sound)"):
        read_audio(AudioBytes(content, "sounds.parquet, row 3"), 8000)


# ---- By ffmpeg


def encode(path: Path, *options: str, video: bool = False) -> Path:
    """Write two seconds of a tone, on one channel of two, by ffmpeg."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(88200) / 44100)
    source = write(path.with_name("tone.wav"), np.stack([tone, 0 * tone], 1), 44100)
    picture = ["-f", "lavfi", "-i", "testsrc=d=2:s=32x32", "-c:v", "mpeg4"]
    command = ["ffmpeg", "-v", "error", "-i", str(source), *(picture if video else []), *options]
    subprocess.run([*command, str(path)], check=True)
    return path


def loudness(samples: np.ndarray, hertz: float) -> float:
    """Return the amplitude of a tone in a second of sound at 8 kHz."""
    second = samples[2000:10000]
    return float(2 * abs(second @ np.exp(2j * np.pi * hertz * np.arange(8000) / 8000)) / 8000)


@with_ffmpeg
@pytest.mark.parametrize("suffix", ["m4a", "aac", "webm", "mp4"])
def test_what_libsndfile_cannot_read_is_read_by_ffmpeg(tmp_path, suffix):
    codec = ["-c:a", "libopus" if suffix == "webm" else "aac"]
    path = encode(tmp_path / f"a.{suffix}", *codec, video=suffix == "mp4")
    samples = read_audio(path, 8000)
    assert samples.dtype == np.float32 and abs(len(samples) - 16000) < 500
    assert loudness(samples, 440) == pytest.approx(0.25, abs=0.01)  # the mean of the channels
    assert loudness(samples, 1000) < 0.01
    # Also where no name says what it is.
    np.testing.assert_array_equal(read_audio(AudioBytes(path.read_bytes(), "row 0"), 8000), samples)
    beginning = read_audio(path, 8000, seconds=1.0)
    assert 8000 < len(beginning) < 10000
    np.testing.assert_allclose(beginning[:8000], samples[:8000], atol=1e-6)


@with_ffmpeg
def test_what_ffmpeg_cannot_read_is_named(tmp_path):
    whole = encode(tmp_path / "a.m4a", "-movflags", "faststart").read_bytes()
    silent = tmp_path / "silent.mp4"
    picture = ["-f", "lavfi", "-i", "testsrc=d=1:s=32x32", "-c:v", "mpeg4"]
    subprocess.run(["ffmpeg", "-v", "error", *picture, str(silent)], check=True)
    for content, reason in (
        (whole[: len(whole) // 2], r"cannot be read as audio \(ffmpeg: "),
        (silent.read_bytes(), "holds no sound"),
    ):
        with pytest.raises(BadData, match=f"^row 0: {reason}") as caught:
            read_audio(AudioBytes(content, "row 0", "a.m4a"), 8000)
        assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


@with_ffmpeg
def test_a_playlist_does_not_have_other_files_read(tmp_path):
    write(tmp_path / "tone.wav", np.ones(8000) / 2, 8000)
    playlist = tmp_path / "a.m4a"
    playlist.write_text("ffconcat version 1.0\nfile tone.wav\n")
    with pytest.raises(BadData, match=r"a\.m4a: cannot be read as audio \(ffmpeg: .*whitelist"):
        read_audio(playlist, 8000)


def test_without_ffmpeg_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "a.bin"
    path.write_bytes(b"\0\0\0\x1cftypM4A and so on")
    with pytest.raises(BadData, match=r"a\.bin: needs ffmpeg, which is not installed$"):
        read_audio(path, 8000)
    with pytest.raises(BadInput, match=r"all 2 recordings \(\.m4a, \.mp4\) need ffmpeg"):
        require_readable(["a.m4a", "b.MP4"])
    require_readable(["a.m4a", "b.wav"])
    require_readable([])


def test_a_wav_file_under_another_name_needs_no_ffmpeg(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    write(tmp_path / "a.wav", np.ones(8000) / 2, 8000)
    assert len(read_audio((tmp_path / "a.wav").rename(tmp_path / "a.m4a"), 8000)) == 8000

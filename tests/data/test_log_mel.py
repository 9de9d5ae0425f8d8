from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from raykfold.data.log_mel import (
    DIGITS,
    ESC50,
    URBANSOUND8K,
    FeatureParameters,
    features_of_file,
    frame_count,
    log_mel,
    log_mel_numpy,
    mel_filters,
)
from raykfold.errors import BadData, BadInput

soundfile = pytest.importorskip("soundfile")
librosa = pytest.importorskip("librosa")

GOOD: dict[str, Any] = {
    "sample_rate": 8000,
    "seconds": 0.5,
    "n_mels": 32,
    "n_fft": 256,
    "hop_length": 128,
    "frames": 32,
}
ODD = FeatureParameters(
    sample_rate=11025, seconds=0.7, n_mels=20, n_fft=301, hop_length=97, frames=85
)
both = pytest.mark.parametrize("features_of", [log_mel, log_mel_numpy])


def voice(rng: np.random.Generator, length: int, sample_rate: int) -> np.ndarray:
    """A tone that moves, with overtones, swelling and dying, in a little noise."""
    time = np.arange(length) / sample_rate
    phase = 2 * np.pi * np.cumsum(180 + 60 * np.sin(9 * time)) / sample_rate
    tone = sum(np.sin(multiple * phase) / multiple for multiple in range(1, 12))
    return tone * np.exp(-4 * time) * np.minimum(1, 20 * time) + 1e-4 * rng.normal(size=length)


# ---- Parameters


@pytest.mark.parametrize("preset", [URBANSOUND8K, ESC50, DIGITS])
def test_presets_have_the_frames_that_their_seconds_give(preset):
    assert preset.frames == frame_count(preset.sample_rate, preset.seconds, preset.hop_length)


def test_parameters_survive_being_written_down():
    written = URBANSOUND8K.as_dict()
    assert written["kind"] == "log_mel" and written["version"] == 1
    assert FeatureParameters.from_dict(written) == URBANSOUND8K
    assert FeatureParameters.from_dict({**written, "note": "from a later raykfold"}) == URBANSOUND8K


@pytest.mark.parametrize("name", list(GOOD))
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "8", None, True])
def test_parameters_out_of_range_are_named(name, value):
    with pytest.raises(BadInput, match=f"^{name} "):
        FeatureParameters(**{**GOOD, name: value})


def test_parameters_that_do_not_go_together_are_refused():
    with pytest.raises(BadInput, match=r"n_mels 130: expected at most 129, .* n_fft 256"):
        FeatureParameters(**{**GOOD, "n_mels": 130})
    with pytest.raises(BadInput, match=r"n_fft 256\.5: expected a whole number"):
        FeatureParameters(**{**GOOD, "n_fft": 256.5})
    with pytest.raises(BadInput, match=r"seconds 1e-06: expected at least one sample"):
        FeatureParameters(**{**GOOD, "seconds": 1e-6})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mfcc"}, "kind 'mfcc'"),
        ({"version": 2}, "version 2"),
        ({"n_mels": 0}, "parameter n_mels 0"),
    ],
)
def test_written_parameters_of_another_making_are_bad_data(change, message):
    with pytest.raises(BadData, match=message):
        FeatureParameters.from_dict({**DIGITS.as_dict(), **change})


def test_a_parameter_that_is_missing_is_named():
    written = DIGITS.as_dict()
    del written["n_fft"]
    with pytest.raises(BadData, match="lack n_fft"):
        FeatureParameters.from_dict(written)


# ---- Windows


def test_a_hop_is_written_only_where_there_is_one():
    assert "hop" not in DIGITS.as_dict()
    cut = dataclasses.replace(DIGITS, hop=0.5)
    assert cut.as_dict() == {**DIGITS.as_dict(), "hop": 0.5}
    assert FeatureParameters.from_dict(cut.as_dict()) == cut


@pytest.mark.parametrize("hop", [0, -1.0, float("nan"), float("inf"), "1", True, 1e-5, 1e300])
def test_hops_out_of_range_are_named(hop):
    with pytest.raises(BadInput, match=r"^hop "):
        FeatureParameters(**{**GOOD, "hop": hop})


@pytest.mark.parametrize(
    ("count", "hop", "starts"),
    [
        (1, 1.0, [0]),  # shorter than a window
        (8000, 1.0, [0]),
        (11999, 1.0, [0]),  # the rest does not fill half of a window
        (12000, 1.0, [0, 8000]),
        (16000, 1.0, [0, 8000]),
        (16000, 0.5, [0, 4000, 8000]),  # and not 12000, where nothing is new
        (16001, 0.5, [0, 4000, 8000, 12000]),
        (15999, 0.25, [0, 2000, 4000, 6000, 8000]),
        (40000, 2.0, [0, 16000, 32000]),
        (35999, 2.0, [0, 16000]),
    ],
)
def test_where_windows_begin(count, hop, starts):
    assert list(dataclasses.replace(DIGITS, hop=hop).window_starts(count)) == starts


def test_windows_are_the_pieces_of_a_recording(tmp_path):
    rng = np.random.default_rng(5)
    samples = rng.uniform(-0.5, 0.5, 21000).astype(np.float32)
    path = tmp_path / "long.wav"
    soundfile.write(path, samples, 8000, subtype="FLOAT")
    cut = dataclasses.replace(DIGITS, hop=1.0)
    features = features_of_file(path, cut)
    assert features.shape == (3, *DIGITS.shape) and features.dtype == np.float32
    for row, start in zip(features, (0, 8000, 16000), strict=True):  # the last is padded
        np.testing.assert_array_equal(row, log_mel(samples[start : start + 8000], DIGITS))


# ---- Spectrograms


@pytest.mark.parametrize("parameters", [URBANSOUND8K, ESC50, DIGITS, ODD])
def test_the_two_ways_agree(parameters):
    rng = np.random.default_rng(0)
    length = parameters.length
    clips = {
        "voice": voice(rng, length, parameters.sample_rate),
        "noise": rng.normal(size=length),
        "faint": 1e-3 * voice(rng, length, parameters.sample_rate),
        "click": np.eye(1, length, 1000)[0],
        "short": voice(rng, length // 3, parameters.sample_rate),
        "long": rng.normal(size=2 * length),
    }
    for name, clip in clips.items():
        ours, theirs = log_mel_numpy(clip, parameters), log_mel(clip, parameters)
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0, err_msg=name)


def test_mel_filters_are_those_of_librosa():
    theirs = librosa.filters.mel(sr=22050, n_fft=2048, n_mels=128, dtype=np.float64)
    np.testing.assert_allclose(mel_filters(22050, 2048, 128), theirs, atol=1e-12)


@both
@pytest.mark.parametrize("length", [0, 1, 4000, 8000, 20000])
def test_every_length_gives_the_same_shape(features_of, length):
    features = features_of(np.random.default_rng(0).normal(size=length), DIGITS)
    assert features.shape == (64, 32) and features.dtype == np.float32
    assert features.max() == 0.0 and features.min() >= -80.0


@both
def test_a_silent_clip_is_finite(features_of):
    np.testing.assert_array_equal(features_of(np.zeros(8000), DIGITS), np.zeros((64, 32)))


@both
def test_level_does_not_matter(features_of):
    clip = np.random.default_rng(0).normal(size=8000)
    np.testing.assert_allclose(
        features_of(clip, DIGITS), features_of(clip / 30, DIGITS), atol=1e-4, rtol=0
    )


@both
def test_more_frames_than_sound_are_silence(features_of):
    longer = dataclasses.replace(DIGITS, frames=40)
    clip = np.random.default_rng(0).normal(size=8000)
    features = features_of(clip, longer)
    np.testing.assert_array_equal(features[:, :32], features_of(clip, DIGITS))
    assert (features[:, 32:] == -80.0).all()


@both
@pytest.mark.parametrize("hertz", [300, 1000, 3000])
def test_a_tone_is_loudest_in_its_band(features_of, hertz):
    tone = np.sin(2 * np.pi * hertz * np.arange(8000) / 8000)
    loudest = features_of(tone, DIGITS).mean(axis=1).argmax()
    assert abs(loudest - mel_filters(8000, 512, 64)[:, hertz * 512 // 8000].argmax()) <= 1


# ---- Files


def test_features_of_a_file(tmp_path):
    clip = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)
    path = tmp_path / "a.wav"
    soundfile.write(path, clip, 8000, subtype="DOUBLE")
    np.testing.assert_allclose(
        features_of_file(path, DIGITS)[0], log_mel(clip, DIGITS), atol=1e-4, rtol=0
    )


def test_importing_it_does_not_load_the_audio_libraries():
    code = (
        "import sys, raykfold.data.log_mel, raykfold.data.demo, raykfold.prepare\n"
        "import raykfold.outputs.hub_parquet\n"
        "print([name for name in ('librosa', 'soundfile', 'ray', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

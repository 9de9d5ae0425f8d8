"""Turns audio into log-mel spectrograms, with parameters that make them repeatable.

`log_mel` uses librosa and is for recordings. `log_mel_numpy` needs only NumPy and is for the demo.
They agree to 1e-4 dB. Version 1 of the features means, beside `FeatureParameters`: a periodic Hann
window, centred frames, zeros beyond the ends, a power spectrum, triangular bands of unit area on
Slaney's mel scale from 0 Hz to half the sample rate, and decibels relative to the clip's maximum,
cut off 80 dB below it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raykfold.data.audio import AudioBytes, read_audio, require_audio
from raykfold.errors import BadData, BadInput

KIND = "log_mel"
VERSION = 1
_LOWEST_POWER = 1e-10  # used for silence, so that its logarithm is finite
_DYNAMIC_RANGE = 80.0  # dB


@dataclass(frozen=True)
class FeatureParameters:
    """How audio is turned into features; the content of ``features.json``.

    Attributes:
        sample_rate: in Hz.
        seconds: length of a sample; audio is cut, or padded with zeros, to it.
        n_mels: number of mel bands.
        n_fft: number of samples in a window.
        hop_length: number of samples from one frame to the next.
        frames: number of frames, usually `frame_count`; a spectrogram is cut, or padded with
            silence, to it.
        hop: seconds from one window of a recording to the next, if recordings are cut into windows
            of `seconds` each; None if a recording is one sample.

    Raises:
        BadInput: a value is out of range; the text begins with the attribute's name.
    """

    sample_rate: int
    seconds: float
    n_mels: int
    n_fft: int
    hop_length: int
    frames: int
    hop: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "hop" and value is None:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and value > 0 and math.isfinite(value)):
                raise BadInput(f"{field.name} {value!r}: expected a number above 0")
            if field.name not in ("seconds", "hop") and not isinstance(value, int):
                raise BadInput(f"{field.name} {value!r}: expected a whole number")
        if self.length < 1:
            raise BadInput(
                f"seconds {self.seconds}: expected at least one sample at {self.sample_rate} Hz"
            )
        if self.hop is not None and not 1 <= self.sample_rate * self.hop < 2**53:
            raise BadInput(
                f"hop {self.hop}: expected seconds, at least one sample at {self.sample_rate} Hz"
            )
        if self.n_mels > self.n_fft // 2 + 1:
            raise BadInput(
                f"n_mels {self.n_mels}: expected at most {self.n_fft // 2 + 1}, the number of "
                f"frequencies of n_fft {self.n_fft}"
            )

    @property
    def length(self) -> int:
        """Number of audio samples in a clip."""
        return round(self.sample_rate * self.seconds)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a sample's features: (n_mels, frames)."""
        return self.n_mels, self.frames

    def window_starts(self, count: int) -> range:
        """Return where the windows of a recording of `count` audio samples begin.

        The first begins at the start. Another one follows as long as sound is left that is in no
        window yet, and at least half of the window is sound.
        """
        if self.hop is None:
            return range(1)
        step = round(self.sample_rate * self.hop)
        # Window n begins at n * step. It holds something new where n * step < count - length + step
        # and is half full where n * step <= count - length / 2.
        stop = min(count - self.length + step, count - (self.length + 1) // 2 + 1)
        return range(0, max(stop, 1), step)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, with the kind and the version of the features."""
        values = dataclasses.asdict(self)
        if self.hop is None:  # as before there were windows
            del values["hop"]
        return {"kind": KIND, "version": VERSION, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureParameters:
        """Return the parameters in a dict of `as_dict`; unknown keys are ignored.

        Raises:
            BadData: the kind or version is another, or a value is missing or out of range.
        """
        if values.get("kind") != KIND or values.get("version") != VERSION:
            raise BadData(
                f"features of kind {values.get('kind')!r}, version {values.get('version')!r}: "
                f"expected kind {KIND!r}, version {VERSION}"
            )
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values and name != "hop"]
        if missing:
            raise BadData(f"feature parameters lack {', '.join(missing)}")
        try:
            return cls(**{name: values[name] for name in names if name in values})
        except BadInput as error:
            raise BadData(f"feature parameter {error}") from None


def frame_count(sample_rate: int, seconds: float, hop_length: int) -> int:
    """Return the number of frames of a clip: one at its start and one every `hop_length`."""
    return 1 + round(sample_rate * seconds) // hop_length


URBANSOUND8K = FeatureParameters(
    sample_rate=22050, seconds=4.0, n_mels=128, n_fft=2048, hop_length=512, frames=173
)
ESC50 = FeatureParameters(
    sample_rate=22050, seconds=5.0, n_mels=128, n_fft=2048, hop_length=512, frames=216
)
DIGITS = FeatureParameters(
    sample_rate=8000, seconds=1.0, n_mels=64, n_fft=512, hop_length=256, frames=32
)


def features_of_file(
    path: Path | AudioBytes, parameters: FeatureParameters, dtype: npt.DTypeLike = np.float32
) -> np.ndarray:
    """Return the features (windows, n_mels, frames) of a recording, those of `windows_of_file`.

    Raises:
        BadData: the file cannot be read, or holds no sound.
        BadInput: librosa or soundfile is not installed.
    """
    samples, starts = _read_windows(path, parameters)
    features = np.empty((len(starts), *parameters.shape), dtype)  # once: an hour is a gigabyte
    for row, start in zip(features, starts, strict=True):
        row[:] = log_mel(samples[start : start + parameters.length], parameters)
    return features


def windows_of_file(path: Path | AudioBytes, parameters: FeatureParameters) -> Iterator[np.ndarray]:
    """Yield the features (n_mels, frames) float32 of each window of a recording.

    Without a hop, the one window is the beginning of the recording.

    Raises:
        BadData: the file cannot be read, or holds no sound.
        BadInput: librosa or soundfile is not installed.
    """
    samples, starts = _read_windows(path, parameters)
    for start in starts:
        yield log_mel(samples[start : start + parameters.length], parameters)


def _read_windows(
    path: Path | AudioBytes, parameters: FeatureParameters
) -> tuple[np.ndarray, range]:
    """Return a recording as `read_audio` does, as much as is needed, and where windows begin."""
    most = parameters.seconds if parameters.hop is None else None
    samples = read_audio(path, parameters.sample_rate, most)
    return samples, parameters.window_starts(len(samples))


def log_mel(samples: np.ndarray, parameters: FeatureParameters) -> np.ndarray:
    """Return a log-mel spectrogram by librosa, (n_mels, frames) float32.

    Values are in dB relative to the clip's maximum; a silent clip is 0 dB throughout.

    Args:
        samples: (samples,) at `parameters.sample_rate`, at any level.
        parameters: of the spectrogram.

    Raises:
        BadInput: librosa is not installed.
    """
    librosa, _ = require_audio()
    # In float64: rounding to float32 would show in bands 80 dB below the maximum.
    power = librosa.feature.melspectrogram(
        y=_fit(samples.astype(np.float64), parameters.length),
        sr=parameters.sample_rate,
        n_fft=parameters.n_fft,
        hop_length=parameters.hop_length,
        n_mels=parameters.n_mels,
    )
    decibels = librosa.power_to_db(
        _fit(power, parameters.frames), ref=np.max, amin=_LOWEST_POWER, top_db=_DYNAMIC_RANGE
    )
    return np.asarray(decibels, dtype=np.float32)


def log_mel_numpy(samples: np.ndarray, parameters: FeatureParameters) -> np.ndarray:
    """Return what `log_mel` does, by NumPy alone."""
    n_fft = parameters.n_fft
    clip = np.pad(_fit(samples.astype(np.float64), parameters.length), n_fft // 2)
    clip = _fit(clip, max(len(clip), n_fft))
    windows = np.lib.stride_tricks.sliding_window_view(clip, n_fft)[:: parameters.hop_length]
    spectrum = np.abs(np.fft.rfft(windows * _hann(n_fft), axis=1)) ** 2
    bands = mel_filters(parameters.sample_rate, n_fft, parameters.n_mels)
    # Not by `@`: BLAS's threads wait for each other, ten times as long on a busy machine.
    power = _fit(np.einsum("mf,tf->mt", bands, spectrum), parameters.frames)
    decibels = 10 * np.log10(np.maximum(power, _LOWEST_POWER))
    decibels -= decibels.max()
    return np.maximum(decibels, -_DYNAMIC_RANGE).astype(np.float32)


@lru_cache
def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Return triangular filters of unit area over Hz, (n_mels, n_fft // 2 + 1) float64.

    The mel scale is that of M. Slaney, Auditory Toolbox Version 2, Technical Report 1998-010,
    Interval Research Corporation, 1998 (`mfcc.m`): linear below 1 kHz, logarithmic above.
    """
    frequencies = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(sample_rate / 2), n_mels + 2))
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2 / (upper - lower))
    filters.flags.writeable = False  # the cache shares it
    return filters


_HZ_PER_MEL = 200 / 3  # below the corner
_CORNER_HZ = 1000.0
_CORNER_MEL = _CORNER_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27  # a mel above the corner


def _hz_to_mel(hertz: float) -> float:
    if hertz < _CORNER_HZ:
        return hertz / _HZ_PER_MEL
    return _CORNER_MEL + math.log(hertz / _CORNER_HZ) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = _CORNER_HZ * np.exp(_LOG_STEP * (mel - _CORNER_MEL))
    return np.where(mel < _CORNER_MEL, mel * _HZ_PER_MEL, above)


@lru_cache
def _hann(length: int) -> np.ndarray:
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    window.flags.writeable = False
    return window


def _fit(values: np.ndarray, size: int) -> np.ndarray:
    """Return `values` with the last axis cut, or padded with zeros, to `size`."""
    missing = max(size - values.shape[-1], 0)
    padding = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
    return np.pad(values[..., :size], padding)

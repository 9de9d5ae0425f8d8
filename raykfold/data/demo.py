"""The data of ``--demo``: synthetic sounds of ten classes, generated from a seed.

A *recording* is one sound source in one room before one background. The *clips* of a recording
differ little and stay in one fold, as slices of a field recording should. Everything that varies
between recordings (pitch, rate, room, background, level) has the same distribution in every class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from raykfold.data.log_mel import DIGITS, log_mel_numpy

if TYPE_CHECKING:
    from raykfold.data.feature_set import FeatureSet

PARAMETERS = DIGITS
FOLDS = 5
RECORDINGS_PER_FOLD = 4  # of each class
CLIPS_PER_RECORDING = 4
NOISE_RATIO = (0.3, 1.5)  # range of the background's amplitude relative to the sound's

_RATE = PARAMETERS.sample_rate
_LENGTH = PARAMETERS.length
_TIME = np.arange(_LENGTH) / _RATE
_FREQUENCIES = np.fft.rfftfreq(_LENGTH, 1 / _RATE)


def demo_feature_set(seed: int = 0) -> FeatureSet:
    """Return the demo's data; other seeds give other recordings of the same classes."""
    from raykfold.data.feature_set import FeatureSet

    features, labels, folds, names = demo_arrays(seed)
    return FeatureSet.from_arrays(
        features,
        labels,
        folds,
        class_mapping=dict(enumerate(names)),
        feature_parameters=PARAMETERS.as_dict(),
    )


def demo_arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Generate the demo's samples, in random order.

    Returns:
        features (N, n_mels, frames) float32 in dB, labels (N,) int64 as indices of class names,
        folds (N,) int64 from 1 to 5, and the class names.
    """
    features, labels, folds = [], [], []
    for label, make_sound in enumerate(SOUNDS.values()):
        for number in range(FOLDS * RECORDINGS_PER_FOLD):
            rng = np.random.default_rng((seed, label, number))
            for samples in make_recording(make_sound, rng):
                features.append(log_mel_numpy(samples, PARAMETERS))
                labels.append(label)
                folds.append(1 + number % FOLDS)
    order = np.random.default_rng(seed).permutation(len(labels))
    # The last bits depend on the type of processor. Without them the data, and so its fingerprint,
    # is the same wherever a run is resumed.
    rounded = np.round(np.stack(features)[order], 2)
    return rounded, np.array(labels)[order], np.array(folds)[order], tuple(SOUNDS)


@dataclass(frozen=True)
class Source:
    """What the clips of a recording have in common; each class uses it in its own way.

    Attributes:
        pitch: in Hz, from 150 to 1200.
        rate: repetitions in a second, from 2 to 6.
        colour: strength of the overtones, from 0 to 1.
    """

    pitch: float
    rate: float
    colour: float

    def vary(self, rng: Generator) -> Source:
        """Return the source as it is a moment later."""
        return Source(
            self.pitch * rng.uniform(0.94, 1.06), self.rate * rng.uniform(0.92, 1.08), self.colour
        )


def make_recording(
    make_sound: Callable[[Source, Generator], np.ndarray], rng: Generator
) -> list[np.ndarray]:
    """Return the clips (samples,) of one recording."""
    source = Source(
        pitch=float(np.exp(rng.uniform(np.log(150), np.log(1200)))),
        rate=rng.uniform(2.0, 6.0),
        colour=rng.uniform(0.2, 1.0),
    )
    room = _room(rng)
    slope = _FREQUENCIES.clip(50) ** rng.uniform(-1.2, 0.3)
    noise_ratio = rng.uniform(*NOISE_RATIO)
    clips = []
    for _ in range(CLIPS_PER_RECORDING):
        sound = np.fft.rfft(make_sound(source.vary(rng), rng)) * room
        background = _noise_spectrum(rng) * slope
        level = rng.uniform(0.01, 1.0)
        clips.append(np.fft.irfft(level * (_unit(sound) + noise_ratio * _unit(background))))
    return clips


# Convolutions wrap around, as if each sound had begun before its clip.


def _room(rng: Generator) -> np.ndarray:
    """Return the spectrum of a room's impulse response: the impulse and decaying noise."""
    decay = rng.uniform(0.02, 0.25)
    echoes = rng.normal(size=_LENGTH) * np.exp(-_TIME / decay)
    response = rng.uniform(0.2, 1.0) * echoes / np.linalg.norm(echoes)
    response[0] += 1.0
    return np.fft.rfft(response)


def _unit(spectrum: np.ndarray) -> np.ndarray:
    """Return `spectrum` scaled to an energy of 1."""
    return spectrum / np.sqrt(np.sum(np.abs(spectrum) ** 2))


def _noise_spectrum(rng: Generator) -> np.ndarray:
    """Return a spectrum of white noise."""
    real, imaginary = rng.normal(size=(2, len(_FREQUENCIES)))
    return real + 1j * imaginary


def _band(centre: float, width: float) -> np.ndarray:
    """Return amplitudes of a band around `centre` Hz, `width` octaves to each side."""
    octaves = np.log2(_FREQUENCIES.clip(1) / centre)
    return np.exp(-0.5 * (octaves / width) ** 2)


def _noise(band: np.ndarray, rng: Generator) -> np.ndarray:
    """Return noise with the amplitudes `band`."""
    return np.fft.irfft(_noise_spectrum(rng) * band)


def _tone(pitch: np.ndarray | float, colour: float, overtones: int = 5) -> np.ndarray:
    """Return a harmonic tone without overtones near or beyond half the sample rate.

    Args:
        pitch: in Hz, for each sample or for all.
        colour: amplitude of each overtone relative to the one below.
        overtones: number of harmonics.
    """
    pitch = np.broadcast_to(pitch, _LENGTH)
    fundamental = np.exp(2j * np.pi / _RATE * np.cumsum(pitch))
    sound, harmonic = fundamental.imag.copy(), fundamental
    for multiple in range(2, overtones + 1):
        harmonic = harmonic * fundamental
        audible = multiple * pitch < 0.48 * _RATE
        sound += colour ** (multiple - 1) * audible * harmonic.imag
    return sound


def _cycle(rate: float, rng: Generator) -> np.ndarray:
    """Return the position within a repetition, from 0 to 1, at each sample."""
    return (_TIME * rate + rng.uniform()) % 1.0


def _strokes(rate: float, unevenness: float, rng: Generator) -> np.ndarray:
    """Return `rate` impulses in a second, of varying strength."""
    period = 1 / rate
    times = np.arange(rng.uniform(0, min(period, 0.5)), 1.0, period)  # at least one
    times += rng.normal(size=len(times)) * unevenness * period
    strokes = np.zeros(_LENGTH)
    strokes[(times * _RATE).astype(int).clip(0, _LENGTH - 1)] = rng.uniform(0.5, 1.0, len(times))
    return strokes


def _strike(strokes: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return strokes that each sound like `response`."""
    return np.fft.irfft(np.fft.rfft(strokes) * np.fft.rfft(response))


def siren(source: Source, rng: Generator) -> np.ndarray:
    """A tone that rises and falls without a break."""
    swing = np.sin(2 * np.pi * _cycle(source.rate / 3, rng))
    return _tone(source.pitch * 2 ** (0.5 * swing), source.colour)


def alarm(source: Source, rng: Generator) -> np.ndarray:
    """A steady tone, on and off."""
    on = _cycle(source.rate, rng) < 0.5
    return _tone(source.pitch, source.colour) * on


def glissando(source: Source, rng: Generator) -> np.ndarray:
    """A tone that glides one way through the whole clip."""
    octaves = rng.choice([-1.0, 1.0]) * rng.uniform(0.7, 1.4)
    return _tone(source.pitch * 2 ** (octaves * (_TIME - 0.5)), source.colour)


def chirps(source: Source, rng: Generator) -> np.ndarray:
    """Short rising tones, one after another."""
    cycle = _cycle(source.rate, rng)
    pitch = source.pitch * 2 ** (2.0 * cycle)
    return _tone(pitch, source.colour) * (cycle < 0.5) * np.sin(np.pi * cycle / 0.5).clip(0)


def bell(source: Source, rng: Generator) -> np.ndarray:
    """Strokes of an inharmonic, frequency-modulated tone that rings on."""
    envelope = np.exp(-3 * _TIME)
    modulator = np.sin(2 * np.pi * 1.41 * source.pitch * _TIME)
    ring = envelope * np.sin(2 * np.pi * source.pitch * _TIME + 4 * envelope * modulator)
    return _strike(_strokes(source.rate / 2, 0.0, rng), ring)


def knocks(source: Source, rng: Generator) -> np.ndarray:
    """Regular strokes on something that resonates briefly."""
    response = np.sin(2 * np.pi * source.pitch * _TIME) * np.exp(-60 * _TIME)
    return _strike(_strokes(source.rate, 0.03, rng), response)


def footsteps(source: Source, rng: Generator) -> np.ndarray:
    """Uneven strokes of dull noise."""
    burst = _noise(_band(source.pitch, 0.8), rng) * np.exp(-40 * _TIME)
    return _strike(_strokes(source.rate, 0.12, rng), burst)


def engine(source: Source, rng: Generator) -> np.ndarray:
    """A rough low tone whose speed wanders."""
    wander = 1 + 0.06 * np.sin(2 * np.pi * _cycle(source.rate / 4, rng))
    tone = _tone(source.pitch / 4 * wander, 0.9, overtones=8)
    firing = 1 + 0.7 * np.sin(2 * np.pi * np.cumsum(source.pitch / 16 * wander) / _RATE)
    return tone * firing


def drone(source: Source, rng: Generator) -> np.ndarray:
    """Two steady tones, nearly in tune."""
    beat = 2 ** rng.uniform(0.005, 0.03)
    low = source.pitch / 2
    return _tone(low, source.colour) + _tone(low * beat, source.colour)


def wind(source: Source, rng: Generator) -> np.ndarray:
    """A band of noise that swells."""
    swell = 1.0 + 0.8 * np.sin(2 * np.pi * _cycle(source.rate / 4, rng))
    return _noise(_band(source.pitch, 0.35), rng) * swell


SOUNDS: dict[str, Callable[[Source, Generator], np.ndarray]] = {
    sound.__name__: sound
    for sound in (siren, alarm, glissando, chirps, bell, knocks, footsteps, engine, drone, wind)
}

"""Samples that stand in more than one fold: a model is then tested on what it was trained on.

    for line in find_leakage(data).warnings():
        print(line)

Identical samples are found by a hash of each. Near-identical ones, like copies at another level or
from another encoder, are looked for among the nearest of each sample's sketch: a few sums of its
values, with signs drawn at random, whose distances are close to those between the samples.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from raykfold.data.feature_set import Array, FeatureSet, Integers  # imports torch

Floats = npt.NDArray[np.float32]
Booleans = npt.NDArray[np.bool_]

# Distance at which two samples are near-identical, as a share of their size. In FSDD, spoken
# digits, two recordings are never below 0.13, whatever their speaker; noise of 1 % is below 0.04.
_NEAR = 0.05
_SLACK = 1.5  # sketches may be that much further apart than what they are of
_SUMS = 61  # of a sketch; a prime, so that neither a mel band nor a frame falls into few of them
_PAIRS = 2**26  # of sketches that are compared: all there are, up to 8192 samples
_FEWEST = 256  # samples that are looked at, however many there are to compare each with
_SEED = 0  # the same samples are looked at whenever a run is resumed
_CHUNK_BYTES = 4 * 2**20  # of features, as float32, that one thread holds at a time
_BLOCK_PAIRS = 2**20
# Values near float32's end, whose squares it cannot hold, spoil the search for near-identical
# samples, as they spoil a training. That is no reason to print numpy's warnings.
_QUIET = np.errstate(over="ignore", invalid="ignore")
_CONSEQUENCE = "a model is tested on what it was trained on"


@dataclass(frozen=True)
class Pair:
    """Two samples in different folds: their indices, from 0, and the labels of their folds."""

    samples: tuple[int, int]
    folds: tuple[int, int]

    def __str__(self) -> str:
        (one, other), (fold, other_fold) = self.samples, self.folds
        return f"sample {one} in fold {fold} and sample {other} in fold {other_fold}"


@dataclass(frozen=True)
class Twins:
    """Samples that have a twin in another fold.

    Attributes:
        samples: how many they are.
        groups: how many sets of twins they make; of near-identical ones, how many pairs.
        disagreeing: how many of the samples have a twin with another label.
        example: two twins; None if there are none.
    """

    samples: int = 0
    groups: int = 0
    disagreeing: int = 0
    example: Pair | None = None


@dataclass(frozen=True)
class Leakage:
    """What the folds of a data set have in common. No sample is counted twice.

    Attributes:
        samples: all there are.
        identical: samples whose values are all as in a sample of another fold.
        constant: the same, of samples whose values are all one, as in digital silence.
        near: samples that are nearly as one of another fold, among those that were looked at.
        looked_at: samples without an identical twin that were compared with all other folds.
    """

    samples: int
    identical: Twins
    constant: Twins
    near: Twins
    looked_at: int

    def warnings(self) -> list[str]:
        """One line for each kind of twins that there is."""
        of_all = f"of {self.samples} samples"
        of_some = f"of the {self.looked_at} samples that were compared"
        lines = [
            _warning(self.identical, of_all, "identical to a sample of another fold"),
            _warning(
                self.constant,
                of_all,
                "constant, as digital silence is, and identical to a sample of another fold",
            ),
            _warning(self.near, of_some, "near-identical to a sample of another fold"),
        ]
        return [line for line in lines if line is not None]

    def to_json(self) -> dict[str, Any]:
        """Plain values, under the names of the attributes, and the lines of `warnings`."""
        return {**asdict(self), "warnings": self.warnings()}


@_QUIET
def find_leakage(data: FeatureSet) -> Leakage:
    """Count the samples of `data` that have a twin in another fold.

    Values are compared as float32, as they are trained on, and -0.0 is 0.0. Two samples are
    near-identical if, with the mean of each taken away, they are at most 5 % of their size apart:
    of the smaller one's distance from 0, or from the mean of all samples where that is less. So a
    constant that is added, as by another gain to a log-mel spectrogram, makes no difference. A copy
    that begins a frame later is not found: it is as far away as another recording.

    The features are read once, and once more where samples look near-identical. All samples are
    looked at where there are at most 8192, else some of every fold, the same ones each time.
    """
    scan = _scanned(data.features)
    _, groups = np.unique(scan.digests, return_inverse=True)
    shared = _mixed(groups, data.folds)
    looked_at = _drawn(np.flatnonzero(~shared), data.folds)
    return Leakage(
        samples=len(data),
        identical=_identical(data, groups, shared & ~scan.constant),
        constant=_identical(data, groups, shared & scan.constant),
        near=_near(data, scan, looked_at),
        looked_at=len(looked_at),
    )


def _warning(twins: Twins, of_those: str, what: str) -> str | None:
    if twins.example is None:
        return None
    verb = "is" if twins.samples == 1 else "are"
    example = f"{'such as' if twins.samples > 2 else 'namely'} {twins.example}"
    line = f"{twins.samples} {of_those} {verb} {what}, {example}: {_CONSEQUENCE}"
    if not twins.disagreeing:
        return line
    return f"{line}; {twins.disagreeing} of them have a twin with another label"


# ---- One pass over the features


@dataclass(frozen=True, eq=False)
class _Scan:
    """What is kept of the samples, each less its own mean.

    Attributes:
        digests: (N,) uint64; by accident equal in one of 40 million data sets of a million samples.
        constant: (N,) all values of the sample are one.
        sizes: (N,) Euclidean norms.
        sketches: (N, _SUMS), distances in which are about those between the samples.
        total: (n_mels * time,) float64, the sum of the samples.
    """

    digests: npt.NDArray[np.uint64]
    constant: Booleans
    sizes: Floats
    sketches: Floats
    total: Array

    def __len__(self) -> int:
        return len(self.digests)


def _scanned(features: Array) -> _Scan:
    width = features[0].size
    rows = -(-width // _SUMS)
    signs = np.random.default_rng(_SEED).choice(np.array([-1, 1], np.float32), (rows, _SUMS))
    count = max(1, _CHUNK_BYTES // (4 * width))
    starts = range(0, len(features), count)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(lambda at: _scan(features[at : at + count], signs), starts))
    return _Scan(
        digests=np.concatenate([part.digests for part in parts]),
        constant=np.concatenate([part.constant for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        sketches=np.concatenate([part.sketches for part in parts]),
        total=np.sum([part.total for part in parts], axis=0),
    )


@_QUIET  # which threads do not inherit
def _scan(samples: Array, signs: Floats) -> _Scan:
    padded = np.zeros((len(samples), signs.size), np.float32)
    values = padded[:, : samples[0].size]
    # Adding to 0.0 makes -0.0 the same; plain `np.asarray`, as a memmap costs more at every step.
    values += np.asarray(samples).reshape(values.shape)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in values)
    values -= values.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
    return _Scan(
        digests=np.frombuffer(digests, np.uint64),
        constant=np.logical_not(values.any(axis=1)),
        sizes=np.sqrt(np.einsum("nv,nv->n", values, values)),
        sketches=np.einsum("nrs,rs->ns", padded.reshape(-1, *signs.shape), signs),
        total=values.sum(axis=0, dtype=np.float64),
    )


# ---- Identical samples


def _mixed(groups: Integers, values: Integers) -> Booleans:
    """(N,) whether the samples of a sample's group differ in `values`."""
    _, firsts = np.unique(groups, return_index=True)
    differing = groups[values != values[firsts][groups]]
    return np.isin(groups, differing)


def _identical(data: FeatureSet, groups: Integers, chosen: Booleans) -> Twins:
    samples = np.flatnonzero(chosen)
    if not len(samples):
        return Twins()
    first = samples[0]
    others = (groups == groups[first]) & (data.folds != data.folds[first])
    return Twins(
        samples=len(samples),
        groups=len(np.unique(groups[samples])),
        disagreeing=int(np.count_nonzero(_mixed(groups, data.labels)[samples])),
        example=_pair(data, first, np.flatnonzero(others)[0]),
    )


def _pair(data: FeatureSet, one: int, other: int) -> Pair:
    folds = int(data.folds[one]), int(data.folds[other])
    return Pair(samples=(int(one), int(other)), folds=folds)


# ---- Near-identical samples


def _drawn(samples: Integers, folds: Integers) -> Integers:
    """As many of `samples` as there is time for, from every fold alike, ascending."""
    shuffled = np.random.default_rng(_SEED).permutation(samples)
    turns = np.empty(len(shuffled), np.int64)  # each fold's first, then each fold's second
    for fold in np.unique(folds):
        of_fold = folds[shuffled] == fold
        turns[of_fold] = np.arange(np.count_nonzero(of_fold))
    count = max(_FEWEST, _PAIRS // len(folds))
    return np.sort(shuffled[np.argsort(turns, kind="stable")[:count]])


def _near(data: FeatureSet, scan: _Scan, looked_at: Integers) -> Twins:
    mean = (scan.total / len(scan)).astype(np.float32)
    candidates = dict(_candidates(scan, data.folds, looked_at))
    once = list({_ordered(pair) for pair in candidates.items()})
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        verdicts = pool.map(lambda pair: _near_identical(data.features, mean, pair), once)
        confirmed = {pair for pair, near in zip(once, verdicts, strict=True) if near}
    pairs = [pair for pair in candidates.items() if _ordered(pair) in confirmed]
    if not pairs:
        return Twins()
    return Twins(
        samples=len(pairs),
        groups=len(confirmed),
        disagreeing=sum(bool(data.labels[one] != data.labels[other]) for one, other in pairs),
        example=_pair(data, *pairs[0]),
    )


def _ordered(pair: tuple[int, int]) -> tuple[int, int]:
    return min(pair), max(pair)


def _candidates(scan: _Scan, folds: Integers, looked_at: Integers) -> Iterator[tuple[int, int]]:
    """Each sample that may be near-identical to one of another fold, with the nearest of them."""
    sketches = scan.sketches - scan.sketches.mean(axis=0)
    squares = np.einsum("ns,ns->n", sketches, sketches)
    limits = (_SLACK * _NEAR) ** 2 * np.minimum(scan.sizes**2, squares)
    count = max(1, _BLOCK_PAIRS // len(scan))
    for start in range(0, len(looked_at), count):
        block = looked_at[start : start + count]
        distances = sketches[block] @ (-2 * sketches.T)
        distances += squares[block, None]
        distances += squares
        eligible = distances < np.minimum(limits[block, None], limits)
        eligible &= folds[block, None] != folds
        distances[~eligible] = np.inf
        nearest = distances.argmin(axis=1)
        found = np.isfinite(distances[np.arange(len(block)), nearest])
        yield from zip(block[found].tolist(), nearest[found].tolist(), strict=True)


@_QUIET
def _near_identical(features: Array, mean: Floats, pair: tuple[int, int]) -> bool:
    first, second = (_centred(features[sample]) for sample in pair)
    size = min(np.linalg.norm(each) for each in (first, second, first - mean, second - mean))
    return bool(np.linalg.norm(first - second) < _NEAR * size)


def _centred(sample: Array) -> Floats:
    values = np.asarray(sample, np.float32).ravel()
    return values - values.mean(dtype=np.float64).astype(np.float32)

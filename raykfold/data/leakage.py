"""Finds samples that are in more than one fold: a model is then tested on what it was trained on.

Also finds samples that are in the data under two labels, be it in one fold or in two.

Identical samples are found by their hashes. Near-identical samples, like copies at another level or
from another encoder, are searched for among the nearest neighbours of each sample's sketch: a few
sums of its values with random signs. Distances between sketches approximate those between samples.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from raykfold.data.labels import Array, Integers
from raykfold.text import one_line

if TYPE_CHECKING:
    from raykfold.data.feature_set import FeatureSet  # imports torch

Floats = npt.NDArray[np.float32]
Booleans = npt.NDArray[np.bool_]
T = TypeVar("T")

# Distance of near-identical samples, relative to their size. In FSDD, spoken digits, any two
# recordings are at least 0.13 apart, also of one speaker; noise of 1 % adds less than 0.04.
_NEAR = 0.05
_SLACK = 1.5  # sketches of near-identical samples may be this much further apart
_SUMS = 61  # of a sketch; prime, so that a mel band or a frame is spread over many of them
_PAIRS = 2**26  # of sketches to compare: all there are, up to 8192 samples
_FEWEST = 256  # samples to compare, however many there are to compare each with
_SEED = 0  # fixed, so that a resumed run looks at the same samples
_CHUNK_BYTES = 4 * 2**20  # of features as float32, in one thread at a time
_BLOCK_PAIRS = 2**20
_KEPT_BYTES = 64 * 2**20  # of sketches, those of 275,000 samples; of more they are made twice
# Squares of values near float32's end overflow. That spoils the search for near-identical samples,
# as it spoils a training, but is no reason for NumPy to print warnings.
_QUIET = np.errstate(over="ignore", invalid="ignore")
_CONSEQUENCE = "a model is tested on what it was trained on"
_CONTRADICTION = "a model cannot be right about both"


@dataclass(frozen=True)
class Pair:
    """Two samples: their indices, from 0, and their folds' labels."""

    samples: tuple[int, int]
    folds: tuple[int, int]

    def __str__(self) -> str:
        (one, other), (fold, other_fold) = self.samples, self.folds
        return f"sample {one} in fold {fold} and sample {other} in fold {other_fold}"


@dataclass(frozen=True)
class Twins:
    """Counts of the samples that have a twin in another fold.

    Attributes:
        samples: number of such samples.
        groups: number of sets of identical samples, or of pairs of near-identical ones.
        example: two twins; None if there are none.
    """

    samples: int = 0
    groups: int = 0
    example: Pair | None = None


@dataclass(frozen=True)
class Contradictions:
    """Counts of the samples that have an identical or near-identical twin of another class.

    Attributes:
        samples: number of such samples, in any fold.
        within_folds: number of them that have such a twin in their own fold. Of near-identical
            samples, each is paired with the nearest one of another class.
        example: two twins; None if there are none.
        classes: names of the classes of the two.
    """

    samples: int = 0
    within_folds: int = 0
    example: Pair | None = None
    classes: tuple[str, str] | None = None

    def warnings(self, of_all: int, looked_at: int | None = None) -> list[str]:
        """Return a line if there are any.

        Args:
            of_all: number of all samples.
            looked_at: number of samples for which near-identical ones were searched for, where it
                was for a part only.
        """
        if self.example is None or self.classes is None:
            return []
        (one, other), (fold, other_fold) = self.example.samples, self.example.folds
        name, other_name = map(one_line, self.classes)
        verb = "has" if self.samples == 1 else "have"
        compared = f"; for near-identical ones, {looked_at} were compared" if looked_at else ""
        return [
            f"{self.samples} of {of_all} samples {verb} an identical or near-identical twin with "
            f"another label ({self.within_folds} in the same fold{compared}), "
            f"{'such as' if self.samples > 2 else 'namely'} sample {one} in fold {fold} ({name}) "
            f"and sample {other} in fold {other_fold} ({other_name}): {_CONTRADICTION}"
        ]


@dataclass(frozen=True)
class Leakage:
    """Samples that the folds of a data set have in common, and contradictions among its labels.

    Of `identical`, `constant` and `near`, no sample is counted twice.

    Attributes:
        samples: number of all samples.
        identical: samples identical to one of another fold, constant ones excepted.
        constant: constant samples, as of digital silence, identical to one of another fold.
        near: samples near-identical to one of another fold, among those looked at.
        looked_at: number of samples without an identical twin that were compared with all others.
        contradictions: samples with a twin of another class, in their own fold or in another one.
    """

    samples: int
    identical: Twins
    constant: Twins
    near: Twins
    looked_at: int
    contradictions: Contradictions = Contradictions()

    def warnings(self) -> list[str]:
        """Return a line for each kind of twins found, and one for contradictions."""
        return self.about_twins() + self.about_labels()

    def about_labels(self) -> list[str]:
        """Return a line if the same sample has two labels."""
        compared = self.looked_at + self.identical.samples + self.constant.samples
        part = None if compared == self.samples else self.looked_at
        return self.contradictions.warnings(self.samples, part)

    def about_twins(self) -> list[str]:
        """Return a line for each kind of twins found in different folds."""
        of_all = f"of {self.samples} samples"
        of_some = f"of the {self.looked_at} samples that were compared"
        constant = "constant, as digital silence is, and identical to a sample of another fold"
        kinds = [
            (self.identical, of_all, "identical to a sample of another fold"),
            (self.constant, of_all, constant),
            (self.near, of_some, "near-identical to a sample of another fold"),
        ]
        lines = []
        for twins, of_those, what in kinds:
            if twins.example is None:
                continue
            verb = "is" if twins.samples == 1 else "are"
            example = f"{'such as' if twins.samples > 2 else 'namely'} {twins.example}"
            lines.append(f"{twins.samples} {of_those} {verb} {what}, {example}: {_CONSEQUENCE}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return plain values by attribute, and the lines of `warnings`."""
        return {**asdict(self), "warnings": self.warnings()}


@_QUIET
def find_leakage(data: FeatureSet) -> Leakage:
    """Count the samples of `data` that have a twin in another fold, or one of another class.

    Values are compared as float32, as they are trained on, and -0.0 equals 0.0. Two samples, each
    less its mean, are near-identical if they are at most 5 % of their size apart. Their size is the
    smallest of their distances from 0 and from the mean of all samples. So adding a constant, as
    another gain does to a log-mel spectrogram, makes no difference. A copy that begins a frame
    later is not found: it is as far away as another recording.

    The features are read once, and once more where samples may be near-identical or are more than
    275,000. Up to 8192 samples are all looked at, of more some from every fold, always the same
    ones. Beside the features this takes some 70 bytes a sample, and 300 MB at most.
    """
    scan = _scan(data.features)
    _, groups = np.unique(scan.digests, return_inverse=True)
    shared = _differ_in_group(groups, data.folds)
    looked_at = _draw(np.flatnonzero(~shared), data.folds)
    across_folds, across_labels = _near_pairs(data, scan, looked_at)
    return Leakage(
        samples=len(data),
        identical=_count_identical(data, groups, shared & ~scan.constant),
        constant=_count_identical(data, groups, shared & scan.constant),
        near=_count_near(data, across_folds),
        looked_at=len(looked_at),
        contradictions=_count_contradictions(data, groups, across_labels),
    )


# ---- One pass over the features


@dataclass(frozen=True, eq=False)
class _Scan:
    """Summaries of samples, each less its own mean.

    Attributes:
        digests: (N,) uint64. Two collide in one of 40 million data sets of a million samples.
        constant: (N,) whether all values of the sample are equal.
        sizes: (N,) Euclidean norms.
        sketches: (N, _SUMS); their distances approximate those between the samples. None if they
            would take too much memory.
        total: (n_mels * time,) float64, the sum of the samples.
    """

    digests: npt.NDArray[np.uint64]
    constant: Booleans
    sizes: Floats
    sketches: Floats | None
    total: Array

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def mean(self) -> Floats:
        """The mean of the samples, (n_mels * time,)."""
        mean: Floats = (self.total / len(self)).astype(np.float32)
        return mean


def _scan(features: Array) -> _Scan:
    count = len(features)
    keep = count * _SUMS * np.dtype(np.float32).itemsize <= _KEPT_BYTES
    scan = _Scan(
        digests=np.empty(count, np.uint64),
        constant=np.empty(count, np.bool_),
        sizes=np.empty(count, np.float32),
        sketches=np.empty((count, _SUMS), np.float32) if keep else None,
        total=np.zeros(features[0].size),
    )
    signs = _signs(features[0].size)
    for rows, part in _by_chunk(lambda chunk: _scan_chunk(chunk, signs), features):
        scan.digests[rows] = part.digests
        scan.constant[rows] = part.constant
        scan.sizes[rows] = part.sizes
        if scan.sketches is not None:
            scan.sketches[rows] = part.sketches
        np.add(scan.total, part.total, out=scan.total)
    return scan


def _by_chunk(function: Callable[[Array], T], features: Array) -> Iterator[tuple[slice, T]]:
    """Yield in order what `function` returns for each chunk of the features, and where it lies."""
    count = max(1, _CHUNK_BYTES // (4 * max(features[0].size, _SUMS)))
    threads = min(8, os.cpu_count() or 1)
    ahead: deque[tuple[slice, Future[T]]] = deque()  # few: what is not consumed yet takes memory
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(features), count):
            rows = slice(start, start + count)
            ahead.append((rows, pool.submit(lambda rows: function(features[rows]), rows)))
            if len(ahead) > 2 * threads:
                rows, done = ahead.popleft()
                yield rows, done.result()
        for rows, done in ahead:
            yield rows, done.result()


@_QUIET  # threads do not inherit it
def _scan_chunk(samples: Array, signs: Floats) -> _Scan:
    padded, values = _as_rows(samples, signs)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in values)
    _centre_rows(values)
    return _Scan(
        digests=np.frombuffer(digests, np.uint64),
        constant=np.logical_not(values.any(axis=1)),
        sizes=np.sqrt(np.einsum("nv,nv->n", values, values)),
        sketches=_sketch(padded, signs),
        total=values.sum(axis=0, dtype=np.float64),
    )


@_QUIET
def _sketch_chunk(samples: Array, signs: Floats) -> Floats:
    """Return the sketches that `_scan_chunk` makes."""
    padded, values = _as_rows(samples, signs)
    _centre_rows(values)
    return _sketch(padded, signs)


def _as_rows(samples: Array, signs: Floats) -> tuple[Floats, Floats]:
    """Return samples as rows of float32: padded to the size of `signs`, and the part with values.

    The second is a view of the first.
    """
    padded = np.zeros((len(samples), signs.size), np.float32)
    values = padded[:, : samples[0].size]
    # Adding to 0.0 turns -0.0 into 0.0. As a plain array: each step costs more for a memmap.
    values += np.asarray(samples).reshape(values.shape)
    return padded, values


def _centre_rows(values: Floats) -> None:
    """Subtract from each row its mean, in place."""
    values -= values.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)


def _signs(width: int) -> Floats:
    """Return signs for a sketch of `width` values, (rows, _SUMS)."""
    rows = -(-width // _SUMS)
    return np.random.default_rng(_SEED).choice(np.array([-1, 1], np.float32), (rows, _SUMS))


def _sketch(padded: Floats, signs: Floats) -> Floats:
    sketches: Floats = np.einsum("nrs,rs->ns", padded.reshape(-1, *signs.shape), signs)
    return sketches


# ---- Identical samples


def _differ_in_group(groups: Integers, values: Integers) -> Booleans:
    """Return (N,) whether `values` differ among the samples of a sample's group.

    Args:
        groups: (N,) number of each sample's group, from 0.
        values: (N,) integers.
    """
    if len(groups) == 0:
        return np.zeros(0, np.bool_)
    one = np.empty(groups.max() + 1, values.dtype)  # the value of any sample of the group
    one[groups] = values
    differing = np.zeros(len(one), np.bool_)
    differing[groups[values != one[groups]]] = True
    found: Booleans = differing[groups]
    return found


def _count_identical(data: FeatureSet, groups: Integers, chosen: Booleans) -> Twins:
    samples = np.flatnonzero(chosen)
    if not len(samples):
        return Twins()
    first = samples[0]
    others = (groups == groups[first]) & (data.folds != data.folds[first])
    return Twins(
        samples=len(samples),
        groups=len(np.unique(groups[samples])),
        example=_pair(data, first, np.flatnonzero(others)[0]),
    )


def _count_contradictions(
    data: FeatureSet, groups: Integers, near: Iterable[tuple[int, int]]
) -> Contradictions:
    """Count samples identical to one of another label, and both of each pair of `near`."""
    identical = _differ_in_group(groups, data.labels)
    found, within = identical.copy(), np.zeros(len(data), np.bool_)
    chosen = np.flatnonzero(identical)
    fold_labels, fold_numbers = np.unique(data.folds[chosen], return_inverse=True)
    parts = groups[chosen] * len(fold_labels) + fold_numbers
    _, part_numbers = np.unique(parts, return_inverse=True)
    within[chosen] = _differ_in_group(part_numbers, data.labels[chosen])
    twins = dict(near)
    for pair in twins.items():
        found[list(pair)] = True
        if data.folds[pair[0]] == data.folds[pair[1]]:
            within[list(pair)] = True
    if identical.any():
        # Name one within a fold if there is one: those across folds are named as twins, too.
        inside = identical & within
        first = int(np.argmax(inside if inside.any() else identical))
        others = (groups == groups[first]) & (data.labels != data.labels[first])
        own_fold = others & (data.folds == data.folds[first])
        twin = int(np.argmax(own_fold if own_fold.any() else others))
    elif twins:
        first = next((sample for sample in twins if within[sample]), next(iter(twins)))
        twin = twins[first]
    else:
        return Contradictions()
    names = data.class_mapping
    return Contradictions(
        samples=int(np.count_nonzero(found)),
        within_folds=int(np.count_nonzero(within)),
        example=_pair(data, first, twin),
        classes=(names[int(data.labels[first])], names[int(data.labels[twin])]),
    )


def _pair(data: FeatureSet, one: int, other: int) -> Pair:
    folds = int(data.folds[one]), int(data.folds[other])
    return Pair(samples=(int(one), int(other)), folds=folds)


# ---- Near-identical samples


def _draw(samples: Integers, folds: Integers) -> Integers:
    """Return as many of `samples` as there is time for, equally from all folds, ascending."""
    shuffled = np.random.default_rng(_SEED).permutation(samples)
    turns = np.empty(len(shuffled), np.int64)  # the position of a sample within its fold
    for fold in np.unique(folds):
        of_fold = folds[shuffled] == fold
        turns[of_fold] = np.arange(np.count_nonzero(of_fold))
    count = max(_FEWEST, _PAIRS // len(folds))
    return np.sort(shuffled[np.argsort(turns, kind="stable")[:count]])


def _near_pairs(
    data: FeatureSet, scan: _Scan, looked_at: Integers
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return samples near-identical to one of another fold, and to one of another label.

    Each sample comes with the nearest such one.
    """
    mean = scan.mean
    candidates = _candidates(data.features, scan, (data.folds, data.labels), looked_at)
    # Two samples may be each other's nearest: compare them once.
    unordered = list({frozenset(pair) for each in candidates for pair in each})
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        verdicts = pool.map(lambda pair: _near_identical(data.features, mean, pair), unordered)
        confirmed = {pair for pair, near in zip(unordered, verdicts, strict=True) if near}
    across_folds, across_labels = (
        [pair for pair in each if frozenset(pair) in confirmed] for each in candidates
    )
    return across_folds, across_labels


def _count_near(data: FeatureSet, pairs: list[tuple[int, int]]) -> Twins:
    if not pairs:
        return Twins()
    return Twins(
        samples=len(pairs),
        groups=len({frozenset(pair) for pair in pairs}),
        example=_pair(data, *pairs[0]),
    )


def _candidates(
    features: Array, scan: _Scan, partitions: Sequence[Integers], looked_at: Integers
) -> list[list[tuple[int, int]]]:
    """Return for each partition the samples that may be near-identical to one of another part.

    Each comes with the nearest such one.
    """
    if len(looked_at) == 0:
        return [[] for _ in partitions]
    # The sketches of those looked at, and of all samples, in chunks unless they were kept.
    signs = _signs(features[0].size)
    if scan.sketches is not None:
        own = scan.sketches[looked_at]
        chunks: Iterable[tuple[slice, Floats]] = [(slice(0, len(scan)), scan.sketches)]
    else:
        own = np.concatenate([_sketch_chunk(features[[each]], signs) for each in looked_at])
        chunks = _by_chunk(lambda chunk: _sketch_chunk(chunk, signs), features)
    # Distances remain if one sketch is subtracted from all; that of the mean makes them exact.
    padded = np.zeros((1, signs.size), np.float32)
    padded[0, : scan.total.size] = scan.mean
    centre = _sketch(padded, signs)
    own = own - centre
    own_squares, own_limits = _squares_and_limits(own, scan.sizes[looked_at])

    # The least distance found so far, and the sample that has it.
    least = np.full((len(partitions), len(looked_at)), np.inf, np.float32)
    nearest = np.zeros(least.shape, np.int64)
    for rows, sketches in chunks:
        sketches = sketches - centre
        squares, limits = _squares_and_limits(sketches, scan.sizes[rows])
        count = max(1, _BLOCK_PAIRS // len(sketches))
        for start in range(0, len(looked_at), count):
            block = slice(start, start + count)
            distances = (-2 * own[block]) @ sketches.T
            distances += own_squares[block, None]
            distances += squares
            distances[~(distances < np.minimum(own_limits[block, None], limits))] = np.inf
            for number, parts in enumerate(partitions):
                apart = parts[looked_at[block], None] != parts[rows]
                eligible = np.where(apart, distances, np.inf)
                at = eligible.argmin(axis=1)
                found = eligible[np.arange(len(at)), at]
                nearer = found < least[number, block]
                least[number, block][nearer] = found[nearer]
                nearest[number, block][nearer] = rows.start + at[nearer]
    return [
        list(zip(looked_at[near].tolist(), nearest[number, near].tolist(), strict=True))
        for number, near in enumerate(np.isfinite(least))
    ]


def _squares_and_limits(sketches: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Return squared norms of centred sketches, and squares of how far apart twins may be."""
    squares = np.einsum("ns,ns->n", sketches, sketches)
    return squares, (_SLACK * _NEAR) ** 2 * np.minimum(sizes**2, squares)


@_QUIET
def _near_identical(features: Array, mean: Floats, pair: Iterable[int]) -> bool:
    first, second = (_centre(features[sample]) for sample in sorted(pair))
    size = min(np.linalg.norm(each) for each in (first, second, first - mean, second - mean))
    return bool(np.linalg.norm(first - second) < _NEAR * size)


def _centre(sample: Array) -> Floats:
    values = np.asarray(sample, np.float32).ravel()
    return values - values.mean(dtype=np.float64).astype(np.float32)

"""What can be said of accuracies over folds, and with how much doubt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95  # of every interval

# Accuracies of folds that are closer than that are equal but for rounding: a sample more or less is
# further apart in any fold that fits a disk.
ROUNDING = 1e-9


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def mean_accuracy(accuracies: Sequence[float]) -> float:
    """Their mean to twelve decimals. What is equal but for rounding, as the mean over folds of one
    size is to the pooled accuracy, is then printed as the same.
    """
    return round(mean(accuracies), 12)


def population_std(values: Sequence[float]) -> float:
    """Standard deviation with divisor n (ddof 0), as NumPy's `std` has by default."""
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / len(values))


def sample_std(values: Sequence[float]) -> float | None:
    """Standard deviation with divisor n - 1 (ddof 1); None for a single value."""
    if len(values) < 2:
        return None
    return population_std(values) * math.sqrt(len(values) / (len(values) - 1))


@dataclass(frozen=True)
class Estimate:
    """The accuracy of a cross-validation, estimated over its folds.

    Attributes:
        accuracies: one a fold, from 0 to 1.
        test_to_train: held-out samples to training samples, as in `corrected_std_error`.
    """

    accuracies: tuple[float, ...]
    test_to_train: float

    @property
    def mean(self) -> float:
        """Mean over the folds."""
        return mean_accuracy(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation over the folds, with divisor n."""
        return population_std(self.accuracies)

    @property
    def std_sample(self) -> float | None:
        """Standard deviation with divisor n - 1; None for a single fold."""
        return sample_std(self.accuracies)

    @property
    def std_error(self) -> float | None:
        """Standard error of the mean, corrected and approximate (`corrected_std_error`)."""
        return corrected_std_error(self.accuracies, self.test_to_train)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean, approximate (`corrected_interval`), within 0 and 1."""
        return _within(0.0, 1.0, corrected_interval(self.accuracies, self.test_to_train))

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "std": self.std,
            "std_sample": self.std_sample,
            "std_error": self.std_error,
            "interval": None if self.interval is None else list(self.interval),
        }


def corrected_std_error(values: Sequence[float], test_to_train: float) -> float | None:
    """Standard error of a mean over the folds of a cross-validation.

    Training sets overlap, so results of folds are not independent, and the usual s / √J is too
    small. With a sample variance s² of J results it is √((1/J + n₂/n₁) s²): the correction of
    C. Nadeau and Y. Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003),
    section 4. An approximation: there is no unbiased estimate (Y. Bengio and Y. Grandvalet, JMLR 5,
    2004).

    R. Bouckaert and E. Frank (PAKDD 2004) count each of the repeats of a cross-validation among the
    J; but theirs are dealt into new folds each time. Further seeds on the same folds are no further
    results: take each fold's mean over the seeds.

    Args:
        values: J results, one a fold.
        test_to_train: n₂/n₁, held-out samples to training samples of a fold.

    Returns:
        None where the values do not tell how they vary: of a single one, or if all are equal.
    """
    deviation = sample_std(values)
    if deviation is None or max(values) - min(values) < ROUNDING:
        return None
    return deviation * math.sqrt(1 / len(values) + test_to_train)


def corrected_interval(values: Sequence[float], test_to_train: float) -> tuple[float, float] | None:
    """95 % confidence interval of the mean, by Student's t with J - 1 degrees of freedom.

    Args and None as of `corrected_std_error`.
    """
    from scipy.stats import t

    error = corrected_std_error(values, test_to_train)
    if error is None:
        return None
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return mean(values) - half, mean(values) + half


@dataclass(frozen=True)
class PairedTest:
    """Whether the mean of paired differences is zero.

    Attributes:
        difference: the mean.
        t: Student's t; None if the differences do not tell how they vary.
        degrees: of freedom.
        p: two-sided; None with `t`.
        interval: 95 %, of the difference; None with `t`.
    """

    difference: float
    t: float | None
    degrees: int
    p: float | None
    interval: tuple[float, float] | None


def corrected_t_test(differences: Sequence[float], test_to_train: float) -> PairedTest:
    """Paired t-test over the folds of a cross-validation, with the corrected standard error.

    Source and arguments as of `corrected_std_error`; differences of accuracies, from -1 to 1.
    """
    from scipy.stats import t

    difference, degrees = mean(differences), len(differences) - 1
    error = corrected_std_error(differences, test_to_train)
    if error is None:
        return PairedTest(difference, None, degrees, None, None)
    statistic = difference / error
    return PairedTest(
        difference,
        statistic,
        degrees,
        float(2 * t.sf(abs(statistic), degrees)),
        _within(-1.0, 1.0, corrected_interval(differences, test_to_train)),
    )


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same samples.

    Attributes:
        only_first: samples that only the first has right.
        only_second: samples that only the second has right.
        p: two-sided, that both are wrong equally often.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """The exact test on samples that one of two classifiers has right, and the other wrong.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947); exact, by the binomial distribution.

    Args:
        first_right: (n,) bool, which samples the first has right.
        second_right: (n,) bool, of the same samples.
    """
    from scipy.stats import binomtest

    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return McNemar(only_first, only_second, p)


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share of independent samples.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
    (1927). It takes samples for independent and the classifier for given: that folds have trained
    on other data is not in it.
    """
    from scipy.stats import binomtest

    interval = binomtest(right, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def outliers(accuracies: Sequence[float], samples: Sequence[int]) -> list[int]:
    """Positions of the accuracies that stand apart from the others.

    Up to a quarter of them, by B. Rosner's test ("Percentage Points for a Generalized ESD
    Many-Outlier Procedure", Technometrics 25, 1983), in which two do not hide each other: of runs
    whose folds are alike, one in fifteen has one. And that are further from the others' mean than
    two standard errors of a share of so many samples: luck alone can bring the rest. For these two
    right samples and two wrong ones are added (A. Agresti and B. Coull, The American Statistician
    52, 1998), without which a share of 1 would leave luck no room.

    Args:
        accuracies: 0 to 1; of less than four, none stands apart.
        samples: how many each accuracy is a share of.
    """
    left, taken, apart = list(range(len(accuracies))), [], 0
    for _ in range(len(accuracies) // 4):
        values = [accuracies[position] for position in left]
        distances = [abs(value - mean(values)) for value in values]
        limit = _farthest(len(values)) * (sample_std(values) or 0.0)
        taken.append(left.pop(distances.index(max(distances))))
        if max(distances) > limit:
            apart = len(taken)  # with those before it, which it may have hidden
    others = mean([x for n, x in enumerate(accuracies) if n not in taken[:apart]] or [0.0])
    return sorted(n for n in taken[:apart] if not _is_luck(accuracies[n], samples[n], others))


def _farthest(count: int) -> float:
    """From the mean of so many, in their standard deviations: more is seldom among what is alike.

    F. Grubbs, "Procedures for Detecting Outlying Observations in Samples", Technometrics 11 (1969).
    """
    from scipy.stats import t

    critical = float(t.isf((1 - CONFIDENCE) / (2 * count), count - 2))
    return (count - 1) * critical / math.sqrt((count - 2 + critical**2) * count)


def _is_luck(accuracy: float, samples: int, expected: float) -> bool:
    share = (expected * samples + 2) / (samples + 4)
    return abs(accuracy - expected) <= 2 * math.sqrt(share * (1 - share) / (samples + 4))


@dataclass(frozen=True)
class ClassMetrics:
    """How a class fares over all held-out samples.

    Attributes:
        label: as in the data.
        name: as in the data.
        precision: share of right ones among the predictions of this class; None if there is none.
        recall: share of right ones among the samples of this class; None if there is none.
        f1: their harmonic mean, 0 if nothing is right; None without a sample.
        support: samples.
    """

    label: int
    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


def class_metrics(
    labels: np.ndarray, predictions: np.ndarray, names: Mapping[int, str]
) -> tuple[ClassMetrics, ...]:
    """Precision, recall and F1 of each class, by scikit-learn.

    Args:
        labels: (n,) true labels.
        predictions: (n,) predicted labels.
        names: label → name, in the order wanted.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        labels, predictions, labels=list(names), zero_division=np.nan
    )
    return tuple(
        ClassMetrics(label, name, _known(p), _known(r), _known(f) if n else None, int(n))
        for (label, name), p, r, f, n in zip(names.items(), *columns, strict=True)
    )


def macro_f1(classes: Sequence[ClassMetrics]) -> float | None:
    """Mean F1 of the classes that have a sample; None if none has."""
    known = [each.f1 for each in classes if each.f1 is not None]
    return mean(known) if known else None


def confusion(labels: np.ndarray, predictions: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """(classes, classes) int: true label of a row, predicted label of a column; scikit-learn's."""
    from sklearn.metrics import confusion_matrix

    counts: np.ndarray = confusion_matrix(labels, predictions, labels=list(order))
    return counts


@dataclass(frozen=True)
class Spread:
    """Where the spread of repeated cross-validation comes from.

    Attributes:
        over_seeds: standard deviation of one fold's accuracy from seed to seed.
        over_folds: from fold to fold, what seeds add taken off; None of one fold.
        of_means: of the mean over folds, from seed to seed: what another seed would have reported.
    """

    over_seeds: float
    over_folds: float | None
    of_means: float


def spread(accuracies: Sequence[Sequence[float | None]]) -> Spread:
    """Variance components of folds and, within them, of seeds.

    One-way random effects, by the analysis of variance: with w the mean of the folds' variances
    over R seeds, and b the variance of the folds' means, seeds have the variance w, and folds
    max(0, b - w / R) (S. Searle, G. Casella, C. McCulloch, "Variance Components", 1992, ch. 3).

    Args:
        accuracies: (seeds, folds), of two seeds at least.
    """
    seeds, values = len(accuracies), np.asarray(accuracies, dtype=np.float64)
    within = float(values.var(axis=0, ddof=1).mean())
    over_folds = None
    if values.shape[1] > 1:
        between = float(values.mean(axis=0).var(ddof=1))
        over_folds = math.sqrt(max(0.0, between - within / seeds))
    return Spread(
        over_seeds=math.sqrt(within),
        over_folds=over_folds,
        of_means=float(values.mean(axis=1).std(ddof=1)),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _within(
    lowest: float, highest: float, interval: tuple[float, float] | None
) -> tuple[float, float] | None:
    return interval and (max(lowest, interval[0]), min(highest, interval[1]))

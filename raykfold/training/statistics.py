"""Statistics of accuracies over folds, samples, classes and seeds, with their sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95  # level of every interval

# Accuracies of folds that differ by less differ only by rounding: one sample makes more of a
# difference in any fold that fits on a disk.
ROUNDING = 1e-9


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def mean_accuracy(accuracies: Sequence[float]) -> float:
    """Return the mean, rounded to twelve decimals.

    Means that differ only by rounding are then equal in print, as the mean over folds of equal size
    and the pooled accuracy.
    """
    return round(mean(accuracies), 12)


def population_std(values: Sequence[float]) -> float:
    """Return the standard deviation with divisor n (ddof 0), NumPy's default."""
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / len(values))


def sample_std(values: Sequence[float]) -> float | None:
    """Return the standard deviation with divisor n - 1 (ddof 1); None for a single value."""
    if len(values) < 2:
        return None
    return population_std(values) * math.sqrt(len(values) / (len(values) - 1))


@dataclass(frozen=True)
class Estimate:
    """A figure of a cross-validation, like its accuracy, estimated over its folds.

    Attributes:
        values: one for each fold, from 0 to 1.
        test_to_train: ratio of held-out to training samples, as in `corrected_std_error`.
    """

    values: tuple[float, ...]
    test_to_train: float

    @property
    def mean(self) -> float:
        """Mean over the folds."""
        return mean_accuracy(self.values)

    @property
    def std(self) -> float:
        """Standard deviation over the folds, with divisor n."""
        return population_std(self.values)

    @property
    def std_sample(self) -> float | None:
        """Standard deviation with divisor n - 1; None for a single fold."""
        return sample_std(self.values)

    @property
    def std_error(self) -> float | None:
        """Standard error of the mean, corrected and approximate (`corrected_std_error`)."""
        return corrected_std_error(self.values, self.test_to_train)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean, approximate (`corrected_interval`), within 0 and 1."""
        return _within(0.0, 1.0, corrected_interval(self.values, self.test_to_train))

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "std": self.std,
            "std_sample": self.std_sample,
            "std_error": self.std_error,
            "interval": None if self.interval is None else list(self.interval),
        }


def corrected_std_error(values: Sequence[float], test_to_train: float) -> float | None:
    """Return the corrected standard error of a mean over the folds of a cross-validation.

    Training sets overlap, so the results of folds are not independent, and the usual s / √J is too
    small. With the sample variance s² of J results, the corrected standard error is
    √((1/J + n₂/n₁) s²): C. Nadeau and Y. Bengio, "Inference for the Generalization Error", Machine
    Learning 52 (2003), section 4. It is an approximation; no unbiased estimate exists (Y. Bengio
    and Y. Grandvalet, JMLR 5, 2004).

    R. Bouckaert and E. Frank (PAKDD 2004) count each repeat of a cross-validation among the J, but
    draw new folds for each repeat. Other seeds on the same folds are not further results: pass each
    fold's mean over the seeds.

    Args:
        values: J results, one for each fold.
        test_to_train: n₂/n₁, the ratio of held-out to training samples of a fold.

    Returns:
        None if the values do not show how they vary: there is only one, or all are equal.
    """
    deviation = sample_std(values)
    if deviation is None or max(values) - min(values) < ROUNDING:
        return None
    return deviation * math.sqrt(1 / len(values) + test_to_train)


def corrected_interval(values: Sequence[float], test_to_train: float) -> tuple[float, float] | None:
    """Return a 95 % confidence interval of the mean, by Student's t with J - 1 degrees of freedom.

    Arguments, and when it is None, are as in `corrected_std_error`.
    """
    from scipy.stats import t

    error = corrected_std_error(values, test_to_train)
    if error is None:
        return None
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return mean(values) - half, mean(values) + half


@dataclass(frozen=True)
class PairedTest:
    """A test of whether the mean of paired differences is zero.

    Attributes:
        difference: mean of the differences.
        t: Student's t; None if the differences do not show how they vary.
        degrees: degrees of freedom.
        p: two-sided p-value; None if `t` is.
        interval: 95 % confidence interval of the difference; None if `t` is.
    """

    difference: float
    t: float | None
    degrees: int
    p: float | None
    interval: tuple[float, float] | None


def corrected_t_test(differences: Sequence[float], test_to_train: float) -> PairedTest:
    """Return a paired t-test over the folds of a cross-validation, with corrected standard error.

    Args:
        differences: of two accuracies, from -1 to 1, one for each fold.
        test_to_train: as in `corrected_std_error`, which also names the source.
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
    """A comparison of two classifiers on the same samples.

    Attributes:
        only_first: number of samples that only the first classifies correctly.
        only_second: number of samples that only the second classifies correctly.
        p: two-sided p-value of the hypothesis that both are wrong equally often.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """Return McNemar's test of the samples that exactly one of two classifiers has right.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947). The p-value is exact, by the binomial distribution.

    Args:
        first_right: (n,) bool, whether the first classifies each sample correctly.
        second_right: (n,) bool, the same of the second.
    """
    from scipy.stats import binomtest

    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return McNemar(only_first, only_second, p)


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Return a 95 % confidence interval of a proportion, `right` of `total` samples.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
    (1927). It assumes independent samples and a fixed classifier, and so ignores that each fold
    was trained on other data.
    """
    from scipy.stats import binomtest

    interval = binomtest(right, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def outliers(accuracies: Sequence[float], samples: Sequence[int]) -> list[int]:
    """Return the positions of accuracies that are outliers.

    An outlier meets two criteria. It is one by B. Rosner's test ("Percentage Points for a
    Generalized ESD Many-Outlier Procedure", Technometrics 25, 1983), in which outliers do not mask
    each other, for up to a quarter of the accuracies. That alone finds one in every fifteenth run
    without any. And it is further from the mean of the others than two standard errors of a
    proportion of so many samples, because chance explains the rest. For this, two right and two
    wrong samples are added (A. Agresti and B. Coull, The American Statistician 52, 1998); otherwise
    a proportion of 1 would have a standard error of 0.

    Args:
        accuracies: from 0 to 1. Fewer than four have no outlier.
        samples: number of samples behind each accuracy.
    """
    left, taken, count = list(range(len(accuracies))), [], 0
    for _ in range(len(accuracies) // 4):
        values = [accuracies[position] for position in left]
        distances = [abs(value - mean(values)) for value in values]
        limit = _critical_distance(len(values)) * (sample_std(values) or 0.0)
        taken.append(left.pop(distances.index(max(distances))))
        if max(distances) > limit:
            count = len(taken)  # this one, and those before it, which it may have masked
    candidates = taken[:count]
    others = mean([x for n, x in enumerate(accuracies) if n not in candidates] or [0.0])
    return sorted(n for n in candidates if not _is_chance(accuracies[n], samples[n], others))


def _critical_distance(count: int) -> float:
    """Return the distance from the mean, in standard deviations, beyond which a value is outlying.

    F. Grubbs, "Procedures for Detecting Outlying Observations in Samples", Technometrics 11 (1969).
    """
    from scipy.stats import t

    critical = float(t.isf((1 - CONFIDENCE) / (2 * count), count - 2))
    return (count - 1) * critical / math.sqrt((count - 2 + critical**2) * count)


def _is_chance(accuracy: float, samples: int, expected: float) -> bool:
    proportion = (expected * samples + 2) / (samples + 4)
    std_error = math.sqrt(proportion * (1 - proportion) / (samples + 4))
    return abs(accuracy - expected) <= 2 * std_error


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of one class over all held-out samples.

    Attributes:
        label: label of the class in the data.
        name: name of the class in the data.
        precision: proportion of predictions of this class that are right; None without any.
        recall: proportion of samples of this class that are found; None without any.
        f1: harmonic mean of the two, 0 if nothing is right; None without a sample.
        support: number of samples.
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
    """Return precision, recall and F1 of each class, by scikit-learn.

    Args:
        labels: (n,) true labels.
        predictions: (n,) predicted labels.
        names: label → name, in the order of the result.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        labels, predictions, labels=list(names), zero_division=np.nan
    )
    return tuple(
        ClassMetrics(label, name, _known(p), _known(r), _known(f) if n else None, int(n))
        for (label, name), p, r, f, n in zip(names.items(), *columns, strict=True)
    )


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (classes, classes) counts: true classes in rows, predicted classes in columns.

    scikit-learn has it too, and takes a second to import, which workers need not spend.

    Args:
        targets: (n,) class indices.
        predicted: (n,) class indices.
    """
    cells = np.bincount(targets * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Return the mean recall of the classes that have samples (scikit-learn's definition).

    Args:
        confusion: as `confusion_matrix` returns it.
    """
    support = confusion.sum(axis=1)
    has_samples = support > 0
    return mean((confusion.diagonal()[has_samples] / support[has_samples]).tolist())


def macro_f1(confusion: np.ndarray) -> float:
    """Return the mean F1 of the classes that have samples.

    scikit-learn's also counts, as 0, classes that are predicted and have no samples: in a fold
    that lacks a class one such prediction would then weigh as much as a whole class.

    Args:
        confusion: as `confusion_matrix` returns it.
    """
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    has_samples = support > 0
    return mean((2 * confusion.diagonal() / (support + predicted).clip(1))[has_samples].tolist())


@dataclass(frozen=True)
class Spread:
    """Standard deviations of accuracies in a cross-validation that several seeds repeat.

    Attributes:
        over_seeds: of one fold's accuracy, from seed to seed.
        over_folds: of accuracies from fold to fold, without what seeds add; None for one fold.
        of_means: of the mean over folds, from seed to seed: what another seed would change.
    """

    over_seeds: float
    over_folds: float | None
    of_means: float


def spread(accuracies: Sequence[Sequence[float | None]]) -> Spread:
    """Return the variance components of folds and, within folds, of seeds.

    The model is one-way random effects, estimated by analysis of variance. Let w be the mean of the
    folds' variances over R seeds, and b the variance of the folds' means. Then seeds have the
    variance w, and folds max(0, b - w / R) (S. Searle, G. Casella, C. McCulloch, "Variance
    Components", 1992, chapter 3).

    Args:
        accuracies: (seeds, folds), with two seeds or more.
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

"""Formulas, held against scipy, scikit-learn and what others have published."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from sklearn.datasets import make_moons
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.svm import SVC

from raykfold.training.predictions import OutOfFold
from raykfold.training.results import OutOfFoldMetrics
from raykfold.training.statistics import (
    Estimate,
    class_metrics,
    corrected_interval,
    corrected_std_error,
    corrected_t_test,
    mcnemar,
    outliers,
    population_std,
    sample_std,
    spread,
    wilson_interval,
)

FSDD = (0.48, 0.63, 0.676, 0.724, 0.878, 0.91)


def test_the_corrected_t_test_agrees_with_the_example_that_scikit_learn_publishes() -> None:
    """Its "Statistical comparison of models using grid search" prints t = 0.750 and a one-sided
    p = 0.227, for the areas of two support vector machines in 10 times 10 folds.
    """
    data = make_moons(noise=0.352, random_state=1, n_samples=100)
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    radial, linear = (
        cross_val_score(SVC(kernel=kernel, random_state=0), *data, scoring="roc_auc", cv=folds)
        for kernel in ("rbf", "linear")
    )
    test = corrected_t_test(radial - linear, 10 / 90)
    assert test.t is not None and test.p is not None
    assert (f"{test.t:.3f}", f"{test.p / 2:.3f}", test.degrees) == ("0.750", "0.227", 99)


def test_without_the_correction_it_is_students_paired_t_test() -> None:
    a, b = np.array(FSDD), np.array([0.5, 0.6, 0.7, 0.7, 0.8, 0.95])
    test, known = corrected_t_test(b - a, 0.0), scipy.stats.ttest_rel(b, a)
    assert (test.t, test.p) == pytest.approx((known.statistic, known.pvalue))
    assert test.interval == pytest.approx(tuple(known.confidence_interval(0.95)))


def test_the_correction_widens_by_what_training_sets_share() -> None:
    """Five folds of equal size: √(1/5 + 1/4) instead of √(1/5)."""
    values = FSDD[:5]
    plain = float(scipy.stats.sem(values))
    corrected = corrected_std_error(values, 1 / 4)
    assert corrected == pytest.approx(plain * math.sqrt((1 / 5 + 1 / 4) / (1 / 5)))


def test_the_interval_and_the_test_are_of_one_mind() -> None:
    """The ends of the 95 % interval are the means that a test at 5 % just does not reject."""
    interval = corrected_interval(FSDD, 1 / 5)
    assert interval is not None
    for end in interval:
        assert corrected_t_test([x - end for x in FSDD], 1 / 5).p == pytest.approx(0.05)


@pytest.mark.parametrize(
    "values", [[0.5], [0.1] * 3, [b - a for a, b in ((0.7, 0.8), (0.8, 0.9), (0.9, 1.0))]]
)
def test_values_that_do_not_tell_how_they_vary_have_no_interval(values: list[float]) -> None:
    """Also where equal decimals differ in their last bits."""
    assert corrected_std_error(values, 0.25) is None
    assert corrected_interval(values, 0.25) is None
    test = corrected_t_test(values, 0.25)
    assert test.difference == pytest.approx(values[0])
    assert (test.t, test.p, test.interval) == (None, None, None)


def test_an_accuracy_has_no_interval_beyond_0_and_1() -> None:
    estimate = Estimate((0.2, 0.95, 1.0), 0.5)
    assert estimate.interval == (0.0, 1.0)
    assert Estimate(tuple(FSDD), 0.2).interval == corrected_interval(FSDD, 0.2)


def test_means_and_deviations_are_numpys() -> None:
    estimate = Estimate(tuple(FSDD), 0.2)
    assert estimate.mean == pytest.approx(np.mean(FSDD))
    assert estimate.std == population_std(FSDD) == pytest.approx(np.std(FSDD))
    assert estimate.std_sample == sample_std(FSDD) == pytest.approx(np.std(FSDD, ddof=1))


def test_mcnemar_is_the_binomial_test_of_the_samples_that_differ() -> None:
    first = np.array([True] * 60 + [False] * 40)
    second = np.array([True] * 50 + [False] * 10 + [True] * 2 + [False] * 38)
    test = mcnemar(first, second)
    assert (test.only_first, test.only_second) == (10, 2)
    assert test.p == pytest.approx(2 * scipy.stats.binom.cdf(2, 12, 0.5))
    assert mcnemar(first, first).p == 1.0


def test_wilson_agrees_with_the_formula() -> None:
    """(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), as Wilson has it."""
    right, total, z = 2149, 3000, scipy.stats.norm.ppf(0.975)
    p, factor = right / total, 1 + z**2 / total
    half = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) / factor
    centre = (p + z**2 / (2 * total)) / factor
    assert wilson_interval(right, total) == pytest.approx((centre - half, centre + half))
    assert wilson_interval(10, 10)[1] == 1.0


LABELS = np.array([3, 3, 3, 3, 5, 5, 5, 9, 9, 9])
PREDICTIONS = np.array([3, 3, 5, 5, 5, 5, 5, 5, 3, 3])
NAMES = {3: "dog", 5: "rain", 7: "absent", 9: "never found"}


def test_class_metrics_are_scikit_learns() -> None:
    found = {each.label: each for each in class_metrics(LABELS, PREDICTIONS, NAMES)}
    report = sklearn.metrics.classification_report(
        LABELS, PREDICTIONS, output_dict=True, zero_division=0.0
    )
    for label in (3, 5):
        known = report[str(label)]
        values = (found[label].precision, found[label].recall, found[label].f1)
        assert values == pytest.approx((known["precision"], known["recall"], known["f1-score"]))
        assert found[label].support == known["support"]
    assert [each.name for each in found.values()] == list(NAMES.values())
    counts = sklearn.metrics.confusion_matrix(LABELS, PREDICTIONS, labels=list(NAMES))
    whole = OutOfFoldMetrics(0.5, (0.0, 1.0), (), tuple(map(tuple, counts.tolist())))
    assert whole.macro_f1 == pytest.approx(report["macro avg"]["f1-score"])
    known = sklearn.metrics.balanced_accuracy_score(LABELS, PREDICTIONS)
    assert whole.balanced_accuracy == pytest.approx(known)


def test_what_a_class_does_not_have_is_not_given() -> None:
    _, _, absent, missed = class_metrics(LABELS, PREDICTIONS, NAMES)
    assert (absent.precision, absent.recall, absent.f1, absent.support) == (None, None, None, 0)
    assert (missed.precision, missed.recall, missed.f1, missed.support) == (None, 0.0, 0.0, 3)


def test_rows_of_the_confusion_are_true_labels() -> None:
    index, probabilities = np.arange(len(LABELS)), np.empty((len(LABELS), len(NAMES)))
    classes = np.array(list(NAMES))
    whole = OutOfFold(index, index, LABELS, PREDICTIONS, probabilities, classes)
    assert whole.confusion.tolist() == [[2, 2, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0], [2, 1, 0, 0]]


def test_a_fold_far_from_the_others_is_an_outlier() -> None:
    assert outliers([0.9, 0.91, 0.89, 0.4, 0.92], [500] * 5) == [3]
    assert outliers(FSDD, [500] * 6) == []


def test_what_luck_can_bring_is_no_outlier() -> None:
    """Of twenty samples one more or less is five hundredths; of two thousand it is not."""
    accuracies = [0.948, 0.95, 0.953, 0.951, 0.9]
    assert outliers(accuracies, [20] * 5) == []
    assert outliers(accuracies, [2000] * 5) == [4]


def test_one_wrong_sample_among_folds_without_any_is_luck() -> None:
    assert outliers([1.0, 1.0, 1.0, 1.0, 0.98], [50] * 5) == []
    assert outliers([1.0, 1.0, 1.0, 1.0, 0.5], [50] * 5) == [4]


def test_one_run_in_fifteen_of_folds_that_are_alike_has_an_outlier() -> None:
    rng = np.random.default_rng(0)
    for folds in (4, 5, 10):
        runs = (0.7 + 0.1 * rng.standard_normal(folds) for _ in range(1000))
        found = sum(bool(outliers(run.tolist(), [10**6] * folds)) for run in runs)
        assert 30 < found < 95


def test_two_outliers_do_not_hide_each_other() -> None:
    accuracies = [0.8, 0.82, 0.79, 0.81, 0.8, 0.83, 0.78, 0.81, 0.2, 0.25]
    assert outliers(accuracies, [500] * 10) == [8, 9]


def test_three_folds_have_no_outlier() -> None:
    assert outliers([0.9, 0.9, 0.1], [500] * 3) == []


def test_the_spread_of_seeds_and_of_folds_is_told_apart() -> None:
    """Thousands of made-up folds, with deviations that are known."""
    rng = np.random.default_rng(0)
    folds = 0.7 + 0.1 * rng.standard_normal(4000)
    found = spread((folds + 0.02 * rng.standard_normal((5, 4000))).tolist())
    assert found.over_folds == pytest.approx(0.1, rel=0.03)
    assert found.over_seeds == pytest.approx(0.02, rel=0.03)
    assert found.of_means == pytest.approx(0.02 / math.sqrt(4000), rel=0.6)


def test_one_fold_has_a_spread_of_seeds_alone() -> None:
    found = spread([[0.4], [0.2]])
    assert found.over_folds is None
    assert found.over_seeds == found.of_means == pytest.approx(np.std([0.4, 0.2], ddof=1))


def test_a_difference_of_accuracies_has_no_interval_beyond_1() -> None:
    assert corrected_t_test([0.1, 0.6], 1.0).interval == (-1.0, 1.0)


def test_folds_that_differ_by_no_more_than_seeds_do_have_no_spread_of_their_own() -> None:
    found = spread([[0.5, 0.6], [0.6, 0.5]])
    assert found.over_folds == 0.0
    assert found.over_seeds == pytest.approx(np.std([0.5, 0.6], ddof=1))
    assert found.of_means == 0.0

"""The summary that a run prints at its end."""

from __future__ import annotations

from dataclasses import replace

from raykfold.pages.remarks import BEST_EPOCHS, CHOSEN_EPOCHS, POOLED, on_monitor
from raykfold.pages.summary_text import summary_lines
from raykfold.training.results import (
    FIGURES,
    EpochMetrics,
    FoldResult,
    OutOfFoldMetrics,
    Repeats,
    Summary,
)


def epoch(number: int) -> EpochMetrics:
    accuracy = 0.5 + number / 10
    figures = {"val_balanced_accuracy": accuracy - 0.1, "val_macro_f1": accuracy - 0.2}
    return EpochMetrics(number, 1.5, 0.25, 1.25, accuracy, 0.001, 2.0, **figures)


def complete(fold: int) -> FoldResult:
    history = (epoch(0), epoch(1))
    return FoldResult.of(fold, "complete", 8, 2, history, stopped_early=True)


def summary(*folds: FoldResult) -> Summary:
    return Summary(
        "run",
        folds,
        OutOfFoldMetrics(0.55, (0.4, 0.7), ()),
        {0: "a"},
        wall_seconds=1.0,
        num_workers=2,
    )


def test_the_summary_has_the_line_that_people_know() -> None:
    lines = summary_lines(summary(complete(1), complete(2)))
    assert "Average Best Validation Accuracy: 0.6000 (+/- 0.0000)" in lines
    assert "Out-of-fold accuracy, 4 samples pooled, best epochs: 0.5500" in lines
    assert [line.split()[0] for line in lines[:3]] == ["fold", "1", "2"]


def test_balanced_accuracy_and_macro_f1_stand_beside_the_accuracy() -> None:
    pooled = OutOfFoldMetrics(0.7, (0.6, 0.8), (), ((6, 2), (1, 1)))
    lines = summary_lines(replace(summary(complete(1), complete(2)), out_of_fold=pooled))
    assert lines[0].split()[-3:] == ["balanced", "macro", "F1"]
    assert lines[1].split()[7:11] == ["0.6000", "0.6000", "0.5000", "0.4000"]
    assert "Average Balanced Accuracy of the Best Epoch: 0.5000 (+/- 0.0000)" in lines
    assert "Average Macro F1 of the Best Epoch: 0.4000 (+/- 0.0000)" in lines
    assert (
        "Out-of-fold accuracy, 4 samples pooled, best epochs: 0.7000, balanced accuracy 0.6250, "
        "macro F1 0.6000"
    ) in lines


def test_the_figure_that_is_monitored_comes_first() -> None:
    lines = summary_lines(replace(summary(complete(1), complete(2)), monitor="macro_f1"))
    means = [line for line in lines if line.startswith("Average")]
    assert means[:2] == [
        "Average Macro F1 of the Best Epoch: 0.4000 (+/- 0.0000)",
        "Average Accuracy of the Best Epoch: 0.6000 (+/- 0.0000)",
    ]
    assert on_monitor("macro_f1") in lines and BEST_EPOCHS in lines


def test_each_interval_says_of_which_figure_it_is() -> None:
    folds = complete(1), FoldResult.of(2, "complete", 8, 2, (epoch(0),))
    known = {name: summary_lines(replace(summary(*folds), monitor=name)) for name in FIGURES}
    about = {
        name: next(line for line in lines if line.startswith("95 % intervals of the mean"))
        for name, lines in known.items()
    }
    assert ": best 0." in about["accuracy"] and "F1" not in about["accuracy"]
    assert ": macro F1 0." in about["macro_f1"] and ", accuracy of best 0." in about["macro_f1"]
    assert "balanced" not in about["macro_f1"]


def test_epochs_of_the_lowest_loss_are_summed_up_by_their_accuracy() -> None:
    lines = summary_lines(replace(summary(complete(1), complete(2)), monitor="loss"))
    means = [line for line in lines if line.startswith("Average")]
    assert means[0] == "Average Accuracy of the Best Epoch: 0.6000 (+/- 0.0000)"
    assert "The epoch of each fold is that of the lowest loss." in lines


def test_the_table_draws_each_fold_on_one_scale() -> None:
    lines = summary_lines(summary(complete(1), complete(2)))
    assert [line.split()[-1] for line in lines[1:3]] == ["▁█", "▁█"]
    plain = summary_lines(summary(complete(1), complete(2)), sparks=False)
    assert not any("█" in line for line in plain)


def test_a_long_history_is_drawn_from_its_first_to_its_last_epoch() -> None:
    history = [replace(epoch(n), val_accuracy=n / 200) for n in range(200)]
    (_, row, *_) = summary_lines(summary(FoldResult.of(1, "complete", 8, 2, history)))
    drawn = row.split()[-1]
    assert len(drawn) == 25
    assert (drawn[0], drawn[-1]) == ("▁", "█") and list(drawn) == sorted(drawn)


def test_what_was_chosen_by_held_out_samples_is_called_optimistic() -> None:
    lines = summary_lines(summary(complete(1), complete(2)))
    assert BEST_EPOCHS in lines and POOLED in lines
    assert "95 % interval of the pooled accuracy: 0.4000 to 0.7000" in lines


def test_with_an_inner_split_the_table_says_which_accuracy_is_which() -> None:
    history = [replace(epoch(n), inner_loss=1.0, inner_accuracy=0.5 - n / 10) for n in range(2)]
    fold = FoldResult.of(1, "complete", 8, 2, history)
    lines = summary_lines(replace(summary(fold, replace(fold, fold=2)), select="inner"))
    assert lines[0].split() == [
        *("fold", "status", "train", "val", "epochs", "chosen", "epoch"),
        *("accuracy", "best", "epoch", "of", "best", "of", "last", "balanced", "macro", "F1"),
    ]
    assert lines[1].split()[:9] == [
        *("1", "complete", "8", "2", "2", "1", "0.5000", "2", "0.6000"),
    ]
    assert "Average Accuracy of the Chosen Epoch: 0.5000 (+/- 0.0000)" in lines


def test_a_partial_run_with_an_inner_split_has_the_mean_of_the_epochs_that_are_kept() -> None:
    history = [replace(epoch(n), inner_loss=1.0, inner_accuracy=0.5 - n / 10) for n in range(2)]
    fold = FoldResult.of(1, "complete", 8, 2, history)
    lines = summary_lines(replace(summary(fold, FoldResult.of(2, "failed", 8, 2)), select="inner"))
    assert (
        "Partial run: 1 of 2 folds are complete, so there is no mean. Over fold 1 alone it would "
        "be 0.5000 at the chosen epochs, which is not the mean of the whole cross-validation."
    ) in lines
    assert CHOSEN_EPOCHS in lines and BEST_EPOCHS in lines


def test_one_fold_has_no_spread_but_that_of_its_seeds() -> None:
    lines = summary_lines(summary(complete(1)))
    assert "Average Best Validation Accuracy: 0.6000" in lines
    better = FoldResult.of(1, "complete", 8, 2, [replace(epoch(0), val_accuracy=0.8)])
    seeds = Repeats((3, 4), ((complete(1),), (better,)))
    lines = summary_lines(replace(summary(complete(1)), repeats=seeds))
    assert "Average Best Validation Accuracy: 0.7000" in lines
    assert (
        "The accuracy of a fold is its mean over 2 seeds. From seed to seed it varies by 0.1414 "
        "(standard deviation)." in lines
    )


def test_repeats_are_in_the_table_of_seeds() -> None:
    first, second = (complete(1), complete(2)), (complete(1), FoldResult.of(2, "failed", 8, 2))
    repeated = replace(summary(*first), repeats=Repeats((3, 4), (first, second)))
    lines = summary_lines(repeated)
    assert "   3  0.6000  0.6000  0.6000" in lines
    assert "   4       -  0.6000  -" in lines
    assert "seed 4, fold 2: failed: None" in lines
    assert not any("Average" in line for line in lines)
    assert any(
        "3 of 4 folds are complete, so there is no mean. Over fold 1, complete with every seed, "
        "alone it would be 0.6000 at the best epochs" in line
        for line in lines
    )
    assert lines[0].split()[:3] == ["fold,", "seed", "3"]


def test_the_summary_of_a_partial_run_has_no_mean_of_the_whole() -> None:
    lines = summary_lines(summary(complete(1), FoldResult.of(2, "failed", 8, 2, error="died")))
    assert not any("Average" in line for line in lines)
    assert "fold 2: failed: died" in lines
    assert any("Over fold 1 alone it would be 0.6000 at the best epochs" in x for x in lines)

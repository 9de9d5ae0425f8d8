"""What a search prints."""

from __future__ import annotations

import pytest
from support.searches import outer, search, trial

from raykfold.training.search_results import SearchResults
from raykfold.tuning.search_console import SearchConsole, result_lines
from raykfold.tuning.space import Domain, SearchConfig, SearchSpace


def text_of(results: SearchResults) -> str:
    return "\n".join(result_lines(results))


def test_the_results_name_the_best_and_the_epochs_trained() -> None:
    text = text_of(search([trial(1, 0.5), trial(2, 0.9, "stopped"), trial(3, 0.6)]))
    assert "Best: trial 3, 0.6000 (+/- 0.0163) over 3 folds, best epochs: learning_rate" in text
    assert "Epochs trained, summed over folds: 42 of at most 54 for 3 trials (78%)" in text
    assert "To run the best: python -m raykfold.run --config /runs/sounds/best.toml" in text


def test_the_best_by_another_figure_says_which() -> None:
    text = text_of(search([trial(1, 0.6)], figure="macro_f1", outer=(outer(1, 0.4),)))
    assert "0.6000 (+/- 0.0163) over 3 folds, macro F1 of the best epochs: learning_rate" in text
    assert "outer fold  inner mean  macro F1  chosen on" in text


def test_only_the_first_trials_are_shown() -> None:
    lines = list(result_lines(search([trial(number, 0.5) for number in range(1, 24)])))
    assert [line.split()[0] for line in lines[1:21]] == [str(number) for number in range(1, 21)]
    assert lines[21] == "and 3 trials more: see search.json, or the page"


def test_the_nested_mean_needs_all_outer_folds() -> None:
    whole = text_of(search(outer=(outer(1, 0.4), outer(2, 0.6))))
    assert "Nested: 0.5000 (+/- 0.1000) over 2 outer folds, 95 % interval" in whole
    one = text_of(search(outer=(outer(1, 0.4),)))
    assert "Nested: 0.4000 over 1 outer fold\n" in one  # whose spread nobody knows
    part = text_of(search(outer=(outer(1, 0.4), outer(2, None, error="no memory"))))
    assert "Nested: no mean" in part and "no memory" in part


def test_without_a_complete_trial_there_is_no_best() -> None:
    text = text_of(search([trial(1, None, "failed", error="fold 1: out of memory")]))
    assert "No trial is complete" in text and "trial 1 failed: fold 1: out of memory" in text


def test_each_event_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    space = SearchSpace({"learning_rate": Domain("loguniform", (0.001, 0.1))})
    console = SearchConsole(SearchConfig(demo=True, epochs=9, space=space)).of_outer(4)
    values = {"learning_rate": 0.00123456}
    console.trial_began(trial(1, None, values=values))
    console.trial_began(trial(1, 0.5, "running", values=values))
    console.trial_scored(trial(1, 0.5, "running", values=values))
    for status in ("complete", "stopped", "failed"):
        console.trial_ended(trial(1, 0.5, status, values=values, error="lost"))
    assert capsys.readouterr().out.splitlines() == [
        f"without fold 4: trial 1 {line}"
        for line in (
            "begins: learning_rate 0.001235",
            "resumes after epoch 2: learning_rate 0.001235",
            " epoch 2/9  mean 0.5000 (+/- 0.0163)",
            "complete: 0.5000 (+/- 0.0163)",
            "stopped after epoch 2: 0.5000 (+/- 0.0163)",
            "failed: lost",
        )
    ]

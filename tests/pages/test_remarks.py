"""What is said of the numbers, and that it is said alike wherever they are shown."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
from support.run_folder import begin, complete, conclude, failed
from support.searches import search

from raykfold import compare
from raykfold.data.leakage import Contradictions, Leakage, Pair, Twins
from raykfold.outputs.model_card import model_card
from raykfold.pages import remarks
from raykfold.pages.run_page import report
from raykfold.pages.summary_text import summary_lines
from raykfold.state.archive import open_run
from raykfold.training.results import EpochMetrics, FoldResult, OutOfFoldMetrics, Summary


def fold(label: int, accuracy: float) -> FoldResult:
    return FoldResult.of(
        label, "complete", 400, 100, [EpochMetrics(0, 1.0, 0.5, 1.0, accuracy, 0.001, 2.0)]
    )


def summary(*accuracies: float) -> Summary:
    folds = tuple(fold(label, accuracy) for label, accuracy in enumerate(accuracies, start=1))
    return Summary("run", folds, None, {0: "a"}, wall_seconds=1.0, num_workers=2)


def texts(given: Summary) -> list[str]:
    return [remark.text for remark in remarks.on_summary(given)]


def test_console_page_card_and_compare_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = begin(tmp_path)
    given = conclude(config, complete(1), complete(2, epochs=3), complete(3, epochs=4))
    state = json.loads(config.outputs.training_state.read_bytes())
    assert compare.main([str(tmp_path), str(tmp_path), "--by", "best"]) == 0
    compared = capsys.readouterr().out.splitlines()
    console = summary_lines(given)
    archive = open_run(tmp_path)
    page = html.unescape(report(archive))
    card = model_card("mine/run", archive.record, state, given)
    said = texts(given)
    assert {remarks.BEST_EPOCHS, remarks.APPROXIMATE} <= set(said)
    for text in said:
        assert text in console and text in page and text in card
    assert remarks.BEST_EPOCHS in compared and remarks.MCNEMAR in compared


def test_a_partial_run_is_explained_alike(tmp_path: Path) -> None:
    given = conclude(begin(tmp_path), complete(1), complete(2), failed(3, "unplugged"))
    text = remarks.on_partial(given)
    assert text == (
        "2 of 3 folds are complete, so there is no mean. Over folds 1, 2 alone it would be 0.5400 "
        "at the best epochs, which is not the mean of the whole cross-validation."
    )
    assert f"Partial run: {text}" in summary_lines(given)
    assert text in report(open_run(tmp_path))


def test_a_fold_apart_and_twins_are_serious() -> None:
    twins = Twins(7, 3, Pair((1, 2), (1, 3)))
    given = summary(0.9, 0.91, 0.2, 0.89)
    found = list(remarks.on_summary(given))
    assert [remark.text for remark in found if remark.serious] == [
        "Fold 3 is apart from the others: look at the samples before you trust the mean."
    ]
    leaky = Summary(**{**vars(given), "leakage": Leakage(240, twins, Twins(), Twins(), 0)})
    assert sum(remark.serious for remark in remarks.on_summary(leaky)) == 2
    assert "Leakage: 7 of 240 samples are identical" in texts(leaky)[-1]
    both = Contradictions(2, 2, Pair((1, 6), (1, 1)), ("dog", "cat"))
    labels = Leakage(240, Twins(), Twins(), Twins(), 0, both)
    *_, last = remarks.on_summary(Summary(**{**vars(given), "leakage": labels}))
    assert last.serious and last.text.startswith("Labels: 2 of 240 samples have an identical or")
    of_search = list(
        remarks.on_search(search(leakage=Leakage(240, twins, Twins(), Twins(), 0, both)))
    )
    assert [each.text.partition(":")[0] for each in of_search if each.serious] == [
        "Leakage",
        "Labels",
    ]
    assert last in of_search


def test_what_there_is_not_has_no_remark() -> None:
    one = texts(summary(0.5))
    assert remarks.ONE_FOLD in one and remarks.APPROXIMATE not in one
    assert remarks.POOLED not in one
    pooled = OutOfFoldMetrics(0.5, (0.4, 0.6), ())
    several = texts(Summary(**{**vars(summary(0.5, 0.6)), "out_of_fold": pooled}))
    assert remarks.ONE_FOLD not in several and remarks.POOLED in several
    assert texts(Summary("run", (failed(1, "unplugged"),), None, {}, 1.0, 1)) == [remarks.ONE_FOLD]

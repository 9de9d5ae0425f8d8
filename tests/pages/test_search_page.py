"""The page of a search: what it says, and how it looks in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.chromium import PROGRAM, Chromium, Tab
from support.searches import HOSTILE, TRIALS, nested, outer, search, trial

from raykfold.data.leakage import Contradictions, Leakage, Pair, Twins
from raykfold.files.paths import ModelDir
from raykfold.pages import remarks
from raykfold.pages.search_page import search_page, search_plots, write_search_page
from raykfold.training.search_results import TrialStatus


def text_of(page: str) -> str:
    """About what a reader sees of a page, without its pictures."""
    shown = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", shown).split())


def result_of(page: str) -> str:
    found = re.search('<p class="result">(.*?)</p>', page)
    assert found is not None
    return text_of(found[1])


def rows_of(page: str) -> list[list[str]]:
    """Cells of the table of trials."""
    table = page.partition('<section aria-labelledby="trials">')[2].partition("</table>")[0]
    rows = re.findall("<tr>(.*?)</tr>", table.partition("<tbody>")[2], re.DOTALL)
    return [list(map(text_of, re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row))) for row in rows]


# --- what it says ----------------------------------------------------------------------------


def test_the_same_search_gives_the_same_bytes() -> None:
    assert search_page(search()) == search_page(search())
    assert search_plots(search()) == search_plots(search())


def test_the_best_is_called_optimistic() -> None:
    page = search_page(search())
    assert result_of(page) == "0.8200 ± 0.0163 optimistic"
    assert (
        "The folds that measure the best trial have chosen it among 4, so its accuracy is "
        "optimistic; --nested measures the whole procedure."
    ) in text_of(page)
    assert remarks.BEST_EPOCHS in text_of(page)
    assert remarks.BEST_EPOCHS not in text_of(search_page(search(score="chosen")))


def test_what_the_whole_procedure_gives_comes_first_if_it_was_measured() -> None:
    page = search_page(search(outer=nested()))
    assert result_of(page) == "0.7200 ± 0.0082"
    text = text_of(page)
    assert "over 3 outer folds: mean ± standard deviation, 95 % interval 0.6807 to" in text
    assert remarks.NESTED in text and remarks.APPROXIMATE in text
    assert "Trial 3, the best, by itself 0.8200 ± 0.0163 optimistic" in text
    assert "have chosen it among 4" in text and "--nested measures" not in text
    assert "Epochs of the searches within outer folds 126 trained besides" in text
    assert "2 complete 0.8000 0.7200 2e-4 16 plain 0.25" in text


def test_the_page_says_which_figure_trials_are_ranked_by() -> None:
    text = text_of(search_page(search(figure="macro_f1")))
    assert "Macro F1 of trial 3, the best, over 3 folds" in text
    assert "Macro F1 is the mean over the folds" in text and "Macro F1 on each fold" in text
    assert "among 4, so its macro F1 is optimistic" in text
    assert "ccuracy" not in text


def test_an_outer_fold_that_failed_leaves_no_mean() -> None:
    first, _, last = nested()
    failed = outer(2, None, winner=None, error="no <trial> ended")
    page = search_page(search(outer=(first, failed, last)))
    assert result_of(page) == "Partial"
    text = text_of(page)
    assert "2 of 3 outer folds are complete, so there is no mean" in text
    assert "Outer fold 2 failed: no &lt;trial&gt; ended" in text
    assert "2 failed - - - - - -" in text


def test_a_search_that_goes_on_says_how_far_it_is() -> None:
    trials = [*TRIALS, trial(7, 0.4, "running"), trial(8, None, "running")]
    content = search(trials, is_over=False)
    page = search_page(content)
    assert result_of(page) == "Searching"
    text = text_of(page)
    assert "8 trials (3 complete, 1 stopped, 2 running, 2 failed)" in text
    assert f"{content.epochs_run} epochs trained, of at most {content.epochs_of_all}" in text
    assert "The best so far is trial 3, with 0.8200 ± 0.0163." in text
    assert search_plots(content).keys() == {"parallel", "history"}


def test_a_search_that_has_only_begun_has_a_page() -> None:
    content = search([], is_over=False)
    assert "0 trials; 0 epochs trained" in text_of(search_page(content))
    assert search_plots(content) == {}


def test_trials_are_ranked_and_only_those_that_are_complete() -> None:
    page = search_page(search())
    assert [row[:5] for row in rows_of(page)] == [
        ["1", "3 best", "complete", "0.8200 ± 0.0163", "6"],
        ["2", "5", "complete", "0.8100 ± 0.0163", "6"],
        ["3", "1", "complete", "0.7000 ± 0.0163", "6"],
        ["-", "2", "stopped", "0.5000 ± 0.0163", "2"],
        ["-", "4", "failed", "-", "2"],
        ["-", "6", "failed", "-", "2"],
    ]
    links = re.findall('<a href="([^"]*)"', page)
    assert links == [f"trials/{number}/report.html" for number in (3, 5, 1)]


def test_a_search_of_a_notebook_has_no_command() -> None:
    page = search_page(search(command=""))
    assert "To start or resume it: run its script, or the cell of its notebook, again." in page


def test_a_trial_has_its_values_and_folds_in_the_table() -> None:
    first = rows_of(search_page(search()))[0]
    assert first[5:9] == ["3e-4", "32", "&lt;script&gt;alert(1)&lt;/script&gt;", "0.2"]
    assert first[9:] == ["0.8000", "0.8200", "0.8400"]


def test_folds_are_left_out_of_the_table_where_there_are_many() -> None:
    page = search_page(search(folds=tuple(range(1, 12))))
    assert "fold 1 " not in text_of(page) and len(rows_of(page)[0]) == 9


def test_equal_trials_share_a_rank_and_the_best_is_first() -> None:
    trials = [trial(1, 0.8), trial(2, 0.8), trial(3, 0.7), trial(4, 0.8)]
    page = search_page(search(trials))
    ranks = [row[:2] for row in rows_of(page)]
    assert ranks == [["1", "1 best"], ["1", "2"], ["1", "4"], ["4", "3"]]
    assert "Trials 2, 4 are less than one standard deviation over folds" in text_of(page)


def test_trials_that_failed_of_the_same_are_told_together() -> None:
    text = text_of(search_page(search()))
    assert "2 trials failed. Their errors are below the table of trials." in text
    assert "Trials 4, 6: fold 2: &lt;b&gt;out of memory&lt;/b&gt; &amp; more" in text


def test_a_failed_trial_is_not_compared_by_the_folds_that_it_has() -> None:
    trials = [*TRIALS, trial(7, 0.99, "failed", error="fold 3: lost")]
    page = search_page(search(trials))
    assert [row[:4] for row in rows_of(page)][-1] == ["-", "7", "failed", "-"]
    assert "among 4" in text_of(page)


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_without_a_complete_trial_there_is_no_result(status: TrialStatus) -> None:
    accuracy = None if status == "failed" else 0.5
    trials = [trial(number, accuracy, status, error="lost") for number in (1, 2)]
    content = search(trials)
    page = search_page(content)
    assert result_of(page) == "No result"
    assert f"No configuration was chosen, of 2 trials (2 {status})." in text_of(page)
    assert 'id="best"' not in page
    drawn = set() if status == "failed" else {"parallel", "history"}
    assert search_plots(content).keys() == drawn
    assert ("<svg" in page) == bool(drawn)


def test_one_trial_has_not_been_chosen() -> None:
    text = text_of(search_page(search([trial(1, 0.7)])))
    assert "have chosen it" not in text
    page = search_page(search([trial(1, 0.7)], score="chosen"))
    assert result_of(page) == "0.7000 ± 0.0163"


def test_one_fold_has_no_spread() -> None:
    trials = [trial(number, score, folds={1: score}) for number, score in enumerate((0.7, 0.8), 1)]
    page = search_page(search(trials, folds=(1,)))
    assert result_of(page) == "0.8000 optimistic" and "±" not in page


def test_an_accuracy_of_zero_is_one() -> None:
    page = search_page(search([trial(1, 0.0)]))
    assert rows_of(page)[0][:4] == ["1", "1 best", "complete", "0.0000 ± 0.0163"]


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ({"loguniform": [1e-4, 1e-2]}, "1e-4 to 0.01, evenly on a log scale"),
        ({"uniform": [0.1, 0.5]}, "0.1 to 0.5, evenly"),
        ({"quniform": [0.1, 0.5, 0.1]}, "0.1 to 0.5, in steps of 0.1, evenly"),
        ({"randint": [1, 6]}, "whole numbers, 1 to 6, evenly"),
        ({"choice": [16, 32]}, "one of 16, 32"),
        ({"grid": ["a", None, True]}, "each of a, none, yes"),
        ({"choice": [16]}, "16"),
        ({"choice": list(range(1, 12))}, "one of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"),
    ],
)
def test_the_space_is_told_in_words_and_drawn(domain: Any, words: str) -> None:
    (values,) = domain.values()
    trials = [trial(n, n / 10, values={"x": value}) for n, value in enumerate(values, 1)]
    content = search(trials, space={"x": domain})
    assert f" x {words} " in text_of(search_page(content))
    assert "parallel" in search_plots(content)


def test_a_search_without_a_space_has_no_axes() -> None:
    content = search([trial(1, 0.5, values={})], space={})
    assert search_plots(content).keys() == {"history"}
    assert result_of(search_page(content)) == "0.5000 ± 0.0163 optimistic"


def test_what_was_run_is_told() -> None:
    twins = Contradictions(2, 0, Pair((1, 6), (1, 2)), ("dog", "<two>"))
    leakage = Leakage(240, Twins(), Twins(), Twins(), 240, twins)
    text = text_of(search_page(search(leakage=leakage)))
    assert "Labels: 2 of 240 samples have" in text and "fold 2 (&lt;two&gt;): a model" in text
    assert "python -m raykfold.search --space &#39;a &lt;b&gt;.toml&#39;" in text
    assert "python -m raykfold.run --config /runs/sounds/best.toml" in text
    assert "best.toml in this folder holds all of it" in text
    assert "wall time 5 min 05 s resumed 2 times sampler optuna trial scheduler asha seed 7" in text
    assert "fingerprint of the data b6d0d59b device cpu x1" in text and "torch 2.13.0" in text
    assert "Epochs trained, of all folds 72 of at most 108 33 % left out, by stopped trials" in text


def test_the_page_and_its_pictures_lie_with_the_outputs(tmp_path: Path) -> None:
    outputs = ModelDir(tmp_path)
    outputs.plots.mkdir()
    for name in ("curves.png", "my own.png"):
        (outputs.plots / name).write_bytes(b"a picture")
    assert write_search_page(search(), outputs) == outputs.report
    assert outputs.report.read_text(encoding="utf-8") == search_page(search())
    for name, content in search_plots(search()).items():
        assert (outputs.plots / f"{name}.png").read_bytes() == content
        assert content.startswith(b"\x89PNG")
    left = {file.name for file in outputs.plots.iterdir()}
    assert left == {"parallel.png", "history.png", "my own.png"}
    write_search_page(search([]), outputs)
    assert [file.name for file in outputs.plots.iterdir()] == ["my own.png"]


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if PROGRAM is None:
        pytest.skip("no Chromium here (Debian's package chromium)")
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_search_page(search(outer=nested()), ModelDir(tmp_path_factory.mktemp("shown")))


@pytest.fixture(scope="module")
def tab(browser: Chromium, page: Path) -> Tab:
    return browser.open(page)


def quiet(tab: Tab, page: Path) -> bool:
    return (tab.requests, tab.complaints) == ([page.as_uri()], [])


def test_the_page_asks_for_nothing_and_complains_of_nothing(tab: Tab, page: Path) -> None:
    assert quiet(tab, page)
    assert tab.evaluate("document.scripts.length") == 0
    assert tab.evaluate("document.title") == "sounds - raykfold"


def test_its_figures_are_those_of_the_search(tab: Tab) -> None:
    content = search(outer=nested())
    estimate, best = content.nested, content.best
    assert estimate is not None and best is not None
    assert tab.texts(".result") == [f"{estimate.mean:.4f} ± {estimate.std:.4f}"]
    tiles = dict(zip(tab.texts(".tiles dt"), tab.texts(".tiles dd"), strict=True))
    own = f"{best.mean:.4f} ± {best.std:.4f}"
    assert tiles[f"Trial {best.number}, the best, by itself"].startswith(own)
    assert tiles["Trials complete"].split("\n") == ["3 of 6", "1 stopped, 2 failed"]
    epochs = f"{content.epochs_run} of at most {content.epochs_of_all}"
    assert tiles["Epochs trained, of all folds"].startswith(epochs)
    found = tab.evaluate(
        "[...document.querySelectorAll('section[aria-labelledby=trials] tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.innerText))"
    )
    means = {int(re.sub("best", "", row[1])): row[3] for row in found}
    assert means == {
        each.number: "-" if each.mean is None else f"{each.mean:.4f} ± {each.std:.4f}"
        for each in content.trials
    }


def test_hostile_values_are_text(tab: Tab) -> None:
    assert HOSTILE in tab.texts("td")
    assert "a <b>.toml" in tab.texts("pre")[1]
    assert any("<b>out of memory</b>" in text for text in tab.texts(".remarks li"))
    assert any(text.startswith("<script") for text in tab.texts("svg text"))
    assert tab.evaluate("document.querySelectorAll('main b, main script').length") == 0


def test_every_picture_is_described_and_every_link_stays_here(tab: Tab) -> None:
    described = "e => (e.getAttribute('aria-label') || '').length > 10"
    assert tab.evaluate(f"[...document.querySelectorAll('svg')].map({described})") == [True] * 3
    links = tab.evaluate("[...document.links].map(e => e.getAttribute('href'))")
    assert links == [f"trials/{number}/report.html" for number in (3, 5, 1)]


def test_dark_is_dark_in_the_pictures_too(browser: Chromium, tab: Tab, page: Path) -> None:
    dark = browser.open(page, dark=True)
    assert quiet(dark, page)

    def lightness(tab: Tab, selector: str, what: str) -> float:
        colour = tab.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765

    assert lightness(tab, "body", "backgroundColor") > 0.9
    assert lightness(dark, "body", "backgroundColor") < 0.2
    assert lightness(tab, "svg text", "fill") < 0.5 < lightness(dark, "svg text", "fill")
    best = 'path[style*="stroke: var(--scale6)"]'
    assert lightness(tab, best, "stroke") < 0.4 < 0.5 < lightness(dark, best, "stroke")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(browser: Chromium, page: Path, dark: bool) -> None:
    phone = browser.open(page, width=360, dark=dark)
    assert phone.evaluate("innerWidth") == 360
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_large_search_with_long_names_fits_a_phone_too(browser: Chromium, tmp_path: Path) -> None:
    long = "Donaudampfschifffahrtsgesellschaft" * 4
    space = {f"model.{long}_{each}": {"choice": [1, long]} for each in range(8)}
    trials = [
        trial(
            number,
            None if number % 7 == 0 else number / 100,
            "failed" if number % 7 == 0 else "complete",
            values=dict.fromkeys(space, (1, long)[number % 2]),
            error=f"{number}{long * 9}",
        )
        for number in range(1, 101)
    ]
    twins = Contradictions(2, 0, Pair((1, 6), (1, 2)), (long, f"{long}2"))
    leakage = Leakage(240, Twins(), Twins(), Twins(), 240, twins)
    content = search(trials, run_name=long, space=space, leakage=leakage, command=long)
    page = write_search_page(content, ModelDir(tmp_path))
    assert len(page.read_bytes()) < 1_000_000
    phone = browser.open(page, width=360)
    assert quiet(phone, page)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360


def test_it_prints(tab: Tab) -> None:
    pdf = tab.pdf()
    assert pdf.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 6


def test_a_search_that_goes_on_is_shown(browser: Chromium, tmp_path: Path) -> None:
    content = search([*TRIALS, trial(7, 0.4, "running")], is_over=False)
    page = write_search_page(content, ModelDir(tmp_path))
    tab = browser.open(page)
    assert quiet(tab, page)
    assert tab.texts(".result") == ["Searching"]
    assert "running" in tab.texts("svg text")

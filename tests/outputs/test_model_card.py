"""The model card, as the Hub and its readers take it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markdown_it import MarkdownIt
from markdown_it.token import Token

from raykfold.config.run_config import RunConfig
from raykfold.outputs.model_card import model_card
from raykfold.pages import remarks
from raykfold.pages.remarks import CHOSEN_EPOCHS
from raykfold.state.record import RunRecord, identity, versions
from raykfold.training.results import EpochMetrics, FoldResult, OutOfFoldMetrics, Summary

REPO = "team/run-1"
DATASET = "team/sounds"
ACCURACIES = {1: 0.8123456789, 2: 0.7, 3: 0.91}
CLASSES = {0: "dog", 3: "rain"}


def record(**changes: Any) -> RunRecord:
    config = RunConfig(
        **{"run_name": "run", "model_dir": Path("/out"), "hf_repo_id": DATASET, **changes}
    )
    return RunRecord.of(config, identity(config, "f00d", "cpu x1"), "20250101-000000", (1, 2, 3))


def result(fold: int, failed: bool = False) -> FoldResult:
    history = tuple(
        EpochMetrics(
            *(epoch, 1.0, 0.5, 0.9, accuracy, 0.001, 2.0),
            val_balanced_accuracy=accuracy - 0.1,
            val_macro_f1=accuracy - 0.2,
        )
        for epoch, accuracy in enumerate((0.5, ACCURACIES[fold], 0.6))
    )
    if failed:
        return FoldResult.of(fold, "failed", 40, 10, history, error="<b>out of memory</b>")
    return FoldResult.of(fold, "complete", 40, 10, history, stopped_early=fold == 2)


def summary(failed: int | None = None, classes: dict[int, str] = CLASSES) -> Summary:
    folds = tuple(result(fold, fold == failed) for fold in ACCURACIES)
    pooled = OutOfFoldMetrics(0.805, (0.7, 0.9), (), ((6, 2), (1, 1)))
    return Summary("run", folds, pooled, classes, 9.0, 2)


def state(*running: int) -> dict[str, Any]:
    """Content of training_state.json."""
    rows = {
        str(fold): {
            "status": "running" if fold in running else "complete",
            "epochs_done": 0 if fold in running else 3,
            "best_epoch": None if fold in running else 1,
            "best_val_accuracy": None if fold in running else accuracy,
            "kept_val_balanced_accuracy": None if fold in running else accuracy - 0.1,
            "kept_val_macro_f1": None if fold in running else accuracy - 0.2,
        }
        for fold, accuracy in ACCURACIES.items()
    }
    return {"run_name": "run", "epochs": 3, "folds": rows}


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    content = yaml.safe_load(card.split("\n---\n", 1)[0])
    assert isinstance(content, dict)
    return content


def eval_results(card: str) -> list[EvalResult]:
    """As the Hub's own client reads them."""
    data = ModelCard(card, ignore_metadata_errors=False).data
    assert isinstance(data, ModelCardData)
    return data.eval_results or []


def text_of(card: str) -> str:
    return ModelCard(card, ignore_metadata_errors=False).text


def parsed(card: str) -> list[Token]:
    """The card's Markdown, with what is inside paragraphs and cells in one list."""
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    return [
        token for block in reader.parse(text_of(card)) for token in [block, *(block.children or [])]
    ]


def table(card: str, heading: str) -> list[list[str]]:
    """The rows of the table with `heading` as its first cell, as a reader sees them."""
    tables: list[list[list[str]]] = []
    for before, token in zip(["", *(t.type for t in parsed(card))], parsed(card), strict=False):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and before in ("td_open", "th_open"):
            tables[-1][-1].append("".join(child.content for child in token.children or []))
    (found,) = [rows for rows in tables if rows[0][0] == heading]
    return found


# --- pictures ------------------------------------------------------------------------------------


def test_the_pictures_that_are_there_are_shown_when_the_run_is_over() -> None:
    there = ["plots/confusion.png", "plots/curves.png", "plots/<other>.png"]
    final = model_card(REPO, record(), state(), summary(), there)
    shown = [token.attrs["src"] for token in parsed(final) if token.type == "image"]
    assert shown == ["plots/curves.png", "plots/confusion.png"]
    meanwhile = model_card(REPO, record(), state(1), None, there)
    assert not [token for token in parsed(meanwhile) if token.type == "image"]


# --- front matter --------------------------------------------------------------------------------


def test_the_front_matter_says_what_the_model_is() -> None:
    content = front_matter(model_card(REPO, record(), state(), summary()))
    assert content["library_name"] == "raykfold"
    assert content["pipeline_tag"] == "audio-classification"
    assert {"cross-validation", "audio-classification", "pytorch"} <= set(content["tags"])
    assert content["datasets"] == [DATASET]
    assert content["metrics"] == ["accuracy", "balanced_accuracy", "f1"]
    (index,) = content["model-index"]
    assert index["name"] == "run-1"
    assert {each["dataset"]["name"] for each in index["results"]} == {DATASET}


def test_the_results_are_those_of_the_summary() -> None:
    final = summary()
    found = {
        each.metric_name: each.metric_value
        for each in eval_results(model_card(REPO, record(), state(), final))
    }
    assert found == {
        "Accuracy, mean over 3 folds": round(final.mean_accuracy or 0, 6),
        "Accuracy, standard deviation over 3 folds": round(final.std_accuracy or 0, 6),
        "Balanced accuracy, mean over 3 folds": round((final.mean_accuracy or 0) - 0.1, 6),
        "Balanced accuracy, standard deviation over 3 folds": round(final.std_accuracy or 0, 6),
        "Macro F1, mean over 3 folds": round((final.mean_accuracy or 0) - 0.2, 6),
        "Macro F1, standard deviation over 3 folds": round(final.std_accuracy or 0, 6),
        "Accuracy, fold 1": 0.812346,
        "Accuracy, fold 2": 0.7,
        "Accuracy, fold 3": 0.91,
    }


def test_a_standard_deviation_does_not_pass_for_an_accuracy() -> None:
    found = eval_results(model_card(REPO, record(), state(), summary()))
    types = {each.metric_type for each in found if "deviation" in str(each.metric_name)}
    assert len(types) == 3 and not types & {"accuracy", "balanced_accuracy", "f1"}


@pytest.mark.parametrize("changes", [{}, {"run_name": "a: b # c, 'd' \"e\" [f]\n---\ng"}])
def test_without_a_dataset_on_the_hub_none_is_named(changes: dict[str, Any]) -> None:
    card = model_card("mine", record(hf_repo_id=None, **changes), state(), summary())
    assert "datasets" not in front_matter(card)
    assert len(eval_results(card)) == 9
    assert {each.dataset_name for each in eval_results(card)} == {changes.get("run_name", "run")}
    assert front_matter(card)["model-index"][0]["name"] == "mine"
    assert "huggingface.co/datasets" not in card


# --- what is said of the results -----------------------------------------------------------------


def test_a_complete_run_gives_its_mean() -> None:
    card, final = model_card(REPO, record(), state(), summary()), summary()
    assert final.best is not None and final.last is not None
    assert f"Accuracy: {final.best.mean:.4f} ± {final.best.std:.4f}" in card
    assert f"{final.last.mean:.4f} ± {final.last.std:.4f}" in card
    assert "pooled, best epochs: 0.8050 (95 % interval 0.7000 to 0.9000)" in card
    assert final.best.interval is not None
    low, high = final.best.interval
    assert f"95 % interval, approximate: {low:.4f} to {high:.4f}" in card
    assert table(card, "fold")[1:] == [
        ["1", "complete", "40", "10", "3", "2", "0.8123", "0.6000", "0.7123", "0.6123"],
        [
            *("2", "complete, stopped early", "40", "10", "3", "2"),
            *("0.7000", "0.6000", "0.6000", "0.5000"),
        ],
        ["3", "complete", "40", "10", "3", "2", "0.9100", "0.6000", "0.8100", "0.7100"],
    ]
    assert table(card, "output")[1:] == [["0", "0", "dog"], ["1", "3", "rain"]]


def test_the_figure_that_is_monitored_is_the_headline() -> None:
    final = replace(summary(), monitor="macro_f1")
    card = model_card(REPO, record(monitor="macro_f1"), state(), final)
    best, macro_f1 = final.over_folds("accuracy"), final.over_folds("macro_f1")
    assert best is not None and macro_f1 is not None and macro_f1.interval is not None
    low, high = macro_f1.interval
    assert (
        f"**Macro F1: {macro_f1.mean:.4f} ± {macro_f1.std:.4f}** (mean ± standard deviation over "
        f"3 folds; 95 % interval, approximate: {low:.4f} to {high:.4f})"
    ) in card
    assert f"Beside it: accuracy {best.mean:.4f} ± {best.std:.4f}, balanced accuracy" in card
    assert "Balanced accuracy of these: 0.6250. Macro F1 of these: 0.6000." in card
    assert remarks.on_monitor("macro_f1") in card
    first = eval_results(card)[0]
    assert (first.metric_name, first.metric_type) == ("Macro F1, mean over 3 folds", "f1")
    assert dict(table(card, "setting"))["monitor"] == "macro_f1"


def test_what_a_preset_stood_for_is_named_and_what_changes_nothing_is_not() -> None:
    plain = dict(table(model_card(REPO, record(), state(), summary()), "setting"))
    assert plain["preset"] == "plain" and not {"mixup", "optimizer", "monitor"} & plain.keys()
    strong = record(preset="strong", mixup=0)
    found = dict(table(model_card(REPO, strong, state(), summary()), "setting"))
    assert found["preset"] == "strong" and found["optimizer"] == "adamw"
    assert float(found["mixup"]) == 0  # which the preset has not chosen
    assert "grad_clip" not in found


def test_one_fold_has_no_spread() -> None:
    final = Summary("run", (result(1),), None, CLASSES, 9.0, 2, {})
    card = model_card(REPO, record(), {**state(), "folds": {"1": state()["folds"]["1"]}}, final)
    assert "1 fold of a cross-validation" in card
    assert "**Accuracy: 0.8123** (on the one fold held out)" in card and "±" not in card


def test_what_an_inner_split_chose_is_what_the_card_reports() -> None:
    history = [
        EpochMetrics(n, 1.0, 0.5, 0.9, accuracy, 0.001, 2.0, 1.0, inner)
        for n, (accuracy, inner) in enumerate(((0.5, 0.9), (0.8, 0.1), (0.6, 0.2)))
    ]
    folds = tuple(FoldResult.of(fold, "complete", 40, 10, history) for fold in (1, 2))
    final = Summary("run", folds, None, CLASSES, 9.0, 2, {}, select="inner")
    inner = record(select="inner")
    card = model_card(REPO, inner, state(), final)
    assert "Accuracy: 0.5000 ± 0.0000" in card and "0.8000" not in card
    assert CHOSEN_EPOCHS in card
    assert table(card, "fold")[1][5:7] == ["1", "0.5000"]
    assert eval_results(card)[0].metric_value == 0.5


def test_a_run_in_training_gives_no_mean() -> None:
    card = model_card(REPO, record(), state(2), None)
    assert "2 of 3 folds are complete" in card
    assert "mean" not in card and "±" not in card and eval_results(card) == []
    assert "model-index" not in front_matter(card)
    assert table(card, "fold")[1:] == [
        ["1", "complete", "", "", "3", "2", "0.8123", "", "0.7123", "0.6123"],
        ["2", "running", "", "", "0", "", "", "", "", ""],
        ["3", "complete", "", "", "3", "2", "0.9100", "", "0.8100", "0.7100"],
    ]


def test_a_partial_run_names_what_failed_and_gives_no_mean() -> None:
    final = summary(failed=2)
    card = model_card(REPO, record(), state(), final)
    assert "no mean, because folds failed (fold 2)" in card
    assert final.partial_mean is not None and final.partial_mean.mean is not None
    assert "±" not in card and f"{final.partial_mean.mean:.4f}" not in card
    assert [each.metric_name for each in eval_results(card)] == [
        "Accuracy, fold 1",
        "Accuracy, fold 3",
    ]
    assert [row[1] for row in table(card, "fold")[1:]] == [
        "complete",
        "failed",
        "complete",
    ]
    assert "out of memory" not in card


def test_the_settings_that_decide_results_are_named() -> None:
    card = model_card(REPO, record(epochs=7, seed=42, learning_rate=0.02), state(), summary())
    settings = dict(table(card, "setting"))
    assert settings.items() >= {"epochs": "7", "seed": "42", "learning_rate": "0.02"}.items()
    assert settings["torch"] == versions()["torch"]
    assert settings["fingerprint of the data"] == "f00d"


def test_it_says_how_to_load_the_weights() -> None:
    card = model_card(REPO, record(), state(), summary())
    assert f'raykfold.load_fold("{REPO}", 1)' in card
    assert f"--repo {REPO}" in card


# --- names from strangers ------------------------------------------------------------------------

NAMES = [
    "<script>alert(1)</script>",
    "a|b",
    "[x](http://evil)",
    "![x](http://evil/x.png)",
    "`rm`",
    "line\nbreak",
    "line\r\n\r\n# break",
    "*bold* _it_ ~~no~~",
    "http://evil",
    "<http://evil>",
    "\\|",
    "&lt;b&gt;",
    "",
    "собака 犬",
]
MARKUP = {
    "html_inline",
    "html_block",
    "link_open",
    "image",
    "code_inline",
    "em_open",
    "strong_open",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_class_is_no_markup(name: str) -> None:
    classes = {0: "dog", 3: name, 4: "rain"}
    card = model_card(REPO, record(), state(), summary(classes=classes))
    plain = model_card(REPO, record(), state(), summary(classes={0: "dog", 3: "cat", 4: "rain"}))
    assert table(card, "output") == [
        ["output", "label", "name"],
        ["0", "0", "dog"],
        ["1", "3", " ".join(name.split())],
        ["2", "4", "rain"],
    ]
    markup = [token.type for token in parsed(card) if token.type in MARKUP]
    assert markup == [token.type for token in parsed(plain) if token.type in MARKUP]
    assert eval_results(card) == eval_results(plain)


@pytest.mark.parametrize("name", [name for name in NAMES if name and "/" not in name])
def test_the_name_of_a_run_is_no_markup(name: str) -> None:
    changed = replace(record(), run_name=name)
    card, plain = (model_card(REPO, each, state(), summary()) for each in (changed, record()))
    markup = [token.type for token in parsed(card) if token.type in MARKUP]
    assert markup == [token.type for token in parsed(plain) if token.type in MARKUP]
    title = next(after for token, after in pairwise(parsed(card)) if token.tag == "h1")
    assert "".join(each.content for each in title.children or []) == " ".join(name.split())

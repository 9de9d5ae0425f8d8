from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from raykfold.data.leakage import Contradictions, Leakage, Pair, Twins
from raykfold.training.results import (
    BEST_EPOCHS,
    ByRecording,
    EpochMetrics,
    FoldResult,
    Histogram,
    OutOfFoldMetrics,
    PartialMean,
    RecordingsOfFold,
    Repeats,
    Round,
    Summary,
    monitor_of,
)
from raykfold.training.statistics import ClassMetrics, Estimate, sample_std, spread


def epoch(number: int, val_accuracy: float) -> EpochMetrics:
    return EpochMetrics(
        epoch=number,
        loss=1.0,
        accuracy=0.5,
        val_loss=1.0,
        val_accuracy=val_accuracy,
        learning_rate=0.001,
        seconds=1.0,
    )


def fold(label: int, accuracies: list[float]) -> FoldResult:
    history = tuple(epoch(number, value) for number, value in enumerate(accuracies))
    return FoldResult.of(label, "complete", 80, 20, history)


def failed(label: int, accuracies: list[float]) -> FoldResult:
    history = tuple(epoch(number, value) for number, value in enumerate(accuracies))
    return FoldResult.of(label, "failed", 80, 20, history, error="no")


def summary(*folds: FoldResult) -> Summary:
    return Summary("run", folds, None, {0: "a", 1: "b"}, wall_seconds=1.0, num_workers=2)


def test_means_are_over_best_and_over_last_epochs() -> None:
    whole = summary(fold(1, [0.2, 0.8, 0.6]), fold(2, [0.5, 0.4]), fold(4, [0.9]))
    best, last = [0.8, 0.5, 0.9], [0.6, 0.4, 0.9]
    assert whole.status == "complete"
    assert whole.mean_accuracy == pytest.approx(np.mean(best))
    assert whole.std_accuracy == pytest.approx(np.std(best))
    values = whole.to_json()
    assert values["std_accuracy_sample"] == pytest.approx(np.std(best, ddof=1))
    assert values["last_mean_accuracy"] == pytest.approx(np.mean(last))
    assert values["last_std_accuracy"] == pytest.approx(np.std(last))
    assert whole.partial_mean is None


def test_a_partial_run_reports_no_mean_but_says_over_which_folds_one_would_be() -> None:
    part = summary(fold(1, [0.8]), failed(2, [0.1]), fold(3, [0.6]))
    assert part.status == "partial"
    values = part.to_json()
    for name in ("mean", "std", "last_mean", "last_std"):
        assert values[f"{name}_accuracy"] is None
    assert values["std_accuracy_sample"] is None
    assert values["partial_mean_accuracy"] == {
        "folds": [1, 3],
        "epochs": "best",
        "mean": pytest.approx(0.7),
    }


def test_a_run_without_a_complete_fold_has_not_even_a_partial_mean() -> None:
    assert summary(failed(1, [])).partial_mean == PartialMean((), None)


def test_a_single_fold_has_no_sample_deviation() -> None:
    assert sample_std([0.5]) is None
    assert summary(fold(1, [0.5])).to_json()["std_accuracy_sample"] is None


def test_a_fold_survives_the_way_through_json() -> None:
    result = fold(3, [0.1, 0.7])
    assert FoldResult.from_json(result.to_json()) == result
    assert result.best_val_accuracy == 0.7
    assert result.last_val_accuracy == 0.7
    assert result.epochs_run == 2


def test_a_round_survives_the_way_through_ray_s_metrics() -> None:
    whole = Round(
        number=2,
        epochs={-1: epoch(0, 0.1), 3: epoch(1, 0.7)},
        finished={3: fold(3, [0.1, 0.7])},
        failed={4: "no"},
        released=(5, 6),
        handed_over=(5,),
        saved=(-1,),
        histograms={3: {"weights/fc.bias": Histogram((1, 2), (0.0, 0.5, 1.0))}},
    )
    assert Round.from_metrics(whole.to_metrics()) == whole


# --- doubts ------------------------------------------------------------------------------------


def chosen(label: int, accuracies: list[float], inner: list[float]) -> FoldResult:
    history = [
        replace(epoch(number, value), inner_loss=1.0, inner_accuracy=other)
        for number, (value, other) in enumerate(zip(accuracies, inner, strict=True))
    ]
    return FoldResult.of(label, "complete", 60, 20, history)


def test_the_epoch_of_an_inner_split_is_the_one_that_is_kept() -> None:
    result = chosen(1, [0.2, 0.8, 0.6], [0.1, 0.3, 0.5])
    assert (result.best_epoch, result.chosen_epoch, result.kept_epoch) == (1, 2, 2)
    assert (result.best_val_accuracy, result.kept_val_accuracy) == (0.8, 0.6)
    without = FoldResult.of(1, "complete", 80, 20, fold(1, [0.2, 0.8, 0.6]).history)
    assert (without.best_epoch, without.chosen_epoch, without.kept_epoch) == (1, None, 1)


def test_each_mean_has_its_interval_and_says_which_it_is() -> None:
    folds = (chosen(1, [0.2, 0.8, 0.6], [0.1, 0.3, 0.5]), chosen(2, [0.7, 0.5], [0.2, 0.1]))
    values = replace(summary(*folds), select="inner").to_json()
    found = {name: each["mean"] for name, each in values["estimates"].items()}
    assert found == pytest.approx({"best": 0.75, "last": 0.55, "chosen": 0.65})
    for name, accuracies in (("best", [0.8, 0.7]), ("last", [0.6, 0.5]), ("chosen", [0.6, 0.7])):
        assert values["estimates"][name] == Estimate(tuple(accuracies), 20 / 60).to_json()
    assert (values["worst_fold"], values["best_fold"]) == (1, 2)
    assert [row["chosen_epoch"] for row in values["folds"]] == [2, 0]


def test_of_equals_on_an_inner_split_the_lowest_loss_is_kept() -> None:
    history = [
        replace(epoch(n, 0.5), inner_loss=loss, inner_accuracy=0.75)
        for n, loss in enumerate((0.9, 0.7, 0.8))
    ]
    assert FoldResult.of(1, "complete", 60, 20, history).kept_epoch == 1


def test_a_partial_run_has_no_estimates() -> None:
    assert summary(fold(1, [0.8]), failed(2, [0.1])).to_json()["estimates"] == {}


def test_repeats_are_in_the_means_and_apart_in_the_spread() -> None:
    rows = [[0.8, 0.6, 0.7], [0.9, 0.5, 0.7]]
    first, second = (
        tuple(fold(label, [x]) for label, x in enumerate(row, start=1)) for row in rows
    )
    repeated = replace(summary(*first), repeats=Repeats((3, 4), (first, second)))
    values = repeated.to_json()
    assert values["mean_accuracy"] == pytest.approx(0.7)
    folds = np.mean(rows, axis=0)
    known = Estimate(tuple(folds.tolist()), 20 / 80)
    assert values["estimates"]["best"]["std_error"] == pytest.approx(known.std_error)
    assert values["std_accuracy"] == pytest.approx(np.std(folds))
    assert values["repeats"]["seeds"] == [3, 4]
    assert values["repeats"]["spread"] == asdict(spread(rows))
    assert values["repeats"]["folds"][0] == values["folds"]
    assert (values["worst_fold"], values["best_fold"]) == (2, 1)


def test_the_mean_over_folds_of_one_size_is_the_pooled_accuracy_to_the_digit() -> None:
    right = [48, 46, 52, 55, 52]  # of 160 each; summed and divided they miss it by one bit
    values = summary(*(fold(label, [n / 160]) for label, n in enumerate(right))).to_json()
    assert values["mean_accuracy"] == sum(right) / 800


def test_folds_that_are_equally_good_have_no_best_and_no_worst() -> None:
    values = summary(fold(1, [0.8]), fold(2, [0.8])).to_json()
    assert values["worst_fold"] is values["best_fold"] is None


def test_a_repeat_that_failed_leaves_no_mean_of_the_whole() -> None:
    whole = (fold(1, [0.8]), fold(2, [0.6]))
    broken = (fold(1, [0.7]), failed(2, [0.1]))
    repeated = replace(summary(*whole), repeats=Repeats((0, 1), (whole, broken)))
    assert repeated.status == "partial"
    values = repeated.to_json()
    assert values["mean_accuracy"] is values["repeats"]["spread"] is None
    assert values["partial_mean_accuracy"] == {
        "folds": [1],
        "epochs": "best",
        "mean": pytest.approx(0.75),
    }
    assert values["worst_fold"] is values["best_fold"] is None


def test_the_outlier_is_named() -> None:
    folds = [fold(label, [x]) for label, x in ((1, 0.9), (2, 0.91), (3, 0.2), (4, 0.89))]
    assert summary(*folds).to_json()["outlier_folds"] == [3]


# --- other figures than the accuracy -------------------------------------------------------------


def of_class(label: int, macro_f1s: Sequence[float], score: str = "val_macro_f1") -> FoldResult:
    """Return a fold whose accuracy falls; `score` names what chose its epoch."""
    rows = [
        replace(epoch(n, 0.9 - n / 10), val_balanced_accuracy=0.5, val_macro_f1=value, val_loss=n)
        for n, value in enumerate(macro_f1s)
    ]
    scored = [replace(each, val_score=getattr(each, score)) for each in rows]
    return FoldResult.of(label, "complete", 80, 20, scored)


def test_a_fold_has_each_figure_of_its_kept_epoch() -> None:
    result = of_class(1, [0.2, 0.6, 0.4])
    assert (result.kept_epoch, result.figure("accuracy")) == (1, 0.8)
    assert (result.figure("balanced_accuracy"), result.figure("macro_f1")) == (0.5, 0.6)
    assert FoldResult.from_json(result.to_json()) == result


def test_the_headline_is_the_figure_that_is_monitored() -> None:
    folds = of_class(1, [0.2, 0.6]), of_class(2, [0.4, 0.3])
    given = replace(summary(*folds), monitor="macro_f1")
    assert (given.headline, given.other_figures) == ("macro_f1", ["accuracy", "balanced_accuracy"])
    assert given.over_folds("macro_f1") == given.macro_f1 == Estimate((0.6, 0.4), 20 / 80)
    assert given.balanced_accuracy == Estimate((0.5, 0.5), 20 / 80)
    assert given.over_folds("accuracy") == given.best == Estimate((0.8, 0.9), 20 / 80)
    values = given.to_json()
    assert values["mean_accuracy"] == pytest.approx(0.85)
    assert values["figures"]["macro_f1"] == Estimate((0.6, 0.4), 20 / 80).to_json()
    assert replace(given, monitor="loss").headline == "accuracy"
    assert replace(given, monitor="score").headline == "accuracy"


def test_figures_are_means_over_the_seeds() -> None:
    first, second = ((of_class(1, [a]), of_class(2, [b])) for a, b in ((0.2, 0.6), (0.4, 0.6)))
    given = replace(summary(*first), repeats=Repeats((0, 1), (first, second)))
    found = given.over_folds("macro_f1")
    assert found is not None and found.values == pytest.approx((0.3, 0.6))


def test_a_run_without_a_complete_fold_has_no_figures() -> None:
    assert summary(of_class(1, [0.2]), failed(2, [0.1])).to_json()["figures"] == {}


def test_the_histories_show_a_recipe_with_a_score_of_its_own() -> None:
    folds = [of_class(1, [0.2, 0.6]), of_class(2, [0.4, 0.3])]
    assert monitor_of("macro_f1", folds) == "macro_f1"
    assert monitor_of("accuracy", folds) == monitor_of("loss", folds) == "score"
    assert monitor_of("accuracy", [fold(1, [0.2, 0.8])]) == "accuracy"
    by_loss = replace(epoch(0, 0.5), val_loss=0.7, val_score=-0.7)
    assert monitor_of("loss", [FoldResult.of(1, "complete", 80, 20, [by_loss])]) == "loss"


def test_a_summary_without_the_figure_that_is_monitored_is_refused() -> None:
    content = summary(fold(1, [0.8]), fold(2, [0.7])).to_json() | {"monitor": "macro_f1"}
    with pytest.raises(ValueError, match="fold 1 is complete and has no macro_f1"):
        Summary.from_json(content)


# --- summary.json --------------------------------------------------------------------------------


def summaries() -> Iterator[Summary]:
    """Of every kind: complete, partial, one fold, an inner split, repeats."""
    whole = summary(fold(1, [0.2, 0.8, 0.6]), fold(2, [0.5, 0.4]), fold(4, [0.9]))
    pooled = OutOfFoldMetrics(
        accuracy=0.7,
        interval=(0.6, 0.8),
        classes=(ClassMetrics(0, "a", None, 0.5, 0.6, 9), ClassMetrics(1, "b", 0.1, None, None, 0)),
        confusion=((1, 2), (3, 4)),
    )
    twins = Twins(7, 3, Pair((1, 2), (1, 3)))
    contradictions = Contradictions(2, 1, Pair((1, 2), (1, 1)), ("a", "b"))
    leakage = Leakage(240, twins, Twins(), Twins(2, 1), 233, contradictions)
    yield replace(whole, out_of_fold=pooled, leakage=leakage, versions={"torch": "2.9"}, sessions=3)
    yield summary(fold(1, [0.8]), failed(2, [0.1]), failed(3, []))
    yield summary(fold(1, [0.5]))
    folds = (chosen(1, [0.2, 0.8, 0.6], [0.1, 0.3, 0.5]), chosen(2, [0.7, 0.5], [0.2, 0.1]))
    yield replace(summary(*folds), select="inner")
    yield replace(whole, repeats=Repeats((3, 4), (whole.folds, whole.folds)))
    rows = tuple(RecordingsOfFold(label, 7, 0.5 + label / 10, 0.25, 0.5) for label in (1, 2, 4))
    yield replace(whole, out_of_fold=pooled, by_recording=ByRecording(rows, pooled))
    part = summary(fold(1, [0.8]), failed(2, [0.1]))
    yield replace(part, by_recording=ByRecording(rows[:1], None))
    monitored = of_class(1, [0.2, 0.6]), of_class(2, [0.4, 0.3])
    yield replace(summary(*monitored), monitor="macro_f1", out_of_fold=pooled)


@pytest.mark.parametrize("given", list(summaries()))
def test_a_summary_survives_the_way_through_its_file(given: Summary) -> None:
    content = json.loads(json.dumps(given.to_json()))
    read = Summary.from_json(content)

    def without_histories(folds: tuple[FoldResult, ...]) -> tuple[FoldResult, ...]:
        return tuple(replace(each, history=()) for each in folds)

    repeats = given.repeats
    if repeats is not None:
        repeats = replace(repeats, folds=tuple(map(without_histories, repeats.folds)))
    assert read == replace(given, folds=without_histories(given.folds), repeats=repeats)
    assert json.loads(json.dumps(read.to_json())) == content


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"run_name": None}, "run_name is None"),
        ({"folds": []}, "it has no folds"),
        ({"folds": [[]]}, "folds[0] is []"),
        ({"classes": {"a": "b"}}, "invalid literal"),
        ({"num_workers": "2"}, "num_workers is '2'"),
        ({"wall_seconds": True}, "wall_seconds is True"),
        ({"select": "both"}, "select is 'both'"),
        ({"oof_accuracy": "high"}, "oof_accuracy is 'high'"),
        ({"oof_accuracy": 0.5}, "oof_interval is None"),
        (
            {
                "oof_accuracy": 0.5,
                "oof_interval": [0.4, 0.6],
                "per_class": [],
                "confusion_matrix": [[1, 2]],
            },
            "confusion_matrix is not square",
        ),
        ({"monitor": "f1"}, "monitor is 'f1'"),
        ({"repeats": {"seeds": [1], "folds": []}}, "repeats"),
        ({"leakage": {"samples": 3}}, "leakage has no identical"),
    ],
)
def test_a_summary_that_was_changed_is_refused(changes: dict[str, Any], named: str) -> None:
    content = summary(fold(1, [0.8]), fold(2, [0.7])).to_json() | changes
    with pytest.raises(ValueError, match=re.escape(named)):
        Summary.from_json(content)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("fold", 7.5, "folds[1].fold is 7.5"),
        ("status", "done", "folds[1].status is 'done'"),
        ("n_train", 0, "fold 2 has no samples"),
        ("n_val", None, "folds[1].n_val is None"),
        ("best_val_accuracy", "0.8", "folds[1].best_val_accuracy is '0.8'"),
        ("best_val_accuracy", None, "fold 2 is complete and has no accuracy"),
        ("last_val_accuracy", None, "fold 2 is complete and has no accuracy"),
        ("stopped_early", 1, "folds[1].stopped_early is 1"),
        ("error", [], "folds[1].error is []"),
    ],
)
def test_a_fold_that_was_changed_is_refused(name: str, value: Any, named: str) -> None:
    content = summary(fold(1, [0.8]), fold(2, [0.7])).to_json()
    content["folds"][1][name] = value
    with pytest.raises(ValueError, match=re.escape(named)):
        Summary.from_json(content)


def test_results_by_recording_are_in_the_file_only_where_there_are_any() -> None:
    given = summary(fold(1, [0.8]), fold(2, [0.6]))
    assert "by_recording" not in given.to_json()
    rows = RecordingsOfFold(1, 3, 1.0, 1.0, 1.0), RecordingsOfFold(2, 5, 0.8, 0.7, 0.6)
    pooled = OutOfFoldMetrics(0.875, (0.5, 0.9), ())
    content = replace(given, by_recording=ByRecording(rows, pooled)).to_json()
    known = Estimate((1.0, 0.8), 20 / 80)
    assert content["by_recording"]["figures"]["accuracy"] == known.to_json()
    assert content["by_recording"]["recordings"] == 8
    assert content["mean_accuracy"] == pytest.approx(0.7)  # by window
    for changed, named in (
        ({"folds": content["by_recording"]["folds"][:1]}, "by_recording has other folds"),
        ({"folds": [{"fold": 1}]}, "by_recording.folds[0] has no recordings"),
        ({"pooled": {}}, "by_recording.pooled has no accuracy"),
        (
            {"pooled": content["by_recording"]["pooled"] | {"confusion": [[0, 0], [0, 0]]}},
            "confusion_matrix is not square, or has no samples",
        ),
    ):
        by_recording = content["by_recording"] | changed
        with pytest.raises(ValueError, match=re.escape(named)):
            Summary.from_json(content | {"by_recording": by_recording})


def test_windows_of_few_recordings_do_not_make_an_outlier() -> None:
    results = [fold(label, [x]) for label, x in ((1, 0.9), (2, 0.91), (3, 0.6), (4, 0.89))]
    given = summary(*results)
    assert given.outlier_folds == [3]
    rows = tuple(RecordingsOfFold(label, 1, 1.0, 1.0, 1.0) for label in range(1, 5))
    assert replace(given, by_recording=ByRecording(rows, None)).outlier_folds == []


@pytest.mark.parametrize("content", [[], "x", {}, {"status": "complete"}])
def test_what_is_no_summary_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match=r"it (is not an object|has no run_name)"):
        Summary.from_json(content)


# --- in a notebook -------------------------------------------------------------------------------


def windows() -> Summary:
    """Of windows of recordings, with one fold that ended early."""
    folds = replace(fold(1, [0.2, 0.8, 0.6]), stopped_early=True), fold(2, [0.5, 0.4])
    rows = RecordingsOfFold(1, 3, 0.875, 1.0, 1.0), RecordingsOfFold(2, 5, 0.75, 0.7, 0.6)
    return replace(
        summary(*folds), by_recording=ByRecording(rows, OutOfFoldMetrics(0.8, (0.5, 0.9), ()))
    )


def test_a_notebook_shows_the_means_the_folds_and_their_curves() -> None:
    page = windows()._repr_html_()
    assert "accuracy at the best epochs 0.6500 ± 0.1500" in page and BEST_EPOCHS in page
    assert "by recording 0.8125 ± 0.0625" in page
    assert "accuracy at the last epochs 0.5000 ± 0.1000" in page
    rows = [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", page)]
    assert rows[0] == [
        *("fold", "status", "epochs", "best epoch", "accuracy", "of last"),
        *("balanced", "macro F1", "by recording"),
    ]
    assert rows[1:] == [
        ["1", "complete (early)", "3", "2", "0.8000", "0.6000", "-", "-", "0.8750"],
        ["2", "complete", "2", "1", "0.5000", "0.4000", "-", "-", "0.7500"],
    ]
    drawing = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    lines = [each.get("points", "").split() for each in drawing.iter("polyline")]
    assert [len(line) for line in lines] == [3, 2]
    heights = [float(point.split(",")[1]) for point in lines[0]]
    assert heights[0] > heights[2] > heights[1]  # y counts from the top
    marked = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in drawing.iter("circle")]
    assert f"{marked[0][0]:.1f},{marked[0][1]:.1f}" == lines[0][1]


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1.0], [0.3, 0.95], [0.499, 0.5]])
def test_curves_of_any_values_lie_within_their_axes(values: list[float]) -> None:
    page = summary(fold(1, values))._repr_html_()
    drawing = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    (line,) = drawing.iter("polyline")
    for point in line.get("points", "").split():
        x, y = map(float, point.split(","))
        assert 0 < x < 520 and 20 < y < 210


def test_what_a_notebook_shows_of_a_partial_run_is_no_mean() -> None:
    broken = replace(failed(2, [0.1]), error="<b>out of memory</b>")
    page = replace(summary(fold(1, [0.8]), broken), run_name="<script>")._repr_html_()
    assert "no mean, because folds failed (fold 2)" in page and "±" not in page
    assert "failed: &lt;b&gt;out of memory" in page and "<script>" not in page
    assert "<svg" not in summary(failed(1, []))._repr_html_()  # as of a file, without histories


def test_a_frame_has_a_row_for_each_fold_and_seed() -> None:
    frame = windows().to_frame()
    assert list(frame.columns) == [
        *("fold", "status", "n_train", "n_val", "epochs_run", "kept_epoch", "kept_val_accuracy"),
        *("best_epoch", "best_val_accuracy", "last_val_accuracy", "kept_val_balanced_accuracy"),
        *("kept_val_macro_f1", "stopped_early", "error"),
        *("recordings", "kept_val_accuracy_by_recording"),
    ]
    assert frame["kept_val_accuracy"].tolist() == [0.8, 0.5]
    assert frame["kept_val_accuracy_by_recording"].tolist() == [0.875, 0.75]
    first, second = (fold(1, [0.8]), fold(2, [0.6])), (fold(1, [0.7]), fold(2, [0.5]))
    repeated = replace(summary(*first), repeats=Repeats((3, 4), (first, second))).to_frame()
    assert repeated["seed"].tolist() == [3, 3, 4, 4]
    assert repeated["last_val_accuracy"].tolist() == [0.8, 0.6, 0.7, 0.5]
    assert "recordings" not in repeated


def test_without_pandas_there_is_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs pandas, which is not installed"):
        windows().to_frame()

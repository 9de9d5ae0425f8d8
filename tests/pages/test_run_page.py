"""The page of a run: what it says, and how it looks in a browser."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.chromium import PROGRAM, Chromium, Tab
from support.page_run import (
    CREATED,
    EPOCHS,
    NAMES,
    begin,
    finish,
    go_on,
    page_of,
    predictions_of,
    summary_of,
    text_of,
)
from support.small_data import shaped_data, small_arrays

from raykfold.config.run_config import RunConfig
from raykfold.data.feature_set import FeatureSet
from raykfold.data.leakage import Contradictions, Leakage, Pair, Twins
from raykfold.observers import Audience, Observer, RunStart
from raykfold.outputs.model_card import model_card
from raykfold.pages import remarks
from raykfold.pages.run_page import Reporter, plots, report, write_report
from raykfold.pages.summary_text import summary_lines
from raykfold.state.archive import open_run
from raykfold.state.heartbeat import Heartbeat
from raykfold.state.record import RunRecord, identity
from raykfold.training.results import FoldResult, Summary


@pytest.fixture(scope="module")
def data() -> FeatureSet:
    return FeatureSet.from_arrays(*small_arrays(), class_mapping=NAMES)


@pytest.fixture
def config(tmp_path: Path, data: FeatureSet) -> RunConfig:
    return finish(tmp_path / "out", data)


# --- what it says ----------------------------------------------------------------------------


def test_the_same_run_gives_the_same_bytes(config: RunConfig, data: FeatureSet) -> None:
    archive = open_run(config.model_path)
    assert report(archive, data) == report(open_run(config.model_path), data)
    assert plots(archive) == plots(open_run(config.model_path))


def test_the_page_and_its_pictures_lie_with_the_outputs(
    config: RunConfig, data: FeatureSet
) -> None:
    archive = open_run(config.model_path)
    config.outputs.plots.mkdir()
    of_the_user = config.outputs.plots / "my own.png"
    of_the_user.write_bytes(b"a picture")
    assert write_report(archive, config.outputs, data) == config.outputs.report
    assert config.outputs.report.read_text(encoding="utf-8") == report(archive, data)
    names = [file.name for file in config.outputs.all_plots()]
    assert sorted(names) == ["classes.png", "confusion.png", "curves.png", "folds.png"]
    assert of_the_user.exists()
    for file in config.outputs.all_plots():
        assert file.read_bytes().startswith(b"\x89PNG")
    assert {config.outputs.report, config.outputs.plots} <= set(config.outputs.outputs())


def test_one_fold_has_no_spread(config: RunConfig) -> None:
    summary = summary_of(config)
    one = [row for row in summary["folds"] if row["fold"] == 2]
    config.outputs.summary.write_text(json.dumps({**summary, "folds": one}), encoding="utf-8")
    page = page_of(config)
    assert "on the one fold held out, at its best epoch" in text_of(page)
    assert "±" not in page and 'class="badge' not in page


def test_the_figures_of_each_class_are_there_to_read(config: RunConfig) -> None:
    text = " ".join(text_of(page_of(config)).split())
    for each in summary_of(config)["per_class"]:
        figures = " ".join(
            "-" if each[name] is None else f"{each[name]:.4f}"
            for name in ("precision", "recall", "f1")
        )
        assert f"{figures} {each['support']}" in text


def test_the_best_epoch_is_called_optimistic_and_the_last_stands_beside_it(
    config: RunConfig,
) -> None:
    text, summary = text_of(page_of(config)), summary_of(config)
    assert remarks.BEST_EPOCHS in text
    for mean, std in (
        ("mean_accuracy", "std_accuracy"),
        ("last_mean_accuracy", "last_std_accuracy"),
    ):
        assert f"{summary[mean]:.4f} ± {summary[std]:.4f}" in text
    assert "approximate" in text


def test_the_figure_that_is_monitored_comes_first(tmp_path: Path, data: FeatureSet) -> None:
    config = finish(tmp_path / "out", data, monitor="macro_f1")
    page, summary = page_of(config), summary_of(config)
    known = summary["figures"]["macro_f1"]
    result = re.search('<p class="result">(.*?)</p>', page)
    assert result is not None
    assert text_of(result[1]) == f"{known['mean']:.4f} ± {known['std']:.4f}"
    text = text_of(page)
    assert "Macro F1 on the folds held out: mean ± standard deviation over 5 folds" in text
    assert f"Accuracy {summary['mean_accuracy']:.4f} ± {summary['std_accuracy']:.4f} at" in text
    assert "at the best epoch, that of the highest macro F1, and" in text
    assert remarks.on_monitor("macro_f1") in text and remarks.BEST_EPOCHS in text
    assert "Validation macro F1 after each epoch" in page
    assert "The badges go by the accuracy." in text


def test_the_settings_show_what_a_preset_stood_for(tmp_path: Path, data: FeatureSet) -> None:
    text = text_of(page_of(begin(tmp_path / "out", data, preset="strong", mixup=0)))
    own, others = text.split("Settings that are not the default")[1].split("The other settings")
    assert "preset strong early_stopping_patience 50 optimizer adamw weight_decay 0.01" in own
    assert "mixup 0.0" in own and "spec_augment 8,8" in own
    assert "grad_clip" not in own and "grad_clip 0.0" in others


def test_what_an_inner_split_chose_comes_first(tmp_path: Path, data: FeatureSet) -> None:
    config = finish(tmp_path / "out", data, select="inner")
    page, summary = page_of(config), summary_of(config)
    chosen = summary["estimates"]["chosen"]
    result = re.search('<p class="result">(.*?)</p>', page)
    assert result is not None
    assert text_of(result[1]) == f"{chosen['mean']:.4f} ± {chosen['std']:.4f}"
    text = text_of(page)
    assert remarks.CHOSEN_EPOCHS in text and remarks.BEST_EPOCHS in text
    assert f"{summary['mean_accuracy']:.4f} ± {summary['std_accuracy']:.4f}" in text


def test_twins_in_other_folds_are_named(tmp_path: Path, data: FeatureSet) -> None:
    both = Contradictions(2, 2, Pair((1, 6), (1, 1)), ("dog", "<cat>"))
    found = Leakage(240, Twins(7, 3, Pair((1, 2), (1, 3))), Twins(), Twins(2, 1), 233, both)
    text = text_of(page_of(finish(tmp_path / "out", data, leakage=found)))
    assert "Leakage: 7 of 240 samples are identical to a sample of another fold" in text
    twins = "7 identical, 0 constant, of 240 samples; 2 near-identical, of 233 compared"
    assert f"twins in other folds {twins}" in text
    assert "Labels: 2 of 240 samples have an identical or near-identical twin" in text
    assert "sample 6 in fold 1 (&lt;cat&gt;)" in text
    assert "twins with another label 2" in text


def test_names_of_folds_are_shown(tmp_path: Path, data: FeatureSet) -> None:
    config = finish(tmp_path / "out", data)
    assert "names of folds" not in text_of(page_of(config, data))
    named = replace(data, fold_names={1: "ann", 3: "<cy>"})
    assert "names of folds 1 (ann), 2, 3 (&lt;cy&gt;), 4, 5" in text_of(page_of(config, named))


def test_classes_without_samples_are_named(tmp_path: Path) -> None:
    features, labels, folds = small_arrays()
    data = FeatureSet.from_arrays(
        features, labels, folds, class_mapping={**NAMES, 9: "<never recorded>"}
    )
    config = finish(tmp_path / "out", data)
    assert "No held-out sample is of &lt;never recorded&gt;." in text_of(page_of(config))
    assert "No sample in any fold is of" in text_of(page_of(config, data))


def test_a_partial_run_has_no_mean_and_names_what_failed(tmp_path: Path, data: FeatureSet) -> None:
    config = finish(tmp_path / "out", data, failed={3: "<b>out of memory</b> & more"})
    page = page_of(config)
    text, summary = text_of(page), summary_of(config)
    assert re.search('<p class="result">Partial</p>', page)
    assert "4 of 5 folds are complete, so there is no mean" in text
    alone = summary["partial_mean_accuracy"]
    assert f"Over folds 1, 2, 4, 5 alone it would be {alone['mean']:.4f}" in text
    assert "Fold 3 failed: &lt;b&gt;out of memory&lt;/b&gt; &amp; more" in text
    assert "192 held-out samples of the complete folds alone (1, 2, 4, 5)" in text
    assert " ± " not in text


def test_a_run_in_training_shows_how_far_it_is(tmp_path: Path, data: FeatureSet) -> None:
    config = go_on(tmp_path / "out", data)
    page = page_of(config, data)
    text = text_of(page)
    assert re.search('<p class="result">In training</p>', page)
    assert "1 of 5 folds are complete; 11 epochs trained, of at most 6 a fold" in text
    assert "1 0.5100 0.4300 0.4100 0.3100 4 5 complete, stopped early 192 48" in text
    assert "2 0.5200 0.4400 0.4200 0.3200 2 3 running 192 48" in text
    assert "4 - - - - - 0 waiting - -" in text
    assert " ± " not in text
    assert set(plots(open_run(config.model_path))) == {"curves", "folds"}


def test_folds_of_all_seeds_count_while_they_train(tmp_path: Path, data: FeatureSet) -> None:
    config = go_on(tmp_path / "out", data, repeats=2)
    repeat = config.repeat(1)
    known = identity(repeat, data.fingerprint, "cpu x1", "fp32")
    RunRecord.of(repeat, known, CREATED, data.fold_labels).write(repeat)
    heartbeat = Heartbeat(repeat.run_dir, repeat.command(), dict)
    heartbeat.run_started(RunStart("sounds-seed-1", EPOCHS, data.fold_labels, {}))
    heartbeat.fold_finished(FoldResult.of(2, "failed", 192, 48, error="out of memory"))
    heartbeat.close()
    text = text_of(page_of(config))
    assert "1 of 10 folds are complete" in text
    assert "Fold 2 with seed 1 failed: out of memory" in text and "Last failure" not in text
    assert "Accuracy on the held-out samples, seed 0, at the best epoch" in text


def test_only_its_script_or_notebook_resumes_a_class_of_its_own(
    tmp_path: Path, data: FeatureSet
) -> None:
    page = page_of(begin(tmp_path / "out", data, model="__main__:Net"))
    assert "To start or resume it: run its script, or the cell of its notebook, again." in page
    assert "<pre><code>" not in page and "-m raykfold.run" not in page


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path, data: FeatureSet) -> None:
    config = begin(tmp_path / "out", data)
    text = text_of(page_of(config))
    assert "In training" in text and "0 of 5 folds are complete; 0 epochs" in text
    assert plots(open_run(config.model_path)) == {}


def test_repeats_are_told_apart(tmp_path: Path, data: FeatureSet) -> None:
    text = text_of(page_of(finish(tmp_path / "out", data, seeds=(0, 1, 2))))
    assert "over 5 folds with each of 3 seeds" in text
    assert "The cross-validation was run with 3 seeds; the table above" in text
    assert "pictures are of seed 0. The accuracy of a fold is its mean over 3 seeds" in text
    assert "15 of 15" in text


def test_the_most_confident_mistakes_are_shown(config: RunConfig, data: FeatureSet) -> None:
    samples = predictions_of(config)
    wrong = np.flatnonzero(samples.label != samples.prediction)
    confidence = samples.probabilities.max(axis=1)
    first = wrong[np.argsort(-confidence[wrong], kind="stable")][:12]
    page = page_of(config, data)
    shown = re.findall(r"probability ([\d.]+)<br>.*?fold (\d+), sample (\d+)<", page)
    assert shown == [
        (f"{confidence[each]:.4f}", str(samples.fold[each]), str(samples.index[each]))
        for each in first
    ]
    assert len(re.findall('src="data:image/png;base64,', page)) == 12
    assert f"{len(wrong)} held-out samples were taken for something else" in page


def test_without_the_data_there_are_no_pictures_of_samples(config: RunConfig) -> None:
    page = page_of(config)
    assert "data:image/png" not in page
    assert "Pictures of them are left out: the data was not at hand (--processed_dir" in page


@pytest.mark.parametrize(
    ("kind", "picture"), [("embeddings", None), ("images", "image"), ("waveforms", "waveform")]
)
def test_mistakes_of_any_shape_are_shown(tmp_path: Path, kind: str, picture: str | None) -> None:
    shaped = shaped_data(kind)
    page = page_of(finish(tmp_path / "out", shaped), shaped)
    images = re.findall(r'<img class="(\w+)" src="data:image/png;base64,[^"]+" alt="(\w+) of', page)
    assert images == ([] if picture is None else [(picture, picture.capitalize())] * 12)
    assert len(re.findall(r"probability [\d.]+<br>", page)) == 12
    shown = f"samples 120 features of a sample {shaped.sample_shape}, {shaped.features.dtype}"
    assert shown in text_of(page)
    assert "pectrogram" not in page


def test_what_was_run_is_told(config: RunConfig, data: FeatureSet) -> None:
    text = text_of(page_of(config, data))
    assert f"python -m raykfold.run --epochs 6 --model_dir {config.model_dir}" in text
    assert f"fingerprint of the data {data.fingerprint}" in text
    assert "started 2026-01-02 03:04:05" in text
    assert "wall time 5 min 05 s resumed 2 times workers at once, at most 2" in text
    assert "device cpu x1 precision fp32" in text
    assert "torch 2.13.0" in text


def test_settings_that_this_version_does_not_know_are_shown(config: RunConfig) -> None:
    record = json.loads(config.outputs.run_record.read_bytes())
    record["config"]["of_the_future"] = "<yes>"
    config.outputs.run_record.write_text(json.dumps(record))
    text = text_of(page_of(config))
    assert "of_the_future &lt;yes&gt;" in text
    assert "python -m raykfold.run" not in text


@pytest.mark.parametrize(("folds", "classes"), [(10, 50), (100, 10)])
def test_a_large_run_is_a_page_of_a_sensible_size(tmp_path: Path, folds: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % classes
    data = FeatureSet.from_arrays(
        rng.normal(size=(2000, 16, 8)).astype(np.float32), labels, np.arange(2000) // 7 % folds
    )
    config = finish(tmp_path / "out", data)
    page = page_of(config, data)
    assert len(page.encode()) < 3_000_000
    assert page.count('<th scope="row">') >= folds


# --- in a run --------------------------------------------------------------------------------


class Notes(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def noticed(self, text: str) -> None:
        self.lines.append(text)


def summary_now(config: RunConfig) -> Summary:
    return Summary(config.run_name, (), None, {}, 1.0, 1)


def test_the_page_is_made_when_the_run_is_over(config: RunConfig, data: FeatureSet) -> None:
    Reporter(config, data).run_finished(summary_now(config))
    assert config.outputs.report.read_text(encoding="utf-8") == page_of(config, data)


def test_a_page_that_cannot_be_made_fails_no_run(config: RunConfig, data: FeatureSet) -> None:
    config.outputs.predictions.write_bytes(b"damaged")
    notes = Notes()
    Audience([notes, Reporter(config, data)]).run_finished(summary_now(config))
    assert len(notes.lines) == 1 and notes.lines[0].startswith("Reporter failed")
    assert not config.outputs.report.exists()


def test_a_page_that_cannot_be_written_fails_no_run(config: RunConfig, data: FeatureSet) -> None:
    config.outputs.report.mkdir()
    notes = Notes()
    Audience([notes, Reporter(config, data)]).run_finished(summary_now(config))
    assert len(notes.lines) == 1 and "report.html: cannot be written" in notes.lines[0]


def test_pictures_of_a_page_before_that_is_out_of_date_go(
    config: RunConfig, data: FeatureSet
) -> None:
    write_report(open_run(config.model_path), config.outputs, data)
    config.outputs.predictions.unlink()
    write_report(open_run(config.model_path), config.outputs, data)
    assert [file.name for file in config.outputs.all_plots()] == [
        *("curves.png", "folds.png", "classes.png"),
    ]


def test_predictions_of_an_earlier_session_are_not_those_of_one_that_trains(
    config: RunConfig,
) -> None:
    config.outputs.summary.unlink()
    text = text_of(page_of(config))
    assert "In training" in text and "Confusion" not in text


def test_the_start_of_a_run_does_not_wait_for_what_draws() -> None:
    script = "import raykfold.driver, sys; assert not {'matplotlib', 'jinja2'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_run_whose_driver_has_gone_is_said_to_be_stopped(
    tmp_path: Path, data: FeatureSet, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finish(tmp_path / "out", data)
    config.outputs.summary.unlink()
    heartbeat = Heartbeat(config.run_dir, config.command(), dict)
    heartbeat.run_started(RunStart("sounds", 6, (1, 2), {}))
    heartbeat.close()
    text = text_of(page_of(config))
    assert "Stopped" in text and "“What was run”, below, says how to resume it" in text
    assert "status stopped" in text and "n training" not in text


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if PROGRAM is None:
        pytest.skip("no Chromium here (Debian's package chromium)")
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, data: FeatureSet) -> RunConfig:
    """A run whose page is there."""
    config = finish(tmp_path_factory.mktemp("shown") / "out", data, model="<i>mine</i>:Net")
    write_report(open_run(config.model_path), config.outputs, data)
    return config


@pytest.fixture(scope="module")
def tab(browser: Chromium, shown: RunConfig) -> Tab:
    return browser.open(shown.outputs.report)


def quiet(tab: Tab, page: Path) -> bool:
    return (tab.requests, tab.complaints) == ([page.as_uri()], [])


def test_the_page_asks_for_nothing_and_complains_of_nothing(
    tab: Tab, browser: Chromium, shown: RunConfig
) -> None:
    assert quiet(tab, shown.outputs.report)
    assert quiet(browser.open(shown.outputs.report, dark=True), shown.outputs.report)
    assert tab.evaluate("document.scripts.length") == 0
    assert tab.evaluate("document.title") == "sounds - raykfold"


def test_its_figures_are_those_of_the_summary(tab: Tab, shown: RunConfig) -> None:
    summary = summary_of(shown)
    best, last = summary["estimates"]["best"], summary["estimates"]["last"]
    assert tab.texts(".result") == [f"{best['mean']:.4f} ± {best['std']:.4f}"]
    tiles = dict(zip(tab.texts(".tiles dt"), tab.texts(".tiles dd"), strict=True))

    def between(ends: Sequence[float]) -> str:
        return f"{ends[0]:.4f} to {ends[1]:.4f}"

    assert tiles["95 % interval, approximate"].startswith(between(best["interval"]))
    at_last = tiles["Accuracy at the last epoch"]
    assert at_last.startswith(f"{last['mean']:.4f} ± {last['std']:.4f}")
    assert between(last["interval"]) in at_last
    pooled = tiles["Accuracy out of fold, all samples pooled"]
    assert pooled.startswith(f"{summary['oof_accuracy']:.4f}")
    assert between(summary["oof_interval"]) in pooled
    for figure, name in (("balanced_accuracy", "Balanced accuracy"), ("macro_f1", "Macro F1")):
        known = summary["figures"][figure]
        assert tiles[name].startswith(f"{known['mean']:.4f} ± {known['std']:.4f}")
        assert tiles[f"{name} out of fold"].startswith(f"{summary[f'oof_{figure}']:.4f}")


def test_its_table_is_that_of_the_summary(tab: Tab, shown: RunConfig) -> None:
    summary = summary_of(shown)
    rows = tab.evaluate(
        "[...document.querySelectorAll('section[aria-labelledby=folds] tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.innerText))"
    )
    badges = {summary["best_fold"]: "best", summary["worst_fold"]: "worst"}
    assert rows == [
        [
            f"{row['fold']}{badges.get(row['fold'], '')}",
            f"{row['best_val_accuracy']:.4f}",
            f"{row['last_val_accuracy']:.4f}",
            f"{row['kept_val_balanced_accuracy']:.4f}",
            f"{row['kept_val_macro_f1']:.4f}",
            str(row["best_epoch"] + 1),
            str(row["epochs_run"]),
            "complete, stopped early" if row["stopped_early"] else "complete",
            *(str(row[name]) for name in ("n_train", "n_val")),
            "52 s" if row["fold"] == 1 else "1 min 03 s",
        ]
        for row in summary["folds"]
    ]


def test_its_confusion_matrix_is_that_of_the_predictions(tab: Tab, shown: RunConfig) -> None:
    samples = predictions_of(shown)
    labels = samples.classes.tolist()
    counts = [
        str(((samples.label == true) & (samples.prediction == predicted)).sum())
        for true in labels
        for predicted in labels
    ]
    found = tab.texts("svg[aria-label='Confusion matrix'] text")
    assert [text for text in found if text.isdecimal()] == [
        count for count in counts if count != "0"
    ]


def test_hostile_names_are_text(tab: Tab) -> None:
    for picture in ("Confusion matrix", "Precision, recall and F1 of each class"):
        found = tab.texts(f"svg[aria-label='{picture}'] text")
        assert {"$x^2$", "Bär & Söhne", "雨の音", "<script>al…1)</script>"} <= set(found)
    assert set(tab.texts(".mistakes .was")) <= set(NAMES.values())
    assert "<i>mine</i>:Net" in tab.texts("header")[0]
    assert tab.evaluate("document.querySelectorAll('main i, main script').length") == 0


def test_every_picture_is_described(tab: Tab) -> None:
    described = "e => (e.getAttribute('alt') || e.getAttribute('aria-label') || '').length > 10"
    assert tab.evaluate(f"[...document.querySelectorAll('svg, img')].every({described})")
    assert tab.evaluate("document.querySelectorAll('svg').length") == 5
    assert tab.evaluate("[...document.images].every(e => e.naturalWidth > 0)")


def test_dark_is_dark_in_the_pictures_too(browser: Chromium, tab: Tab, shown: RunConfig) -> None:
    dark = browser.open(shown.outputs.report, dark=True)

    def lightness(tab: Tab, selector: str, what: str) -> float:
        colour = tab.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765

    assert lightness(tab, "body", "backgroundColor") > 0.9
    assert lightness(dark, "body", "backgroundColor") < 0.2
    assert lightness(tab, "svg text", "fill") < 0.5 < lightness(dark, "svg text", "fill")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(
    browser: Chromium, shown: RunConfig, tmp_path: Path, dark: bool
) -> None:
    phone = browser.open(shown.outputs.report, width=360, dark=dark)
    assert phone.evaluate("innerWidth") == 360
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360


def test_many_folds_and_long_names_fit_a_phone_too(browser: Chromium, tmp_path: Path) -> None:
    features, _, _ = small_arrays()
    names = {label: f"{'Donaudampfschifffahrtsgesellschaft' * 3} {label}" for label in range(50)}
    data = FeatureSet.from_arrays(
        features, np.arange(240) % 50, np.arange(240) // 7 % 12, class_mapping=names
    )
    config = finish(
        tmp_path / "out", data, failed={3: "x" * 500}, seeds=(0, 1), run_name="long" * 30
    )
    page = write_report(open_run(config.model_path), config.outputs, data)
    phone = browser.open(page, width=360)
    assert quiet(phone, page)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360


def test_it_prints(tab: Tab) -> None:
    pdf = tab.pdf()
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 8


def test_a_run_in_training_is_shown(browser: Chromium, tmp_path: Path, data: FeatureSet) -> None:
    config = go_on(tmp_path / "out", data)
    page = write_report(open_run(config.model_path), config.outputs, data)
    tab = browser.open(page)
    assert quiet(tab, page)
    assert tab.texts(".result") == ["In training"]
    assert {"fold 1", "fold 2", "fold 3", "mean"} <= set(tab.texts("svg text"))


def test_spectrograms_are_those_of_the_samples(shown: RunConfig, data: FeatureSet) -> None:
    from raykfold.pages.run_figures import spectrogram

    page = shown.outputs.report.read_text(encoding="utf-8")
    images = re.findall(r'base64,([^"]+)"', page)
    samples = re.findall(r"sample (\d+)</span>", page)
    assert len(images) == len(samples) == 12
    for image, sample in zip(images, samples, strict=True):
        assert base64.b64decode(image) == spectrogram(data.features[int(sample)])


# --- by recording --------------------------------------------------------------------------------


def test_where_samples_are_windows_page_summary_and_card_have_both_accuracies(
    tmp_path: Path, data: FeatureSet
) -> None:
    # Of each class and fold, two windows to a recording.
    order = np.lexsort((data.labels, data.folds))
    labels, folds = data.labels[order], data.folds[order]
    starts = np.append(True, (labels[1:] != labels[:-1]) | (folds[1:] != folds[:-1]))
    position = np.arange(len(labels)) - np.flatnonzero(starts)[np.cumsum(starts) - 1]
    recordings = np.cumsum(starts | (position % 2 == 0)) - 1
    windows = FeatureSet.from_arrays(
        data.features, labels, folds, class_mapping=NAMES, recordings=recordings
    )
    config = finish(tmp_path / "out", windows)
    archive = open_run(config.model_path)
    summary = archive.summary
    assert summary is not None and summary.by_recording is not None
    by_recording, estimate = summary.by_recording, summary.recordings_over_folds()
    assert estimate is not None and by_recording.pooled is not None
    count = recordings.max() + 1
    assert by_recording.recordings == count < len(windows)
    assert by_recording.pooled.accuracy != summary.oof_accuracy
    assert predictions_of(config).recording is not None

    mean = f"{estimate.mean:.4f} ± {estimate.std:.4f}"
    pooled = f"{by_recording.pooled.accuracy:.4f}"
    lines = summary_lines(summary)
    page = text_of(report(archive, windows))
    state: dict[str, Any] = {"folds": {str(fold.fold): {} for fold in summary.folds}}
    card = model_card("mine/run", archive.record, state, summary)
    assert lines[0].split()[-2:] == ["by", "recording"]
    assert f"Accuracy of the Best Epoch by Recording, {count} recordings" in " ".join(lines)
    assert f": {mean.replace('±', '(+/-')})" in " ".join(lines)
    assert f"by window; {pooled} by recording" in " ".join(lines)
    assert f"Accuracy by recording {mean} {count} recordings" in page
    assert f"all recordings pooled {pooled} best epochs" in page
    assert "Accuracy by window on the folds held out" in page
    assert f"accuracy by recording {mean}" in card
    assert f"All {count} recordings pooled: {pooled}" in card
    for text in (" ".join(lines), page, card):
        assert remarks.RECORDINGS in text
        assert all(f"{row.accuracy:.4f}" in text for row in by_recording.folds)
    assert "240 windows pooled" in " ".join(lines) and "240 held-out windows" in page


def test_other_samples_are_said_to_be_samples(config: RunConfig, data: FeatureSet) -> None:
    archive = open_run(config.model_path)
    assert archive.summary is not None
    card = model_card("mine/run", archive.record, {"folds": {"1": {}}}, archive.summary)
    for text in (" ".join(summary_lines(archive.summary)), text_of(report(archive, data)), card):
        assert "recording" not in text.replace("recording.wav", "") and "window" not in text
    assert "by_recording" not in summary_of(config)

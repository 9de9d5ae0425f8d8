"""`python -m raykfold.compare` on the outputs of two runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raykfold.compare import main
from raykfold.config.run_config import RunConfig
from raykfold.errors import BadInput
from raykfold.pages.comparison_text import verdict
from raykfold.pages.remarks import MORE_EPOCHS
from raykfold.state.archive import open_run, write_results
from raykfold.state.comparison import compare
from raykfold.state.record import RunRecord, identity
from raykfold.training.predictions import OutOfFold
from raykfold.training.results import EpochMetrics, FoldResult, Repeats, Summary
from raykfold.training.statistics import corrected_t_test, mcnemar

SAMPLES = 100  # a fold
FOLDS = (1, 2, 3, 4, 5)
FIRST = (0.80, 0.70, 0.75, 0.85, 0.78)
WORSE = (0.71, 0.62, 0.68, 0.74, 0.70)  # in each fold
SIMILAR = (0.83, 0.66, 0.75, 0.86, 0.77)


def result(fold: int, accuracy: float, *, inner: bool = False, failed: bool = False) -> FoldResult:
    """Return a fold of three epochs: the second has `accuracy`, the last 0.05 less.

    With `inner`, the inner split chooses the first, which has 0.1 less.
    """
    history = [
        EpochMetrics(
            *(n, 1.0, 0.5, 0.9, value, 0.001, 2.0),
            inner_loss=1.0 if inner else None,
            inner_accuracy=0.5 - n / 10 if inner else None,
            val_balanced_accuracy=value - 0.05,
            val_macro_f1=1 - value,
        )
        for n, value in enumerate((accuracy - 0.1, accuracy, accuracy - 0.05))
    ]
    sizes = SAMPLES * (len(FOLDS) - 1), SAMPLES
    if failed:
        return FoldResult.of(fold, "failed", *sizes, history, error="died")
    return FoldResult.of(fold, "complete", *sizes, history)


def predictions(accuracies: Sequence[float], windows: int = 0) -> OutOfFold:
    """Return predictions in which the first samples of each fold are right, to its accuracy.

    With `windows`, so many samples in a row are one recording.
    """
    fold = np.repeat(FOLDS, SAMPLES)
    label = np.arange(len(fold)) // max(windows, 1) % 3
    within = np.arange(len(fold)) % SAMPLES
    right = within < np.round(np.repeat(accuracies, SAMPLES) * SAMPLES)
    prediction = np.where(right, label, (label + 1) % 3)
    return OutOfFold(
        index=np.arange(len(fold)),
        fold=fold,
        label=label,
        prediction=prediction,
        probabilities=np.eye(3, dtype=np.float32)[prediction],
        classes=np.arange(3),
        recording=np.arange(len(fold)) // windows if windows else None,
    )


def leave(
    folder: Path,
    accuracies: Sequence[float],
    *,
    data: str = "f00d",
    folds: Sequence[int] = FOLDS,
    failed: Sequence[int] = (),
    inner: bool = False,
    repeats: Mapping[int, Sequence[float]] | None = None,
    windows: int = 0,
    **options: Any,
) -> str:
    """Write what compare reads of a run to `folder`, and return its path."""
    config = RunConfig(run_name="run", model_dir=folder, **options)
    RunRecord.of(config, identity(config, data, "cpu x1", "fp32"), "20261125-120000", folds).write(
        config
    )
    rows = tuple(
        result(fold, accuracy, inner=inner, failed=fold in failed)
        for fold, accuracy in zip(folds, accuracies, strict=True)
    )
    further = [
        tuple(result(fold, value) for fold, value in zip(folds, values, strict=True))
        for values in (repeats or {}).values()
    ]
    summary = Summary(
        "run",
        rows,
        None,
        {0: "a", 1: "b", 2: "c"},
        wall_seconds=1.0,
        num_workers=2,
        select="inner" if inner else "best",
        monitor=config.monitor,
        repeats=Repeats((0, *(repeats or {})), (rows, *further)) if repeats else None,
    )
    known = predictions(accuracies, windows) if tuple(folds) == FOLDS else None
    write_results(config.outputs, summary, {}, known)
    return str(folder)


def test_json_has_the_corrected_t_test_over_folds_and_mcnemar_s_over_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = leave(tmp_path / "a", FIRST)
    b = leave(tmp_path / "b", WORSE, learning_rate=0.01)
    assert main([a, b, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    test = corrected_t_test([y - x for x, y in zip(FIRST, WORSE, strict=True)], 1 / 4)
    assert found["test"]["difference"] == pytest.approx(np.mean(WORSE) - np.mean(FIRST))
    for name in ("t", "p", "degrees"):
        assert found["test"][name] == pytest.approx(getattr(test, name))
    assert found["test"]["interval"] == pytest.approx(test.interval)
    first, second = (each.prediction == each.label for each in map(predictions, (FIRST, WORSE)))
    assert found["mcnemar"]["p"] == pytest.approx(mcnemar(first, second).p)
    assert (found["mcnemar"]["only_first"], found["mcnemar"]["only_second"]) == (43, 0)
    assert found["settings"] == {"learning_rate": [0.001, 0.01]}
    assert found["folds"] == list(FOLDS)


def test_windows_are_compared_by_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows of one recording are not independent."""
    a = leave(tmp_path / "a", FIRST, windows=10)
    b = leave(tmp_path / "b", WORSE, windows=10)
    assert main([a, b, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    whole = [predictions(each, 10).of_recordings() for each in (FIRST, WORSE)]
    first, second = (each.prediction == each.label for each in whole)
    assert found["compared"] == "recordings"
    assert found["mcnemar"]["only_first"] == int((first & ~second).sum()) < 43
    assert main([a, b]) == 0
    assert "McNemar, on all held-out recordings: only A is right on" in capsys.readouterr().out


def test_the_better_run_is_named_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", WORSE, learning_rate=0.01)
    assert main([b, a]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A: {b}  0.6900 (+/- 0.0400)"
    assert "   learning_rate: 0.01 in A, 0.001 in B" in lines
    assert "   1  0.7100  0.8000  +0.0900" in lines
    assert any(line.startswith("Paired t-test, corrected") for line in lines)
    assert any("only A is right on 0, only B on 43" in line for line in lines)
    assert lines[-1].startswith(f"{a} is better than {b}: by 0.0860 over 5 folds")


def test_two_runs_that_monitor_a_figure_are_compared_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (
        leave(tmp_path / name, accuracies, monitor="macro_f1")
        for name, accuracies in (("a", FIRST), ("b", WORSE))
    )
    assert main([a, b]) == 0
    printed = capsys.readouterr().out
    assert "B - A, macro F1 of the best epochs: +0.0860" in printed
    assert f"{b} is better than {a}: by 0.0860 in macro F1 over 5 folds" in printed
    found = compare(open_run(a), open_run(b), "last")  # of which only the accuracy is known
    assert found.figure == "accuracy" and found.test.difference < 0
    other = leave(tmp_path / "c", FIRST)
    assert compare(open_run(a), open_run(other)).figure == "accuracy"


def test_a_difference_within_chance_decides_nothing(tmp_path: Path) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", SIMILAR)
    text = verdict(compare(open_run(a), open_run(b)))
    assert text.startswith("These 5 folds do not show which is better")


def test_last_epochs_are_compared_without_predictions(tmp_path: Path) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", WORSE)
    found = compare(open_run(a), open_run(b), "last")
    assert found.predictions is None
    assert found.values[0].ravel() == pytest.approx([x - 0.05 for x in FIRST])


def test_runs_with_inner_splits_are_compared_by_the_chosen_epochs(tmp_path: Path) -> None:
    a, b = leave(tmp_path / "a", FIRST, inner=True), leave(tmp_path / "b", WORSE, inner=True)
    found = compare(open_run(a), open_run(b))
    assert found.by == "chosen" and found.predictions is not None
    assert found.values[0].ravel() == pytest.approx([x - 0.1 for x in FIRST])  # the first epoch


def test_repeats_are_averaged_over_seeds_before_folds_are_paired(tmp_path: Path) -> None:
    a = leave(tmp_path / "a", FIRST, repeats={1: SIMILAR})
    b = leave(tmp_path / "b", WORSE, repeats={1: FIRST})
    found = compare(open_run(a), open_run(b))
    differences = np.subtract((WORSE, FIRST), (FIRST, SIMILAR)).mean(axis=0).tolist()
    expected = corrected_t_test(differences, 1 / 4)
    assert found.test.t == pytest.approx(expected.t)
    assert found.test.degrees == 4
    assert found.seeds == ((0, 1), (0, 1))


@pytest.mark.parametrize(
    ("accuracies", "sentence"),
    [
        (FIRST, "The two are equally accurate on each of 5 folds."),
        ([x + 0.1 for x in (0.5, 0.25, 0.75, 0.5, 0.5)], "by the same 0.1000 on each of 5 folds"),
        ((0.25, 0.5, 0.75, 0.5, 0.5), "On average the two are equally accurate"),
    ],
)
def test_a_difference_without_spread_is_not_judged(
    tmp_path: Path, accuracies: Sequence[float], sentence: str
) -> None:
    first = FIRST if accuracies is FIRST else (0.5, 0.25, 0.75, 0.5, 0.5)
    a, b = leave(tmp_path / "a", first), leave(tmp_path / "b", accuracies)
    assert sentence in verdict(compare(open_run(a), open_run(b)))


def test_repeated_equal_seeds_make_no_result_more_certain(tmp_path: Path) -> None:
    a = leave(tmp_path / "a", FIRST, repeats=dict.fromkeys(range(1, 20), FIRST))
    b = leave(tmp_path / "b", SIMILAR, repeats=dict.fromkeys(range(1, 20), SIMILAR))
    once = compare(open_run(leave(tmp_path / "c", FIRST)), open_run(leave(tmp_path / "d", SIMILAR)))
    assert compare(open_run(a), open_run(b)).test.p == pytest.approx(once.test.p)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b"[]"),
        ("summary.json", b'{"status": "complete"}'),
        ("summary.json", b""),
        ("run.json", b'{"run_name": "run", "config": {}}'),
        ("run.json", b"[" * 100_000),
        ("oof_predictions.npz", b"hello"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", WORSE)
    (tmp_path / "b" / name).write_bytes(content)
    assert main([a, b]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


def test_a_run_can_be_named_by_its_storage(tmp_path: Path) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", WORSE)
    storage = open_run(a).run_dir.root
    assert main([str(storage), b]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"folds": []},
        {"repeats": {"seeds": [1]}},
        {"repeats": {"seeds": [1], "folds": [[], []]}},
        {"n_train": None},
        {"n_train": 0},
        {"best_val_accuracy": "high"},
    ],
)
def test_an_invalid_summary_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", WORSE)
    file = tmp_path / "b" / "summary.json"
    content = json.loads(file.read_bytes())
    of_fold = {name: value for name, value in changes.items() if name in content["folds"][0]}
    content["folds"][0] |= of_fold
    file.write_text(json.dumps(content | {n: v for n, v in changes.items() if n not in of_fold}))
    assert main([a, b]) == 2
    assert "summary.json: is not the summary of a run" in capsys.readouterr().err


def test_predictions_of_different_lengths_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", WORSE)
    file = tmp_path / "b" / "oof_predictions.npz"
    with np.load(file) as arrays:
        content = dict(arrays)
    np.savez(file, **{**content, "prediction": content["prediction"][:3]})
    assert main([a, b]) == 2
    assert "oof_predictions.npz: cannot be read" in capsys.readouterr().err


def test_best_epochs_are_called_more_optimistic_the_more_epochs_there_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", WORSE)
    assert main([a, b]) == 0
    assert MORE_EPOCHS not in capsys.readouterr().out
    file = tmp_path / "b" / "run.json"
    record = json.loads(file.read_bytes())
    record["config"]["epochs"] += 10
    file.write_text(json.dumps(record))
    assert main([a, b]) == 0
    assert MORE_EPOCHS in capsys.readouterr().out


def test_one_fold_gives_a_difference_and_no_test(tmp_path: Path) -> None:
    a = leave(tmp_path / "a", FIRST[:1], folds=(1,))
    b = leave(tmp_path / "b", WORSE[:1], folds=(1,))
    found = compare(open_run(a), open_run(b))
    assert found.test.p is None
    assert "one fold does not show more" in verdict(found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": "beef"}, ["different data", "f00d", "beef"]),
        ({"folds": (1, 2, 3, 4, 6)}, ["different folds, 1,2,3,4,5 and 1,2,3,4,6"]),
        ({"repeats": {1: FIRST}}, ["different numbers of repeats, 1 and 2"]),
        ({"inner": True}, ["different choices of epochs", "best and chosen", "--by"]),
        ({"failed": (2,)}, ["fold 2 failed; expected a run that is complete"]),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    said: list[str],
) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", WORSE, **options)
    assert main([a, b]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(text in line for text in said), line


def test_a_choice_of_epochs_that_a_run_lacks_is_refused(tmp_path: Path) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", WORSE)
    with pytest.raises(BadInput, match=r"--by chosen: .*a has no chosen epochs"):
        compare(open_run(a), open_run(b), "chosen")


def test_a_run_that_has_not_finished_is_refused(tmp_path: Path) -> None:
    a, b = leave(tmp_path / "a", FIRST), leave(tmp_path / "b", WORSE)
    (tmp_path / "b" / "summary.json").unlink()
    with pytest.raises(BadInput, match="is not over"):
        compare(open_run(a), open_run(b))


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert main([leave(tmp_path / "a", FIRST), str(tmp_path / "nobody")]) == 2
    assert "there is no run" in capsys.readouterr().err

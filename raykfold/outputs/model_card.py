"""The model card: what a reader needs to know about the weights of a run on the Hub.

It is made from the files in `model_dir` alone, so it can be made again long after the run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from raykfold.config.class_spec import SPECS
from raykfold.config.presets import is_plain
from raykfold.pages import remarks
from raykfold.state.record import RunRecord
from raykfold.text import (
    accuracy_text,
    capital,
    count_of,
    figure_text,
    interval_text,
    plus_minus,
)
from raykfold.training.results import FIGURES, Figure, Summary, kept_epochs

# Captions of the report's pictures, in the order of the card.
_PLOTS = {
    "plots/curves.png": "Validation accuracy and loss after each epoch",
    "plots/folds.png": "Accuracy of each fold",
    "plots/confusion.png": "Confusion matrix",
    "plots/classes.png": "Precision, recall and F1 of each class",
}


# Names of figures on the Hub.
_METRICS: Mapping[Figure, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "macro_f1": "f1",
}
_NOT_LISTED = "Options of presets that are not listed are as with `--preset plain`."


def model_card(
    repo_id: str,
    record: RunRecord,
    state: Mapping[str, Any],
    summary: Summary | None,
    plots: Collection[str] = (),
) -> str:
    """Return the content of README.md in the repository of a run.

    Args:
        repo_id: the repository.
        record: what the run is.
        state: content of ``training_state.json``.
        summary: results of the run; None while it trains, and then the card gives no mean.
        plots: paths of the run's pictures in the repository; shown when the run is over.
    """
    sections = [
        _front_matter(repo_id, record, summary),
        f"# {_plain(record.run_name)}",
        _introduction(record, state, summary),
        _fold_table(state, summary),
        _accuracies(record, summary),
        "" if summary is None else _pictures(plots),
        _use(repo_id, record, state),
        _training(record),
        "" if summary is None else _classes(summary),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(repo_id: str, record: RunRecord, summary: Summary | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = record.config["hf_repo_id"]

    # Arrays given in Python may be anything.
    audio = [] if record.config.get("in_memory") else ["audio-classification"]

    def result(name: str, value: float, metric: str = "accuracy") -> EvalResult:
        return EvalResult(
            task_type=audio[0] if audio else "other",
            dataset_type=dataset or record.run_name,
            dataset_name=dataset or record.run_name,
            dataset_split="cross-validation",
            metric_type=metric,
            metric_name=name,
            metric_value=round(value, 6),
        )

    folds = () if summary is None else summary.folds
    metrics: list[str] = []
    seed = remarks.of_seed(summary)
    results = [
        result(f"Accuracy, fold {each.fold}{seed}", each.kept_val_accuracy)
        for each in folds
        if each.status == "complete" and each.kept_val_accuracy is not None
    ]
    means = []
    for figure in (summary.headline, *summary.other_figures) if summary else ():
        estimate = summary.over_folds(figure) if summary else None
        if estimate is not None:
            name, metric = capital(figure_text(figure)), _METRICS[figure]
            metrics.append(metric)
            if len(folds) > 1:
                over = f"over {len(folds)} folds"
                means.append(result(f"{name}, mean {over}", estimate.mean, metric))
                std = f"{name}, standard deviation {over}"
                means.append(result(std, estimate.std, f"{metric}-std"))
            elif figure != "accuracy":
                means.append(result(f"{name}, fold {folds[0].fold}", estimate.mean, metric))
    results = [*means, *results]
    data = ModelCardData(
        library_name="raykfold",
        tags=["raykfold", "cross-validation", *audio, "pytorch"],
        pipeline_tag=audio[0] if audio else None,
        metrics=metrics or ["accuracy"],
        datasets=[dataset] if dataset else None,
        model_name=repo_id.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _introduction(record: RunRecord, state: Mapping[str, Any], summary: Summary | None) -> str:
    folds = len(state["folds"])
    about = f"{count_of(folds, 'fold')} of a cross-validation of `{record.config['model']}`"
    dataset = record.config["hf_repo_id"]
    if dataset:
        about += f" on [{dataset}](https://huggingface.co/datasets/{dataset})"
    about += ", trained with raykfold. Each fold has weights of its own."
    if summary is None:
        done = sum(row["status"] == "complete" for row in state["folds"].values())
        return f"{about}\n\n**In training**: {done} of {folds} folds are complete."
    estimate = summary.over_folds(summary.headline)
    if estimate is None:
        failed = remarks.on_failures(summary)
        return f"{about}\n\n**Partial**: there is no mean, because folds failed ({failed})."
    repeats = summary.repeats
    over = f"{folds} folds" + (f" with {len(repeats.seeds)} seeds" if repeats else "")
    name = capital(figure_text(summary.headline))
    headline = f"{about}\n\n**{name}: {plus_minus(estimate.mean, estimate.std, folds)}**"
    if folds == 1:
        headline += " (on the one fold held out)"
    else:
        interval = ""
        if estimate.interval is not None:
            interval = f"; 95 % interval, approximate: {interval_text(estimate.interval)}"
        headline += f" (mean ± standard deviation over {over}{interval})"
    others = []
    for figure in summary.other_figures:
        other = summary.over_folds(figure)
        if other is not None:
            value = plus_minus(other.mean, other.std, folds)
            others.append(f"{figure_text(figure)} {value}")
    if (by_recording := summary.recordings_over_folds(summary.headline)) is not None:
        value = plus_minus(by_recording.mean, by_recording.std, folds)
        seed = remarks.of_seed(summary)
        others.append(f"{figure_text(summary.headline)} by recording{seed} {value}")
    return headline + (f"\n\nBeside it: {', '.join(others)}." if others else "")


def _fold_table(state: Mapping[str, Any], summary: Summary | None) -> str:
    columns = ["fold", "status", "training", "validation", "epochs", "epoch", "accuracy", "last"]
    columns += ["balanced", "macro F1"]
    by_recording = None if summary is None else summary.by_recording
    if by_recording is not None:
        columns += ["by recording", "recordings"]
    rows: list[tuple[Any, ...]] = []
    if summary is None:
        for fold, row in state["folds"].items():
            kind = "chosen" if "chosen_epoch" in row else "best"
            kept = _from_1(row[f"{kind}_epoch"]), row[f"{kind}_val_accuracy"]
            others = row.get("kept_val_balanced_accuracy"), row.get("kept_val_macro_f1")
            about = fold, row["status"], None, None, row["epochs_done"]
            rows.append((*about, *kept, None, *others))
    else:
        for each in summary.folds:
            status = f"{each.status}{', stopped early' if each.stopped_early else ''}"
            kept = _from_1(each.kept_epoch), each.kept_val_accuracy
            counts = (each.n_train, each.n_val, each.epochs_run)
            others = each.kept_val_balanced_accuracy, each.kept_val_macro_f1
            row = each.fold, status, *counts, *kept, each.last_val_accuracy, *others
            if by_recording is not None:
                of = by_recording.of_fold(each.fold)
                row += (of.accuracy, of.recordings) if of else (None, None)
            rows.append(row)
    seed = remarks.of_seed(summary)
    return (f"Each fold{seed}:\n\n" if seed else "") + _table(columns, rows, left=("status",))


def _from_1(epoch: int | None) -> int | None:
    return None if epoch is None else epoch + 1


def _accuracies(record: RunRecord, summary: Summary | None) -> str:
    """Return what the accuracies are, and what the reader should know about them."""
    kept = kept_epochs(record.config["select"])
    if summary is None:
        return " ".join(remarks.on_epochs(kept))
    lines = [f"Accuracy is that of the {kept} epoch of each fold."]
    if summary.last is not None:
        last = plus_minus(summary.last.mean, summary.last.std, len(summary.folds))
        lines.append(f"At the last epoch: {last}.")
    lines.append(f"Balanced accuracy and macro F1 are of the {kept} epochs.")
    if (pooled := summary.out_of_fold) is not None:
        lines.append(
            f"All held-out {summary.samples} pooled, {kept} epochs{remarks.of_seed(summary)}: "
            f"{accuracy_text(pooled.accuracy)} (95 % interval {interval_text(pooled.interval)})."
        )
        lines += [
            f"{capital(figure_text(figure))} of these: {accuracy_text(value)}."
            for figure in FIGURES
            if figure != "accuracy" and (value := pooled.figure(figure)) is not None
        ]
        if summary.by_recording is not None and summary.by_recording.pooled is not None:
            whole = summary.by_recording.pooled
            lines.append(
                f"All {summary.by_recording.recordings} recordings pooled: "
                f"{accuracy_text(whole.accuracy)} (95 % interval {interval_text(whole.interval)})."
            )
    notes = [f"- {remark.text}" for remark in remarks.on_summary(summary)]
    return "\n\n".join([" ".join(lines), "\n".join(notes)])


def _pictures(plots: Collection[str]) -> str:
    return "\n\n".join(f"![{text}]({path})" for path, text in _PLOTS.items() if path in plots)


def _use(repo_id: str, record: RunRecord, state: Mapping[str, Any]) -> str:
    fold = next(iter(state["folds"]), "1")
    named = flag = ""
    for option, spec_class in SPECS.items():
        spec = spec_class.parse(record.config[option])  # the weights know its arguments
        if spec.name != spec_class.name:
            own = f"your_module:{spec.class_name}" if spec.module == "__main__" else spec.name
            named += f', {option}="{own}"'
            flag += f" --{option} {own}"
    shell = f"""

Or from the shell, for features made by `raykfold.prepare`, averaged over all folds:
`python -m raykfold.predict recording.wav --repo {repo_id}{flag}`"""
    return f"""## Use

```python
import raykfold

fold = raykfold.load_fold("{repo_id}", {fold}{named})
fold.model          # a torch.nn.Module, in evaluation mode
fold.classes        # label -> name, in the order of its outputs
fold.input_shape    # of one sample; (n_mels, time) of a spectrogram
fold.probabilities(features)  # features: (batch, *input_shape), as in training
```{"" if record.config.get("in_memory") else shell}"""


def _training(record: RunRecord) -> str:
    # The identity has what "auto" stood for.
    values = {
        name: record.config[name]
        for name in record.hyperparameters
        if not is_plain(record.config, name)
    }
    values |= {name: record.identity[name] for name in values if name in record.identity}
    if "device" in record.identity:
        values["device"] = record.identity["device"]
    values["fingerprint of the data"] = record.fingerprint
    rows = [(name, _plain(value)) for name, value in (values | dict(record.versions)).items()]
    table = _table(("setting", "value"), rows, left=("setting", "value"))
    return f"## Training\n\n{table}\n\n{_NOT_LISTED}"


def _classes(summary: Summary) -> str:
    classes = enumerate(summary.classes.items())
    rows = [(output, label, _plain(name)) for output, (label, name) in classes]
    return "## Classes\n\n" + _table(("output", "label", "name"), rows, left=("name",))


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]], left: Collection[str]) -> str:
    """Return a Markdown table; columns that are not in `left` are aligned right."""

    def text(cell: Any) -> str:
        if isinstance(cell, float):
            return accuracy_text(cell)
        return "" if cell is None else str(cell)

    lines = [columns, ["---" if name in left else "---:" for name in columns]]
    lines += [[text(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: Any) -> str:
    """Return text from data or a command line, with what Markdown and HTML act on escaped."""
    text = " ".join(str(value).split())
    return "".join(c if c.isalnum() or c in " .,:" else f"&#{ord(c)};" for c in text)

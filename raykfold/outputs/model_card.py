"""The model card: what a reader needs to know about the weights of a run on the Hub.

It is made from the files in `model_dir` alone, so it can be made again long after the run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from raykfold.config.class_spec import SPECS
from raykfold.pages import remarks
from raykfold.state.record import RunRecord
from raykfold.text import accuracy_text, count_of, interval_text, plus_minus
from raykfold.training.results import Summary, kept_epochs

# Captions of the report's pictures, in the order of the card.
_PLOTS = {
    "plots/curves.png": "Validation accuracy and loss after each epoch",
    "plots/folds.png": "Accuracy of each fold",
    "plots/confusion.png": "Confusion matrix",
    "plots/classes.png": "Precision, recall and F1 of each class",
}


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

    def result(name: str, value: float, metric: str = "accuracy") -> EvalResult:
        return EvalResult(
            task_type="audio-classification",
            dataset_type=dataset or record.run_name,
            dataset_name=dataset or record.run_name,
            dataset_split="cross-validation",
            metric_type=metric,
            metric_name=name,
            metric_value=round(value, 6),
        )

    folds = () if summary is None else summary.folds
    seed = remarks.of_seed(summary)
    results = [
        result(f"Accuracy, fold {each.fold}{seed}", each.kept_val_accuracy)
        for each in folds
        if each.status == "complete" and each.kept_val_accuracy is not None
    ]
    estimate = summary.kept if summary else None
    if estimate is not None and len(folds) > 1:
        over = f"over {len(folds)} folds"
        results = [
            result(f"Accuracy, mean {over}", estimate.mean),
            result(f"Accuracy, standard deviation {over}", estimate.std, "accuracy-std"),
            *results,
        ]
    data = ModelCardData(
        library_name="raykfold",
        tags=["raykfold", "cross-validation", "audio-classification", "pytorch"],
        pipeline_tag="audio-classification",
        metrics=["accuracy"],
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
    estimate = summary.kept
    if estimate is None:
        failed = remarks.on_failures(summary)
        return f"{about}\n\n**Partial**: there is no mean, because folds failed ({failed})."
    repeats = summary.repeats
    over = f"{folds} folds" + (f" with {len(repeats.seeds)} seeds" if repeats else "")
    accuracy = f"{about}\n\n**Accuracy: {plus_minus(estimate.mean, estimate.std, folds)}**"
    if folds == 1:
        return f"{accuracy} (on the one fold held out)"
    interval = ""
    if estimate.interval is not None:
        interval = f"; 95 % interval, approximate: {interval_text(estimate.interval)}"
    return f"{accuracy} (mean ± standard deviation over {over}{interval})"


def _fold_table(state: Mapping[str, Any], summary: Summary | None) -> str:
    columns = ("fold", "status", "training", "validation", "epochs", "epoch", "accuracy", "last")
    rows: list[tuple[Any, ...]] = []
    if summary is None:
        for fold, row in state["folds"].items():
            kind = "chosen" if "chosen_epoch" in row else "best"
            kept = _from_1(row[f"{kind}_epoch"]), row[f"{kind}_val_accuracy"]
            rows.append((fold, row["status"], None, None, row["epochs_done"], *kept, None))
    else:
        for each in summary.folds:
            status = f"{each.status}{', stopped early' if each.stopped_early else ''}"
            kept = _from_1(each.kept_epoch), each.kept_val_accuracy
            counts = (each.n_train, each.n_val, each.epochs_run)
            rows.append((each.fold, status, *counts, *kept, each.last_val_accuracy))
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
    if (pooled := summary.out_of_fold) is not None:
        lines.append(
            f"All held-out samples pooled, {kept} epochs{remarks.of_seed(summary)}: "
            f"{accuracy_text(pooled.accuracy)} (95 % interval {interval_text(pooled.interval)})."
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
    return f"""## Use

```python
import raykfold

fold = raykfold.load_fold("{repo_id}", {fold}{named})
fold.model          # a torch.nn.Module, in evaluation mode
fold.classes        # label -> name, in the order of its outputs
fold.probabilities(features)  # features: (batch, n_mels, time)
```

Or from the shell, for features made by `raykfold.prepare`, averaged over all folds:
`python -m raykfold.predict recording.wav --repo {repo_id}{flag}`"""


def _training(record: RunRecord) -> str:
    # The identity has what "auto" stood for.
    values = {name: record.config[name] for name in record.hyperparameters}
    values |= {name: record.identity[name] for name in values if name in record.identity}
    if "device" in record.identity:
        values["device"] = record.identity["device"]
    values["fingerprint of the data"] = record.fingerprint
    rows = [(name, _plain(value)) for name, value in (values | dict(record.versions)).items()]
    return "## Training\n\n" + _table(("setting", "value"), rows, left=("setting", "value"))


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

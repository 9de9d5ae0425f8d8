"""The model card: what somebody who finds the weights on the Hub has to know of them.

Made from the files of `model_dir` alone, so that it can be made again long after the run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from raykfold.config.model_spec import DEFAULT_MODEL, ModelSpec
from raykfold.pages import remarks
from raykfold.state.record import RunRecord
from raykfold.text import accuracy_text, counted, interval_text, plus_minus
from raykfold.training.results import Summary, kept_epochs

# What each of the report's pictures shows, in the order of the card.
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
    """The content of a repository's README.md.

    Args:
        repo_id: the repository's.
        record: what the run is.
        state: content of ``training_state.json``.
        summary: results of the run; None while it trains, and then the card gives no mean.
        plots: paths in the repository of the run's pictures; shown when it is over.
    """
    sections = [
        _front_matter(repo_id, record, summary),
        f"# {_plain(record.run_name)}",
        _opening(record, state, summary),
        "\n".join(_fold_table(state, summary)),
        _reading(record, summary),
        "" if summary is None else _pictures(plots),
        _loading(repo_id, record, state),
        "\n".join(_training(record)),
        "\n".join(_classes(summary)),
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
    if estimate is not None:
        over = f"{len(folds)} folds"
        means = [result(f"Accuracy, mean over {over}", estimate.mean)]
        means.append(
            result(f"Accuracy, standard deviation over {over}", estimate.std, "accuracy-std")
        )
        results = (means if len(folds) > 1 else []) + results  # of one fold there is neither
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


def _opening(record: RunRecord, state: Mapping[str, Any], summary: Summary | None) -> str:
    folds = len(state["folds"])
    about = f"{counted(folds, 'fold')} of a cross-validation of `{record.config['model']}`"
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


def _fold_table(state: Mapping[str, Any], summary: Summary | None) -> Iterator[str]:
    if seed := remarks.of_seed(summary):
        yield f"Each fold{seed}:"
        yield ""
    yield "| fold | status | training | validation | epochs | epoch | accuracy | last |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    if summary is None:
        for fold, row in state["folds"].items():
            name = "chosen" if "chosen_epoch" in row else "best"
            epoch, accuracy = row[f"{name}_epoch"], row[f"{name}_val_accuracy"]
            yield _row(fold, row["status"], None, None, row["epochs_done"], epoch, accuracy, None)
        return
    for each in summary.folds:
        status = f"{each.status}{', stopped early' if each.stopped_early else ''}"
        counts = each.n_train, each.n_val, each.epochs_run
        kept = each.kept_epoch, each.kept_val_accuracy
        yield _row(each.fold, status, *counts, *kept, each.last_val_accuracy)


def _row(
    fold: Any,
    status: str,
    n_train: int | None,
    n_val: int | None,
    epochs: int,
    epoch: int | None,
    *accuracies: float | None,
) -> str:
    kept = None if epoch is None else epoch + 1
    counts = ("" if each is None else str(each) for each in (n_train, n_val, epochs, kept))
    shown = ("" if each is None else accuracy_text(each) for each in accuracies)
    return f"| {' | '.join([str(fold), status, *counts, *shown])} |"


def _reading(record: RunRecord, summary: Summary | None) -> str:
    """Return further accuracies, and what to know of them."""
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
            f"{pooled.accuracy:.4f} (95 % interval {interval_text(pooled.interval)})."
        )
    notes = [f"- {remark.text}" for remark in remarks.on_summary(summary)]
    return "\n\n".join([" ".join(lines), "\n".join(notes)])


def _pictures(plots: Collection[str]) -> str:
    return "\n\n".join(f"![{text}]({path})" for path, text in _PLOTS.items() if path in plots)


def _loading(repo_id: str, record: RunRecord, state: Mapping[str, Any]) -> str:
    fold = next(iter(state["folds"]), "1")
    own = ModelSpec.parse(record.config["model"]).name  # of its arguments the weights know
    named = "" if own == DEFAULT_MODEL else f', model="{own}"'
    flag = "" if own == DEFAULT_MODEL else f" --model {own}"
    return f"""## Use

```python
import raykfold

fold = raykfold.load_fold("{repo_id}", {fold}{named})
fold.model          # a torch.nn.Module, in evaluation mode
fold.classes        # label -> name, in the order of its outputs
fold.probabilities(features)  # features: (batch, n_mels, time)
```

Or from the shell, where the features are those of `raykfold.prepare`, all folds averaged:
`python -m raykfold.predict recording.wav --repo {repo_id}{flag}`"""


def _training(record: RunRecord) -> Iterator[str]:
    yield "## Training"
    yield ""
    yield "| setting | value |"
    yield "| --- | --- |"
    for name in record.hyperparameters:  # the identity knows what "auto" stood for
        yield f"| {name} | {_plain(record.identity.get(name, record.config[name]))} |"
    if "device" in record.identity:
        yield f"| device | {_plain(record.identity['device'])} |"
    yield f"| fingerprint of the data | {_plain(record.fingerprint)} |"
    for package, version in record.versions.items():
        yield f"| {_plain(package)} | {_plain(version)} |"


def _classes(summary: Summary | None) -> Iterator[str]:
    if summary is None:
        return
    yield "## Classes"
    yield ""
    yield "| output | label | name |"
    yield "| ---: | ---: | --- |"
    for output, (label, name) in enumerate(summary.classes.items()):
        yield f"| {output} | {_plain(label)} | {_plain(name)} |"


def _plain(value: Any) -> str:
    """Text from data or a command line, without a mark that Markdown or HTML would act on."""
    text = " ".join(str(value).split())
    return "".join(c if c.isalnum() or c in " .,:" else f"&#{ord(c)};" for c in text)

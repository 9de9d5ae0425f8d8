"""The model card: what somebody who finds the weights on the Hub has to know of them.

Made from the files of `model_dir` alone, so that it can be made again long after the run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from raykfold.config.model_spec import DEFAULT_MODEL, ModelSpec
from raykfold.text import counted, plus_minus
from raykfold.training.results import kept_epochs, kept_estimate

# Of the run's configuration, what decides results.
_SETTINGS = (
    *("model", "epochs", "batch_size", "learning_rate", "early_stopping_patience", "seed"),
    *("repeats", "select"),
)

# What each of the report's pictures shows, in the order of the card.
_PLOTS = {
    "plots/curves.png": "Validation accuracy and loss after each epoch",
    "plots/folds.png": "Accuracy of each fold",
    "plots/confusion.png": "Confusion matrix",
    "plots/classes.png": "Precision, recall and F1 of each class",
}


def model_card(
    repo_id: str,
    record: Mapping[str, Any],
    state: Mapping[str, Any],
    summary: Mapping[str, Any] | None,
    plots: Collection[str] = (),
) -> str:
    """The content of a repository's README.md.

    Args:
        repo_id: the repository's.
        record: content of ``run.json``.
        state: content of ``training_state.json``.
        summary: content of ``summary.json``; None while the run goes on, and then the card gives
            no mean.
        plots: paths in the repository of the run's pictures; shown when it is over.
    """
    sections = [
        _front_matter(repo_id, record, summary),
        f"# {_plain(record['run_name'])}",
        _opening(record, state, summary),
        "\n".join(_fold_table(state, summary)),
        _reading(record, summary),
        "" if summary is None else _pictures(plots),
        _loading(repo_id, record, state),
        "\n".join(_training(record)),
        "\n".join(_classes(summary)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(
    repo_id: str, record: Mapping[str, Any], summary: Mapping[str, Any] | None
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = record["config"].get("hf_repo_id")

    def result(name: str, value: float, metric: str = "accuracy") -> EvalResult:
        return EvalResult(
            task_type="audio-classification",
            dataset_type=dataset or record["run_name"],
            dataset_name=dataset or record["run_name"],
            dataset_split="cross-validation",
            metric_type=metric,
            metric_name=name,
            metric_value=round(value, 6),
        )

    folds = [] if summary is None else summary["folds"]
    seed = _of_seed(summary)
    results = [
        result(f"Accuracy, fold {row['fold']}{seed}", accuracy)
        for row in folds
        for _, accuracy in [_kept(row)]
        if row["status"] == "complete" and accuracy is not None
    ]
    estimate = kept_estimate(summary)
    if estimate is not None:
        over = f"{len(folds)} folds"
        means = [result(f"Accuracy, mean over {over}", estimate["mean"])]
        means.append(
            result(f"Accuracy, standard deviation over {over}", estimate["std"], "accuracy-std")
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


def _opening(
    record: Mapping[str, Any], state: Mapping[str, Any], summary: Mapping[str, Any] | None
) -> str:
    folds = len(state["folds"])
    about = f"{counted(folds, 'fold')} of a cross-validation of `{record['config']['model']}`"
    dataset = record["config"].get("hf_repo_id")
    if dataset:
        about += f" on [{dataset}](https://huggingface.co/datasets/{dataset})"
    about += ", trained with raykfold. Each fold has weights of its own."
    if summary is None:
        done = sum(row["status"] == "complete" for row in state["folds"].values())
        return f"{about}\n\n**In training**: {done} of {folds} folds are complete."
    estimate = kept_estimate(summary)
    if estimate is None:
        failed = list(_failed(summary))
        return f"{about}\n\n**Partial**: no mean, because folds failed ({', '.join(failed)})."
    repeats = summary.get("repeats")
    over = f"{folds} folds" + (f" with {len(repeats['seeds'])} seeds" if repeats else "")
    interval = _interval(estimate["interval"])
    accuracy = f"{about}\n\n**Accuracy: {plus_minus(estimate['mean'], estimate['std'], folds)}**"
    if folds == 1:
        return f"{accuracy} (on the one fold held out)"
    return f"{accuracy} (mean ± standard deviation over {over}" + (
        f"; 95 % interval of the mean, approximate: {interval})" if interval else ")"
    )


def _of_seed(summary: Mapping[str, Any] | None) -> str:
    """Which seed it is that figures of one are of, where there are several."""
    repeats = summary and summary.get("repeats")
    return f", seed {repeats['seeds'][0]}" if repeats else ""


def _failed(summary: Mapping[str, Any]) -> Iterator[str]:
    repeats = summary.get("repeats") or {"seeds": [None], "folds": [summary["folds"]]}
    for seed, rows in zip(repeats["seeds"], repeats["folds"], strict=True):
        for row in rows:
            if row["status"] != "complete":
                yield f"{row['fold']}" if seed is None else f"{row['fold']} with seed {seed}"


def _kept(row: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Of a fold: the epoch whose weights were kept, and its accuracy."""
    name = "best" if row.get("chosen_epoch") is None else "chosen"
    return row[f"{name}_epoch"], row[f"{name}_val_accuracy"]


def _interval(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else ""


def _fold_table(state: Mapping[str, Any], summary: Mapping[str, Any] | None) -> Iterator[str]:
    if seed := _of_seed(summary):
        yield f"Each fold{seed}:"
        yield ""
    yield "| fold | status | training | validation | epochs | epoch | accuracy | last |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    if summary is None:
        for fold, row in state["folds"].items():
            epoch, accuracy = _kept(row)
            kept = _from_1(epoch), accuracy
            yield _row(fold, row["status"], None, None, row["epochs_done"], *kept, None)
        return
    for row in summary["folds"]:
        status = f"{row['status']}{', stopped early' if row['stopped_early'] else ''}"
        counts = (row["n_train"], row["n_val"], row["epochs_run"])
        epoch, accuracy = _kept(row)
        kept = _from_1(epoch), accuracy
        yield _row(row["fold"], status, *counts, *kept, row["last_val_accuracy"])


def _row(*cells: Any) -> str:
    shown = ("" if c is None else f"{c:.4f}" if isinstance(c, float) else str(c) for c in cells)
    return f"| {' | '.join(shown)} |"


def _from_1(epoch: int | None) -> int | None:
    return None if epoch is None else epoch + 1


def _reading(record: Mapping[str, Any], summary: Mapping[str, Any] | None) -> str:
    """What the accuracies are worth."""
    best = (
        "the best epoch on the fold that was held out, and the same fold chose the epoch: it "
        "flatters a little"
    )
    chosen = "the epoch that an inner validation split chose: the fold that was held out had no say"
    inner = record["config"].get("select") == "inner"
    text = f"Accuracy is that of {chosen if inner else best}."
    if summary is None or summary["last_mean_accuracy"] is None:
        return text
    mean, std = summary["last_mean_accuracy"], summary["last_std_accuracy"]
    last = plus_minus(mean, std, len(summary["folds"]))
    text += f" At the last epoch, where training ended: {last}."
    if summary["oof_accuracy"] is not None:
        which = f"{kept_epochs(summary)} epochs{_of_seed(summary)}"
        text += f" All held-out samples pooled, {which}: {summary['oof_accuracy']:.4f}"
        interval = _interval(summary.get("oof_interval"))
        text += f" (95 % interval {interval})." if interval else "."
    return text


def _pictures(plots: Collection[str]) -> str:
    return "\n\n".join(f"![{text}]({path})" for path, text in _PLOTS.items() if path in plots)


def _loading(repo_id: str, record: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    fold = next(iter(state["folds"]), "1")
    own = ModelSpec.parse(record["config"]["model"]).name  # of its arguments the weights know
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


def _training(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training"
    yield ""
    yield "| setting | value |"
    yield "| --- | --- |"
    for name in _SETTINGS:
        if name in record["config"]:  # earlier versions did not have all of them
            yield f"| {name} | {_plain(record['config'][name])} |"
    for name in ("device", "precision", "data"):
        if name in record["identity"]:
            shown = "fingerprint of the data" if name == "data" else name
            yield f"| {shown} | {_plain(record['identity'][name])} |"
    for package, version in record["versions"].items():
        yield f"| {_plain(package)} | {_plain(version)} |"


def _classes(summary: Mapping[str, Any] | None) -> Iterator[str]:
    if summary is None:
        return
    yield "## Classes"
    yield ""
    yield "| output | label | name |"
    yield "| ---: | ---: | --- |"
    for output, (label, name) in enumerate(summary["classes"].items()):
        yield f"| {output} | {_plain(label)} | {_plain(name)} |"


def _plain(value: Any) -> str:
    """Text from data or a command line, without a mark that Markdown or HTML would act on."""
    text = " ".join(str(value).split())
    return "".join(c if c.isalnum() or c in " .,:" else f"&#{ord(c)};" for c in text)

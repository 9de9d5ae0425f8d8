"""``python -m raykfold.predict``: classify recordings with the weights of a run.

python -m raykfold.predict a.wav b.wav --model_dir runs/demo
python -m raykfold.predict a.wav --repo owner/name --fold 3

If the run's samples were windows of recordings, a file is cut into windows as well, and has their
mean probabilities. Else its beginning counts, as long as a sample.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from raykfold.config.command import Parser, add_flag, leave_lost_folder, run_command
from raykfold.data.audio import require_audio
from raykfold.data.log_mel import FeatureParameters, windows_of_file
from raykfold.errors import BadData, BadInput
from raykfold.files.paths import absolute
from raykfold.files.remote import Place, place, without_password
from raykfold.outputs.weights import FoldModel, load_fold, load_folds
from raykfold.text import count_of, one_line

_BATCH = 64  # windows of a recording
_FILES = "Recordings: WAV, FLAC, OGG, MP3; with ffmpeg M4A, AAC, WebM and video, too."


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, print, and return the exit code: 0, 1, 2 or 130 (see `raykfold.errors`)."""
    return run_command(_parser, _predict, argv)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m raykfold.predict",
        description="Classify recordings with the best weights of a run's folds.",
        epilog="Exit codes: 0 done, 2 bad input (the other files are still done), 130 interrupted.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help=_FILES)
    source = parser.add_mutually_exclusive_group(required=True)
    add_flag(source, "model_dir", metavar="DIR", help="Folder, or URI, of a run's outputs.")
    add_flag(source, "repo", metavar="ID", help="Model repository on the Hugging Face Hub.")
    add_flag(
        parser,
        "fold",
        metavar="N|all",
        default="all",
        help="Use the weights of one fold, or average the probabilities over all folds.",
    )
    add_flag(
        parser,
        "model",
        metavar="MODULE:CLASS",
        help="The network, unless it is the built-in one; its code is run.",
    )
    add_flag(
        parser,
        "recipe",
        metavar="MODULE:CLASS",
        help="The recipe, if it is what has built the network; its code is run.",
    )
    add_flag(parser, "json", action="store_true", help="Print one JSON object a line.")
    return parser


def _predict(options: argparse.Namespace) -> int:
    source = f"hf://{options.repo}" if options.repo else _model_dir(options.model_dir)
    leave_lost_folder()
    folds = _load(source, options.fold, options.model, options.recipe)
    parameters = folds[0].feature_parameters()
    require_audio()
    exit_status = 0
    for file in options.files:
        try:
            probabilities, windows = _classify(Path(file), folds, parameters)
        except BadData as error:
            print(f"raykfold: {error}", file=sys.stderr)
            exit_status = BadData.exit_code
            continue
        print((_as_json if options.json else _as_text)(file, folds, probabilities, windows))
    return exit_status


def _classify(
    file: Path, folds: Sequence[FoldModel], parameters: FeatureParameters
) -> tuple[np.ndarray, int | None]:
    """Return the mean probabilities (classes,) over a recording's windows, then over the folds.

    Returns:
        The probabilities, and the number of windows; None if samples are no windows.

    Raises:
        BadData: the file cannot be read, or holds no sound.
    """
    windows = windows_of_file(file, parameters)
    of_folds: list[list[np.ndarray]] = [[] for _ in folds]
    count = 0
    while batch := list(islice(windows, _BATCH)):
        count += len(batch)
        for fold, probabilities in zip(folds, of_folds, strict=True):
            probabilities.append(fold.probabilities(np.stack(batch)))
    mean = np.mean([np.concatenate(each).mean(axis=0) for each in of_folds], axis=0)
    return mean, None if parameters.hop is None else count


def _model_dir(text: str) -> Place:
    try:
        return absolute(place(text))
    except ValueError as error:
        raise BadInput(f"--model_dir {without_password(text)}: {error}") from None


def _load(source: str | Place, fold: str, model: str | None, recipe: str | None) -> list[FoldModel]:
    """Return the networks that predict.

    Raises:
        BadInput: they cannot be loaded, or differ in classes or features.
    """
    if fold == "all":
        folds = load_folds(source, model=model, recipe=recipe)
    elif fold.lstrip("-").isdecimal():
        folds = [load_fold(source, int(fold), model=model, recipe=recipe)]
    else:
        raise BadInput(f"--fold {fold!r}: expected the label of a fold, or all")
    first = folds[0]
    shared = first.classes, first.features, first.input_shape
    for other in folds[1:]:
        if (other.classes, other.features, other.input_shape) != shared:
            raise BadInput(
                f"{source}: folds {first.fold} and {other.fold} differ in classes or features; "
                "name one with --fold"
            )
    return folds


def _as_text(
    file: str, folds: Sequence[FoldModel], probabilities: np.ndarray, windows: int | None
) -> str:
    """Return the predicted class, and below it the probability of every class, highest first."""
    names = [one_line(name) for name in folds[0].classes.values()]
    width = max(map(len, names))
    order = np.argsort(-probabilities, kind="stable")
    best = order[0]
    rows = [f"  {names[each]:{width}}  {probabilities[each]:.4f}" for each in order]
    mean = "" if windows is None else f", the mean of {count_of(windows, 'window')}"
    return "\n".join([f"{file}: {names[best]} ({probabilities[best]:.4f}{mean})", *rows])


def _as_json(
    file: str, folds: Sequence[FoldModel], probabilities: np.ndarray, windows: int | None
) -> str:
    labels, names = zip(*folds[0].classes.items(), strict=True)
    rounded = [round(float(each), 6) for each in probabilities]
    best = int(probabilities.argmax())
    return json.dumps(
        {
            "file": file,
            "label": labels[best],
            "class": names[best],
            "confidence": rounded[best],
            "probabilities": dict(zip(map(str, labels), rounded, strict=True)),
            "folds": [each.fold for each in folds],
            **({} if windows is None else {"windows": windows}),
        }
    )


if __name__ == "__main__":
    sys.exit(main())

"""``python -m raykfold.predict``: what class a recording is of, by the weights of a run.

python -m raykfold.predict a.wav b.wav --model_dir runs/demo
python -m raykfold.predict a.wav --repo owner/name --fold 3
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raykfold.config.command import Parser, add_flag, exit_code
from raykfold.data.log_mel import log_mel_of_file, require_audio
from raykfold.errors import BadData, BadInput
from raykfold.files.paths import absolute
from raykfold.files.remote import Place, place, without_password
from raykfold.outputs.weights import FoldModel, load_fold, load_folds
from raykfold.text import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, print, and return the exit code: 0, 1, 2 or 130 (see `raykfold.errors`)."""
    arguments = sys.argv[1:] if argv is None else argv
    return exit_code(
        lambda: _predict(_parser().parse_args(arguments)), stopped="raykfold: interrupted"
    )


def _parser() -> Parser:
    parser = Parser(
        prog="python -m raykfold.predict",
        description="Tell the class of recordings, by the best weights of a run's folds.",
        epilog="Exit codes: 0 done, 2 bad input (the other files are still done), 130 interrupted.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="Recordings: WAV, FLAC, OGG, MP3.")
    source = parser.add_mutually_exclusive_group(required=True)
    add_flag(source, "model_dir", metavar="DIR", help="Folder, or URI, of a run's outputs.")
    add_flag(source, "repo", metavar="ID", help="Model repository on the Hugging Face Hub.")
    add_flag(
        parser,
        "fold",
        metavar="N|all",
        default="all",
        help="Whose weights: of one fold, or the mean of the probabilities by all.",
    )
    add_flag(
        parser,
        "model",
        metavar="MODULE:CLASS",
        help="The network, where it is not the built-in one; its code runs.",
    )
    add_flag(parser, "json", action="store_true", help="One JSON object a line.")
    return parser


def _predict(options: argparse.Namespace) -> int:
    source = f"hf://{options.repo}" if options.repo else _model_dir(options.model_dir)
    folds = _folds(source, options.fold, options.model)
    parameters = folds[0].feature_parameters()
    require_audio()
    unread = 0
    for file in options.files:
        try:
            features = log_mel_of_file(Path(file), parameters)
        except BadData as error:
            print(f"raykfold: {error}", file=sys.stderr)
            unread += 1
            continue
        probabilities = np.mean([each.probabilities(features[None])[0] for each in folds], axis=0)
        shown = _as_json if options.json else _as_text
        print(shown(file, folds, probabilities))
    return BadData.exit_code if unread else 0


def _model_dir(text: str) -> Place:
    try:
        return absolute(place(text))
    except ValueError as error:
        raise BadInput(f"--model_dir {without_password(text)}: {error}") from None


def _folds(source: str | Place, fold: str, model: str | None) -> list[FoldModel]:
    """The networks to ask, of one mind on classes and features.

    Raises:
        BadInput: they cannot be had, or are not.
    """
    if fold == "all":
        folds = load_folds(source, model=model)
    elif fold.lstrip("-").isdecimal():
        folds = [load_fold(source, int(fold), model=model)]
    else:
        raise BadInput(f"--fold {fold!r}: want a fold's label, or all")
    first = folds[0]
    for other in folds[1:]:
        if _terms(other) != _terms(first):
            raise BadInput(
                f"{source}: folds {first.fold} and {other.fold} differ in classes or features; "
                "name one with --fold"
            )
    return folds


def _terms(fold: FoldModel) -> tuple[object, ...]:
    return fold.classes, fold.features, fold.input_shape


def _as_text(file: str, folds: Sequence[FoldModel], probabilities: np.ndarray) -> str:
    """The class and its probability, and under them those of every class, the likeliest first."""
    names = [one_line(name) for name in folds[0].classes.values()]
    width = max(map(len, names))
    order = np.argsort(-probabilities, kind="stable")
    best = order[0]
    rows = [f"  {names[each]:{width}}  {probabilities[each]:.4f}" for each in order]
    return "\n".join([f"{file}: {names[best]} ({probabilities[best]:.4f})", *rows])


def _as_json(file: str, folds: Sequence[FoldModel], probabilities: np.ndarray) -> str:
    labels, names = zip(*folds[0].classes.items(), strict=True)
    best = int(probabilities.argmax())
    return json.dumps(
        {
            "file": file,
            "label": labels[best],
            "class": names[best],
            "confidence": round(float(probabilities[best]), 6),
            "probabilities": {
                str(label): round(float(probability), 6)
                for label, probability in zip(labels, probabilities, strict=True)
            },
            "folds": [each.fold for each in folds],
        }
    )


if __name__ == "__main__":
    sys.exit(main())

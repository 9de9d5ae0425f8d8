"""``python -m raykfold.hub``: send the outputs of a run to the Hugging Face Hub.

python -m raykfold.hub upload --model_dir runs/demo
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from raykfold.config.command import Parser, add_flag, run_command
from raykfold.config.environment import without_secrets
from raykfold.errors import BadInput
from raykfold.files.paths import ModelDir, absolute
from raykfold.outputs.hub_client import ModelRepository
from raykfold.outputs.hub_mirror import HubMirror
from raykfold.outputs.sync import some_of
from raykfold.state.record import read_record


def main(argv: Sequence[str] | None = None) -> int:
    """Upload, print, and return the exit code: 0, 1, 2 or 130 (see `raykfold.errors`)."""
    return run_command(
        _parser, _upload, argv, stopped="raykfold: interrupted; the same command resumes"
    )


def _parser() -> Parser:
    parser = Parser(
        prog="python -m raykfold.hub",
        description="Send a run's weights and results to the Hugging Face Hub.",
        epilog="Exit codes: 0 all is sent, 1 some is not, 2 bad input, 130 interrupted.",
    )
    what = "Send what is not on the Hub yet."
    upload = parser.add_subparsers(dest="action", metavar="upload", required=True).add_parser(
        "upload", help=what, description=what
    )
    add_flag(upload, "model_dir", required=True, metavar="DIR", help="Folder of the run's outputs.")
    add_flag(upload, "repo", metavar="ID", help="Model repository [that of the run].")
    add_flag(upload, "hub_upload", choices=("all", "best"), help="Weights to send [the run's].")
    add_flag(
        upload,
        "hub_timeout",
        type=float,
        metavar="S",
        default=600.0,
        help="Most seconds to wait.",
    )
    return parser


def _upload(options: argparse.Namespace) -> int:
    outputs = ModelDir(absolute(options.model_dir))
    record = read_record(outputs.run_record)
    if record is None:
        raise BadInput(f"--model_dir {outputs.root}: holds no run; expected the --model_dir of one")
    repo_id = options.repo or record.config["hf_model_repo_id"]
    if not repo_id:
        raise BadInput(
            "--repo: the run was started without --hf_model_repo_id; expected owner/name"
        )
    with without_secrets(os.environ) as credentials:
        mirror = HubMirror(
            outputs,
            ModelRepository(repo_id, credentials.hf_token, private=record.config["hf_private"]),
            say=lambda line: print(line, flush=True),
            upload=options.hub_upload or record.config["hub_upload"],
        )
    mirror.finish()
    mirror.start()
    mirror.wait(options.hub_timeout)
    mirror.stop()
    missing = mirror.missing()
    print(
        f"Hub: not sent yet: {some_of(missing)}" if missing else f"Hub: every file is in {repo_id}"
    )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

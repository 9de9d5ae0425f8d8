"""`RunConfig`: everything that a cross-validation is told, with one docstring for each field."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from raykfold.config.class_spec import DEFAULT_MODEL, DEFAULT_RECIPE, SPECS
from raykfold.config.environment import python_path, script_command
from raykfold.config.options import (
    Options,
    OrWord,
    dtype,
    fold_list,
    hub_repository,
    integer,
    local_path,
    mask_sizes,
    network,
    not_negative,
    not_negative_finite,
    number,
    one_of,
    option,
    options,
    options_that_are,
    parse_values,
    part_of_one,
    path,
    plain_name,
    positive,
    read_option,
    recipe,
    switch,
    text,
    zero_or_ten,
)
from raykfold.config.presets import PLAIN, PRESETS
from raykfold.errors import BadInput
from raykfold.files.paths import ModelDir, RunDir, absolute, seed_name, working_copy
from raykfold.files.remote import Place, RemotePath

_Config = TypeVar("_Config", bound="RunConfig")
# Ray sets this for the entrypoint of `ray job submit`.
_SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"

_MEASURES = "it decides what is measured, and not how a network is trained"
_data = partial(option, group="data", search=_MEASURES)
_hyperparameter = partial(option, group="training", hyperparameter=True)
_protocol = partial(_hyperparameter, search=_MEASURES)


def _recipe(name: str, *how: Any, search: bool | str = True) -> Any:
    """Declare an option that a preset has a value for: None is that value."""
    strong = PRESETS["strong"][name]
    shown = f"{PLAIN[name]}" + (f"; strong: {strong}" if strong != PLAIN[name] else "")
    more: dict[str, Any] = {"hyperparameter": True, "decides_results": True, "search": search}
    return option(None, *how, group="recipe", shown=shown, **more)


def _check_scheduler(value: str) -> str | None:
    hint = "; what stops the trials of a search is --trial_scheduler"
    wrong = one_of("plateau", "cosine", "none")(value)
    return wrong and wrong + (hint if value in ("asha", "median") else "")


_output = partial(option, group="output")
_ray = partial(option, group="Ray")
_hub = partial(option, group="Hugging Face Hub")
_trackers = partial(option, group="Weights & Biases, TensorBoard")


@dataclass(frozen=True)
class RunConfig(Options):
    """Everything that a cross-validation is told. `python -m raykfold.run --help` prints it.

    The fields are the one list of what a run has: a hyper-parameter that a derived class adds, with
    `raykfold.config.options.option`, is part of the run's identity, its model card, what trackers
    show and what a search can vary, as its declaration says.

    Values from Python are read like those of flags: numbers may be NumPy's, folds any collection of
    labels, paths text, and `model` may be a class. What a flag could say is as good: "auto", "1,3".

    Raises:
        BadInput: an option cannot have its value; a folder of a submitted job is relative.
    """

    module: ClassVar[str] = "raykfold.run"
    about: ClassVar[str] = (
        "Cross-validate: train every fold as a Ray Train worker, all folds at once."
    )
    exit_codes: ClassVar[str] = "3 some folds failed"
    examples: ClassVar[tuple[str, ...]] = (
        "--demo --epochs 10 --model_dir runs/demo",
        "--processed_dir data/processed --epochs 50 --model_dir runs/first",
    )

    processed_dir: Place = _data(Path("data/processed"), path)
    """Folder with features, labels and folds, as `raykfold.prepare` writes it, or an .npz or .pt
    file of the three; or its URI."""

    hf_repo_id: str | None = _data(None, text, hub_repository)
    """Dataset on the Hugging Face Hub that files missing from processed_dir are fetched from."""

    demo: bool = _data(False, switch)
    """Train on built-in, synthesised sounds instead of `processed_dir`."""

    epochs: int = _hyperparameter(50, integer, positive, search=True)
    """Most epochs of a fold."""

    batch_size: int = _hyperparameter(32, integer, positive, decides_results=True, search=True)
    """Samples in a training batch."""

    learning_rate: float = _hyperparameter(
        0.001, number, positive, decides_results=True, search=True
    )
    """The optimizer's learning rate at the start, or after the warm-up."""

    seed: int = _hyperparameter(
        0,
        integer,
        not_negative,
        decides_results=True,
        search="the best of several seeds is luck, and not a setting",
    )
    """Seed of initial weights, order of samples and dropout."""

    model: str = _hyperparameter(DEFAULT_MODEL, network, decides_results=True, search=True)
    """The network, `module:Class`, called with (n_mels, num_classes, target_len), or with
    input_shape= and num_classes= if it has an input_shape, and the arguments in parentheses, as in
    raykfold.models:AudioCNN(dropout=0.3, width=16)."""

    # "auto" decides nothing until the device is known: see `raykfold.state.record.identity`.
    precision: str = _hyperparameter("auto", dtype, one_of("auto", "fp32", "bf16"), search=True)
    """Precision of training steps, fp32 or bf16 (auto: bf16 for AudioCNN on GPUs that have it)."""

    preset: str = option(
        "plain",
        str,
        one_of(*PRESETS),
        group="recipe",
        hyperparameter=True,
        search="it stands for several options; expected ranges of these",
    )
    """Values of the options below that are not given: plain, or strong for small audio sets."""

    recipe: str = option(
        DEFAULT_RECIPE,
        recipe,
        group="recipe",
        hyperparameter=True,
        decides_results=True,
        search=True,
    )
    """A class derived from raykfold.Recipe, `module:Class(name=value)`: what no option can say."""

    early_stopping_patience: int = _recipe("early_stopping_patience", integer, positive)
    """Epochs without a lower validation loss after which a fold stops."""

    optimizer: str = _recipe("optimizer", str, one_of("adam", "adamw", "sgd"))
    """adam, adamw or sgd (with Nesterov momentum of 0.9)."""

    weight_decay: float = _recipe("weight_decay", number, not_negative_finite)
    """The optimizer's weight decay."""

    scheduler: str = _recipe("scheduler", str, _check_scheduler)
    """Learning rate: reduced when the loss stagnates (plateau), along a cosine, or constant."""

    warmup_epochs: int = _recipe("warmup_epochs", integer, not_negative)
    """Epochs over which the learning rate rises at first."""

    grad_clip: float = _recipe("grad_clip", number, not_negative_finite)
    """Largest norm of the gradient (0: any)."""

    label_smoothing: float = _recipe("label_smoothing", number, part_of_one)
    """Share of each target that is spread over all classes."""

    class_weights: str = _recipe("class_weights", str, one_of("none", "balanced"))
    """Weights of classes in the training loss; balanced: inverse to their numbers of samples."""

    normalize: str = _recipe("normalize", str, one_of("none", "global", "band", "clip", "unit"))
    """Subtract a mean and divide by a standard deviation: of the training split (global), of each
    mel band of it or, in general, each position along a sample's first axis (band), or of each clip
    (clip); or divide integers by the largest value of their type, 255 for uint8 (unit)."""

    mixup: float = _recipe("mixup", number, not_negative_finite)
    """Mix pairs of training samples, with shares from Beta(mixup, mixup) (0: don't)."""

    spec_augment: str = _recipe("spec_augment", mask_sizes)
    """Mask up to F mel bands and T frames (the last two axes) of training samples, as in 8,20."""

    time_shift: float = _recipe("time_shift", number, part_of_one)
    """Shift training samples along their last axis, time, circularly, by up to this part of it."""

    ema: float = _recipe("ema", number, part_of_one)
    """Evaluate and keep an exponential moving average of the weights, of this decay (0: don't)."""

    monitor: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"] = _recipe(
        "monitor",
        str,
        one_of("accuracy", "balanced_accuracy", "macro_f1", "loss"),
        search=_MEASURES,
    )
    """The figure that chooses each fold's epoch and that a search ranks by (loss: by accuracy);
    learning rate and early stopping follow the loss."""

    repeats: int = _protocol(1, integer, positive)
    """Number of seeds that every fold is trained with: seed, seed + 1, and so on."""

    select: Literal["best", "inner"] = _protocol(
        "best", str, one_of("best", "inner"), decides_results=True
    )
    """Which epoch's weights are kept: the best on the held-out fold, or on an inner split."""

    folds: tuple[int, ...] | None = _data(None, OrWord("all", fold_list))
    """Folds to hold out, as in 1,3 (all by default); training splits stay whole."""

    model_dir: Place | None = _output(None, path)
    """Folder, or URI (s3://, gs://), of the outputs (~/raykfold/<run_name> by default)."""

    storage_path: Place | None = _output(None, path)
    """Folder, or URI, of the checkpoints that a run resumes from (<model_dir>/ray by default)."""

    run_name: str = _output("", text, plain_name)
    """Name of the run (demo, arrays, or the last part of processed_dir, by default)."""

    fresh: bool = _output(False, switch)
    """Set an earlier run of that name aside, and start anew."""

    verbose: bool = _output(False, switch)
    """Tell what happens to each share, let Ray and its workers print, show tracebacks."""

    address: str | None = _ray(None, text)
    """Ray cluster to use (RAY_ADDRESS by default, else a local instance of its own)."""

    local_cpus: int | None = _ray(None, OrWord("auto", integer), positive)
    """CPUs of the local Ray instance (all by default)."""

    num_workers: int | None = _ray(None, OrWord("auto", integer), positive)
    """Most workers at once (auto: one for each fold, as far as there are slots)."""

    cpus_per_worker: int = _ray(1, integer, positive)
    """CPUs, and threads, of a worker."""

    folds_per_slot: int | None = _ray(None, OrWord("auto", integer), positive)
    """Folds that a worker steps together (auto: the fastest number on a GPU, one on a CPU)."""

    use_gpu: bool | None = _ray(None, OrWord("auto", switch))
    """Whether each worker takes a GPU (auto: if Ray has any)."""

    features_on: Literal["auto", "device", "host"] = _ray(
        "auto", str, one_of("auto", "device", "host")
    )
    """Where features are in training: all in the memory of the GPU, or of a process without one; or
    in a file on the host, of which batches are read ahead (auto: on the GPU if they fit)."""

    wait_timeout: float | None = _ray(None, OrWord("never", number), positive)
    """Seconds to wait for a free slot when no fold has one (never: as long as it takes)."""

    max_failures: int = _ray(3, integer, positive)
    """Deaths of a fold's worker in a row, without a completed round, after which the fold fails."""

    stall_timeout: float | None = _ray(None, OrWord("auto", number), zero_or_ten)
    """Seconds without a finished batch, or without a sign of life, after which a worker is replaced
    (0: never; auto: 60, or 20 times its longest batch if that is more; 300 in a first epoch)."""

    checkpoint_every: int = _ray(1, integer, positive)
    """Rounds from one checkpoint to the next."""

    scratch_dir: Path | None = _ray(None, local_path)
    """Folder on a disk of each node (the system's for temporary files by default), for features
    that the node does not see as a file: arrays from Python, or the driver's alone."""

    hf_model_repo_id: str | None = _hub(None, text, hub_repository)
    """Model repository on the Hugging Face Hub that weights and results are uploaded to."""

    hf_private: bool = _hub(False, switch)
    """Make that repository private, if it does not exist yet."""

    hub_upload: str = _hub("all", str, one_of("all", "best"))
    """Weights to upload: those of all epochs, or only the best of each fold."""

    hub_interval: float = _hub(60.0, number, positive)
    """Least number of seconds from one commit on the Hub to the next."""

    hub_timeout: float = _hub(600.0, number, not_negative)
    """Seconds to wait, at the end, for uploads that are still under way."""

    wandb_project: str | None = _trackers(None, text, plain_name)
    """Project on Weights & Biases that each fold is logged to, as a run."""

    wandb_entity: str | None = _trackers(None, text, plain_name)
    """User or team on Weights & Biases (your own default)."""

    wandb_mode: str | None = _trackers(None, str, one_of("online", "offline", "disabled"))
    """online, offline or disabled (what W&B's own settings say, else online if there is a key)."""

    wandb_watch: bool = _trackers(False, switch)
    """Log histograms of weights and gradients after each epoch."""

    tensorboard: bool = _trackers(False, switch)
    """Write TensorBoard event files of each fold to model_dir/tensorboard."""

    in_memory: bool = dataclasses.field(default=False, repr=False, compare=False)
    """Whether the data came as arrays from Python, and only that script or notebook can resume."""

    named: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)
    """Options that the environment or a file sets, and would set again: `command` has them all."""

    filled: tuple[str, frozenset[str]] = dataclasses.field(
        default=("plain", frozenset()), repr=False, compare=False
    )
    """A preset, and the options that it has set, which another preset would set anew."""

    def __post_init__(self) -> None:
        # Values from Python are read like those of flags. A default may be what no flag can say.
        for name, field in options(type(self)).items():
            value = getattr(self, name)
            is_text = field.metadata["parse"] in (text, str)
            if is_text and not field.default and isinstance(value, str | None) and not value:
                self._set(name, field.default)  # None and "" both say: not given
            elif type(value) is not type(field.default) or value != field.default:
                self._set(name, read_option(type(self), name, value, f"--{name}"))

        # The working directory of a submitted job vanishes with it.
        if in_submitted_job(os.environ):
            for name in ("model_dir", "storage_path", "scratch_dir"):
                given = getattr(self, name)
                if isinstance(given, Path) and not str(given).startswith(("/", "~")):
                    raise BadInput(
                        f"--{name} {given}: is relative, and the working directory of a submitted "
                        "job vanishes with it; expected an absolute path"
                    )

        # What follows from other fields is filled in, and paths become absolute.
        earlier, filled = self.filled
        given = {
            name
            for name in PLAIN
            if getattr(self, name) is not None
            and not (name in filled and getattr(self, name) == PRESETS[earlier][name])
        }
        for name in PLAIN.keys() - given:
            self._set(name, PRESETS[self.preset][name])
        self._set("filled", (self.preset, frozenset(PLAIN.keys() - given)))
        data_dir = _absolute_or_as_given if self.demo else absolute  # a demo needs no data_dir
        self._set("processed_dir", data_dir(self.processed_dir))
        self._set("run_name", self.run_name or self._default_run_name())
        self._set("model_dir", absolute(self.model_dir or Path("~/raykfold") / self.run_name))
        self._set("storage_path", absolute(self.storage_path or self.model_place / "ray"))
        if self.scratch_dir is not None:
            self._set("scratch_dir", absolute(self.scratch_dir))
        if self.hf_repo_id is not None and isinstance(self.processed_dir, RemotePath):
            raise BadInput(
                f"--processed_dir {self.processed_dir}: with --hf_repo_id, expected a local path: "
                "files from the Hub are put there"
            )

    @property
    def model_place(self) -> Place:
        """`model_dir`, which is always set."""
        assert self.model_dir is not None
        return self.model_dir

    @property
    def model_path(self) -> Path:
        """Local folder of the outputs: `model_dir`, or the working copy of one that is a URI."""
        place = self.model_place
        return working_copy(place) if isinstance(place, RemotePath) else place

    @property
    def outputs(self) -> ModelDir:
        return ModelDir(self.model_path)

    @property
    def run_dir(self) -> RunDir:
        assert self.storage_path is not None
        return RunDir(self.storage_path / self.run_name)

    def hyperparameters(self) -> dict[str, Any]:
        """Return the options that the model card and the trackers show, by name."""
        return {
            name: getattr(self, name) for name in options_that_are(type(self), "hyperparameter")
        }

    def deciding(self) -> dict[str, Any]:
        """Return the options that decide a fold's result, by name; without the precision."""
        names = options_that_are(type(self), "decides_results")
        if self.scheduler == "cosine" or self.recipe != DEFAULT_RECIPE:
            names.append("epochs")  # a schedule can follow from it
        return {name: getattr(self, name) for name in names}

    def repeat(self, number: int) -> RunConfig:
        """Return the configuration of one repeat, which is a run of its own.

        Args:
            number: of the repeat, from 0; the first is this run. Others have the next seeds, and
                folders within those of this run.
        """
        if number == 0:
            return self
        seed = self.seed + number
        return dataclasses.replace(
            self,
            seed=seed,
            repeats=1,
            run_name=f"{self.run_name}-seed-{seed}",
            model_dir=self.model_place / seed_name(seed),
            storage_path=self.run_dir.repeats,
            hf_model_repo_id=None,  # the run's mirror uploads its repeats
        )

    def with_data_in_memory(self: _Config) -> _Config:
        """Return the configuration of a run whose data comes from Python.

        It is the same one if it names a source of data, which is then where the data lies as well.
        """
        changed = self.changed()
        if changed.keys() & {"processed_dir", "hf_repo_id", "demo"}:
            return self
        derived = {"run_name", "model_dir", "storage_path"} - changed.keys()
        not_given: dict[str, Any] = dict.fromkeys(derived)
        return dataclasses.replace(self, in_memory=True, **not_given)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the run's record. No field holds a secret."""
        values = {name: getattr(self, name) for name in options(type(self))}
        if self.in_memory:
            values["in_memory"] = True
        return {n: str(v) if isinstance(v, Place) else v for n, v in values.items()}

    def command(self) -> list[str]:
        """Return the command that resumes this run, also where what is `named` still holds.

        Only the script that defines a class, or makes the data, can resume its run; the command is
        empty where that is a notebook, or where this process runs another one. A class's module may
        lie where only the script has looked for it.
        """
        if self.in_memory:
            return script_command() or []
        specs = [spec_class.parse(getattr(self, name)) for name, spec_class in SPECS.items()]
        for spec in specs:
            if spec.module == "__main__":
                return script_command(spec.class_name) or []
        paths = dict.fromkeys(python_path(spec.module, "raykfold") for spec in specs)
        path = os.pathsep.join(each for each in paths if each)
        variables = ["env", f"PYTHONPATH={path}"] if path else []
        return [*variables, "python", "-m", self.module, *self.flags()]

    def flags(self) -> list[str]:
        """Return the arguments of the command that resumes this run."""
        flags: list[str] = []
        changed = self.changed()
        for name, field in options(type(self)).items():
            value, parse = getattr(self, name), field.metadata["parse"]
            if name == "fresh":  # holds for one start only
                flags += ["--fresh", "false"] if name in self.named else []
            elif name not in changed and name not in self.named:
                continue
            elif parse is switch:
                flags += [f"--{name}"] if value else [f"--{name}", "false"]
            elif value is not None:
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                flags += [f"--{name}", shown]
            elif isinstance(parse, OrWord):
                flags += [f"--{name}", parse.word]
        return flags

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, without ``fresh``."""
        derived = {
            **PRESETS[self.preset],
            "processed_dir": _absolute_or_as_given(Path("data/processed")),
            "run_name": self._default_run_name(),
            "model_dir": _absolute_or_as_given(Path("~/raykfold") / self.run_name),
            "storage_path": self.model_place / "ray",
        }
        return {
            name: getattr(self, name)
            for name, field in options(type(self)).items()
            if name != "fresh" and getattr(self, name) != derived.get(name, field.default)
        }

    def _default_run_name(self) -> str:
        if self.demo:
            return "demo"
        if self.in_memory:
            return "arrays"
        return re.sub(r"\.(npz|pt)$", "", self.processed_dir.name) or "root"

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def _absolute_or_as_given(path: Place) -> Place:
    """Return `path` from the root, or as it is where no home or working directory is known."""
    try:
        return absolute(path)
    except BadInput:
        return path


def in_submitted_job(environ: Mapping[str, str]) -> bool:
    """Return whether this process is the entrypoint of `ray job submit`."""
    return _SUBMITTED_JOB_VARIABLE in environ


def parse_config(argv: Sequence[str], environ: Mapping[str, str]) -> RunConfig:
    """Read the command line, the environment and the TOML file that they name.

    Raises:
        BadInput: a flag, variable or key is unknown, or its value cannot be read; the text names
            where it stood.
        SystemExit: after --help or --version.
    """
    values, table = parse_values(RunConfig, argv, environ)
    if table.rows is not None:
        raise BadInput(
            f"--config {table.file}: [search] is for python -m raykfold.search, which tries many "
            "runs; expected a file without it"
        )
    return RunConfig(**values)

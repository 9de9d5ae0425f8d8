"""Datasets of the Hugging Face Hub that are Parquet files: which files, and the files themselves.

No code of a repository is run. Where a repository has no Parquet files, those are taken into which
the Hub itself has converted it, as it does in the revision `refs/convert/parquet`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from raykfold.data.tables import by_numbers_within
from raykfold.errors import BadData
from raykfold.outputs.hub_client import DatasetRepository, Refused, card_data, patiently
from raykfold.outputs.sync import some_of
from raykfold.text import comma_list, count_of, scalar_text

_CONVERTED = "refs/convert/parquet"
_PARTIAL = "partial-"  # before a split of which the Hub has converted the beginning only
_README = "README.md"
_SHARD = re.compile(r"(?:.*/)?(\w+(?:\.\w+)*)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_MOST_PATTERNS = 10_000  # YAML's aliases make any number of them out of a small file
_FIRST_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Choice:
    """Files of a repository.

    Attributes:
        splits: split → its files, in order.
        info: what the README says of their columns (see `card_features`); None if nothing.
    """

    splits: Mapping[str, Sequence[str]]
    info: object = None


@dataclass(frozen=True)
class ParquetDataset:
    """Parquet files of a dataset, downloaded.

    Attributes:
        splits: split → its files.
        info: as in `Choice`.
    """

    splits: Mapping[str, Sequence[Path]]
    info: object


def fetch_parquet(
    repo_id: str,
    token: str | None,
    say: Callable[[str], None],
    *,
    revision: str | None = None,
    config_name: str | None = None,
    split: str | None = None,
    download_dir: Path | None = None,
) -> ParquetDataset:
    """Download the Parquet files of a dataset. An interrupted download continues.

    Args:
        repo_id: ``owner/name``.
        token: of the Hub; None for the one that `hf auth login` stored.
        say: takes lines for the user.
        revision: branch, tag or commit; `main` by default.
        config_name: of a dataset that has several configurations.
        split: take this one alone, and not all.
        download_dir: folder in place of the client's cache.

    Raises:
        BadData: the repository cannot be read, has no Parquet files, or not this configuration or
            split.
    """
    about = f"dataset {repo_id}"

    def find() -> tuple[DatasetRepository, str, Choice]:
        repository = DatasetRepository(repo_id, token, progress=sys.stderr.isatty())
        commit, names = repository.contents(revision)
        card: Mapping[str, Any] = {}
        if _README in names:
            (readme,) = repository.download([_README], commit, cache_dir=download_dir)
            try:
                card = card_data(readme)
            except ValueError as error:
                say(f"{about}: its README.md is passed over ({error})")
        choice = choose_files(names, card, about, config_name)
        if not choice.splits and revision is None:
            try:
                commit, converted = repository.contents(_CONVERTED)
            except Refused as refused:
                if refused.status != 404:
                    raise
            else:
                choice = choose_converted(converted, card, about, config_name)
                say(f"{about}: read as the Hub has converted it ({_CONVERTED})")
        if not choice.splits:
            others = [name for name in sorted(names) if not name.startswith(".git")]
            raise BadData(
                f"{about}: has no Parquet files; it has {some_of(others) or 'nothing'}; expected "
                "Parquet with an Audio column (prepare folder and prepare csv read audio files)"
            )
        return repository, commit, choice

    repository, commit, choice = patiently(find, about, say)
    splits = choice.splits
    if split is not None:
        if split not in splits:
            raise BadData(f"--split {split}: {about} has the splits {comma_list(splits)}")
        splits = {split: splits[split]}
    partial = [each for each in splits if each.startswith(_PARTIAL)]
    if partial:
        say(f"{about}: {comma_list(partial)} is the beginning only, all that the Hub has converted")
    wanted = [name for names in splits.values() for name in names]
    joined = f" of the splits {comma_list(splits)} (--split takes one)" if len(splits) > 1 else ""
    say(f"{about} at {commit[:7]}: fetching {count_of(len(wanted), 'Parquet file')}{joined}")
    files = patiently(
        lambda: repository.download(wanted, commit, cache_dir=download_dir), about, say
    )
    path_of = dict(zip(wanted, files, strict=True))
    return ParquetDataset(
        {each: [path_of[name] for name in names] for each, names in splits.items()}, choice.info
    )


def choose_files(
    names: Collection[str], card: Mapping[str, Any], about: str, config_name: str | None
) -> Choice:
    """Return the Parquet files of a repository: those that its README lists, else all.

    Args:
        names: of all files.
        card: the data above the text of the README.
        about: the repository, for messages.
        config_name: of the configuration to take.

    Raises:
        BadData: there is no such configuration, or several, and none is the default.
    """
    parquet = sorted((name for name in names if name.endswith(".parquet")), key=by_numbers_within)
    configs = {
        name: each
        for each in _list(card.get("configs"))
        if isinstance(each, Mapping)
        and ("data_files" in each or "data_dir" in each)
        and (name := scalar_text(each.get("config_name", "default"))) is not None
    }
    if not configs:
        # As `datasets` does, take all files. Folders may be configurations, which is not known.
        inside = [name for name in parquet if name.startswith(f"{config_name}/")]
        if config_name is not None and parquet and not inside:
            raise BadData(f"--config_name {config_name}: {about} has no such configuration")
        found = inside if config_name is not None else parquet
        return Choice(
            _by_split((_split_of(each), each) for each in found), _info(card, config_name)
        )
    declared = next((name for name, each in configs.items() if each.get("default")), None)
    config = _one_config(configs, declared, about, config_name)
    below = (scalar_text(configs[config].get("data_dir")) or "").strip("/")
    patterns = list(islice(_patterns(configs[config].get("data_files", "**")), _MOST_PATTERNS + 1))
    if len(patterns) > _MOST_PATTERNS:
        raise BadData(f"{about}: its README.md has more than {_MOST_PATTERNS} patterns of files")
    pairs = [
        (split or _split_of(name), name)
        for split, pattern in patterns
        for name in parquet
        if _matches(name, str(PurePosixPath(below, pattern)))
    ]
    return Choice(_by_split(pairs), _info(card, config))


def choose_converted(
    names: Collection[str], card: Mapping[str, Any], about: str, config_name: str | None
) -> Choice:
    """Return the files of a conversion by the Hub, ``<configuration>/<split>/0000.parquet``.

    The arguments and errors are those of `choose_files`.
    """
    parts = [PurePosixPath(name).parts for name in sorted(names) if name.endswith(".parquet")]
    configs = dict.fromkeys(part[0] for part in parts if len(part) == 3)
    if not configs:
        return Choice({})
    config = _one_config(configs, None, about, config_name)
    pairs = [(part[1], "/".join(part)) for part in parts if len(part) == 3 and part[0] == config]
    return Choice(_by_split(pairs), _info(card, config))


def _one_config(
    configs: Collection[str], declared: str | None, about: str, config_name: str | None
) -> str:
    """Return the configuration that the user has named, else the default one, else the only one."""
    if config_name is not None:
        if config_name not in configs:
            raise BadData(
                f"--config_name {config_name}: {about} has the configurations {comma_list(configs)}"
            )
        return config_name
    default = declared or ("default" if "default" in configs else None)
    if default is None and len(configs) > 1:
        raise BadData(
            f"{about}: has the configurations {comma_list(configs)}; expected one, by --config_name"
        )
    return default or next(iter(configs))


def _by_split(pairs: Any) -> dict[str, list[str]]:
    """Return split → files: training, validation and test first, each file once."""
    splits: dict[str, list[str]] = {}
    for split, name in dict.fromkeys(pairs):
        splits.setdefault(split, []).append(name)

    def place(split: str) -> tuple[int, Any]:
        plain = split.removeprefix(_PARTIAL)
        known = plain in _FIRST_SPLITS
        return _FIRST_SPLITS.index(plain) if known else len(_FIRST_SPLITS), by_numbers_within(split)

    return {split: splits[split] for split in sorted(splits, key=place)}


def _split_of(name: str) -> str:
    """Return the split of a file by its name, as `datasets` does: ``train`` without one."""
    shard = _SHARD.fullmatch(name)
    if shard:
        return shard[1]
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), "train")


def _patterns(data_files: object) -> Iterator[tuple[str | None, str]]:
    """Yield (split, pattern) for each pattern of a configuration; no split where none is named."""
    for each in _list(data_files):
        nested = isinstance(each, Mapping)
        split = scalar_text(each.get("split")) if nested else None
        for pattern in map(scalar_text, _list(each.get("path")) if nested else [each]):
            if pattern is not None:
                yield split, pattern


def _matches(name: str, pattern: str) -> bool:
    """Return whether a glob pattern matches, by fsspec's rules, which `datasets` follows.

    ``**`` is any number of folders; ``*``, ``?`` and ``[0-9]`` are within the name of one.
    """
    parts = name.split("/")
    reached = {0}  # numbers of the name's parts that those of the pattern so far can match
    for part in pattern.split("/"):
        if part == "**":
            reached = set(range(min(reached, default=len(parts) + 1), len(parts) + 1))
        else:
            reached = {n + 1 for n in reached if n < len(parts) and fnmatchcase(parts[n], part)}
    return len(parts) in reached


def _info(card: Mapping[str, Any], config: str | None) -> object:
    """Return what a README says of the columns of a configuration."""
    entries = [each for each in _list(card.get("dataset_info")) if isinstance(each, Mapping)]
    named = [each for each in entries if each.get("config_name", "default") == config]
    return next(iter(named), entries[0] if len(entries) == 1 else None)


def _list(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]

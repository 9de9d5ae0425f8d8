"""What workers need of the driver's code: its import path, and classes that only the driver has."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ray import cloudpickle

from raykfold.config.class_spec import ClassSpec
from raykfold.config.environment import import_path, is_importable
from raykfold.errors import BadInput
from raykfold.text import one_line
from raykfold.training.classes import define_class, import_class


@dataclass(frozen=True)
class DriverCode:
    """Lets a worker build the networks and recipes that the driver can build.

    Attributes:
        before: folders that the driver searches before its installed packages.
        after: folders that it searches after them.
        classes: class name → the option that names it, without raykfold's own classes.
        by_value: class name → pickle of the class, for classes that no other process can import:
            those of a script, of a notebook, or of a file that was loaded by its path. A worker
            imports the others.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    classes: Mapping[str, str]
    by_value: Mapping[str, bytes]

    @classmethod
    def of(cls, models: Iterable[str], recipes: Iterable[str] = ()) -> DriverCode:
        """Return what workers need for these, each ``module:Class(name=value, ...)``.

        Raises:
            BadInput: a class cannot be imported, or cannot be sent.
        """
        named = [(ClassSpec.parse(text), "model") for text in models]
        named += [(ClassSpec.parse(text), "recipe") for text in recipes]
        classes, by_value = {}, {}
        for spec, option in sorted(named, key=lambda pair: pair[0].name):
            if spec.module.partition(".")[0] == "raykfold" or spec.name in classes:
                continue
            classes[spec.name] = option
            if spec.module == "__main__" or not is_importable(spec.module):
                by_value[spec.name] = _pickle(option, spec.name)
        before, after = import_path()
        return cls(before, after, classes, by_value)

    def load(self) -> None:
        """Let this process, a worker's, find what the driver finds."""
        sys.path[:] = dict.fromkeys([*self.before, *sys.path, *self.after])
        for name, pickled in self.by_value.items():
            define_class(name, cloudpickle.loads(pickled))


def import_task() -> Callable[..., tuple[str, str] | None]:
    """Return a task that tries on a node what `DriverCode.load` and the import of a class will do.

    It takes the values of a `DriverCode`, and returns what cannot be imported and why, or None. Ray
    sends it by value, because it is defined within a function, and it uses nothing from outside of
    it: so it also runs where raykfold is missing.
    """

    def try_imports(
        before: tuple[str, ...],
        after: tuple[str, ...],
        classes: Mapping[str, str],
        by_value: Mapping[str, bytes],
    ) -> tuple[str, str] | None:
        import importlib
        import pickle
        import sys

        steps: list[tuple[str, Callable[[Any], object], Any]] = [
            ("raykfold", importlib.import_module, "raykfold"),
        ]
        for name, option in classes.items():
            pickled = by_value.get(name)
            load = importlib.import_module if pickled is None else pickle.loads
            steps.append((f"--{option} {name}", load, pickled or name.partition(":")[0]))
        for what, step, argument in steps:
            try:
                step(argument)
            except Exception as error:
                return what, f"{type(error).__name__}: {error}"
            # Ray Train's processes look for raykfold itself without the driver's path.
            sys.path[:] = dict.fromkeys([*before, *sys.path, *after])
        return None

    return try_imports


def _pickle(option: str, name: str) -> bytes:
    """Return the pickle of a class by value, with what it uses of its module.

    Raises:
        BadInput: the class cannot be imported, or uses what cannot be pickled.
    """
    found = import_class(option, name)
    # Its package, if it has one, and itself.
    parts = itertools.accumulate(found.__module__.split("."), "{}.{}".format)
    only_here = {part for part in parts if part in sys.modules and not is_importable(part)}
    # The user may have registered some, and they stay so.
    ours = only_here - {"__main__"} - cloudpickle.list_registry_pickle_by_value()
    try:
        with ExitStack() as stack:
            for part in ours:
                cloudpickle.register_pickle_by_value(sys.modules[part])
                stack.callback(cloudpickle.unregister_pickle_by_value, sys.modules[part])
            return cloudpickle.dumps(found)
    except Exception as error:  # from whatever the class refers to
        raise BadInput(
            f"--{option} {name}: cannot be sent to workers ({one_line(error)}); expected a "
            "class in a module on the Python path, or one that uses less of what is around it"
        ) from error

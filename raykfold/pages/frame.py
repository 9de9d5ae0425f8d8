"""What the pages for people share: their frame, their pictures, and how figures are written.

A page is one file that asks nothing of the network. Its template extends ``frame.html.j2``, which
has the head, the style, what a page opens with, and the foot.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykfold.files.atomic import write_file
from raykfold.files.paths import ModelDir

if TYPE_CHECKING:
    from raykfold.pages.drawing import Picture


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page as HTML; every value is escaped unless the template says otherwise.

    Args:
        template: name of a file of this package.
        values: what it takes, without the colours.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    from raykfold.pages.drawing import DARK, LIGHT

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=FunctionLoader(lambda name: (package_files(__package__) / name).read_text("utf-8")),
    )
    return environment.get_template(template).render(
        values, light=LIGHT, dark=DARK, variables=_variables
    )


def write_page(outputs: ModelDir, page: str, plots: Mapping[str, bytes]) -> Path:
    """Write a page and its pictures into `outputs`; pictures of an earlier page go.

    Args:
        plots: name → PNG.

    Returns:
        Where the page is.

    Raises:
        StorageError: it cannot be written.
    """
    for name, content in plots.items():
        write_file(outputs.plots / f"{name}.png", content)
    for file in outputs.all_plots():
        if file.stem not in plots:
            file.unlink(missing_ok=True)
    write_file(outputs.report, page.encode())
    return outputs.report


def figure(picture: Picture, label: str, caption: str) -> dict[str, Any]:
    """What the macro ``shown`` takes.

    Args:
        label: what the picture shows, for those who do not see it.
        caption: stands below it.
    """
    return {
        "svg": picture.svg(label),
        "label": label,
        "caption": caption,
        "wide": picture.needs_scrolling,
    }


def _variables(theme: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in theme.items())

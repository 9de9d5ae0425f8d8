"""What the pages of runs and of searches share: rendering, pictures, and writing to files.

A page is one HTML file that loads nothing from the network. Its template extends
``frame.html.j2``, which has the head, the style, the opening, the remarks and the foot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from raykfold.files.atomic import write_file
from raykfold.files.paths import ModelDir
from raykfold.pages.drawing import DARK, LIGHT, Picture

# The arguments of the template macro ``shown``: a picture, what it shows for people who cannot see
# it, and the text below it.
Shown: TypeAlias = tuple[Picture, str, str]


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return a page as HTML; values are escaped unless the template says otherwise.

    Args:
        template: name of a template in this folder.
        values: values of the template, except the colours.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=PackageLoader("raykfold", "pages"),
    )
    return environment.get_template(template).render(values, light=LIGHT, dark=DARK)


def write_page(outputs: ModelDir, page: str, plots: Mapping[str, bytes]) -> Path:
    """Write a page and its pictures to `outputs`, and remove pictures of an earlier page.

    Args:
        outputs: folder of the outputs.
        page: the page as HTML.
        plots: name → content of a PNG file.

    Returns:
        The path of the page.

    Raises:
        StorageError: a file cannot be written.
    """
    for name, content in plots.items():
        write_file(outputs.plots / f"{name}.png", content)
    for file in outputs.all_plots():
        if file.stem not in plots:
            file.unlink(missing_ok=True)
    write_file(outputs.report, page.encode())
    return outputs.report


def cell(text: object, badges: Iterable[tuple[str, str]] = (), page: str = "") -> dict[str, Any]:
    """Return a cell for the template macro ``scrolling_table``; plain text needs none.

    Args:
        text: what it says.
        badges: kind and text of each badge behind it.
        page: where the text links to.
    """
    return {"text": text, "badges": list(badges), "page": page}

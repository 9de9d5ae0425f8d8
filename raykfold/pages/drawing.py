"""What the pictures of runs and of searches share: their themes, and the parts of a figure.

A picture can be had as a PNG, and as an SVG for use within a page, whose colours are the page's CSS
variables and so follow its light or dark theme. The same values give the same bytes. Nothing of
matplotlib's global state is used or left changed.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from raykfold.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Theme: TypeAlias = Mapping[str, str]

# The folds' colours start from M. Petroff's ten for data visualisation (arXiv:2107.02270), which
# people with colour vision deficiencies tell apart; those that were faint on white are darker.
# The scale is viridis (S. van der Walt and N. Smith), which they read too; what is high
# stands out most from the paper.
LIGHT: Theme = {
    "paper": "#ffffff",
    "card": "#f5f7f9",
    "ink": "#1a1f26",
    "muted": "#59636f",
    "line": "#d7dde4",
    "accent": "#1c69ad",
    "wrong": "#c2510a",
    "on": "#ffffff",
    "fold0": "#2f7fc9",
    "fold1": "#bd7b00",
    "fold2": "#bd1f01",
    "fold3": "#7c8e8b",
    "fold4": "#832db6",
    "fold5": "#a05f4d",
    "fold6": "#e76300",
    "fold7": "#9a8d48",
    "fold8": "#5f6470",
    "fold9": "#21898e",
    "scale0": "#a9be2c",
    "scale1": "#5cb257",
    "scale2": "#28a07a",
    "scale3": "#21868a",
    "scale4": "#2c6a8e",
    "scale5": "#3b4d8b",
    "scale6": "#440f5c",
}
DARK: Theme = {
    "paper": "#12161b",
    "card": "#1b2129",
    "ink": "#e8ecf1",
    "muted": "#9ba7b4",
    "line": "#323b46",
    "accent": "#6db3f5",
    "wrong": "#ff9a55",
    "on": "#0d1116",
    "fold0": "#58a6ee",
    "fold1": "#ffb833",
    "fold2": "#f0654c",
    "fold3": "#a9b9b6",
    "fold4": "#ba85ea",
    "fold5": "#cf907e",
    "fold6": "#ff8430",
    "fold7": "#cfc287",
    "fold8": "#969cab",
    "fold9": "#7fdbe0",
    "scale0": "#6257ad",
    "scale1": "#4a70b5",
    "scale2": "#3a8bb0",
    "scale3": "#2ba597",
    "scale4": "#48c27c",
    "scale5": "#9ddb4a",
    "scale6": "#fde725",
}
# What stands for a theme's colour while matplotlib draws.
_SENTINELS: Theme = {name: f"#0100{number:02x}" for number, name in enumerate(LIGHT)}
_VARIABLES = {colour: f"var(--{name})" for name, colour in _SENTINELS.items()}

FOLD_COLOURS = 10
SCALE_COLOURS = 7
_FONT = "DejaVu Sans"  # comes with matplotlib: text is measured alike on every machine
_WIDE_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans")
_POINTS = 72.0  # to an inch
_DPI = 150
WIDTH = 300.0  # points: fits a phone at a size that can be read
_WIDEST_WITHOUT_SCROLLING = 430.0
_LONGEST_NAME = 22
_SETTINGS: dict[str, Any] = {
    "axes.edgecolor": "none",
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "raykfold",
    "text.parse_math": False,  # a class may be called $x^2$
    "text.usetex": False,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
}


@dataclass(frozen=True)
class Picture:
    """Something that can be drawn in any theme.

    Attributes:
        name: of the file, and what its ids begin with among several on one page.
        width: points.
        height: points.
        draw: puts everything into a figure.
    """

    name: str
    width: float
    height: float
    draw: Callable[[Figure, Theme], None]

    @property
    def needs_scrolling(self) -> bool:
        """Whether a phone would make it too small to read."""
        return self.width > _WIDEST_WITHOUT_SCROLLING

    def svg(self, label: str) -> str:
        """An ``<svg>`` element for a page that sets ``--ink`` and the other names of a theme.

        Args:
            label: what the picture shows, for those who do not see it.
        """
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        with _drawing():
            figure = self._figure(_SENTINELS)
            file = io.StringIO()
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
        # As wide as it is drawn at most, and where it is scrolled no narrower than can be read.
        least = f"min-width:{self.width:.0f}px;" if self.needs_scrolling else ""
        size = f"{least}width:100%;max-width:{self.width * 4 / 3:.0f}px"
        return _for_a_page(file.getvalue(), self.name, {"aria-label": label, "style": size})

    def png(self) -> bytes:
        """In the light theme."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        with _drawing():
            figure = self._figure(LIGHT)
            figure.set_facecolor(LIGHT["paper"])
            figure.set_dpi(_DPI)
            file = io.BytesIO()
            # Without the version of matplotlib in it.
            FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
        return file.getvalue()

    def _figure(self, theme: Theme) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(self.width / _POINTS, self.height / _POINTS), facecolor="none")
        self.draw(figure, theme)
        return figure


@contextmanager
def _drawing() -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the user's settings are."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    fonts = [_FONT, *(name for name in _WIDE_FONTS if name in installed)]
    settings: Any = {
        name: value
        for name, value in matplotlib.rcParamsDefault.items()
        if not name.startswith(("backend", "toolbar", "interactive", "webagg", "date.epoch"))
    }
    with warnings.catch_warnings(), matplotlib.rc_context(settings | _SETTINGS):
        matplotlib.rcParams["font.family"] = fonts
        # Of letters that no font here has: a box stands for them, and the browser has more fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


# --- the parts of a figure -----------------------------------------------------------------------


def add_axes(figure: Figure, corner: tuple[float, float], size: tuple[float, float]) -> Axes:
    """Axes whose lower left corner and size are given in points."""
    width, height = (float(inches) * _POINTS for inches in figure.get_size_inches())
    (left, bottom), (across, up) = corner, size
    return figure.add_axes((left / width, bottom / height, across / width, up / height))


def points(figure: Figure, point: tuple[float, float]) -> Any:
    """A transform that puts (0, 0) at `point`, in points from the figure's lower left corner."""
    from matplotlib.transforms import ScaledTranslation

    return figure.dpi_scale_trans + ScaledTranslation(
        point[0] / _POINTS, point[1] / _POINTS, figure.dpi_scale_trans
    )


def grid(axes: Axes, theme: Theme, axis: str) -> None:
    axes.grid(axis=axis, color=theme["line"], linewidth=0.8)  # type: ignore[arg-type]
    axes.tick_params(colors=theme["muted"])


def whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def legend_below(axes: Axes, theme: Theme, handles: Sequence[Any], labels: Sequence[Any]) -> None:
    if handles:
        axes.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.17),
            ncols=4 if len(handles) <= 4 else 3,
            labelcolor=theme["ink"],
            columnspacing=0.9,
            handlelength=1.3,
            handletextpad=0.4,
            borderpad=0.0,
        )


def or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def cut(name: str, most: int) -> str:
    """A name of so many letters at most; what is left out is in its middle."""
    text = one_line(name)
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def fitting(name: str) -> str:
    """The name of a class, as much of it as there is room for beside an axis."""
    most = _LONGEST_NAME
    while ems(cut(name, most)) > ems("n" * _LONGEST_NAME):
        most -= 1
    return cut(name, most)


def ems(text: str) -> float:
    """About how wide a text is, in letters' heights."""
    return sum(1.0 if unicodedata.east_asian_width(mark) in "WF" else 0.62 for mark in text)


# --- SVG for a page ------------------------------------------------------------------------------


def _for_a_page(svg: str, name: str, attributes: Mapping[str, str]) -> str:
    """matplotlib's file as an element: own ids, the page's colours and fonts, no style sheet."""
    root = ET.fromstring(svg)
    _strip(root)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _for_attribute(key.rpartition("}")[2], value, name)
            for key, value in element.attrib.items()
        }
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", **attributes}
    return ET.tostring(root, encoding="unicode")


def _strip(root: ET.Element) -> None:
    """A style sheet would be the whole page's, and who made the picture is of no use in it."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)


def _for_attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    if key == "clip-path":
        return value.replace("url(#", f"url(#{name}-", 1)
    if key in ("style", "fill", "stroke"):
        value = re.sub("#0100[0-9a-f]{2}", lambda found: _VARIABLES[found[0]], value)
        value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", value)
        return re.sub(r"font-family: [^;]*;? ?", "", value)
    if key == "d":
        return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)
    return value

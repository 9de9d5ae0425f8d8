"""What the pictures of runs and of searches share: colours, files, and parts of a figure.

A `Picture` is drawn in the light theme. Its SVG, for use within a
page, names each colour by a CSS variable, which the page sets for light and for dark. The same
values give the same bytes whatever the user's matplotlib settings are, and drawing does not change
these settings.
"""

from __future__ import annotations

import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from raykfold.config.environment import home_is_writable
from raykfold.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# As soon as it is imported, matplotlib says at length that it uses a temporary folder then.
if not home_is_writable():
    logging.getLogger("matplotlib").setLevel(logging.ERROR)

# The folds' colours start from M. Petroff's ten for data visualisation (arXiv:2107.02270), which
# people with colour vision deficiencies can tell apart; those that were faint on white are darker.
# The scale is viridis (S. van der Walt and N. Smith), which they can read as well; high values
# stand out most from the paper.
_COLOURS = {  # name: light, dark; all light ones differ
    "paper": ("#ffffff", "#12161b"),
    "card": ("#f5f7f9", "#1b2129"),
    "ink": ("#1a1f26", "#e8ecf1"),
    "muted": ("#59636f", "#9ba7b4"),
    "line": ("#d7dde4", "#323b46"),
    "accent": ("#1c69ad", "#6db3f5"),
    "wrong": ("#c2510a", "#ff9a55"),
    "on": ("#fefefe", "#0d1116"),  # text on accent or wrong
    "fold0": ("#2f7fc9", "#58a6ee"),
    "fold1": ("#bd7b00", "#ffb833"),
    "fold2": ("#bd1f01", "#f0654c"),
    "fold3": ("#7c8e8b", "#a9b9b6"),
    "fold4": ("#832db6", "#ba85ea"),
    "fold5": ("#a05f4d", "#cf907e"),
    "fold6": ("#e76300", "#ff8430"),
    "fold7": ("#9a8d48", "#cfc287"),
    "fold8": ("#5f6470", "#969cab"),
    "fold9": ("#21898e", "#7fdbe0"),
    "scale0": ("#a9be2c", "#6257ad"),
    "scale1": ("#5cb257", "#4a70b5"),
    "scale2": ("#28a07a", "#3a8bb0"),
    "scale3": ("#21868a", "#2ba597"),
    "scale4": ("#2c6a8e", "#48c27c"),
    "scale5": ("#3b4d8b", "#9ddb4a"),
    "scale6": ("#440f5c", "#fde725"),
}
LIGHT = {name: light for name, (light, _) in _COLOURS.items()}
DARK = {name: dark for name, (_, dark) in _COLOURS.items()}
INK, MUTED, PAPER = LIGHT["ink"], LIGHT["muted"], LIGHT["paper"]
FOLD_COLOURS = 10
SCALE_COLOURS = 7

WIDTH = 300.0  # points: a phone shows it at a size that can be read
_WIDEST_WITHOUT_SCROLLING = 430.0
_POINTS = 72.0  # per inch
_DPI = 150
_LONGEST_NAME = 22
_FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine measures text alike
_WIDE_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans")
_SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "none",
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.0,
    "figure.facecolor": "none",
    "grid.color": LIGHT["line"],
    "legend.borderpad": 0.0,
    "legend.columnspacing": 0.9,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.handlelength": 1.3,
    "legend.handletextpad": 0.4,
    "legend.labelcolor": INK,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $x^2$
    "xtick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.color": MUTED,
    "ytick.major.size": 0.0,
}
_PAGE_RULES = (  # pattern within a tag of matplotlib's SVG, and what a page has instead
    (r'^<g id="[^"]*"', "<g"),  # nothing refers to a group
    (r"xlink:href", "href"),
    (r"font: ([\d.]+px)[^;\"]*", r"font-size: \1"),  # the font is the page's
    (r" ?font-family: [^;\"]*;?", ""),
    (r' transform="rotate\(-0 [^"]*"', ""),  # text that is not turned
    (r"(\.\d\d)\d+", r"\1"),  # hundredths of a point are enough
    *((colour, f"var(--{name})") for name, colour in LIGHT.items()),
)


@dataclass(frozen=True)
class Picture:
    """A picture that can be had as PNG and as SVG.

    Attributes:
        name: name of the file; it must differ from the others' on a page, so that ids do.
        width: points.
        height: points.
        draw: function that draws it all into an empty figure.
    """

    name: str
    width: float
    height: float
    draw: Callable[[Figure], None]

    @property
    def needs_scrolling(self) -> bool:
        """Whether it would be too small to read on a phone if all of it were shown."""
        return self.width > _WIDEST_WITHOUT_SCROLLING

    def svg(self, label: str) -> str:
        """Return an ``<svg>`` element for a page that sets ``--ink`` and the other colours.

        Args:
            label: says what the picture shows to people who cannot see it.
        """
        drawn = self._file("svg", metadata={"Date": None}).decode()
        # Before the first group are a header and a style sheet, which would be the whole page's.
        # matplotlib escapes `<` and `>` in texts, so the pattern matches tags only.
        groups = re.sub(r"<[^<>]+>", _tag_for_page, drawn[drawn.index("<g ") :])
        least = f"min-width:{self.width:.0f}px;" if self.needs_scrolling else ""
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'aria-label="{escape(label)}" '
            f'style="{least}width:100%;max-width:{self.width * 4 / 3:.0f}px">{groups}'
        )

    def png(self) -> bytes:
        """Return the content of a PNG file, in the light theme."""
        # Without the version of matplotlib in it.
        return self._file("png", dpi=_DPI, facecolor=PAPER, metadata={"Software": None})

    def _file(self, kind: str, **options: Any) -> bytes:
        from matplotlib import style
        from matplotlib.figure import Figure
        from matplotlib.font_manager import fontManager

        installed = set(fontManager.get_font_names())
        fonts = [_FONT, *(name for name in _WIDE_FONTS if name in installed)]
        # An id is a hash of its content and this name, and so differs from those of other pictures.
        own = {"font.family": fonts, "svg.hashsalt": self.name}
        with style.context(["default", _SETTINGS | own]), warnings.catch_warnings():
            # A PNG has boxes for letters that no font here has; a browser has more fonts.
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure = Figure(figsize=(self.width / _POINTS, self.height / _POINTS))
            self.draw(figure)
            file = io.BytesIO()
            figure.savefig(file, format=kind, **options)
        return file.getvalue()


def _tag_for_page(tag: re.Match[str]) -> str:
    text = tag[0]
    for pattern, replacement in _PAGE_RULES:
        text = re.sub(pattern, replacement, text)
    return text


# --- parts of a figure ---------------------------------------------------------------------------


def add_axes(figure: Figure, corner: tuple[float, float], size: tuple[float, float]) -> Axes:
    """Add axes whose lower left corner and size are given in points."""
    width, height = (float(inches) * _POINTS for inches in figure.get_size_inches())
    (left, bottom), (across, up) = corner, size
    return figure.add_axes((left / width, bottom / height, across / width, up / height))


def legend_rows(entries: int, columns: int = 4) -> int:
    """Return how many rows a legend needs."""
    return -(-entries // columns)


def add_legend_below(axes: Axes, columns: int = 4) -> None:
    """Add a legend below `axes`, of everything with a label, in at most `columns` columns."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        columns = -(-len(handles) // legend_rows(len(handles), columns))
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.17), ncols=columns)


def whole_number_ticks(axes: Axes) -> None:
    """Restrict the ticks of the x axis to whole numbers, about eight of them."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def cut(name: str, most: int) -> str:
    """Return a name of at most `most` letters, shortened in its middle."""
    text = one_line(name)
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def class_name(name: str) -> str:
    """Return the name of a class, cut so that it fits beside an axis."""
    most = _LONGEST_NAME
    while text_width(cut(name, most)) > text_width("n" * _LONGEST_NAME):
        most -= 1
    return cut(name, most)


def text_width(text: str) -> float:
    """Return the approximate width of a text, in units of the font's size."""
    return sum(1.0 if unicodedata.east_asian_width(mark) in "WF" else 0.62 for mark in text)

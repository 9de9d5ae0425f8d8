"""Tables and curves as HTML for a notebook, in the colours of the page that shows them.

matplotlib draws the pages' pictures. Results are shown without it, so that they need no page, and
a theme that is switched from light to dark changes them, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_SIZE = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 90, 24, 34  # around the axes; the legend is on the right
_MOST_COLOURS = 10
_TICKS = 6
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a ``<table>``."""
    head = "".join(f"<th>{escape(each)}</th>" for each in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def curves(
    title: str, series: Mapping[str, Sequence[float]], dots: Mapping[str, int | None]
) -> str:
    """Return an ``<svg>`` of values after each epoch.

    Args:
        title: says what is drawn.
        series: name → values from 0 to 1, one for each epoch.
        dots: name → epoch to mark, from 0.
    """
    (width, height), values = _SIZE, [value for each in series.values() for value in each]
    longest = max(map(len, series.values()))
    # The y axis ends at ticks.
    step = next((s for s in _STEPS if max(values) - min(values) <= s * (_TICKS - 1)), _STEPS[-1])
    low = min(values) // step * step
    ticks = [low]
    while ticks[-1] < max(values) - 1e-9 or len(ticks) < 2:
        ticks.append(ticks[-1] + step)
    across = (width - _LEFT - _RIGHT) / max(longest - 1, 1)
    up = (height - _TOP - _BOTTOM) / (ticks[-1] - low)

    def x(epoch: int) -> float:
        return _LEFT + epoch * across

    def y(value: float) -> float:
        return height - _BOTTOM - (value - low) * up

    parts = [_text(_LEFT, 14, title, "start", bold=True)]
    for tick in ticks:
        parts.append(
            f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            'stroke="currentColor" stroke-opacity="0.2"/>'
        )
        parts.append(_text(_LEFT - 6, y(tick) + 4, f"{tick:.2f}", "end"))
    every = -(-longest // _TICKS)
    for epoch in range(0, longest, every):
        parts.append(_text(x(epoch), height - _BOTTOM + 16, str(epoch + 1), "middle"))
    parts.append(_text((_LEFT + width - _RIGHT) / 2, height - 3, "epoch", "middle"))

    few = len(series) <= _MOST_COLOURS
    for number, (name, line) in enumerate(series.items()):
        # Of middle lightness, to be read on light and on dark; hues by the golden angle.
        colour = f"hsl({(210 + 137.5 * number) % 360:g} 65% 55%)" if few else "currentColor"
        points = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in enumerate(line))
        opacity = "" if few else ' stroke-opacity="0.4"'
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"'
            f"{opacity}><title>{escape(name)}</title></polyline>"
        )
        dot = dots.get(name)
        if dot is not None:
            parts.append(
                f'<circle cx="{x(dot):.1f}" cy="{y(line[dot]):.1f}" r="3" fill="{colour}"/>'
            )
        if few:
            parts.append(_text(width - _RIGHT + 8, _TOP + 8 + 16 * number, name, "start", colour))
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(title)}" style="max-width:100%">{"".join(parts)}</svg>'
    )


def _text(
    x: float, y: float, text: str, anchor: str, colour: str = "currentColor", *, bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="{colour}"'
        f"{weight}>{escape(text)}</text>"
    )

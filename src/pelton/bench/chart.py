"""Charts as inline SVG: axes with units, lines, bars. Colours are CSS variables, so that one drawing fits light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

WIDTH: Final = 480
HEIGHT: Final = 300
LEFT: Final = 66
RIGHT: Final = 16
TOP: Final = 14
BOTTOM: Final = 44

Point = tuple[float, float]


class Axis:
    """Maps values to a pixel range, linear from 0 or logarithmic, with ticks at round values."""

    def __init__(self, low: float, high: float, pixels: tuple[float, float], *, log: bool = False) -> None:
        self.log, self.pixels = log, pixels
        if log:
            self.low = max(low, 1e-6)
            self.high = max(high, self.low * 1.5)
            self.ticks = [tick for tick in _log_ticks(self.low, self.high) if self.low <= tick <= self.high]
        else:
            step = _nice_step(max(high, 1e-9) / 5)
            self.low, self.high = 0.0, max(high, 1e-9)
            self.ticks = [step * i for i in range(int(self.high / step) + 1)]

    def __call__(self, value: float) -> float:
        start, end = self.pixels
        if self.log:
            value = min(max(value, self.low), self.high)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = min(max(value, 0.0), self.high) / self.high
        return start + share * (end - start)


def x_axis(low: float, high: float, *, log: bool = False) -> Axis:
    return Axis(low, high, (LEFT, WIDTH - RIGHT), log=log)


def y_axis(low: float, high: float, *, log: bool = False) -> Axis:
    return Axis(low, high, (HEIGHT - BOTTOM, TOP), log=log)


def frame(x: Axis, y: Axis, x_label: str, y_label: str, parts: Sequence[str], *, title: str) -> str:
    """The whole drawing: grid, ticks and labels under the parts."""
    grid = []
    for tick in y.ticks:
        at = y(tick)
        grid.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        grid.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick_label(tick)}</text>')
    for tick in x.ticks:
        at = x(tick)
        grid.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        )
        grid.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick_label(tick)}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        + "".join(grid)
        + f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        + "".join(parts)
        + f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        + f'<text class="label" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text></svg>'
    )


def line(x: Axis, y: Axis, points: Sequence[Point], colour: str) -> str:
    path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in points)
    return f'<polyline class="line" style="stroke:var(--{colour})" points="{path}"/>'


def dot(x: Axis, y: Axis, point: Point, colour: str, tip: str, *, hollow: bool = False) -> str:
    fill = "var(--card)" if hollow else f"var(--{colour})"
    return (
        f'<circle cx="{x(point[0]):.1f}" cy="{y(point[1]):.1f}" r="3.6" style="fill:{fill};stroke:var(--{colour})" '
        f'stroke-width="1.6"><title>{escape(tip)}</title></circle>'
    )


def level(y: Axis, value: float, text: str) -> str:
    """A dashed horizontal line with its name."""
    at = y(value)
    return (
        f'<line class="target" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="targettext" x="{LEFT + 6}" y="{at - 6:.1f}">{escape(text)}</text>'
    )


def upright(x: Axis, value: float, text: str, *, colour: str = "target") -> str:
    """A dashed vertical line with its name, on the side where there is room."""
    at = x(value)
    right = at > (LEFT + WIDTH - RIGHT) / 2
    return (
        f'<line class="{colour}" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="{colour}text" x="{at + (-6 if right else 6):.1f}" y="{TOP + 11}" '
        f'text-anchor="{"end" if right else "start"}">{escape(text)}</text>'
    )


def bar(x0: float, x1: float, y0: float, y1: float, colour: str, tip: str) -> str:
    """A filled rectangle in pixels."""
    return (
        f'<rect x="{min(x0, x1):.1f}" y="{min(y0, y1):.1f}" width="{max(0.0, abs(x1 - x0)):.1f}" '
        f'height="{max(0.0, abs(y1 - y0)):.1f}" style="fill:var(--{colour})"><title>{escape(tip)}</title></rect>'
    )


def tick_label(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _nice_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values of each decade: fewer the more decades there are."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if math.log10(high / low) <= 3.2 else (1,)
    return [step * 10.0**decade for decade in range(first, last + 1) for step in steps]

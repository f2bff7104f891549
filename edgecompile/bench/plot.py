"""Latency and temperature against time as an inline SVG picture, in the colours of the page that it stands on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from edgecompile.bench.sustained import Sustained

_WIDTH, _HEIGHT = 720, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 56, 34, 42
#: More points than the picture has room for say nothing more.
_MOST_POINTS = 600
_TICKS = 4
#: With the page's own colours where it has them.
_LATENCY = "var(--accent, #2456a6)"
_TEMPERATURE = "var(--no, #b3261e)"
_GRID = "var(--line, #d9dee3)"


def sustained_svg(found: Sustained) -> str:
    """An ``<svg>`` element: latency (ms, the left axis from zero) and temperature (degrees Celsius, the right one)."""
    warm = [(at, c) for at, c in zip(found.at_s, found.temperature_c, strict=True) if c is not None]
    latency = list(zip(found.at_s, found.latency_ms, strict=True))
    top = 1.15 * max(found.latency_ms)
    title = f"Latency and temperature of {found.device} over {found.seconds:.0f} seconds"
    parts = [*_time_axis(found.seconds), *_left_axis(top), _line(latency, found.seconds, 0.0, top, _LATENCY)]
    if warm:
        low, high = _bounds([c for _, c in warm])
        parts += [*_right_axis(low, high), _line(warm, found.seconds, low, high, _TEMPERATURE, dashed=True)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _bounds(celsius: Sequence[float]) -> tuple[float, float]:
    """Tens around all values, two at least apart from each other."""
    low, high = 10.0 * (min(celsius) // 10), 10.0 * (max(celsius) // 10 + 1)
    return low, max(high, low + 20.0)


def _x(at_s: float, seconds: float) -> float:
    return _LEFT + at_s / seconds * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _thinned(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """At most `_MOST_POINTS`: of neighbours the middle time and the median."""
    size = -(-len(points) // _MOST_POINTS)
    for start in range(0, len(points), size):
        part = points[start : start + size]
        yield part[len(part) // 2][0], sorted(value for _, value in part)[len(part) // 2]


def _line(
    points: Sequence[tuple[float, float]], seconds: float, low: float, high: float, colour: str, *, dashed: bool = False
) -> str:
    places = " ".join(f"{_x(at, seconds):.1f},{_y(value, low, high):.1f}" for at, value in _thinned(points))
    dash = ' stroke-dasharray="5 3"' if dashed else ""
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>'


def _time_axis(seconds: float) -> Iterator[str]:
    unit, size = ("min", 60.0) if seconds >= 120 else ("s", 1.0)
    bottom = _HEIGHT - _BOTTOM
    for k in range(_TICKS + 1):
        at = k * seconds / _TICKS
        yield f'<text x="{_x(at, seconds):.1f}" y="{bottom + 18}" text-anchor="middle">{at / size:.3g}</text>'
    yield f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">time, {unit}</text>'


def _left_axis(top: float) -> Iterator[str]:
    for k in range(_TICKS + 1):
        value = k * top / _TICKS
        y = _y(value, 0.0, top)
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    yield f'<text x="{_LEFT}" y="{_TOP - 14}" style="fill: {_LATENCY}">latency, ms</text>'


def _right_axis(low: float, high: float) -> Iterator[str]:
    right = _WIDTH - _RIGHT
    for k in range(_TICKS + 1):
        value = low + k * (high - low) / _TICKS
        yield f'<text x="{right + 8}" y="{_y(value, low, high) + 4:.1f}">{value:.3g}</text>'
    style = f'text-anchor="end" style="fill: {_TEMPERATURE}"'
    yield f'<text x="{right}" y="{_TOP - 14}" {style}>temperature, °C (dashed)</text>'

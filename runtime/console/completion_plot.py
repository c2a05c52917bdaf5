"""Plots of completion times: distributions by policy, and means over load or memory."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from drawloom.errors import ConfigError

_COLORS = (
    *("#2f6fb2", "#e07b39", "#4f9d69", "#8a5fb5"),
    *("#c0504d", "#7f7f7f", "#d4b13f", "#3aa6a6"),
)
_WIDTH, _HEIGHT, _ZOOM = 900, 480, 2
_LEFT, _RIGHT, _TOP, _FOOT = 64, 190, 64, 48
_INK, _PALE, _LINE = "#22272e", "#6b7480", "#eceef1"


def ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten between two positive numbers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = (n * 10.0**power for power in range(first, last + 1) for n in (1, 2, 5))
    return [tick for tick in found if low <= tick <= high]


class _Chart:
    """Draw named lines under a title.

    Positions are shares of the inner width and height, from the lower left.
    """

    def __init__(self, title: str, caption: str) -> None:
        from PIL import Image, ImageDraw, ImageFont

        self._image = Image.new("RGB", (_WIDTH * _ZOOM, _HEIGHT * _ZOOM), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._fonts = {size: ImageFont.load_default(size * _ZOOM) for size in (10, 12, 15)}
        self._names = 0
        self._text(_LEFT, 28, title, 15, _INK)
        self._text(_LEFT, 48, caption)

    def _place(self, at: tuple[float, float]) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _RIGHT - _LEFT) * at[0]
        return x * _ZOOM, (_HEIGHT - _FOOT - (_HEIGHT - _FOOT - _TOP) * at[1]) * _ZOOM

    def _text(self, x: float, y: float, label: str, size: int = 12, fill: str = _PALE) -> None:
        self._draw.text((x * _ZOOM, y * _ZOOM), label, fill, self._fonts[size], anchor="ls")

    def column(self, share: float, label: str) -> None:
        """Draw a grid line and its label at a position of the horizontal axis."""
        ends = [self._place((share, 0.0)), self._place((share, 1.0))]
        self._draw.line(ends, _LINE, _ZOOM)
        self._text(ends[0][0] / _ZOOM - 8, _HEIGHT - _FOOT + 18, label, 10)

    def row(self, share: float, label: str) -> None:
        """Draw a grid line and its label at a position of the vertical axis."""
        ends = [self._place((0.0, share)), self._place((1.0, share))]
        self._draw.line(ends, _LINE, _ZOOM)
        self._text(_LEFT - 46, ends[0][1] / _ZOOM + 4, label, 10)

    def line(self, name: str, points: Sequence[tuple[float, float]]) -> None:
        """Draw a line in the next color, and its name in the legend."""
        color, y = _COLORS[self._names % len(_COLORS)], _TOP + 20 * self._names
        self._names += 1
        self._draw.line([self._place(point) for point in points], color, 2 * _ZOOM)
        x = _WIDTH - _RIGHT + 14
        key = [(x * _ZOOM, (y + 6) * _ZOOM), ((x + 20) * _ZOOM, (y + 6) * _ZOOM)]
        self._draw.line(key, color, 3 * _ZOOM)
        self._text(x + 28, y + 10, name, 12, _INK)

    def save(self, path: Path) -> None:
        """Write the picture.

        Raises:
            ConfigError: the path cannot be written, or has an unknown file type.
        """
        try:
            self._image.save(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be written as a picture: {error}") from None


def _logarithmic(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 1.1, max(values) * 1.1


def save_curves(path: Path, title: str, curves: Mapping[str, Sequence[float]]) -> None:
    """Write a PNG with the share of completed programs over time, on a logarithmic axis.

    Args:
        path: the file to write.
        title: the title.
        curves: completion times in seconds, by the curve's name.

    Raises:
        ConfigError: the file cannot be written.
    """
    caption = "share of completed programs over seconds since their submission"
    chart = _Chart(title, caption)
    low, high = _logarithmic([max(1e-3, v) for values in curves.values() for v in values])

    def x(value: float) -> float:
        return math.log(max(low, value) / low) / math.log(high / low)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        chart.row(share, f"{share:.0%}")
    for tick in ticks(low, high):
        chart.column(x(tick), f"{tick:g} s")
    for name, values in curves.items():
        points = [(0.0, 0.0)]
        for number, value in enumerate(sorted(values)):
            points += [(x(value), points[-1][1]), (x(value), (number + 1) / len(values))]
        chart.line(name, [*points, (1.0, points[-1][1])])
    chart.save(path)


def save_lines(
    path: Path, title: str, caption: str, lines: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """Write a PNG with lines of seconds, on a logarithmic vertical axis.

    Args:
        path: the file to write.
        title: the title.
        caption: a line under the title.
        lines: points `(x, seconds)`, by the line's name.

    Raises:
        ConfigError: the file cannot be written.
    """
    chart = _Chart(title, caption)
    low, high = _logarithmic([max(1e-3, y) for points in lines.values() for _, y in points])
    across = sorted({x for points in lines.values() for x, _ in points})
    width = (across[-1] - across[0]) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - across[0]) / width, math.log(max(low, y) / low) / math.log(high / low)

    for x in across:
        chart.column(place(x, low)[0], f"{x:g}")
    for tick in ticks(low, high):
        chart.row(place(across[0], tick)[1], f"{tick:g} s")
    for name, points in lines.items():
        chart.line(name, [place(x, y) for x, y in sorted(points)])
    chart.save(path)


__all__ = ["save_curves", "save_lines", "ticks"]

"""Several policies or systems in one picture: how many programs had ended by each time, or a
figure over load."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from drawloom.errors import ConfigError

_COLORS = (
    "#2f6fb2", "#e07b39", "#4f9d69", "#8a5fb5", "#c0504d", "#7f7f7f", "#d4b13f", "#3aa6a6",
)  # fmt: skip
_WIDTH, _HEIGHT, _ZOOM = 900, 480, 2
_LEFT, _RIGHT, _TOP, _FOOT = 64, 190, 64, 48
_INK, _PALE, _LINE = "#22272e", "#6b7480", "#eceef1"


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`, both more than 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = (n * 10.0**power for power in range(first, last + 1) for n in (1, 2, 5))
    return [tick for tick in found if low <= tick <= high]


def save_curves(path: Path, title: str, curves: Mapping[str, Sequence[float]]) -> None:
    """A PNG with a step for each program of each curve; seconds, on a logarithmic axis.

    Raises `ConfigError` when it cannot be written there.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_WIDTH * _ZOOM, _HEIGHT * _ZOOM), "white")
    draw = ImageDraw.Draw(image)
    fonts = {size: ImageFont.load_default(size * _ZOOM) for size in (10, 12, 15)}
    seconds = [max(1e-3, value) for values in curves.values() for value in values]
    low, high = min(seconds) / 1.1, max(seconds) * 1.1
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _FOOT

    def x(value: float) -> float:
        return _LEFT + (right - _LEFT) * math.log(max(low, value) / low) / math.log(high / low)

    def y(share: float) -> float:
        return bottom - share * (bottom - _TOP)

    def line(points: Sequence[tuple[float, float]], fill: str, width: int) -> None:
        draw.line([(a * _ZOOM, b * _ZOOM) for a, b in points], fill, width)

    def text(a: float, b: float, words: str, size: int = 12, fill: str = _PALE) -> None:
        draw.text((a * _ZOOM, b * _ZOOM), words, fill, fonts[size], anchor="ls")

    text(_LEFT, 28, title, 15, _INK)
    text(_LEFT, 48, "share of programs that had ended, by seconds since they were submitted")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        line([(_LEFT, y(share)), (right, y(share))], _LINE, _ZOOM)
        text(_LEFT - 40, y(share) + 4, f"{share:.0%}", 10)
    for tick in ticks(low, high):
        line([(x(tick), _TOP), (x(tick), bottom)], _LINE, _ZOOM)
        text(x(tick) - 8, bottom + 18, f"{tick:g} s", 10)
    for at, (name, values) in enumerate(curves.items()):
        color, points = _COLORS[at % len(_COLORS)], [(_LEFT * 1.0, y(0.0))]
        for number, value in enumerate(sorted(values)):
            points += [(x(value), points[-1][1]), (x(value), y((number + 1) / len(values)))]
        line([*points, (right, points[-1][1])], color, 2 * _ZOOM)
        line([(right + 14, _TOP + 20 * at + 6), (right + 34, _TOP + 20 * at + 6)], color, 3 * _ZOOM)
        text(right + 42, _TOP + 20 * at + 10, name, 12, _INK)
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written as a picture: {error}") from None


def save_lines(
    path: Path, title: str, note: str, lines: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """Draw a PNG with a line for each name, through its points; both axes begin at 0.

    Args:
        path: where it is written.
        title: its first line.
        note: its second: what the points' second values are.
        lines: points by name, in the order of their first values.

    Raises:
        ConfigError: it cannot be written there.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_WIDTH * _ZOOM, _HEIGHT * _ZOOM), "white")
    draw = ImageDraw.Draw(image)
    fonts = {size: ImageFont.load_default(size * _ZOOM) for size in (10, 12, 15)}
    places = sorted({x for points in lines.values() for x, _ in points})
    widest = max(places, default=1.0) * 1.05 or 1.0
    highest = max((y for points in lines.values() for _, y in points), default=1.0) * 1.1 or 1.0
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _FOOT

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (right - _LEFT) * x / widest
        return across * _ZOOM, (bottom - (bottom - _TOP) * y / highest) * _ZOOM

    def text(a: float, b: float, words: str, size: int = 12, fill: str = _PALE) -> None:
        draw.text((a * _ZOOM, b * _ZOOM), words, fill, fonts[size], anchor="ls")

    text(_LEFT, 28, title, 15, _INK)
    text(_LEFT, 48, note)
    step = max([tick for tick in ticks(highest / 1e3, highest) if tick <= highest / 4], default=1.0)
    for number in range(int(highest / step) + 1):
        draw.line([at(0, number * step), at(widest, number * step)], _LINE, _ZOOM)
        text(_LEFT - 40, at(0, number * step)[1] / _ZOOM + 4, f"{number * step:g}", 10)
    for place in places:
        draw.line([at(place, 0), at(place, highest)], _LINE, _ZOOM)
        text(at(place, 0)[0] / _ZOOM - 6, bottom + 18, f"{place:g}", 10)
    for number, (name, points) in enumerate(lines.items()):
        color = _COLORS[number % len(_COLORS)]
        draw.line([at(*point) for point in points], color, 2 * _ZOOM)
        for x, y in (at(*point) for point in points):
            draw.ellipse([x - 6, y - 6, x + 6, y + 6], color)
        mark = [(right + 14, _TOP + 20 * number + 6), (right + 34, _TOP + 20 * number + 6)]
        draw.line([(a * _ZOOM, b * _ZOOM) for a, b in mark], color, 3 * _ZOOM)
        text(right + 42, _TOP + 20 * number + 10, name, 12, _INK)
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written as a picture: {error}") from None


__all__ = ["save_curves", "save_lines", "ticks"]

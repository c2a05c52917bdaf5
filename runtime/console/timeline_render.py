"""Timelines as pictures: an HTML page with an SVG, a PNG, and bars in the terminal."""

import html
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from drawloom.runtime.console.timeline import Activity, Bar, Track

COLORS = {
    Activity.HELD: "#e3e6ea",
    Activity.QUEUED: "#b9c0c9",
    Activity.PREFILL: "#e9a23b",
    Activity.RECOMPUTE: "#d1342b",
    Activity.DECODE: "#2f6fb2",
    Activity.ENV: "#f0d34a",
    Activity.TOOL: "#4f9d69",
    Activity.DEAD: "#5c6670",
    Activity.LEASED: "#8a5fb5",
}
LABELS = {
    Activity.HELD: "waiting for admission",
    Activity.QUEUED: "queued",
    Activity.PREFILL: "prefill: new tokens",
    Activity.RECOMPUTE: "prefill: recomputed",
    Activity.DECODE: "decode",
    Activity.ENV: "waiting for a container",
    Activity.TOOL: "tool",
    Activity.DEAD: "no process ran it",
    Activity.LEASED: "KV leased",
}
_LEFT, _RIGHT, _ROW, _HEAD, _WIDTH = 92, 24, 15, 46, 1120
_FOOT = 26


@dataclass(frozen=True, slots=True)
class Panel:
    """Describe a picture: a title, a line under it, and a row for each program."""

    title: str
    note: str
    tracks: tuple[Track, ...]

    @property
    def seconds(self) -> float:
        """Return the time from the first submission to the last end."""
        return max((t.ended for t in self.tracks), default=0.0) - self.start

    @property
    def start(self) -> float:
        """Return the time of the first submission, in wall-clock seconds."""
        return min((t.created for t in self.tracks), default=0.0)


@dataclass(frozen=True, slots=True)
class _Box:
    """Describe a rectangle to draw, in pixels."""

    x: float
    y: float
    width: float
    height: float
    color: str
    label: str


def _boxes(panel: Panel, top: float, seconds: float) -> list[_Box]:
    scale = (_WIDTH - _LEFT - _RIGHT) / max(seconds, 1e-6)
    boxes = []
    for index, track in enumerate(panel.tracks):
        y = top + _HEAD + index * _ROW
        for bar in sorted(track.bars, key=lambda b: b.activity is Activity.LEASED):
            boxes.append(_box(bar, y, panel.start, scale))
    return boxes


def _box(bar: Bar, y: float, start: float, scale: float) -> _Box:
    x = _LEFT + (bar.start - start) * scale
    width = max(0.6, (bar.end - bar.start) * scale)
    thin = bar.activity is Activity.LEASED
    top, height = (y + _ROW - 5, 2.5) if thin else (y + 1, _ROW - 6.5)
    label = f"{LABELS[bar.activity]} {(bar.end - bar.start) * 1000:.0f} ms, {bar.label}"
    return _Box(x, top, width, height, COLORS[bar.activity], label)


def _height(panels: list[Panel]) -> float:
    return 40 + sum(_HEAD + len(p.tracks) * _ROW + _FOOT for p in panels)


def _legend(panels: list[Panel]) -> list[tuple[float, Activity]]:
    """Return the horizontal positions of the legend's entries."""
    places, x = [], float(_LEFT)
    died = any(b.activity is Activity.DEAD for p in panels for t in p.tracks for b in t.bars)
    for activity in Activity:
        if activity is Activity.DEAD and not died:
            continue
        places.append((x, activity))
        x += 32 + 6.2 * len(LABELS[activity])
    return places


def _ticks(seconds: float) -> list[float]:
    steps = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
    step = next((s for s in steps if seconds / s <= 12), 300.0)
    return [i * step for i in range(int(seconds / step) + 1)]


def save_html(path: Path, panels: list[Panel], heading: str) -> None:
    """Write panels as one static HTML page; each bar has a tooltip.

    Args:
        path: the file to write.
        panels: the pictures, one below the other.
        heading: the heading of the page.
    """
    seconds = max(p.seconds for p in panels)
    parts, top = [], 40.0
    for x, activity in _legend(panels):
        parts.append(f'<rect x="{x}" y="12" width="11" height="11" fill="{COLORS[activity]}"/>')
        parts.append(f'<text x="{x + 16}" y="22">{LABELS[activity]}</text>')
    for panel in panels:
        parts.append(
            f'<text class="t" x="{_LEFT}" y="{top + 18}">{html.escape(panel.title)}</text>'
        )
        parts.append(f'<text x="{_LEFT}" y="{top + 36}">{html.escape(panel.note)}</text>')
        bottom = top + _HEAD + len(panel.tracks) * _ROW
        for tick in _ticks(seconds):
            x = _LEFT + tick * (_WIDTH - _LEFT - _RIGHT) / seconds
            parts.append(f'<path d="M{x:.1f} {top + _HEAD}V{bottom}" stroke="#eceef1"/>')
            parts.append(f'<text class="s" x="{x - 6:.1f}" y="{bottom + 14}">{tick:g} s</text>')
        for index, track in enumerate(panel.tracks):
            y = top + _HEAD + index * _ROW + 9
            parts.append(
                f'<text class="s" x="6" y="{y}">{index + 1} {html.escape(track.agent)}</text>'
            )
        for box in _boxes(panel, top, seconds):
            parts.append(
                f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" '
                f'height="{box.height:.1f}" fill="{box.color}"><title>{html.escape(box.label)}'
                "</title></rect>"
            )
        top = bottom + _FOOT
    svg = f'<svg viewBox="0 0 {_WIDTH} {_height(panels):.0f}">{"".join(parts)}</svg>'
    path.write_text(_PAGE.format(heading=html.escape(heading), svg=svg))


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{heading}</title>
<style>
body {{ font: 13px system-ui, sans-serif; margin: 24px auto; max-width: 1180px; color: #22272e }}
svg {{ width: 100%; font-size: 12px; fill: #444c56 }}
.t {{ font-size: 15px; font-weight: 600; fill: #22272e }} .s {{ font-size: 9.5px; fill: #6b7480 }}
rect:hover {{ stroke: #000; stroke-width: .7 }}
</style>
<h2>{heading}</h2>
{svg}
</html>
"""


def save_png(path: Path, panels: list[Panel], heading: str) -> None:
    """Write the picture of `save_html` as a PNG of twice its size."""
    from PIL import Image, ImageDraw, ImageFont

    zoom, lift = 2, 30
    size = (_WIDTH * zoom, int(_height(panels) + lift) * zoom)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    fonts = {n: ImageFont.load_default(n * zoom) for n in (9, 12, 15, 17)}

    def text(x: float, y: float, label: str, size: int = 12, fill: str = "#444c56") -> None:
        draw.text((x * zoom, (y + lift) * zoom), label, fill, fonts[size], anchor="ls")

    def box(x: float, y: float, width: float, height: float, fill: str) -> None:
        corners = (x, y + lift, x + width, y + lift + height)
        draw.rectangle([c * zoom for c in corners], fill)

    seconds, top = max(p.seconds for p in panels), 40.0
    text(_LEFT, -6, heading, 17, "#22272e")
    for x, activity in _legend(panels):
        box(x, 12, 11, 11, COLORS[activity])
        text(x + 16, 22, LABELS[activity])
    for panel in panels:
        text(_LEFT, top + 18, panel.title, 15, "#22272e")
        text(_LEFT, top + 36, panel.note)
        bottom = top + _HEAD + len(panel.tracks) * _ROW
        for tick in _ticks(seconds):
            x = _LEFT + tick * (_WIDTH - _LEFT - _RIGHT) / seconds
            box(x, top + _HEAD, 0.5, bottom - top - _HEAD, "#eceef1")
            text(x - 6, bottom + 14, f"{tick:g} s", 9, "#6b7480")
        for index, track in enumerate(panel.tracks):
            y = top + _HEAD + index * _ROW + 9
            text(6, y, f"{index + 1} {track.agent}", 9, "#6b7480")
        for b in _boxes(panel, top, seconds):
            box(b.x, b.y, b.width, b.height, b.color)
        top = bottom + _FOOT
    image.save(path)


def terminal(track: Track, width: int = 72) -> list[tuple[str, Text]]:
    """Return a label and a line of blocks for each activity of a program.

    Args:
        track: the program's timeline.
        width: characters of a line.
    """
    seconds = max(track.ended - track.created, 1e-6)
    lines = []
    for activity in Activity:
        cells = [False] * width
        for bar in track.bars:
            if bar.activity is activity:
                first = int((bar.start - track.created) / seconds * width)
                last = int((bar.end - track.created) / seconds * width)
                for cell in range(max(0, first), min(width, last + 1)):
                    cells[cell] = True
        if any(cells):
            line = Text()
            for cell in cells:
                line.append("█" if cell else "·", COLORS[activity] if cell else "dim")
            lines.append((LABELS[activity], line))
    return lines


__all__ = ["COLORS", "Panel", "save_html", "save_png", "terminal"]

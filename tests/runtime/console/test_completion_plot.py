"""The picture of how programs ended: it is one, and what cannot be written is said."""

from pathlib import Path

import pytest
from PIL import Image

from drawloom.errors import ConfigError
from drawloom.runtime.console.completion_plot import save_curves, save_lines, ticks


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.9, 21.0) == [1, 2, 5, 10, 20]
    assert ticks(3.0, 4.0) == []


def test_each_policy_has_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    save_curves(path, "swe", {"drawloom": [1.0, 2.0, 3.0], "fcfs-lru": [5.0, 50.0, 70.0]})
    colors = {color for _, color in Image.open(path).getcolors(1 << 20) or []}
    assert {(0x2F, 0x6F, 0xB2), (0xE0, 0x7B, 0x39)} <= colors
    save_curves(path, "one program that took no time", {"drawloom": [0.0]})


def test_a_path_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        save_curves(tmp_path / "out.xyz", "swe", {"drawloom": [1.0]})


def test_lines_over_load_have_a_color_each(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    lines = {"a": [(0.5, 3.0), (0.95, 9.0)], "b": [(0.5, 3.5), (0.95, 90.0)]}
    save_lines(path, "swe", "seconds by load", lines)
    colors = {color for _, color in Image.open(path).getcolors(1 << 20) or []}
    assert {(0x2F, 0x6F, 0xB2), (0xE0, 0x7B, 0x39)} <= colors
    save_lines(path, "swe", "one load", {"a": [(0.5, 3.0)]})

"""Limits on the work of a template: counted units instead of seconds.

A loop's turn, a call or a filter costs some units, and every value costs by its size. What could
become huge in one operation of Python is refused before, because nothing can stop it then.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

STEP, VALUE, PART, CHARS_A_UNIT = 20, 5, 100, 32
WORK = 10_000_000
_CHARS = 4_000_000
_WIDTH = 10_000
_BITS = 20_000
_NUMBER = re.compile(r"\d+")
_ITERATE = frozenset(
    "batch groupby join list map max min reject select slice sort sum unique".split()
)
_REFUSED = frozenset(("encode", "translate", "to_bytes", "maketrans"))


class Meter:
    """Count the work of one rendering; its limit grows with the input's `values` and `chars`.

    All methods raise `TemplateError` beyond the limit.
    """

    def __init__(self, values: int = 0, chars: int = 0, work: int = WORK) -> None:
        self.left = work + 500 * values + 4 * chars
        self.chars = _CHARS + 8 * (values + chars)

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TemplateError("it does not come to an end, or takes far too much work")

    def fits(self, size: int) -> None:
        """Charge for a text or list of this size."""
        if size > self.chars:
            raise TemplateError(f"it makes a text or a list of {size:,} characters or items")
        self.spend(size // CHARS_A_UNIT)

    def weigh(self, value: Any) -> None:
        """Charge for all that a container holds, once for each place where it is."""
        self.spend(VALUE + len(value) // CHARS_A_UNIT if isinstance(value, str) else VALUE)
        if isinstance(value, dict):
            for key, item in value.items():
                self.weigh(key)
                self.weigh(item)
        elif isinstance(value, list | tuple):
            for item in value:
                self.weigh(item)

    def form(self, text: str | bytes, values: Any) -> None:
        """Charge for a format and what is put into it; its widths are bounded."""
        self.weigh(values)
        text = text if isinstance(text, str) else text.decode("latin-1")
        widths = [int(found[:9]) for found in _NUMBER.findall(text)]
        given = "*" in text or (text.count("{") > 1 and ":" in text)  # the values say the width
        if given:
            widths += [_WIDTH, *(abs(number) for number in _numbers(values))]
        width = max(widths, default=1)
        if width > _WIDTH:
            raise TemplateError(f"a width of {width:,} is too much")
        self.fits(len(text) + (text.count("%") + text.count("{")) * width)

    def operator(self, operator: str, left: Any, right: Any) -> None:
        """Charge for a binary operator before it runs."""
        if operator == "%" and isinstance(left, str | bytes):
            self.form(left, right)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length()
            if max(bits, left.bit_length() * right if operator == "**" else 0) > _BITS:
                raise TemplateError("it makes a number of more than 6,000 digits")
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(many, "__len__"):
                    self.fits(len(many) * max(0, times))
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.fits(len(left) + len(right))

    def method(
        self, owner: Any, name: str, args: tuple[Any, ...], named: Mapping[str, Any]
    ) -> None:
        """Charge for a method of a text or a number before it runs."""
        if name in _REFUSED:
            raise SecurityError(f"{name} has no use in a chat template")
        self._widths(name, [*args, *named.values()])
        if name in ("format", "format_map"):
            self.form(owner, (args, named))
        if not isinstance(owner, str | bytes):
            return
        self.spend(len(owner) // CHARS_A_UNIT)
        if name == "replace" and len(args) > 1:
            self.fits(len(owner) + (owner.count(args[0]) + 1) * len(args[1]))
        elif name == "expandtabs":
            self.fits(len(owner) + str(owner).count("\t") * _WIDTH)
        elif name in ("split", "rsplit", "splitlines") and isinstance(owner, str):
            mark = args[0] if args and isinstance(args[0], str) and args[0] else None
            self.spend(PART * (owner.count(mark) if mark else len(owner.split())))

    def filter(self, name: str, values: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Charge for a filter before it runs."""
        options = [*values[1:], *named.values()]
        self._widths(name, options)
        first = str(values[0]) if values and isinstance(values[0], str) else ""
        if name in _ITERATE:
            self.spend(PART * len(first))
        if name == "indent":
            width = max((w if isinstance(w, int) else len(str(w)) for w in options), default=4)
            self.fits(len(first) + (first.count("\n") + 1) * abs(width))
        elif name == "format":
            self.form(first, options)
        elif name == "replace":
            old, new = ([*map(str, options), "", ""])[:2]
            self.fits(len(first) + (first.count(old) + 1) * len(new))

    @staticmethod
    def _widths(name: str, numbers: Any) -> None:
        for width in numbers:
            if isinstance(width, int) and abs(width) > _WIDTH:
                raise TemplateError(f"{name} of {width:,} is too much")


def _numbers(values: Any) -> Iterator[int]:
    """Yield the whole numbers in a value."""
    if isinstance(values, dict):
        values = [*values.values()]
    if isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value)
    elif isinstance(values, int):
        yield values


__all__ = ["CHARS_A_UNIT", "PART", "STEP", "VALUE", "WORK", "Meter"]

"""A rendered prompt that knows which of its text came from message contents.

A chat template writes control tokens (``<|im_start|>``, ``<tool_call>``) as text. Users, tools and
models write the same characters in what they say, and these must stay characters. `Prompt` carries
the text together with the spans that came from contents, so that the tokenizer can recognise
control tokens in the template's own text only.
"""

from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Holds a rendered text and the spans of it that are contents.

    `contents` are half-open ``(start, end)`` pairs in order, not overlapping. No control token is
    recognised in a place that touches one of them.
    """

    text: str
    contents: tuple[Span, ...] = ()

    @classmethod
    def of(cls, text: "str | Prompt") -> "Prompt":
        """Make a prompt of trusted text; a prompt is returned as it is."""
        return text if isinstance(text, Prompt) else cls(text)

    def after(self, position: int) -> "Prompt":
        """Return the rest of the prompt from `position` in the text on."""
        return self.slice(position, len(self.text))

    def before(self, position: int) -> "Prompt":
        """Return the prompt up to `position` in the text."""
        return self.slice(0, position)

    def slice(self, start: int, end: int) -> "Prompt":
        """Return the part of the prompt between two positions in the text."""
        return Prompt(self.text[start:end], clip(self.contents, start, end))


def clip(spans: tuple[Span, ...], start: int, end: int) -> tuple[Span, ...]:
    """Return the parts of `spans` within ``[start, end)``, relative to `start`."""
    inside = ((max(a, start), min(b, end)) for a, b in spans)
    return tuple((a - start, b - start) for a, b in inside if a < b)


__all__ = ["Prompt", "Span", "clip"]

"""Thoughts between ``<think>`` and ``</think>``, before whatever another parser reads."""

from drawloom.prompts import Prompt
from drawloom.tools.parsers.base import Parser, Piece, Reasoning, overlap

OPEN, CLOSE = "<think>", "</think>"


def opens_thought(prompt: Prompt) -> bool:
    """Return whether the template itself began a thought at the end of a prompt."""
    text = prompt.text.rstrip()
    start = len(text) - len(OPEN)
    return text.endswith(OPEN) and all(end <= start for _, end in prompt.contents)


class ReasoningParser:
    """Hands on to `inner` what is not thought. With `inside` the prompt opened the thought."""

    def __init__(self, inner: Parser, inside: bool = False) -> None:
        self._inner = inner
        self._state, self._opened = "before", inside
        self._buffer = ""
        self._trim = False

    def feed(self, text: str) -> list[Piece]:
        if self._state == "answer":
            return self._answer([], text)
        self._buffer += text
        pieces: list[Piece] = []
        if self._state == "before":
            begun = self._buffer.lstrip()
            if OPEN.startswith(begun) and begun != OPEN:
                return []
            if begun.startswith(OPEN):  # some write it although the prompt has it
                self._buffer, self._trim = begun.removeprefix(OPEN), True
            elif not self._opened:
                return self._answer(pieces, self._buffer)
            self._state = "thought"
        return self._think(pieces)

    def end(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self._buffer and (self._state == "thought" or self._opened):
            pieces.append(Reasoning(self._buffer))
        elif self._buffer:
            pieces += self._inner.feed(self._buffer)
        self._buffer = ""
        return pieces + self._inner.end()

    def _think(self, pieces: list[Piece]) -> list[Piece]:
        self._buffer = self._trimmed(self._buffer)
        thought, found, rest = self._buffer.partition(CLOSE)
        if found:
            if thought:
                pieces.append(Reasoning(thought))
            self._trim = True
            return self._answer(pieces, rest)
        keep = overlap(thought, CLOSE)
        self._buffer = thought[len(thought) - keep :]
        if said := thought[: len(thought) - keep]:
            pieces.append(Reasoning(said))
        return pieces

    def _answer(self, pieces: list[Piece], text: str) -> list[Piece]:
        self._state, self._buffer = "answer", ""
        text = self._trimmed(text)
        return pieces + (self._inner.feed(text) if text else [])

    def _trimmed(self, text: str) -> str:
        """Without the line breaks that stand behind a mark."""
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        return text


__all__ = ["CLOSE", "OPEN", "ReasoningParser", "opens_thought"]

"""Tool calls and thoughts out of streaming text, for each way that models write them."""

from collections.abc import Callable, Collection

from drawloom.errors import ConfigError
from drawloom.tools.parsers.base import Closed, Named, Parser, Piece, Reasoning, Text, read_call
from drawloom.tools.parsers.hermes import HermesParser
from drawloom.tools.parsers.llama import LlamaJsonParser
from drawloom.tools.parsers.mistral import MistralParser
from drawloom.tools.parsers.pythonic import PythonicParser
from drawloom.tools.parsers.reasoning import CLOSE, OPEN, ReasoningParser, opens_thought

PARSERS: dict[str, Callable[[str, Collection[str] | None], Parser]] = {
    "hermes": HermesParser,
    "llama3_json": LlamaJsonParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
}
_MARKS = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "llama3_json": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    "pythonic": ("<|python_start|>", "<|python_end|>"),
}
SPECIAL = frozenset({"llama3_json", "mistral"})
"""Formats whose marks are special tokens: their text must be decoded with these left in."""


def needs_special(name: str, reasoning: bool, is_special: Callable[[str], bool]) -> bool:
    """Return whether an answer must be decoded with its special tokens.

    It must if marks that the parser looks for are special tokens.
    """
    marks = (*_MARKS.get(name, ()), *((OPEN, CLOSE) if reasoning else ()))
    return name in SPECIAL or any(map(is_special, marks))


def make_parser(
    name: str,
    prefix: str = "call",
    *,
    reasoning: bool = False,
    inside: bool = False,
    offered: Collection[str] | None = None,
) -> Parser:
    """Return a parser for one turn.

    Args:
        name: the format in which the model writes calls.
        prefix: a name of the turn, from which the ids of its calls are made.
        reasoning: whether the answer may begin with a thought.
        inside: whether the prompt has already opened the thought (see `opens_thought`).
        offered: the names of the tools that the model was given; None takes any.

    Raises `ConfigError` with the known names.
    """
    maker = PARSERS.get(name)
    if maker is None:
        raise ConfigError(f"parser {name!r} is not known; choose one of {', '.join(PARSERS)}")
    parser = maker(prefix, offered)
    return ReasoningParser(parser, inside) if reasoning or inside else parser


def detect(template: str) -> str:
    """Return the name of the parser that fits a chat template's source."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "hermes"
    if "<|python_start|>" in template:
        return "pythonic"
    if "<|python_tag|>" in template or '"parameters": ' in template:
        return "llama3_json"
    return "hermes"


__all__ = [
    "CLOSE",
    "PARSERS",
    "SPECIAL",
    "Closed",
    "HermesParser",
    "LlamaJsonParser",
    "MistralParser",
    "Named",
    "Parser",
    "Piece",
    "PythonicParser",
    "Reasoning",
    "ReasoningParser",
    "Text",
    "detect",
    "make_parser",
    "needs_special",
    "opens_thought",
    "read_call",
]

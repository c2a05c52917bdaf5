"""Tool calls and thoughts out of streaming text, for each way that models write them."""

from collections.abc import Callable

from drawloom.errors import ConfigError
from drawloom.tools.parsers.base import Closed, Named, Parser, Piece, Reasoning, Text, read_call
from drawloom.tools.parsers.hermes import HermesParser
from drawloom.tools.parsers.llama import LlamaJsonParser
from drawloom.tools.parsers.mistral import MistralParser
from drawloom.tools.parsers.pythonic import PythonicParser
from drawloom.tools.parsers.reasoning import ReasoningParser

PARSERS: dict[str, Callable[[str], Parser]] = {
    "hermes": HermesParser,
    "llama3_json": LlamaJsonParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
}
SPECIAL = frozenset({"llama3_json", "mistral"})
"""Formats whose marks are special tokens: their text must be decoded with these left in."""


def make_parser(name: str, prefix: str = "call", *, reasoning: bool = False) -> Parser:
    """A parser by its name. Raises `ConfigError` with the known names."""
    maker = PARSERS.get(name)
    if maker is None:
        raise ConfigError(f"parser {name!r} is not known; choose one of {', '.join(PARSERS)}")
    parser = maker(prefix)
    return ReasoningParser(parser) if reasoning else parser


def detect(template: str) -> str:
    """The name of the parser that fits a chat template's source."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "hermes"
    if "<|python_tag|>" in template or '"parameters": ' in template:
        return "llama3_json"
    return "hermes"


__all__ = [
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
    "read_call",
]

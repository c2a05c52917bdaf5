"""Calls that a model makes, and the results that it reads."""

import hashlib
import re
import string
from dataclasses import dataclass
from typing import Any

_COMMANDS = ("command", "cmd", "commands", "script")
_BEFORE = re.compile(r"^\s*(?:(?:cd\s+\S+|export\s+\S+)\s*(?:&&|;)|\w+=\S*\s|sudo\s|exec\s)\s*")
_WORD = re.compile(r"^\s*(?:\S*/)?([\w.-]{1,24})(?=[\s;&|>]|$)")


_LOOKED_AT = 256
_ID_LENGTH = 9
_ID_ALPHABET = string.ascii_letters + string.digits


def new_call_id(turn: str, index: int) -> str:
    """Return the id of a tool call, in a form that every known chat template accepts.

    Mistral's templates refuse any id but nine ASCII letters and digits; the others take any text.
    The id is a hash of its arguments, so a turn that is parsed again gives its calls the same ids.

    Args:
        turn: a name of the turn that makes the call, unique among all turns whose ids may meet.
        index: the place of the call among the calls of its turn, from 0.
    """
    digest = hashlib.blake2b(f"{turn}\0{index}".encode("utf-8", "surrogatepass")).digest()
    value = int.from_bytes(digest)
    places = (value // len(_ID_ALPHABET) ** i for i in range(_ID_LENGTH))
    return "".join(_ID_ALPHABET[place % len(_ID_ALPHABET)] for place in places)


def _bare(command: str) -> str:
    """Strip the preparation from a shell command: variables, changes of folder, wrappers."""
    while (before := _BEFORE.match(command)) is not None and before.end() < len(command):
        command = command[before.end() :]
    return command


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Describe a call that a model made; `error` is set if it is malformed."""

    id: str
    name: str
    arguments: dict[str, Any]
    raw: str = ""
    error: str | None = None

    @property
    def kind(self) -> str:
        """Return the key that durations are learned by: the tool, and a shell command's program.

        Such as ``shell:pytest`` (Continuum's key, arXiv 2511.02230).
        """
        for name in _COMMANDS:
            command = self.arguments.get(name)
            if isinstance(command, str):
                word = _WORD.match(_bare(command[:_LOOKED_AT]))
                return f"{self.name}:{word[1]}" if word is not None else self.name
        return self.name


@dataclass(frozen=True, slots=True)
class ToolResult:
    """Hold a tool's answer; `ok` is False if `content` reports a failure to the model."""

    call_id: str
    name: str
    content: str
    ok: bool = True
    seconds: float = 0.0


__all__ = ["ToolCall", "ToolResult", "new_call_id"]

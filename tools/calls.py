"""What a model asks for and what it is told."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model made. `error` is set when the call could not be understood."""

    id: str
    name: str
    arguments: dict[str, Any]
    raw: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered; `ok` is False when `content` tells the model of a failure."""

    call_id: str
    name: str
    content: str
    ok: bool = True
    seconds: float = 0.0


__all__ = ["ToolCall", "ToolResult"]

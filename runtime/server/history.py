"""Comparison of messages by their meaning.

Clients serialise a conversation anew with each request: arguments as compact JSON, keys in another
order, 1.50 as 1.5, white space stripped, content as null, empty text or parts, without reasoning.
An `Entry` is equal for all of these forms.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from drawloom.runtime.server.openai_requests import Message

_ROLES = {"developer": "system", "function": "tool"}
_CLOSE = "</think>"
_OPEN = "<think>"
_CALL_ID = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]{9}(?![A-Za-z0-9])")
"""Matches possible ids of `new_call_id` in text."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Identify a message by its meaning.

    Attributes:
        key: digest of role, text and calls; equal for messages that mean the same.
        assistant: the model wrote it.
        thought: digest of the reasoning; empty if it was left out.
        name: the `name` of the message; empty if it has none.
        ids: ids of its calls, or of the call that it answers; empty where left out.
        mentions: possible ids of calls in the text of an answer without calls.
    """

    key: bytes
    assistant: bool = False
    thought: bytes = b""
    name: str = ""
    ids: tuple[str, ...] = ()
    mentions: frozenset[str] = frozenset()

    def same(self, other: "Entry") -> bool:
        """Tell whether both may be the same message; omitted fields are not compared."""
        if self.key != other.key:
            return False
        pairs = [(self.thought, other.thought), (self.name, other.name)]
        pairs += zip(self.ids, other.ids, strict=True)
        return all(a == b or not a or not b for a, b in pairs)


def read_entry(message: Message) -> Entry:
    """Return the entry of a message."""
    role = _ROLES.get(message.role, message.role)
    text, thought = message.content or "", message.reasoning_content or ""
    if role == "assistant":
        text, thought = _split(text, thought)
        text = _canonical_text(text, "{[")
    elif role == "tool":
        text = _canonical_text(_unwrapped(text), "{[")
    calls = message.tool_calls or []
    said = [part for c in calls for part in (c.function.name, canonical(c.function.arguments))]
    ids = tuple(call.id or "" for call in calls)
    if role == "tool":
        ids = (message.tool_call_id or "",)
    spelt = _CALL_ID.findall(message.content or "") if role == "assistant" and not calls else ()
    return Entry(
        _digest([role, _plain(text), *said]),
        role == "assistant",
        _digest([_plain(thought)]) if _plain(thought) else b"",
        "" if role == "tool" else message.name or "",
        ids,
        frozenset(spelt),
    )


def beginning(entries: Iterable[Entry]) -> bytes:
    """Return the digest of all messages before the first answer, the key of a conversation."""
    keys: list[bytes] = []
    for entry in entries:
        if entry.assistant and keys:
            break
        keys.append(entry.key)
    return blake2b(b"".join(keys), digest_size=16).digest()


def canonical(arguments: str | dict[str, Any] | None) -> str:
    """Return arguments as canonical JSON; text that is not JSON is stripped only."""
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    text = arguments.strip()
    if text in ("", "null"):
        return "{}"
    try:
        return _dumped(_parsed(text))
    except (ValueError, RecursionError):
        return _plain(text)


def _parsed(text: str) -> Any:
    return json.loads(text, strict=False, parse_float=_number, parse_constant=str)


def _number(text: str) -> int | float | str:
    """Return a number in its shortest form: 1.50 as 1.5, 2.0 as 2."""
    value = float(text)
    if not math.isfinite(value):
        return text
    return int(value) if value.is_integer() else value


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _canonical_text(text: str, starts: str) -> str:
    """Return JSON in canonical form; other text stripped."""
    text = text.strip()
    if text and text[0] in starts:
        try:
            return _dumped(_parsed(text))
        except (ValueError, RecursionError):
            pass
    return text


def _unwrapped(text: str) -> str:
    """Return the text of a result that is a JSON string or a list of text parts."""
    text = text.strip()
    if not text.startswith(('"', "[")):
        return text
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, str):
        return value
    parts = isinstance(value, list) and value
    if parts and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        return "".join(str(part.get("text", "")) for part in value)
    return text


def _split(text: str, thought: str) -> tuple[str, str]:
    """Separate reasoning from content: some servers leave it in, some clients take it out."""
    before, closed, after = text.partition(_CLOSE)
    if not closed:
        return text, thought
    return after, thought or before.strip().removeprefix(_OPEN)


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _digest(parts: list[str]) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return digest.digest()


__all__ = ["Entry", "beginning", "canonical", "read_entry"]

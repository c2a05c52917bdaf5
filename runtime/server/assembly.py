"""Builds one answer out of what the engine generates.

There is one list of deltas. A stream sends them; the whole answer is their sum. So the two cannot
differ in content, calls, thought, log-probabilities or the reason why they ended.
"""

import json
from collections.abc import Callable
from typing import Any

from drawloom.engine.api.engine import Delta, RequestUsage
from drawloom.engine.sequence import FinishReason
from drawloom.tools.parsers import Closed, Named, Parser, Piece, Reasoning, Text
from drawloom.tools.tool_call import new_call_id

Event = dict[str, Any]
Spell = Callable[[int], str]


class PlainParser:
    """Takes all text for content: no tools were offered, so nothing is a call."""

    def feed(self, text: str) -> list[Piece]:
        return [Text(text)] if text else []

    def end(self) -> list[Piece]:
        return []


class Assembly:
    """Turns the engine's deltas into those of the wire, and adds them up.

    Args:
        index: the place of the choice among those of the request.
        turn: names the turn for `new_call_id`.
        parser: reads calls and thoughts out of the text.
        calls: calls may come, so white space around them is no content.
        several: more than one call may come; what follows the first is dropped otherwise.
        spell: gives the text of a token, if log-probabilities were asked for.
    """

    def __init__(
        self,
        index: int,
        turn: str,
        parser: Parser,
        *,
        calls: bool,
        several: bool = True,
        spell: Spell | None = None,
    ) -> None:
        self.index, self._turn, self._parser = index, turn, parser
        self._trims, self._one, self._spell = calls, calls and not several, spell
        self.ids: list[int] = []
        self.text: list[str] = []
        self.kinds: list[str] = []
        self.finish: FinishReason | None = None
        self.usage: RequestUsage | None = None
        self._space = ""
        self._began = False
        self._content: list[str] = []
        self._thought: list[str] = []
        self._calls: dict[int, Event] = {}
        self._fresh: list[Event] = []
        self._logprobs: list[Event] = []

    # --- parts ----------------------------------------------------------------------------

    def feed(self, delta: Delta) -> list[Event]:
        """Take what the engine generated; return what a stream sends of it, choice by choice."""
        self.ids += delta.tokens
        self._score(delta)
        parts: list[Event] = []
        for text in delta.text if self._one else (delta.text,):  # to know where a call ends
            if not self.enough:
                self.text.append(text)
                parts += self._read(self._parser.feed(text))
        if delta.finish is not None:
            self.finish, self.usage = delta.finish, delta.usage
            if not self.enough:
                parts += self._read(self._parser.end())
            parts += [self._add(part) for part in self._rest()]
        if parts and not self._began:
            self._began = True  # a message without content says so from its start
            content = "" if "content" in parts[0] else None
            parts.insert(0, {"role": "assistant", "content": content})
        chunks = [self._chunk(part) for part in parts]
        return [*chunks, self._chunk({}, self.reason)] if self.finish is not None else chunks

    @property
    def enough(self) -> bool:
        """Whether the one call that may be made is complete."""
        return self._one and bool(self.kinds)

    def _read(self, pieces: list[Piece]) -> list[Event]:
        return [self._add(part) for piece in pieces for part in self._parts(piece)]

    def _parts(self, piece: Piece) -> list[Event]:
        if isinstance(piece, Text):
            return self._say(piece.text)
        if isinstance(piece, Reasoning):
            return [{"reasoning_content": piece.text}] if piece.text else []
        if isinstance(piece, Named):
            return [self._call(piece.index, piece.name, "")]
        self.kinds.append(piece.call.kind)
        return [self._close(piece)]

    def _say(self, text: str) -> list[Event]:
        """Return content; white space waits for what follows it, and a call swallows it."""
        text = self._space + text
        if self._calls and not self._content:
            text = text.lstrip()
        kept = text.rstrip() if self._trims else text
        self._space = text[len(kept) :]
        return [{"content": kept}] if kept else []

    def _rest(self) -> list[Event]:
        """Return the content that was held back; an answer without calls has some, if empty."""
        if self._calls or (self._content and not self._space):
            return []
        return [{"content": self._space}]

    def _call(self, index: int, name: str, arguments: str) -> Event:
        about = {"index": index, "id": new_call_id(self._turn, index), "type": "function"}
        return {"tool_calls": [about | {"function": {"name": name, "arguments": arguments}}]}

    def _close(self, piece: Closed) -> Event:
        """Return a call's arguments, with its name if that was not known before. A name that was
        streamed stays, whatever the rest of the call says."""
        index, call = piece.index, piece.call
        arguments = json.dumps(call.arguments) if call.error is None else call.raw
        if index not in self._calls:
            return self._call(index, call.name, arguments)
        return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}

    def _add(self, part: Event) -> Event:
        """Add a part to the message and return it."""
        if "content" in part:
            self._content.append(part["content"])
        if "reasoning_content" in part:
            self._thought.append(part["reasoning_content"])
        for piece in part.get("tool_calls", ()):
            call = {key: value for key, value in piece.items() if key != "index"}
            if (known := self._calls.get(piece["index"])) is None:
                self._calls[piece["index"]] = call | {"function": dict(piece["function"])}
            else:
                known["function"]["arguments"] += piece["function"]["arguments"]
        return part

    def _chunk(self, part: Event, finish: str | None = None) -> Event:
        choice: Event = {"index": self.index, "delta": part, "finish_reason": finish}
        if self._spell is not None:
            fresh, self._fresh = self._fresh, []
            choice["logprobs"] = {"content": fresh}
        return choice

    def _score(self, delta: Delta) -> None:
        if (spell := self._spell) is None:
            return

        def one(token: int, value: float) -> Event:
            text = spell(token)
            spelt = list(text.encode("utf-8", "replace"))
            return {"token": text, "logprob": value, "bytes": spelt}

        tops = delta.tops or ((),) * len(delta.tokens)
        for token, value, top in zip(delta.tokens, delta.logprobs, tops, strict=False):
            entry = one(token, value) | {"top_logprobs": [one(*pair) for pair in top]}
            self._fresh.append(entry)
            self._logprobs.append(entry)

    # --- the whole ------------------------------------------------------------------------

    @property
    def tool(self) -> str:
        """Name of the last call so far."""
        return str(next(reversed(self._calls.values()))["function"]["name"]) if self._calls else ""

    @property
    def reason(self) -> str:
        """Why the answer ended, in the words of the wire."""
        if self.finish is FinishReason.LENGTH:
            return "length"
        return "tool_calls" if self._calls else "stop"

    @property
    def message(self) -> Event:
        """The message so far: the sum of all parts."""
        content = "".join(self._content) if self._content else None
        message: Event = {"role": "assistant", "content": content}
        if self._thought:
            message["reasoning_content"] = "".join(self._thought)
        if self._calls:
            message["tool_calls"] = list(self._calls.values())
        return message

    def whole(self) -> Event:
        """Return the choice of a whole answer."""
        scored = {"content": self._logprobs} if self._spell is not None else None
        choice: Event = {"index": self.index, "message": self.message, "logprobs": scored}
        return choice | {"finish_reason": self.reason}


__all__ = ["Assembly", "Event", "PlainParser"]

"""Speculative prefill of tool output while the tool still runs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from drawloom.errors import DrawloomError
from drawloom.runtime.execution.program import Program
from drawloom.tools.chat_template import Message
from drawloom.tools.results import MAX_CHARS
from drawloom.tools.tool_call import ToolCall

_CHARS = 256  # prefilled again after so many more: rendering and tokenising cost about 1 ms
_TOKENS = 32  # two blocks: less is not worth an engine step of its own


class StableOutput:
    """Keep the part of one tool's output that no truncation can remove any more.

    Of a running tool that is a prefix of its output, of an ended one all of it.

    Args:
        call: the tool call.
        changed: called when the text has changed.
        most: characters beyond which the output is likely to be cut to its share of the context.
    """

    def __init__(self, call: ToolCall, changed: Callable[[], None], most: int) -> None:
        self.call, self._changed, self._most = call, changed, most
        self.text, self.ended = "", False

    def restart(self) -> None:
        """Drop the output so far: the call is tried once more."""
        self.text = ""
        self._changed()

    def add(self, text: str, limit: int | None) -> None:
        """Add output; at most half of the tool's `limit` characters are stable."""
        most = self._most if limit is None else min(self._most, limit // 2)
        self.text = (self.text + text)[:most]
        self._changed()

    def end(self, content: str) -> None:
        """Set the whole result that the model is shown."""
        self.text, self.ended = content[: self._most], len(content) <= self._most
        self._changed()

    @property
    def message(self) -> Message:
        """Return the result as a message of the chat template."""
        call = self.call
        return {"role": "tool", "content": self.text, "name": call.name, "tool_call_id": call.id}


class SpeculativePrefill:
    """Prefill what the next prompt of a conversation surely begins with.

    It is a hint: the prompt is tokenised whole when the calls are over, and the common prefix is
    not computed again. Nothing is computed for a program that the scheduler has paused.

    Args:
        program: the program.
        conversation: full name of its conversation.
        calls: the tool calls that run, in the order of the prompt.
        begun: returns all tokens that the next prompt begins with, given its newest messages.
        most: characters of each result that are hardly cut to a share of the context.
    """

    def __init__(
        self,
        program: Program,
        conversation: str,
        calls: Sequence[ToolCall],
        begun: Callable[[list[Message]], Awaitable[list[int]]],
        most: int = MAX_CHARS,
    ) -> None:
        self._program, self._conversation, self._begun = program, conversation, begun
        self.outputs = [StableOutput(call, self._changed, most) for call in calls]
        self._prefilled_chars = self._sent = 0
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def close(self) -> None:
        """Start no more prefills: the calls are over. A running one ends with the next turn."""
        self._over = True

    def _known(self) -> list[StableOutput]:
        """Return the outputs that have ended and the first that has not, in prompt order."""
        ended = next((i for i, h in enumerate(self.outputs) if not h.ended), len(self.outputs))
        return self.outputs[: ended + 1]

    def _news(self) -> bool:
        size = sum(len(output.text) for output in self._known())
        if size < self._prefilled_chars:
            self._prefilled_chars = self._sent = 0
        return not self._over and size - self._prefilled_chars >= _CHARS

    def _changed(self) -> None:
        if self._task is None and self._news() and self._program.dispatcher.runs(self._program.id):
            self._task = self._program.spawn(self._extend())

    async def _extend(self) -> None:
        program, dispatcher = self._program, self._program.dispatcher
        try:
            while self._news() and dispatcher.runs(program.id):
                known = self._known()
                self._prefilled_chars = sum(len(output.text) for output in known)
                ids = await self._begun([output.message for output in known])
                if self._over:
                    return
                if len(ids) - self._sent < _TOKENS:
                    continue
                self._sent = len(ids)
                salt = program.agent.tenant.encode()
                dispatcher.note(program.id, "kv.ahead", tokens=len(ids))
                await dispatcher.engine.extend(self._conversation, tuple(ids), salt=salt)
        except DrawloomError:  # the turn meets the same, and tells it
            self._over = True
        finally:
            self._task = None


__all__ = ["SpeculativePrefill", "StableOutput"]

"""Prefill of tool output while the tool still runs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from drawloom.errors import DrawloomError
from drawloom.runtime.execution.program import Program
from drawloom.tools.chat_template import Message
from drawloom.tools.results import MAX_CHARS
from drawloom.tools.tool_call import ToolCall

_CHARS = 256  # looked at again after so many more: rendering and tokenising cost about 1 ms
_TOKENS = 32  # two blocks: less is not worth an engine step of its own


class Heard:
    """What the model will surely be shown of one call: of a running tool the part that no cut can
    change any more, of one that has ended all of it; never more than `most` characters, beyond
    which it is likely to be cut to its share of the context."""

    def __init__(self, call: ToolCall, changed: Callable[[], None], most: int) -> None:
        self.call, self._changed, self._most = call, changed, most
        self.text, self.ended = "", False

    def again(self) -> None:
        """It is tried once more; what it said before is not shown."""
        self.text = ""
        self._changed()

    def add(self, text: str, limit: int | None) -> None:
        """It said this; at most half of `limit` characters are safe."""
        most = self._most if limit is None else min(self._most, limit // 2)
        self.text = (self.text + text)[:most]
        self._changed()

    def end(self, content: str) -> None:
        self.text, self.ended = content[: self._most], len(content) <= self._most
        self._changed()

    @property
    def message(self) -> Message:
        call = self.call
        return {"role": "tool", "content": self.text, "name": call.name, "tool_call_id": call.id}


class Ahead:
    """Extends the KV of a conversation by what its next prompt surely begins with.

    A hint: the prompt is tokenised whole when the calls are over, and what the two have in common
    is not computed again. Nothing is computed for a program that the scheduler has paused.

    Args:
        begun: all tokens that the conversation surely begins with, given its newest messages.
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
        self.heard = [Heard(call, self._changed, most) for call in calls]
        self._looked = self._sent = 0
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def close(self) -> None:
        """The calls are over. What is being computed goes on until the next turn takes over."""
        self._over = True

    def _known(self) -> list[Heard]:
        """In the order of the prompt: those that have ended, and the first that has not."""
        ended = next((i for i, h in enumerate(self.heard) if not h.ended), len(self.heard))
        return self.heard[: ended + 1]

    def _news(self) -> bool:
        size = sum(len(heard.text) for heard in self._known())
        if size < self._looked:
            self._looked = self._sent = 0
        return not self._over and size - self._looked >= _CHARS

    def _changed(self) -> None:
        if self._task is None and self._news() and self._program.dispatcher.runs(self._program.id):
            self._task = self._program.spawn(self._extend())

    async def _extend(self) -> None:
        program, dispatcher = self._program, self._program.dispatcher
        try:
            while self._news() and dispatcher.runs(program.id):
                known = self._known()
                self._looked = sum(len(heard.text) for heard in known)
                ids = await self._begun([heard.message for heard in known])
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


__all__ = ["Ahead", "Heard"]

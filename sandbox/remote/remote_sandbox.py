"""An environment on another machine."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.helper.protocol import Reply, Wire
from drawloom.sandbox.remote.host_registry import Host, Hosts
from drawloom.sandbox.remote.messages import Answer, Op


class RemoteWire(Wire):
    """The line to a helper on another machine: each request is a message, each answer another."""

    def __init__(self, id: str, hosts: Hosts, host: Host) -> None:
        super().__init__(id, _nowhere)
        self._hosts, self.host = hosts, host

    async def call(
        self,
        head: str,
        *payloads: bytes,
        timeout: float | None = None,
        lead: bytes = b"",
        on_part: Callable[[bytes], None] | None = None,
    ) -> Reply:
        answer, data = await self._ask("call", head, payloads, timeout, on_part)
        a, b, c, d = answer.numbers
        return Reply(answer.reply, (a, b, c, d), data)

    async def tell(self, head: str, *payloads: bytes, lead: bytes = b"") -> None:
        if head.startswith(("ack ", "cancel ", "drop ")):  # nobody waits for an answer to these
            self._hosts.later(self._quietly(head))
            await asyncio.sleep(0)  # on its way before what is asked next
        else:
            await self._ask("tell", head, payloads, None, None)

    async def _quietly(self, head: str) -> None:
        with contextlib.suppress(SandboxError):
            await self._ask("tell", head, (), None, None)

    async def _ask(
        self,
        op: Op,
        head: str,
        payloads: tuple[bytes, ...],
        timeout: float | None,
        on_part: Callable[[bytes], None] | None,
    ) -> tuple[Answer, bytes]:
        if self._dead is not None:
            raise SandboxDied(f"{self.name} is gone: {self._dead}")
        return await self._hosts.ask(
            self.host, op, *payloads, on_part=on_part, box=self.name, head=head,
            sizes=[len(p) for p in payloads], timeout=timeout, stream=on_part is not None,
        )  # fmt: skip

    def end(self, reason: str) -> None:
        super().end(reason)
        self._hosts.give_up(lambda asked: asked.box == self.name, f"{self.name}: {reason}")


class RemoteSandbox(LiveSandbox):
    """An environment on a sandbox host; `gone` is awaited to remove it there."""

    def __init__(
        self, id: str, env: Env, hosts: Hosts, host: Host, gone: Callable[[str], Awaitable[None]]
    ) -> None:
        super().__init__(id, env, RemoteWire(id, hosts, host))
        self._gone, self.on = gone, host

    async def destroy(self) -> None:
        await super().destroy()
        await self._gone(self.id)


async def _nowhere(data: bytes) -> None: ...


__all__ = ["RemoteSandbox", "RemoteWire"]

"""Environments on other machines."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.helper.protocol import Reply, Wire
from drawloom.sandbox.remote.host_registry import HostRegistry
from drawloom.sandbox.remote.messages import Answer, Op
from drawloom.sandbox.remote.remote_host import RemoteHost


class RemoteWire(Wire):
    """Send requests to a helper on another machine, each as a message over the broker."""

    def __init__(self, id: str, hosts: HostRegistry, host: RemoteHost) -> None:
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
        if head.startswith(("ack ", "cancel ", "drop ")):  # their answers do not matter
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
            self.host,
            op,
            *payloads,
            on_part=on_part,
            box=self.name,
            head=head,
            sizes=[len(p) for p in payloads],
            timeout=timeout,
            stream=on_part is not None,
        )

    def end(self, reason: str) -> None:
        super().end(reason)
        self._hosts.give_up(lambda asked: asked.box == self.name, f"{self.name}: {reason}")


class RemoteSandbox(LiveSandbox):
    """Drive an environment on a sandbox host.

    Args:
        remove: removes it there, by its id.

    Attributes:
        on: the host.
    """

    def __init__(
        self,
        id: str,
        env: Env,
        hosts: HostRegistry,
        host: RemoteHost,
        remove: Callable[[str], Awaitable[None]],
    ) -> None:
        super().__init__(id, env, RemoteWire(id, hosts, host))
        self._remove, self.on = remove, host

    async def destroy(self) -> None:
        await super().destroy()
        await self._remove(self.id)


async def _nowhere(data: bytes) -> None: ...


__all__ = ["RemoteSandbox", "RemoteWire"]

"""Environments that were put aside: their files are kept, their places are free."""

import logging
from collections.abc import Awaitable, Callable

from drawloom.errors import DrawloomError, SandboxError
from drawloom.ids import new_id
from drawloom.sandbox.base import Provider, Snapshot
from drawloom.sandbox.shelf import Claimed

log = logging.getLogger("drawloom.sandbox")

_SNAPSHOT = "snap"
Key = tuple[str, str]
Kept = Callable[[Claimed, Snapshot], Awaitable[None]]


def is_snapshot(sandbox: str) -> bool:
    """Whether an id is a snapshot's, and not an environment's."""
    return sandbox.startswith(f"{_SNAPSHOT}-")


class Aside:
    """Snapshots by program and environment key, of one provider.

    Attributes:
        kept: what a program's next claim begins from.
        under: what a program's running environment began from; it goes when that does.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.kept: dict[Key, Snapshot] = {}
        self.under: dict[Key, str] = {}

    async def put(self, key: Key, claimed: Claimed, kept: Kept) -> bool:
        """Keep the files of an environment; `kept` is awaited as soon as they are safe. False when
        they cannot be kept: then nothing has changed."""
        name = new_id(_SNAPSHOT)
        try:
            snapshot = await self._provider.snapshot(claimed.box.id, name)
            await kept(claimed, snapshot)
        except DrawloomError as error:
            log.warning("environment %s is not put aside: %s", claimed.box.id, error)
            await self.forget(name)
            return False
        self.kept[key] = snapshot
        return True

    def restored(self, key: Key, snapshot: Snapshot) -> bool:
        """An environment began from a snapshot. False if its program has ended meanwhile."""
        if self.kept.get(key) is not snapshot:
            return False
        self.under[key] = self.kept.pop(key).id
        return True

    async def ended(self, key: Key) -> None:
        """A program's running environment is gone."""
        if (snapshot := self.under.pop(key, None)) is not None:
            await self.forget(snapshot)

    async def drop(self, program: str) -> None:
        """A program is over."""
        for key in [key for key in self.kept if key[0] == program]:
            await self.forget(self.kept.pop(key).id)

    async def close(self) -> None:
        """Forget everything."""
        gone = [snapshot.id for snapshot in self.kept.values()] + list(self.under.values())
        self.kept.clear()
        self.under.clear()
        for snapshot in gone:
            await self.forget(snapshot)

    async def forget(self, snapshot: str) -> None:
        try:
            await self._provider.discard(snapshot)
        except SandboxError as error:
            log.warning("snapshot %s could not be removed: %s", snapshot, error)


__all__ = ["Aside", "Kept", "is_snapshot"]

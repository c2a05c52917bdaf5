"""Environments that were put aside: their files are kept, their places are free."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from drawloom.errors import DrawloomError, SandboxError
from drawloom.ids import new_secret_id
from drawloom.sandbox.api.provider import Provider, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.pool.records import Claimed

log = logging.getLogger("drawloom.sandbox")

_SNAPSHOT = "snap"
Key = tuple[str, str]
Kept = Callable[[Claimed, Snapshot], Awaitable[None]]


def is_snapshot(sandbox: str) -> bool:
    """Whether an id is a snapshot's, and not an environment's."""
    return sandbox.startswith(f"{_SNAPSHOT}-")


def new_snapshot() -> str:
    """A name for one."""
    return new_secret_id(_SNAPSHOT)


async def keep(provider: Provider, box: LiveSandbox, name: str) -> Snapshot:
    """A snapshot of an environment, without what its `Env.exclude` names. Raises `SandboxError`."""
    if box.env.exclude:
        touched = box.touched
        await box.exec("rm", "-rf", "--", *box.env.exclude, timeout=60.0)
        box.touched = touched
    return await provider.snapshot(box.id, name)


class Aside:
    """Snapshots by program and environment key, of one provider.

    Attributes:
        kept: what a program's next claim begins from.
        under: what a program's running environment began from; it goes when that does, or with the
            last of those that share it.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.kept: dict[Key, Snapshot] = {}
        self.under: dict[Key, str] = {}
        self._shared: Counter[str] = Counter()

    async def put(self, key: Key, claimed: Claimed, kept: Kept) -> bool:
        """Keep the files of an environment; `kept` is awaited as soon as they are safe. False when
        they cannot be kept: then nothing has changed."""
        name = new_snapshot()
        try:
            snapshot = await keep(self._provider, claimed.box, name)
            await kept(claimed, snapshot)
        except DrawloomError as error:
            log.warning("environment %s is not put aside: %s", claimed.box.id, error)
            await self.forget(name)
            return False
        self.kept[key] = snapshot
        return True

    def share(self, snapshot: Snapshot, keys: Sequence[Key]) -> None:
        """Each of these begins from one snapshot, which goes with the last of them."""
        self._shared[snapshot.id] += len(keys)
        self.kept.update(dict.fromkeys(keys, snapshot))

    def move(self, key: Key, to: Key) -> None:
        """What a running environment began from is another program's now."""
        if (snapshot := self.under.pop(key, None)) is not None:
            self.under[to] = snapshot

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

    def leave(self, program: str) -> None:
        """A program's snapshots are its next owner's to remove."""
        for held in (self.kept, self.under):
            for key in [key for key in held if key[0] == program]:
                held.pop(key)

    async def close(self) -> None:
        """Forget everything."""
        gone = {snapshot.id for snapshot in self.kept.values()} | set(self.under.values())
        self.kept.clear()
        self.under.clear()
        self._shared.clear()
        for snapshot in gone:
            await self.forget(snapshot)

    async def forget(self, snapshot: str) -> None:
        """One that begins from it is over; with the last one it is removed."""
        if self._shared[snapshot] > 1:
            self._shared[snapshot] -= 1
            return
        del self._shared[snapshot]
        await remove(self._provider, snapshot)


async def remove(provider: Provider, snapshot: str) -> None:
    """Nobody needs a snapshot any more; what a host refuses is swept another time."""
    try:
        await provider.discard(snapshot)
    except SandboxError as error:
        log.warning("snapshot %s could not be removed: %s", snapshot, error)


__all__ = ["Aside", "Kept", "is_snapshot", "keep", "new_snapshot", "remove"]

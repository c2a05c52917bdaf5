"""Snapshots of parked and forked environments, each kept until its last user is gone."""

import logging
from collections import Counter

from drawloom.errors import SandboxError
from drawloom.ids import new_secret_id
from drawloom.sandbox.api.provider import Provider, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox

log = logging.getLogger("drawloom.sandbox")

_SNAPSHOT = "snap"


def is_snapshot_id(id: str) -> bool:
    """Return True for the id of a snapshot, False for that of an environment."""
    return id.startswith(f"{_SNAPSHOT}-")


def new_snapshot_id() -> str:
    """Return an unused id for a snapshot."""
    return new_secret_id(_SNAPSHOT)


async def take_snapshot(provider: Provider, sandbox: LiveSandbox, id: str) -> Snapshot:
    """Take a snapshot of an environment, without the paths of its `Env.exclude`.

    Raises:
        SandboxError: the files cannot be kept.
    """
    if sandbox.env.exclude:
        touched = sandbox.touched
        await sandbox.exec("rm", "-rf", "--", *sandbox.env.exclude, timeout=60.0)
        sandbox.touched = touched
    return await provider.snapshot(sandbox.id, id)


async def remove_snapshot(provider: Provider, id: str) -> None:
    """Remove a snapshot; one that the host refuses to remove is left to the next sweep."""
    try:
        await provider.discard(id)
    except SandboxError as error:
        log.warning("snapshot %s could not be removed: %s", id, error)


class ParkedSnapshots:
    """Count the users of each snapshot and remove it with the last of them.

    A user is a parked environment that will be restored from the snapshot, or a live one that was.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._users: Counter[str] = Counter()

    async def take(self, sandbox: LiveSandbox) -> Snapshot:
        """Take a snapshot of an environment, with one user.

        Raises:
            SandboxError: the files cannot be kept; nothing of the snapshot is left.
        """
        id = new_snapshot_id()
        try:
            snapshot = await take_snapshot(self._provider, sandbox, id)
        except SandboxError:
            await remove_snapshot(self._provider, id)
            raise
        self._users[snapshot.id] = 1
        return snapshot

    def add_users(self, id: str, count: int = 1) -> None:
        """Count more users of a snapshot."""
        self._users[id] += count

    async def release(self, id: str) -> None:
        """End one use of a snapshot; the last one removes it."""
        if self._users[id] > 1:
            self._users[id] -= 1
            return
        del self._users[id]
        await remove_snapshot(self._provider, id)

    def leave(self, id: str) -> None:
        """Forget a snapshot without removing it: another owner will adopt it."""
        del self._users[id]

    async def close(self) -> None:
        """Remove all snapshots that still have users."""
        left = list(self._users)
        self._users.clear()
        for id in left:
            await remove_snapshot(self._provider, id)


__all__ = [
    "ParkedSnapshots",
    "is_snapshot_id",
    "new_snapshot_id",
    "remove_snapshot",
    "take_snapshot",
]

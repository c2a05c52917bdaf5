"""The sandbox seam: what makes environments on a host, and what it answers."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drawloom.environments import Env
from drawloom.errors import SandboxError
from drawloom.sandbox.api.sandbox import LiveSandbox

WORK = "/work"
"""Working folder of commands in a container."""
LABEL = "drawloom"
SNAPSHOT_LABEL = f"{LABEL}-snapshot"
MAX_SNAPSHOT = 2 << 30
"""Most bytes that an environment may have written to be kept as a snapshot."""


@dataclass(frozen=True, slots=True)
class OwnedSandbox:
    """Name an environment or a snapshot that exists on a host, whether or not a row says so.

    Attributes:
        key: `Env.key` of its declaration.
        created: seconds since the epoch.
    """

    id: str
    key: str
    created: float


@dataclass(frozen=True, slots=True)
class Disk:
    """Hold the free and total bytes of the file system that environments are on."""

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Name the kept files of an environment; `Provider.fork` makes environments of them.

    Attributes:
        key: `Env.key` of the environment.
        size: bytes that were written since the image.
    """

    id: str
    key: str
    size: int


class Gateway(Protocol):
    """Open the sockets through which environments reach the model of their runtime."""

    async def open(self, box: str, path: Path, /) -> None:
        """Serve the environment with id `box` on a Unix socket at `path`."""
        ...

    async def close(self, box: str, /) -> None:
        """Close the socket of an environment; harmless if there is none."""
        ...


class Provider(Protocol):
    """Make and find the environments of one owner on one host.

    Attributes:
        gateway: opens the way to the model; set by a runtime that has one.
    """

    gateway: Gateway | None

    @property
    def name(self) -> str:
        """Return the kind of provider, as rows name it."""
        ...

    @property
    def host(self) -> str:
        """Return the name of the host."""
        ...

    @property
    def keeps_running(self) -> bool:
        """Return True if commands go on when their owner dies, so an adopter gets their results.

        Files outlive an owner everywhere, for a limited time.
        """
        ...

    async def create(self, env: Env, id: str) -> LiveSandbox:
        """Make an environment and run its setup.

        Raises:
            ImageNotFound: the host does not have the image.
            SandboxError: it cannot be made; nothing of it is left.
        """
        ...

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        """Take over an environment of a dead owner, with its files.

        Raises:
            SandboxDied: it is gone.
        """
        ...

    async def owned(self) -> list[OwnedSandbox]:
        """Return the environments of this owner that exist on the host."""
        ...

    async def destroy(self, id: str) -> None:
        """Remove an environment by its id, alive or not; harmless if there is none."""
        ...

    async def images(self) -> list[str] | None:
        """Return the names of the host's images; None where environments are not made of them."""
        ...

    async def disk(self) -> Disk | None:
        """Return the space for environments; None if it is not known."""
        ...

    async def written(self) -> dict[str, int]:
        """Return the bytes that each environment of this owner has written, by its id."""
        ...

    async def snapshot(self, id: str, name: str) -> Snapshot:
        """Keep the files of environment `id` under a name, until `discard`.

        Processes are not kept; where the host can do that they are paused meanwhile.

        Raises:
            SandboxDied: it is gone.
            SandboxError: it is larger than `MAX_SNAPSHOT`, or cannot be kept.
        """
        ...

    async def fork(self, env: Env, snapshot: str, id: str) -> LiveSandbox:
        """Make an environment with the files of a snapshot, without running its setup.

        Raises:
            SandboxDied: the snapshot is gone.
        """
        ...

    async def snapshots(self) -> list[OwnedSandbox]:
        """Return the snapshots of this owner that exist on the host."""
        ...

    async def discard(self, snapshot: str) -> None:
        """Remove a snapshot; forks of it live on. Harmless if there is none."""
        ...

    async def close(self) -> None:
        """Let go of all environments, without removing them."""
        ...


def snapshot_too_large(id: str, size: int) -> str:
    """Return the error message for an environment that has written `size` bytes."""
    return (
        f"environment {id} has written {size >> 20:,} MiB; a snapshot takes {MAX_SNAPSHOT >> 20:,} "
        "at most: delete caches and build products first"
    )


def gateway_for(provider: Provider, env: Env) -> Gateway | None:
    """Return the gateway for an environment with `Env(llm=True)`; None for others.

    Raises:
        SandboxError: it asks for one, and the provider's runtime has no model.
    """
    if not env.llm:
        return None
    if provider.gateway is None:
        raise SandboxError(
            "Env(llm=True) needs a runtime on the same host, whose model it is to find"
        )
    return provider.gateway


def disk_usage(folder: Path) -> Disk | None:
    """Return the space of the file system of a folder; None if it is not on this host."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return Disk(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


async def set_up(sandbox: LiveSandbox) -> None:
    """Run the setup commands of an environment.

    Raises:
        SandboxError: one failed, with its output; the environment was destroyed.
    """
    began = time.monotonic()
    for command in sandbox.env.setup:
        result = await sandbox.sh(command, timeout=600.0)
        if result.code or result.timed_out:
            await sandbox.destroy()
            raise SandboxError(f"setup {command!r} failed ({result.code}): {result.text[-500:]}")
    sandbox.touched = False
    sandbox.setup_seconds = time.monotonic() - began


__all__ = [
    "LABEL",
    "MAX_SNAPSHOT",
    "SNAPSHOT_LABEL",
    "WORK",
    "Disk",
    "Gateway",
    "OwnedSandbox",
    "Provider",
    "Snapshot",
    "disk_usage",
    "gateway_for",
    "set_up",
    "snapshot_too_large",
]

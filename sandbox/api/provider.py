"""The sandbox seam: providers make environments; what one is stands in `live.py`."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drawloom.environments import Env
from drawloom.errors import SandboxError
from drawloom.sandbox.api.sandbox import LiveSandbox

WORK = "/work"
LABEL = "drawloom"
KEPT = f"{LABEL}-snapshot"
MAX_SNAPSHOT = 2 << 30


@dataclass(frozen=True, slots=True)
class OwnedSandbox:
    """An environment, or a snapshot of one, that exists on a host, whoever remembers it."""

    id: str
    key: str
    created: float


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that a host's environments are on, in bytes."""

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of an environment as they were: what `fork` begins with. `size` in bytes, of what
    was written since the image."""

    id: str
    key: str
    size: int


class Doors(Protocol):
    """The way from environments to the model of their runtime."""

    async def open(self, box: str, path: Path, /) -> None:
        """Serve environment `box` on a Unix socket at `path`."""
        ...

    async def close(self, box: str, /) -> None:
        """Harmless when there is none."""
        ...


class Provider(Protocol):
    """Makes and finds environments on one host. `doors` are set by a runtime that has a model."""

    doors: Doors | None

    @property
    def name(self) -> str: ...

    @property
    def host(self) -> str: ...

    @property
    def keeps_running(self) -> bool:
        """Whether commands go on when their owner dies, so that an adopter gets their results.

        Files outlive an owner everywhere, for a limited time.
        """
        ...

    async def create(self, env: Env, id: str) -> LiveSandbox:
        """A new environment, ready to run commands. Raises `ImageNotFound`, `SandboxError`."""
        ...

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        """Take over an environment of a dead owner, its files as they are.

        Raises `SandboxDied` when it is gone.
        """
        ...

    async def owned(self) -> list[OwnedSandbox]:
        """The environments of this owner that exist on the host."""
        ...

    async def destroy(self, id: str) -> None:
        """Remove an environment by its id, alive or not; harmless when there is none."""
        ...

    async def images(self) -> list[str] | None:
        """The names of the images on the host; None where environments are not made of them."""
        ...

    async def disk(self) -> Disk | None:
        """What is left for environments; None where that is not known."""
        ...

    async def written(self) -> dict[str, int]:
        """Bytes that each environment of this owner has written and not removed, by its id."""
        ...

    async def snapshot(self, id: str, name: str) -> Snapshot:
        """Keep the files of environment `id` as they are, under a name, until `discard`. Its
        processes are not kept, and stand still meanwhile where the host can do that.

        Raises `SandboxDied` when it is gone, `SandboxError` when it is too large to keep.
        """
        ...

    async def fork(self, env: Env, snapshot: str, id: str) -> LiveSandbox:
        """A new environment with a snapshot's files, as often as is wanted. Nothing is set up
        again. Raises `SandboxDied` when the snapshot is gone."""
        ...

    async def snapshots(self) -> list[OwnedSandbox]:
        """The snapshots of this owner that exist on the host."""
        ...

    async def discard(self, snapshot: str) -> None:
        """Forget a snapshot; what was forked from it goes on. Harmless when there is none."""
        ...

    async def close(self) -> None: ...


def too_large(id: str, size: int) -> str:
    """Why an environment is not kept."""
    return (
        f"environment {id} has written {size >> 20:,} MiB; a snapshot takes {MAX_SNAPSHOT >> 20:,} "
        "at most: delete caches and build products first"
    )


def doors_of(provider: Provider, env: Env) -> Doors | None:
    """Where an environment's way to the model begins, if it wants one. Raises `SandboxError`."""
    if not env.llm:
        return None
    if provider.doors is None:
        raise SandboxError(
            "Env(llm=True) needs a runtime on the same host, whose model it is to find"
        )
    return provider.doors


def disk_at(folder: Path) -> Disk | None:
    """Of the file system that a folder of this host is on; None if it is not here."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return Disk(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


async def set_up(box: LiveSandbox) -> None:
    """Run an environment's setup commands. Raises `SandboxError` with the output of a failure."""
    began = time.monotonic()
    for command in box.env.setup:
        result = await box.sh(command, timeout=600.0)
        if result.code or result.timed_out:
            await box.destroy()
            raise SandboxError(f"setup {command!r} failed ({result.code}): {result.text[-500:]}")
    box.touched = False
    box.setup_seconds = time.monotonic() - began


__all__ = [
    "KEPT", "LABEL", "MAX_SNAPSHOT", "WORK", "Disk", "Doors", "OwnedSandbox",
    "Provider", "Snapshot", "disk_at", "doors_of", "set_up", "too_large",
]  # fmt: skip

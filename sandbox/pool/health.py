"""Health checks of live environments: heartbeats, disk quotas, space on the host's disk."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from drawloom.environments import parse_size
from drawloom.errors import SandboxError
from drawloom.sandbox.api.provider import Disk, Provider
from drawloom.sandbox.api.sandbox import LiveSandbox

log = logging.getLogger("drawloom.sandbox")

_PING_SECONDS, _DISK_SECONDS, _FREE_SECONDS = 60.0, 5.0, 0.5
_SHARE = 8  # check again as soon as an eighth of the smallest quota went from the disk
Sandboxes = Callable[[], Iterable[LiveSandbox]]


async def keep_alive(sandboxes: Sandboxes, every: float = _PING_SECONDS) -> None:
    """Ping all helpers every so many seconds; they end themselves without a word from us."""
    while True:
        await asyncio.sleep(every)
        await asyncio.gather(*(sandbox.ping() for sandbox in sandboxes()), return_exceptions=True)


async def hold_quotas(
    provider: Provider, sandboxes: Sandboxes, every: float = _DISK_SECONDS
) -> None:
    """End environments that have written more than their `Env.disk`.

    Docker cannot limit that by itself on most file systems. What each has written is read every
    few seconds, and sooner when the free space of the host's disk falls, which is cheap to read.
    """
    while True:
        await _until_due(provider, sandboxes, every)
        if not any(sandboxes()):
            continue
        try:
            written = await provider.written()
        except SandboxError as error:
            log.warning("what environments have written is not known: %s", error)
            continue
        over = [
            sandbox
            for sandbox in sandboxes()
            if written.get(sandbox.id, 0) > parse_size(sandbox.env.disk)
        ]
        await asyncio.gather(*(_end(sandbox, written[sandbox.id]) for sandbox in over))


async def _until_due(provider: Provider, sandboxes: Sandboxes, every: float) -> None:
    before = await provider.disk()
    for _ in range(max(1, round(every / _FREE_SECONDS))):
        await asyncio.sleep(min(every, _FREE_SECONDS))
        limits = [parse_size(sandbox.env.disk) for sandbox in sandboxes()]
        now = await provider.disk()
        if before and now and limits and before.free - now.free > min(limits) / _SHARE:
            return


async def watch_disk(
    provider: Provider, tell: Callable[[str, bool], None], every: float = _DISK_SECONDS
) -> None:
    """Report when the disk of a host becomes short of space.

    Args:
        tell: called at each change with the reason, empty when there is space again, and whether
            the disk is so full that nothing may be made.
        every: seconds between two looks.
    """
    told = ("", False)
    while True:
        disk = await provider.disk()
        now = ("", False) if disk is None else _short(disk, provider.host)
        if now != told:
            told = now
            tell(*now)
        await asyncio.sleep(every)


def _short(disk: Disk, host: str) -> tuple[str, bool]:
    """Return the arguments of `tell`; short means under both a share and a number of bytes."""
    for share, least, refuse in ((0.05, 5 << 30, True), (0.10, 20 << 30, False)):
        if disk.free < share * disk.total and disk.free < least:
            left = f"{100 * share:.0f} % and {least >> 30} GiB"
            return f"less than {left} of the disk of {host} are free: drawloom sandbox gc", refuse
    return "", False


async def _end(sandbox: LiveSandbox, written: int) -> None:
    reason = f"it wrote {written >> 20:,} MiB and may write {sandbox.env.disk}: Env(disk=…)"
    log.warning("environment %s is ended: %s", sandbox.id, reason)
    sandbox.lose(reason)
    try:
        await sandbox.destroy()
    except SandboxError as error:
        log.warning("environment %s could not be removed: %s", sandbox.id, error)


__all__ = ["hold_quotas", "keep_alive", "watch_disk"]

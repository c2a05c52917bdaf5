"""What is looked after while environments live: that their helpers hear from us, that none writes
more than it may, and that their host's disk does not run full."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from drawloom.environments import parse_size
from drawloom.errors import SandboxError
from drawloom.sandbox.api.provider import Disk, Provider
from drawloom.sandbox.api.sandbox import LiveSandbox

log = logging.getLogger("drawloom.sandbox")

_PING_SECONDS, _DISK_SECONDS, _GLANCE_SECONDS = 60.0, 5.0, 0.5
_SHARE = 8  # of the smallest limit: when so much of the disk went since the last look, look again
Boxes = Callable[[], Iterable[LiveSandbox]]


async def keep_alive(boxes: Boxes, every: float = _PING_SECONDS) -> None:
    """Helpers end when nobody speaks to them for long; a dead one is noticed here."""
    while True:
        await asyncio.sleep(every)
        await asyncio.gather(*(box.ping() for box in boxes()), return_exceptions=True)


async def hold_quotas(provider: Provider, boxes: Boxes, every: float = _DISK_SECONDS) -> None:
    """End what has written more than its `Env.disk`. Docker cannot limit that by itself on most
    file systems (research/sandbox.md §2.6), so it is looked at every few seconds; sooner when the
    host's disk fills, which costs next to nothing to know."""
    while True:
        await _until_due(provider, boxes, every)
        if not any(boxes()):
            continue
        try:
            written = await provider.written()
        except SandboxError as error:
            log.warning("what environments have written is not known: %s", error)
            continue
        over = [box for box in boxes() if written.get(box.id, 0) > parse_size(box.env.disk)]
        await asyncio.gather(*(_end(box, written[box.id]) for box in over))


async def _until_due(provider: Provider, boxes: Boxes, every: float) -> None:
    before = await provider.disk()
    for _ in range(max(1, round(every / _GLANCE_SECONDS))):
        await asyncio.sleep(min(every, _GLANCE_SECONDS))
        limits = [parse_size(box.env.disk) for box in boxes()]
        now = await provider.disk()
        if before and now and limits and before.free - now.free > min(limits) / _SHARE:
            return


async def watch_disk(
    provider: Provider, tell: Callable[[str, bool], None], every: float = _DISK_SECONDS
) -> None:
    """Say when a host runs out of disk: `tell` hears why, and whether nothing may be made any more
    or only nothing ahead of demand; an empty reason when there is room again."""
    said = ("", False)
    while True:
        disk = await provider.disk()
        now = ("", False) if disk is None else _short(disk, provider.host)
        if now != said:
            said = now
            tell(*now)
        await asyncio.sleep(every)


def _short(disk: Disk, host: str) -> tuple[str, bool]:
    """Both a share and a number: a tenth of a large disk is plenty, of a small one it is not."""
    for share, least, refuse in ((0.05, 5 << 30, True), (0.10, 20 << 30, False)):
        if disk.free < share * disk.total and disk.free < least:
            left = f"{100 * share:.0f} % and {least >> 30} GiB"
            return f"less than {left} of the disk of {host} are free: drawloom sandbox gc", refuse
    return "", False


async def _end(box: LiveSandbox, written: int) -> None:
    reason = f"it wrote {written >> 20:,} MiB and may write {box.env.disk}: Env(disk=…)"
    log.warning("environment %s is ended: %s", box.id, reason)
    box.lose(reason)
    try:
        await box.destroy()
    except SandboxError as error:
        log.warning("environment %s could not be removed: %s", box.id, error)


__all__ = ["hold_quotas", "keep_alive", "watch_disk"]

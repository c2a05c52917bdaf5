"""Making one environment of a pool: from its image, a template, or a parked snapshot."""

import asyncio
import contextlib
import logging

from drawloom.errors import SandboxDied, SandboxError
from drawloom.ids import new_secret_id
from drawloom.sandbox.api.provider import Provider, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.pool.parked import new_snapshot_id, remove_snapshot, take_snapshot
from drawloom.sandbox.pool.records import EnvPool

log = logging.getLogger("drawloom.sandbox")

_SETUP_SECONDS = 1.0  # a shorter setup is cheaper to repeat than a snapshot, which takes 0.15 s


async def create_sandbox(provider: Provider, pool: EnvPool) -> LiveSandbox:
    """Make an environment of a pool, and its template if the setup takes long.

    Raises:
        SandboxError: it cannot be made; nothing of it is left.
    """
    id = new_secret_id("box")
    if pool.snapshot is not None:
        return await provider.fork(pool.env, pool.snapshot, id)
    if pool.template is not None:
        try:
            return await provider.fork(pool.env, pool.template, id)
        except SandboxDied:  # somebody removed it
            pool.template = None
    sandbox = await provider.create(pool.env, id)
    if sandbox.setup_seconds >= _SETUP_SECONDS and not pool.template_pending:
        try:
            await _take_template(provider, pool, sandbox)
        except asyncio.CancelledError:
            with contextlib.suppress(SandboxError):  # the next sweep removes it
                await asyncio.shield(sandbox.destroy())
            raise
    return sandbox


async def _take_template(provider: Provider, pool: EnvPool, sandbox: LiveSandbox) -> None:
    """Take a snapshot of an environment after its setup, which the next are forked from.

    A snapshot has no processes, so there is no template of a setup that left some running.
    """
    pool.template_pending = True
    id = new_snapshot_id()
    taking: asyncio.Future[Snapshot] | None = None
    try:
        if not await sandbox.ping():
            taking = asyncio.ensure_future(take_snapshot(provider, sandbox, id))
            pool.template = (await asyncio.shield(taking)).id
    except SandboxError as error:
        log.warning("environments of %s are each set up anew: %s", pool.env.image, error)
        await remove_snapshot(provider, id)
    except asyncio.CancelledError:
        # the thread that takes the snapshot goes on: wait for it, then remove the snapshot
        if taking is not None:
            await asyncio.gather(taking, return_exceptions=True)
            await asyncio.shield(remove_snapshot(provider, id))
        raise


__all__ = ["create_sandbox"]

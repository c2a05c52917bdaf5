"""What every provider does between making and end, the one that only passes time too."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from drawloom.errors import SandboxDied
from drawloom.ids import new_id
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.testing.fake import FakeProvider
from tests.sandbox.conftest import ENV


async def _lives(made: Provider) -> None:
    box = await made.create(ENV, new_id("box"))
    assert [(o.id, o.key) for o in await made.owned()] == [(box.id, ENV.key)]
    assert box.alive and not box.touched
    assert (await box.exec("true")).code == 0
    assert box.touched
    assert await box.ping() == 0
    assert set(await made.written()) == {box.id}
    kept = await made.snapshot(box.id, new_id("snap"))
    assert [(s.id, s.key) for s in await made.snapshots()] == [(kept.id, ENV.key)]
    fork = await made.fork(ENV, kept.id, new_id("box"))
    await box.destroy()
    await box.destroy()
    assert [o.id for o in await made.owned()] == [fork.id]
    with pytest.raises(SandboxDied):
        await box.exec("true")
    with pytest.raises(SandboxDied):
        await made.adopt(ENV, box.id)
    with pytest.raises(SandboxDied):
        await made.snapshot(box.id, new_id("snap"))
    await made.destroy(fork.id)
    await made.destroy(fork.id)
    with pytest.raises(SandboxDied):
        await fork.exec("true")
    await made.discard(kept.id)
    await made.discard(kept.id)
    with pytest.raises(SandboxDied):
        await made.fork(ENV, kept.id, new_id("box"))
    assert (await made.owned(), await made.snapshots()) == ([], [])


async def _is_lost(made: Provider) -> None:
    first, second = await asyncio.gather(*(made.create(ENV, new_id("box")) for _ in range(2)))
    first.lose("the test wants it so")
    with pytest.raises(SandboxDied, match="the test wants it so"):
        await first.exec("true")
    assert not first.alive
    assert (await second.exec("true")).code == 0
    await made.destroy(first.id)
    assert [o.id for o in await made.owned()] == [second.id]
    await made.destroy(second.id)


async def _says_what_its_host_has(made: Provider) -> None:
    assert made.name and made.host
    disk = await made.disk()
    assert disk is None or 0 < disk.free <= disk.total
    images = await made.images()
    assert images is None or ENV.image in images


_ALL = (_lives, _is_lost, _says_what_its_host_has)
Check = Callable[[Provider], Awaitable[None]]


@pytest.mark.parametrize("check", _ALL, ids=lambda check: check.__name__)
async def test_real_environments(provider: Provider, check: Check) -> None:
    await check(provider)


@pytest.mark.parametrize("check", _ALL, ids=lambda check: check.__name__)
async def test_those_that_only_pass_time(check: Check) -> None:
    await check(FakeProvider())

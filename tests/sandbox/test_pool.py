"""The warm pool, over a provider that takes no time and fails when told."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from drawloom.environments import Env
from drawloom.errors import ImageNotFound, SandboxError
from drawloom.sandbox.base import LiveSandbox, OwnedSandbox
from drawloom.sandbox.pool import Pool
from drawloom.sandbox.wire import Wire

ENV = Env("box")


class FakeProvider:
    """Makes environments that do nothing; `gate` holds creations back, `failure` breaks them."""

    name, host, keeps_running = "fake", "here", False

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.made = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: SandboxError | None = None

    async def create(self, env: Env, id: str) -> LiveSandbox:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.made += 1
        self.live.add(id)
        provider = self

        class Box(LiveSandbox):
            async def destroy(self) -> None:
                await super().destroy()
                provider.live.discard(self.id)

        async def write(data: bytes) -> None: ...

        return Box(id, env, Wire(id, write))

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        return await self.create(env, id)

    async def owned(self) -> list[OwnedSandbox]:
        return [OwnedSandbox(id, "", 0.0) for id in self.live]

    async def destroy(self, id: str) -> None:
        self.live.discard(id)

    async def close(self) -> None: ...


@pytest.fixture
async def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
async def pool(provider: FakeProvider) -> AsyncIterator[Pool]:
    made = Pool(provider, limit=3)
    yield made
    await made.close()
    assert not provider.live, "an environment outlived its pool"


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_it_keeps_as_many_ready_as_it_is_told_within_its_limit(pool: Pool) -> None:
    pool.warm(ENV, 2)
    await _settle()
    assert pool.counts(ENV.key) == (2, 0)
    pool.warm(ENV, 99)
    await _settle()
    assert pool.counts(ENV.key) == (3, 0)


async def test_a_warm_claim_waits_for_nothing_and_is_replaced(pool: Pool) -> None:
    pool.warm(ENV, 1)
    await _settle()
    claimed = await pool.claim(ENV, "p")
    assert claimed.lease.warm
    await _settle()
    assert pool.counts(ENV.key) == (1, 0)


async def test_a_cold_claim_makes_its_own(pool: Pool) -> None:
    claimed = await pool.claim(ENV, "p")
    assert not claimed.lease.warm
    assert pool.counters.created == 1


async def test_a_program_keeps_the_one_it_has(pool: Pool) -> None:
    first = await pool.claim(ENV, "p")
    assert (await pool.claim(ENV, "p")).box is first.box
    assert (await pool.claim(ENV, "q")).box is not first.box


async def test_a_touched_one_is_destroyed_an_untouched_one_goes_back(
    pool: Pool, provider: FakeProvider
) -> None:
    touched, untouched = await pool.claim(ENV, "p"), await pool.claim(ENV, "q")
    touched.box.touched = True
    await pool.release("p")
    await pool.release("q")
    assert pool.counts(ENV.key) == (1, 0)
    assert provider.live == {untouched.box.id}
    assert (await pool.claim(ENV, "r")).box is untouched.box


async def test_a_failure_reaches_whoever_waits_and_stops_the_filling(
    pool: Pool, provider: FakeProvider
) -> None:
    provider.failure = ImageNotFound("no image")
    with pytest.raises(ImageNotFound):
        await pool.claim(ENV, "p")
    pool.warm(ENV, 3)
    await _settle()
    assert pool.counts(ENV.key) == (0, 0)
    assert pool.counters.failed <= 5
    provider.failure = None
    assert (await pool.claim(ENV, "p")).box.alive


async def test_a_claim_that_is_cancelled_leaks_nothing(pool: Pool, provider: FakeProvider) -> None:
    provider.gate.clear()
    claim = asyncio.create_task(pool.claim(ENV, "p"))
    await _settle()
    claim.cancel()
    provider.gate.set()
    await asyncio.gather(claim, return_exceptions=True)
    await _settle()
    assert pool.claimed == 0
    assert pool.counts(ENV.key)[0] == len(provider.live) == 1


async def test_closing_while_creating_leaves_nothing(provider: FakeProvider) -> None:
    pool = Pool(provider, limit=3)
    provider.gate.clear()
    pool.warm(ENV, 3)
    await _settle()
    await pool.close()
    provider.gate.set()
    await _settle()
    assert not provider.live


async def test_a_dead_one_is_not_handed_out(pool: Pool) -> None:
    pool.warm(ENV, 1)
    await _settle()
    dead = pool._shelves[ENV.key].warm[0].box
    dead._wire.end("killed")
    assert (await pool.claim(ENV, "p")).box is not dead


async def test_every_change_is_told(provider: FakeProvider) -> None:
    seen: list[tuple[int, int]] = []
    pool = Pool(
        provider, limit=3, on_change=lambda key, warm, creating: seen.append((warm, creating))
    )
    pool.warm(ENV, 1)
    await _settle()
    await pool.claim(ENV, "p")
    await pool.close()
    assert seen[0] == (1, 0)
    assert (0, 0) in seen or (0, 1) in seen

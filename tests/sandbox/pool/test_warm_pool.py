"""The warm pool, over a provider that takes no time and fails when told."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from drawloom.environments import Env
from drawloom.errors import ImageNotFound, SandboxError
from drawloom.ids import new_id
from drawloom.sandbox.api.provider import Disk, Provider, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.pool.health import watch_disk
from drawloom.sandbox.pool.warm_pool import WarmPool
from drawloom.sandbox.testing.fake import FakeProvider

ENV = Env("box")


class Gated(FakeProvider):
    """`gate` holds creations back, `failure` breaks them."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: SandboxError | None = None

    async def _wait(self, env: Env) -> None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure


@pytest.fixture
async def provider() -> Gated:
    return Gated()


@pytest.fixture
async def pool(provider: Gated) -> AsyncIterator[WarmPool]:
    made = WarmPool(provider, max_warm=3)
    yield made
    await made.close()
    assert not provider.live, "an environment outlived its pool"
    assert not provider.kept, "a snapshot outlived its pool"


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_it_keeps_as_many_ready_as_it_is_told_within_its_limit(pool: WarmPool) -> None:
    pool.target(ENV, 2)
    await _settle()
    assert pool.counts(ENV.key) == (2, 0)
    pool.target(ENV, 99)
    await _settle()
    assert pool.counts(ENV.key) == (3, 0)


async def test_a_warm_claim_waits_for_nothing_and_is_replaced(pool: WarmPool) -> None:
    pool.target(ENV, 1)
    await _settle()
    claimed = await pool.acquire(ENV)
    assert claimed.was_ready
    await _settle()
    assert pool.counts(ENV.key) == (1, 0)


async def test_a_cold_claim_makes_its_own(pool: WarmPool) -> None:
    claimed = await pool.acquire(ENV)
    assert not claimed.was_ready
    assert pool.counters.created == 1


async def test_a_touched_one_is_destroyed_an_untouched_one_goes_back(
    pool: WarmPool, provider: Gated
) -> None:
    touched, untouched = await pool.acquire(ENV), await pool.acquire(ENV)
    touched.sandbox.touched = True
    await pool.offer(touched.sandbox)
    await pool.offer(untouched.sandbox)
    assert pool.counts(ENV.key) == (1, 0)
    assert set(provider.live) == {untouched.sandbox.id}
    assert (await pool.acquire(ENV)).sandbox is untouched.sandbox


async def test_a_failure_reaches_whoever_waits_and_stops_the_filling(
    pool: WarmPool, provider: Gated
) -> None:
    provider.failure = ImageNotFound("no image")
    with pytest.raises(ImageNotFound):
        await pool.acquire(ENV)
    pool.target(ENV, 3)
    await _settle()
    assert pool.counts(ENV.key) == (0, 0)
    assert pool.counters.failed <= 5
    provider.failure = None
    assert (await pool.acquire(ENV)).sandbox.alive


async def test_a_claim_that_is_cancelled_leaks_nothing(pool: WarmPool, provider: Gated) -> None:
    provider.gate.clear()
    claim = asyncio.create_task(pool.acquire(ENV))
    await _settle()
    claim.cancel()
    provider.gate.set()
    await asyncio.gather(claim, return_exceptions=True)
    await _settle()
    assert pool.in_use == 0
    assert pool.counts(ENV.key)[0] == len(provider.live) == 1


async def test_closing_while_creating_leaves_nothing(provider: Gated) -> None:
    pool = WarmPool(provider, max_warm=3)
    provider.gate.clear()
    pool.target(ENV, 3)
    await _settle()
    await pool.close()
    provider.gate.set()
    await _settle()
    assert not provider.live


async def test_a_dead_one_is_not_handed_out(pool: WarmPool) -> None:
    pool.target(ENV, 1)
    await _settle()
    dead = pool._pools[ENV.key].warm[0].sandbox
    dead._wire.end("killed")
    assert (await pool.acquire(ENV)).sandbox is not dead


async def test_every_change_is_told(provider: Gated) -> None:
    seen: list[tuple[int, int]] = []
    pool = WarmPool(
        provider, max_warm=3, on_change=lambda key, warm, creating: seen.append((warm, creating))
    )
    pool.target(ENV, 1)
    await _settle()
    await pool.acquire(ENV)
    await pool.close()
    assert seen[:2] == [(0, 1), (1, 0)]
    assert (0, 0) in seen or (0, 1) in seen


async def test_what_has_no_room_is_told_so_and_made_when_there_is(provider: Gated) -> None:
    told: list[tuple[str, int, int]] = []
    pool = WarmPool(provider, max_warm=1, on_change=lambda *change: told.append(change))
    first, second = Env("first"), Env("second")
    pool.target(first, 1)
    await _settle()
    pool.target(second, 1)
    assert told[-1] == (second.key, 0, 0)  # else the scheduler would wait for it for ever
    await pool.acquire(first)
    pool.target(first, 0)
    await _settle()
    assert pool.counts(second.key) == (1, 0)
    assert told[-1] == (second.key, 1, 0)
    await pool.close()


async def test_who_hears_of_a_change_may_ask_for_more(provider: Gated) -> None:
    names = [Env(f"env-{number}") for number in range(200)]
    asked = iter(names)

    def more(key: str, warm: int, creating: int) -> None:
        if creating and (env := next(asked, None)) is not None:
            made.target(env, 1)

    made = WarmPool(provider, max_warm=3, on_change=more)
    made.target(ENV, 1)
    for number in range(100):
        await made.acquire(names[number])
        made.target(names[number], 0)
        await _settle()
        assert sum(sum(made.counts(env.key)) for env in (ENV, *names)) <= 3
    await made.close()
    assert not provider.live


# --- at most so many -------------------------------------------------------------------------

OTHER = Env("other")


@pytest.fixture
async def small(provider: Gated) -> AsyncIterator[WarmPool]:
    made = WarmPool(provider, max_warm=3, max_total=2)
    yield made
    await made.close()
    assert provider.most <= 2
    assert (provider.there, made.total) == (0, 0)
    assert not provider.kept


async def test_beyond_the_limit_a_claim_waits_until_one_is_gone(small: WarmPool) -> None:
    first = await small.acquire(ENV)
    await small.acquire(ENV)
    third = asyncio.create_task(small.acquire(ENV))
    await _settle()
    assert not third.done()
    first.sandbox.touched = True
    await small.offer(first.sandbox)
    assert (await third).sandbox.alive


async def test_a_ready_one_that_nobody_wants_gives_way(small: WarmPool, provider: Gated) -> None:
    small.target(ENV, 3)
    await _settle()
    assert small.counts(ENV.key) == (2, 0)  # no more than there may be
    claimed = await small.acquire(OTHER)
    assert claimed.sandbox.env == OTHER
    await _settle()
    assert small.counts(ENV.key) == (1, 0)
    claimed.sandbox.touched = True
    await small.offer(claimed.sandbox)
    await _settle()
    assert small.counts(ENV.key) == (2, 0)  # its target is met again
    assert provider.made == 4


async def test_who_waits_for_room_and_gives_up_leaves_none_taken(small: WarmPool) -> None:
    held = [await small.acquire(ENV) for _ in range(2)]
    waiting = [asyncio.create_task(small.acquire(OTHER)) for _ in range(2)]
    await _settle()
    waiting[0].cancel()
    await _settle()
    for one in held:
        one.sandbox.touched = True
    await asyncio.gather(*(small.offer(one.sandbox) for one in held))
    await waiting[1]
    await _settle()
    assert small.total == 1


async def test_a_failure_frees_its_room(small: WarmPool, provider: Gated) -> None:
    provider.failure = ImageNotFound("gone")
    for _ in range(5):
        with pytest.raises(ImageNotFound):
            await small.acquire(ENV)
    provider.failure = None
    await asyncio.gather(small.acquire(ENV), small.acquire(ENV))


async def test_on_a_full_disk_nothing_is_kept_ready_then_nothing_is_made(
    pool: WarmPool, provider: Gated
) -> None:
    gib = 1 << 30
    told: list[tuple[str, bool]] = []
    watch = asyncio.create_task(watch_disk(provider, lambda *said: told.append(said), every=0))
    pool.target(ENV, 2)
    await _settle()
    for free, total, full, refuses in (
        (30 * gib, 1000 * gib, False, False),  # three percent, and yet plenty
        (15 * gib, 200 * gib, True, False),
        (4 * gib, 200 * gib, True, True),
        (1 * gib, 8 * gib, False, False),  # an eighth of a small one
        (12 * gib, 200 * gib, True, False),
    ):
        provider.space = Disk(free, total)
        await _settle()
        short, refused = told[-1] if told else ("", False)
        assert (bool(short), refused) == (full, refuses)
        pool._on_disk(short, refused)
        await _settle()
        assert pool.counts(ENV.key)[0] == (0 if full else 2)
        if refuses:
            with pytest.raises(SandboxError, match=r"5 % and 5 GiB.*sandbox gc"):
                await pool.acquire(ENV)
    assert (await pool.acquire(ENV)).sandbox.id in provider.live
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


# --- set up once --------------------------------------------------------------------------


class Slow(Gated):
    """Setting up takes long; what is left running is `running`."""

    running = 0

    async def create(self, env: Env, id: str) -> LiveSandbox:
        box = await super().create(env, id)
        box.setup_seconds = 2.0
        box.ping = self._ping  # type: ignore[method-assign]
        return box

    async def _ping(self) -> int:
        return self.running


async def test_a_long_setup_is_done_once_and_kept_until_the_pool_closes() -> None:
    provider = Slow()
    pool = WarmPool(provider, max_warm=3)
    first = await pool.acquire(ENV)
    pool.target(ENV, 3)
    await _settle()
    assert len(provider.forked) == 3
    assert first.sandbox.id not in {box for _, box in provider.forked}
    assert len(provider.kept) == 1
    await pool.offer(first.sandbox)
    assert len(provider.kept) == 1
    await pool.close()
    assert (provider.live, provider.kept) == ({}, {})


async def test_a_setup_that_leaves_processes_is_done_each_time() -> None:
    provider = Slow()
    provider.running = 1
    pool = WarmPool(provider, max_warm=3)
    pool.target(ENV, 2)
    await _settle()
    await pool.acquire(ENV)
    await _settle()
    assert (provider.forked, provider.kept) == ([], {})
    await pool.close()


async def test_closed_while_the_first_one_is_kept_nothing_is_left() -> None:
    class Slower(Slow):
        kept_late = asyncio.Event()

        async def snapshot(self, id: str, name: str) -> Snapshot:
            await self.kept_late.wait()
            return await super().snapshot(id, name)

    provider = Slower()
    pool = WarmPool(provider)
    pool.target(ENV, 1)
    await _settle()
    closing = asyncio.create_task(pool.close())
    await _settle()
    provider.kept_late.set()
    await closing
    assert (provider.live, provider.kept) == ({}, {})


async def test_a_template_that_somebody_removed_is_made_again() -> None:
    provider = Slow()
    pool = WarmPool(provider, max_warm=3)
    await pool.acquire(ENV)
    provider.kept.clear()
    assert (await pool.acquire(ENV)).sandbox.id in provider.live
    assert provider.forked == []
    await pool.close()


@pytest.mark.parametrize("kind", ["process", pytest.param("docker", marks=pytest.mark.docker)])
@pytest.mark.parametrize(("more", "alike"), [("", True), ("; (sleep 60 &)", False)])
async def test_what_was_set_up_once_is_alike_in_all(
    kind: str, more: str, alike: bool, request: pytest.FixtureRequest
) -> None:
    from drawloom.sandbox.docker.provider import DockerProvider
    from drawloom.sandbox.local.provider import ProcessProvider

    owner = new_id("store")
    provider: Provider = (
        ProcessProvider(owner)
        if kind == "process"
        else DockerProvider(owner, request.getfixturevalue("docker_url"))
    )
    env = Env(BOX, setup=(f"sleep 1; head -c 9 /dev/urandom | od > random{more}",))
    pool = WarmPool(provider)
    first = await pool.acquire(env)
    second = await pool.acquire(env)
    same = await first.sandbox.read("random") == await second.sandbox.read("random")
    assert same == alike
    await pool.close()

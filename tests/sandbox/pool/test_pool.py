"""The warm pool, over a provider that takes no time and fails when told."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from drawloom.environments import Env
from drawloom.errors import ImageNotFound, SandboxError, StoreError
from drawloom.ids import new_id
from drawloom.sandbox.api.provider import Disk, Provider, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.pool.health import watch_disk
from drawloom.sandbox.pool.pool import Claimed, Pool
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
async def pool(provider: Gated) -> AsyncIterator[Pool]:
    made = Pool(provider, limit=3)
    yield made
    await made.close()
    assert not provider.live, "an environment outlived its pool"
    assert not provider.kept, "a snapshot outlived its pool"


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
    pool: Pool, provider: Gated
) -> None:
    touched, untouched = await pool.claim(ENV, "p"), await pool.claim(ENV, "q")
    touched.box.touched = True
    await pool.release("p")
    await pool.release("q")
    assert pool.counts(ENV.key) == (1, 0)
    assert set(provider.live) == {untouched.box.id}
    assert (await pool.claim(ENV, "r")).box is untouched.box


async def test_a_failure_reaches_whoever_waits_and_stops_the_filling(
    pool: Pool, provider: Gated
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


async def test_a_claim_that_is_cancelled_leaks_nothing(pool: Pool, provider: Gated) -> None:
    provider.gate.clear()
    claim = asyncio.create_task(pool.claim(ENV, "p"))
    await _settle()
    claim.cancel()
    provider.gate.set()
    await asyncio.gather(claim, return_exceptions=True)
    await _settle()
    assert pool.claimed == 0
    assert pool.counts(ENV.key)[0] == len(provider.live) == 1


async def test_closing_while_creating_leaves_nothing(provider: Gated) -> None:
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


async def test_every_change_is_told(provider: Gated) -> None:
    seen: list[tuple[int, int]] = []
    pool = Pool(
        provider, limit=3, on_change=lambda key, warm, creating: seen.append((warm, creating))
    )
    pool.warm(ENV, 1)
    await _settle()
    await pool.claim(ENV, "p")
    await pool.close()
    assert seen[:2] == [(0, 1), (1, 0)]
    assert (0, 0) in seen or (0, 1) in seen


async def test_what_has_no_room_is_told_so_and_made_when_there_is(provider: Gated) -> None:
    told: list[tuple[str, int, int]] = []
    pool = Pool(provider, limit=1, on_change=lambda *change: told.append(change))
    first, second = Env("first"), Env("second")
    pool.warm(first, 1)
    await _settle()
    pool.warm(second, 1)
    assert told[-1] == (second.key, 0, 0)  # else the scheduler would wait for it for ever
    await pool.claim(first, "p")
    pool.warm(first, 0)
    await _settle()
    assert pool.counts(second.key) == (1, 0)
    assert told[-1] == (second.key, 1, 0)
    await pool.close()


async def test_who_hears_of_a_change_may_ask_for_more(provider: Gated) -> None:
    names = [Env(f"env-{number}") for number in range(200)]
    asked = iter(names)

    def more(key: str, warm: int, creating: int) -> None:
        if creating and (env := next(asked, None)) is not None:
            made.warm(env, 1)

    made = Pool(provider, limit=3, on_change=more)
    made.warm(ENV, 1)
    for number in range(100):
        await made.claim(names[number], f"p{number}")
        made.warm(names[number], 0)
        await _settle()
        assert sum(sum(made.counts(env.key)) for env in (ENV, *names)) <= 3
    await made.close()
    assert not provider.live


# --- at most so many -------------------------------------------------------------------------

OTHER = Env("other")


@pytest.fixture
async def small(provider: Gated) -> AsyncIterator[Pool]:
    made = Pool(provider, limit=3, most=2)
    yield made
    await made.close()
    assert provider.most <= 2
    assert (provider.there, made.there) == (0, 0)
    assert not provider.kept


async def test_beyond_the_limit_a_claim_waits_until_one_is_gone(small: Pool) -> None:
    first = await small.claim(ENV, "p")
    await small.claim(ENV, "q")
    third = asyncio.create_task(small.claim(ENV, "r"))
    await _settle()
    assert not third.done()
    first.box.touched = True
    await small.release("p")
    assert (await third).lease.program == "r"


async def test_a_ready_one_that_nobody_wants_gives_way(small: Pool, provider: Gated) -> None:
    small.warm(ENV, 3)
    await _settle()
    assert small.counts(ENV.key) == (2, 0)  # no more than there may be
    claimed = await small.claim(OTHER, "p")
    assert claimed.lease.key == OTHER.key
    await _settle()
    assert small.counts(ENV.key) == (1, 0)
    claimed.box.touched = True
    await small.release("p")
    await _settle()
    assert small.counts(ENV.key) == (2, 0)  # its target is met again
    assert provider.made == 4


async def test_who_waits_for_room_and_gives_up_leaves_none_taken(small: Pool) -> None:
    held = [await small.claim(ENV, name) for name in ("p", "q")]
    waiting = [asyncio.create_task(small.claim(OTHER, name)) for name in ("r", "s")]
    await _settle()
    waiting[0].cancel()
    await _settle()
    for one in held:
        one.box.touched = True
    await asyncio.gather(small.release("p"), small.release("q"))
    await waiting[1]
    await _settle()
    assert small.there == 1


async def test_a_failure_frees_its_room(small: Pool, provider: Gated) -> None:
    provider.failure = ImageNotFound("gone")
    for _ in range(5):
        with pytest.raises(ImageNotFound):
            await small.claim(ENV, "p")
    provider.failure = None
    await asyncio.gather(small.claim(ENV, "p"), small.claim(ENV, "q"))


# --- put aside -------------------------------------------------------------------------------


async def _unwritten(claimed: Claimed, snapshot: Snapshot) -> None: ...


async def test_what_is_put_aside_frees_its_place_and_comes_back_as_it_was(
    small: Pool, provider: Gated
) -> None:
    first = await small.claim(ENV, "p")
    first.box.touched = True
    written: list[tuple[str, str, bool]] = []

    async def kept(claimed: Claimed, snapshot: Snapshot) -> None:
        written.append((claimed.box.id, snapshot.id, claimed.box.alive))

    await small.park("p", kept)
    assert not first.box.alive
    ((was, snapshot, alive),) = written
    assert (was, alive) == (first.box.id, True)  # written before anything is gone
    others = [await small.claim(ENV, name) for name in ("q", "r")]
    coming = asyncio.create_task(small.claim(ENV, "p"))
    await _settle()
    assert not coming.done()  # it needs a place like everyone
    others[0].box.touched = True
    await small.release("q")
    back = await coming
    assert provider.forked == [(snapshot, back.box.id)]
    assert back.box.touched
    assert set(provider.kept) == {snapshot}
    await small.release("p")
    assert not provider.kept
    assert (small.counters.parked, small.counters.restored) == (1, 1)


async def test_an_untouched_one_is_not_kept_but_given_back(small: Pool, provider: Gated) -> None:
    await small.claim(ENV, "p")
    await small.park("p", _unwritten)
    assert not provider.kept
    assert small.counts(ENV.key) == (1, 0)
    assert (await small.claim(ENV, "p")).lease.warm


async def test_one_that_cannot_be_kept_stays(small: Pool, provider: Gated) -> None:
    claimed = await small.claim(ENV, "p")
    claimed.box.touched = True

    async def refused(claimed: Claimed, snapshot: Snapshot) -> None:
        raise StoreError("the disk is full")

    await small.park("p", refused)
    assert (await small.claim(ENV, "p")).box is claimed.box
    assert claimed.box.alive
    assert not provider.kept


async def test_a_claim_while_it_is_put_aside_waits_and_gets_its_files(
    small: Pool, provider: Gated
) -> None:
    (await small.claim(ENV, "p")).box.touched = True
    writing = asyncio.Event()

    async def slowly(claimed: Claimed, snapshot: Snapshot) -> None:
        await writing.wait()

    parking = small.park("p", slowly)
    await _settle()
    claim = asyncio.create_task(small.claim(ENV, "p"))
    await _settle()
    assert not claim.done()
    writing.set()
    back = await claim
    await parking
    assert [box for _, box in provider.forked] == [back.box.id]


async def test_a_program_that_ends_while_aside_or_on_its_way_back_leaves_nothing(
    small: Pool, provider: Gated
) -> None:
    for cancel in (False, True):
        (await small.claim(ENV, "p")).box.touched = True
        parking = small.park("p", _unwritten)
        if not cancel:
            await small.release("p")  # waits until it is aside
        await parking
        provider.gate.clear()
        if cancel:
            back = asyncio.create_task(small.claim(ENV, "p"))
            await _settle()
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            await small.release("p")
        provider.gate.set()
        await _settle()
        assert not provider.kept
    assert small.claimed == 0


@pytest.mark.parametrize("seed", range(8))
async def test_the_limit_holds_whatever_comes_and_goes(small: Pool, seed: int) -> None:
    rng = random.Random(seed)
    live: dict[str, asyncio.Task[object]] = {}
    parked: list[asyncio.Task[None]] = []
    for number in range(300):
        if live and rng.random() < 0.3:
            name = rng.choice(sorted(live))
            if live[name].done():
                parked.append(small.park(name, _unwritten))
        if live and rng.random() < 0.5:
            name = rng.choice(sorted(live))
            task = live.pop(name)
            if task.done():
                await small.release(name)
            else:
                task.cancel()
        else:
            env, name = rng.choice((ENV, OTHER)), f"p{number}"
            live[name] = asyncio.create_task(_use(small, env, name, rng.random() < 0.5))
        if rng.random() < 0.2:
            small.warm(rng.choice((ENV, OTHER)), rng.randrange(3))
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        assert small.there <= 2
    for name, task in live.items():
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await small.release(name)
    await asyncio.gather(*parked, return_exceptions=True)
    for number in range(300):
        await small.release(f"p{number}")
    await _settle()
    await asyncio.gather(small.claim(ENV, "last"), small.claim(OTHER, "last"))


async def _use(pool: Pool, env: Env, program: str, touch: bool) -> None:
    (await pool.claim(env, program)).box.touched = touch


async def test_on_a_full_disk_nothing_is_kept_ready_then_nothing_is_made(
    pool: Pool, provider: Gated
) -> None:
    gib = 1 << 30
    told: list[tuple[str, bool]] = []
    watch = asyncio.create_task(watch_disk(provider, lambda *said: told.append(said), every=0))
    pool.warm(ENV, 2)
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
        pool._disk(short, refused)
        await _settle()
        assert pool.counts(ENV.key)[0] == (0 if full else 2)
        if refuses:
            with pytest.raises(SandboxError, match=r"5 % and 5 GiB.*sandbox gc"):
                await pool.claim(ENV, "p")
    assert (await pool.claim(ENV, "p")).box.id in provider.live
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def test_a_branch_that_is_handed_over_leaves_nothing_of_what_it_replaces(
    pool: Pool, provider: Gated
) -> None:
    async def kept(claimed: Claimed, snapshot: Snapshot) -> None: ...

    (await pool.claim(ENV, "p")).box.touched = True
    await pool.park("p", kept)
    before = await pool.claim(ENV, "p")  # it began from a snapshot
    await pool.fork("p", ["p@0", "p@1", "p@2"])
    branch = await pool.claim(ENV, "p@1")
    await pool.claim(ENV, "p@2")
    assert len(provider.kept) == 2
    await pool.hand_over("p@1", "p")
    assert (await pool.claim(ENV, "p")).box is branch.box
    assert before.box.id not in provider.live
    for world in ("p@0", "p@1", "p@2"):
        await pool.release(world)
    assert len(provider.kept) == 1, "the branches began from it, and one of them lives"
    await pool.release("p")
    assert (provider.kept, provider.live) == ({}, {})


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
    pool = Pool(provider, limit=3)
    first = await pool.claim(ENV, "p")
    pool.warm(ENV, 3)
    await _settle()
    assert len(provider.forked) == 3
    assert first.box.id not in {box for _, box in provider.forked}
    assert len(provider.kept) == 1
    await pool.release("p")
    assert len(provider.kept) == 1
    await pool.close()
    assert (provider.live, provider.kept) == ({}, {})


async def test_a_setup_that_leaves_processes_is_done_each_time() -> None:
    provider = Slow()
    provider.running = 1
    pool = Pool(provider, limit=3)
    pool.warm(ENV, 2)
    await _settle()
    await pool.claim(ENV, "p")
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
    pool = Pool(provider)
    pool.warm(ENV, 1)
    await _settle()
    closing = asyncio.create_task(pool.close())
    await _settle()
    provider.kept_late.set()
    await closing
    assert (provider.live, provider.kept) == ({}, {})


async def test_a_template_that_somebody_removed_is_made_again() -> None:
    provider = Slow()
    pool = Pool(provider, limit=3)
    await pool.claim(ENV, "p")
    provider.kept.clear()
    assert (await pool.claim(ENV, "q")).box.id in provider.live
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
    pool = Pool(provider)
    first = await pool.claim(env, "p")
    second = await pool.claim(env, "q")
    same = await first.box.read("random") == await second.box.read("random")
    assert same == alike
    await pool.close()

"""Claims on environments in all their states, over a provider that takes no time."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from drawloom.environments import Env
from drawloom.errors import StoreError
from drawloom.runtime.dispatch.env_claim import ALLOWED, ClaimState, EnvClaim, Owner
from drawloom.runtime.dispatch.env_leases import EnvLeases
from drawloom.runtime.store.store import LeaseRow, Store
from drawloom.sandbox.pool.parked import is_snapshot_id
from drawloom.sandbox.pool.warm_pool import WarmPool
from drawloom.sandbox.testing.fake import FakeProvider

ENV, OTHER = Env("box"), Env("other")
P, Q, R = Owner("p"), Owner("q"), Owner("r")


class Rows(Store):
    """Leases in memory; `failure` breaks the next one, `gate` holds them back."""

    def __init__(self) -> None:
        self.lost = None
        self.rows: dict[str, str] = {}
        self.failure: StoreError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def lease(self, row: LeaseRow) -> None:
        await self.gate.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.rows[row.sandbox] = row.program

    async def unlease(self, program: str) -> None:
        self.rows = {s: p for s, p in self.rows.items() if p != program}

    async def retain(self, program: str, sandboxes: set[str]) -> None:
        self.rows = {s: p for s, p in self.rows.items() if p != program or s in sandboxes}

    async def hand_over(self, branch: str, program: str, envs: set[str]) -> None:
        await self.unlease(program)
        self.rows = {s: program if p == branch else p for s, p in self.rows.items()}


class Gated(FakeProvider):
    """`gate` holds creations back."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.gate = asyncio.Event()
        self.gate.set()

    async def _wait(self, env: Env) -> None:
        await self.gate.wait()


class Leases(EnvLeases):
    """Leases with the parts that tests look at."""

    def __init__(self, provider: Gated, max_total: int | None) -> None:
        self.provider, self.rows = provider, Rows()
        self.warm = WarmPool(provider, max_warm=3, max_total=max_total)
        self.tasks: list[asyncio.Task[None]] = []
        super().__init__(
            self.warm,
            self.rows,
            lambda event: None,
            lambda program, kind, **detail: None,
            lambda work: self.tasks.append(asyncio.create_task(work)),
        )

    async def parked(self, program: str) -> None:
        self.park(program)
        await self.settle()

    async def settle(self) -> None:
        while self.tasks:
            await self.tasks.pop()


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def provider() -> Gated:
    return Gated()


@pytest.fixture
async def small(provider: Gated) -> AsyncIterator[Leases]:
    made = Leases(provider, max_total=2)
    yield made
    await made.settle()
    await made.warm.close()
    assert provider.most <= 2
    assert (provider.there, made.warm.total) == (0, 0)
    assert not provider.kept


@pytest.fixture
async def large(provider: Gated) -> AsyncIterator[Leases]:
    made = Leases(provider, max_total=None)
    yield made
    await made.settle()
    await made.warm.close()
    assert (provider.live, provider.kept) == ({}, {})


def test_an_owner_is_read_as_it_is_written() -> None:
    for owner, text in (
        (Owner("p"), "p"),
        (Owner("p", branch="best0.1"), "p@best0.1"),
        (Owner("p", call=3), "p/3"),
    ):
        assert str(owner) == text  # rows of earlier versions have these
        assert Owner.parse(text) == owner


def test_a_claim_changes_its_state_as_the_table_says_and_not_otherwise() -> None:
    for state in ClaimState:
        for to in ClaimState:
            claim = EnvClaim(P, ENV, state)
            if to in ALLOWED[state]:
                claim.move(to)
                assert claim.state is to
            else:
                with pytest.raises(ValueError, match=to.name):
                    claim.move(to)


async def test_a_program_keeps_the_one_it_has(large: Leases) -> None:
    first = await large.claim(ENV, P)
    assert await large.claim(ENV, P) is first
    assert await large.claim(ENV, Q) is not first
    assert large.owner_of(first.id) == P
    assert large.rows.rows[first.id] == "p"


async def test_what_is_asked_for_before_it_is_there_is_made_once(
    large: Leases, provider: Gated
) -> None:
    large.declare(ENV)
    provider.gate.clear()
    large.claim_early(ENV.key, P)
    claims = [asyncio.create_task(large.claim(ENV, P)) for _ in range(3)]
    await _settle()
    provider.gate.set()
    assert len({box.id for box in await asyncio.gather(*claims)}) == provider.made == 1


async def test_each_call_has_one_to_itself_that_leaves_no_row(
    large: Leases, provider: Gated
) -> None:
    large.declare(ENV)
    large.declare_per_call("p", {ENV.key})
    large.claim_early(ENV.key, P)
    async with large.claim_per_call(ENV, "p") as first, large.claim_per_call(ENV, "p") as second:
        assert first is not second
        assert not large.rows.rows
        first.touched = second.touched = True
    await large.settle()
    assert (provider.made, provider.live) == (2, {})


async def test_one_claimed_early_for_a_call_that_never_came_is_given_back(
    large: Leases, provider: Gated
) -> None:
    large.declare(ENV)
    large.declare_per_call("p", {ENV.key})
    large.claim_early(ENV.key, P)
    await _settle()
    await large.release("p")
    assert large.warm.in_use == 0


async def test_a_claim_whose_row_cannot_be_written_is_not_made(
    small: Leases, provider: Gated
) -> None:
    small.rows.failure = StoreError("the disk is full")
    with pytest.raises(StoreError):
        await small.claim(ENV, P)
    await small.settle()
    assert small.warm.in_use == 0
    assert (await small.claim(ENV, P)).alive


async def test_one_that_died_is_replaced(large: Leases, provider: Gated) -> None:
    first = await large.claim(ENV, P)
    first.lose("its host is gone")
    await large.replace(ENV, P)
    second = await large.claim(ENV, P)
    assert second is not first
    assert large.rows.rows == {second.id: "p"}


# --- parked ----------------------------------------------------------------------------------


async def test_what_is_parked_frees_its_place_and_comes_back_as_it_was(
    small: Leases, provider: Gated
) -> None:
    first = await small.claim(ENV, P)
    first.touched = True
    small.rows.gate.clear()
    small.park("p")
    await _settle()
    assert first.alive, "its files are recorded before it is gone"
    small.rows.gate.set()
    await small.settle()
    assert not first.alive
    ((snapshot, owner),) = small.rows.rows.items()
    assert (owner, is_snapshot_id(snapshot)) == ("p", True)
    other, _ = [await small.claim(ENV, owner) for owner in (Q, R)]
    small.unpark("p")
    coming = asyncio.create_task(small.claim(ENV, P))
    await _settle()
    assert not coming.done()  # it needs a place like everyone
    other.touched = True
    await small.release("q")
    restored = await coming
    assert provider.forked == [(snapshot, restored.id)]
    assert restored.touched
    assert set(provider.kept) == {snapshot}
    assert {s for s, p in small.rows.rows.items() if p == "p"} == {restored.id}
    await small.release("p")
    assert not provider.kept
    assert (small.warm.counters.parked, small.warm.counters.restored) == (1, 1)


async def test_an_untouched_one_is_not_kept_but_given_back(small: Leases, provider: Gated) -> None:
    first = await small.claim(ENV, P)
    await small.parked("p")
    small.unpark("p")
    assert not provider.kept
    assert small.warm.counts(ENV.key) == (1, 0)
    assert await small.claim(ENV, P) is first


async def test_one_that_cannot_be_kept_stays(small: Leases, provider: Gated) -> None:
    claimed = await small.claim(ENV, P)
    claimed.touched = True
    small.rows.failure = StoreError("the disk is full")
    await small.parked("p")
    small.unpark("p")
    assert await small.claim(ENV, P) is claimed
    assert claimed.alive
    assert not provider.kept


@pytest.mark.parametrize("early", [False, True])
async def test_a_claim_while_it_is_parked_waits_and_gets_its_files(
    small: Leases, provider: Gated, early: bool
) -> None:
    small.declare(ENV)
    (await small.claim(ENV, P)).touched = True
    small.rows.gate.clear()
    small.park("p")
    await _settle()
    small.unpark("p")
    if early:
        small.claim_early(ENV.key, P)
    claim = asyncio.create_task(small.claim(ENV, P))
    await _settle()
    assert not claim.done()
    small.rows.gate.set()
    restored = await claim
    assert [box for _, box in provider.forked] == [restored.id]


async def test_an_untouched_one_that_is_awaited_while_it_is_parked_is_claimed_anew(
    small: Leases, provider: Gated
) -> None:
    await small.claim(ENV, P)
    small.park("p")
    small.unpark("p")
    assert (await small.claim(ENV, P)).alive
    assert (provider.made, provider.kept) == (1, {})


async def test_one_in_use_is_parked_when_nothing_runs_in_it(small: Leases, provider: Gated) -> None:
    async with small.use(ENV, P) as sandbox, small.use(OTHER, P) as other:
        sandbox.touched = other.touched = True
        await small.parked("p")
        assert not provider.kept
    await small.settle()
    assert len(provider.kept) == 2
    assert not provider.live


async def test_what_nobody_awaits_is_given_up_when_its_program_is_parked(
    small: Leases, provider: Gated
) -> None:
    small.declare(ENV)
    small.declare(OTHER)
    (await small.claim(ENV, P)).touched = True
    await small.parked("p")
    provider.gate.clear()
    small.claim_early(ENV.key, P)  # it is restored
    small.claim_early(OTHER.key, P)
    await _settle()
    await small.parked("p")
    provider.gate.set()
    await _settle()
    assert small.warm.in_use == 0
    assert [box.env for box in provider.live.values()] == [OTHER]  # made, and ready for others
    assert len(provider.kept) == 1
    small.unpark("p")
    assert (await small.claim(ENV, P)).touched


async def test_a_program_that_ends_while_parked_or_on_its_way_back_leaves_nothing(
    small: Leases, provider: Gated
) -> None:
    for cancel in (False, True):
        (await small.claim(ENV, P)).touched = True
        small.park("p")
        if not cancel:
            await small.release("p")  # waits until it is parked
        await small.settle()
        provider.gate.clear()
        if cancel:
            coming = asyncio.create_task(small.claim(ENV, P))
            await _settle()
            await small.release("p")
            await asyncio.gather(coming, return_exceptions=True)
        provider.gate.set()
        await _settle()
        assert not provider.kept
    assert small.warm.in_use == 0
    assert not small.rows.rows


async def test_what_is_left_to_whoever_resumes_is_neither_removed_nor_unleased(
    large: Leases, provider: Gated
) -> None:
    live = await large.claim(ENV, P)
    (await large.claim(ENV, Q)).touched = True
    await large.parked("q")
    for program in ("p", "q"):
        large.leave_to_resume(program)
        await large.release(program)
    assert set(provider.live) == {live.id}
    assert {*provider.live, *provider.kept} == set(large.rows.rows)
    assert large.warm.total == 0
    await large.adopt(P, {ENV: [live.id]})
    await large.adopt(Q, {ENV: list(provider.kept)})
    assert await large.claim(ENV, P) is provider.live[live.id]
    await large.release("p")
    await large.release("q")
    assert not provider.live


@pytest.mark.parametrize("seed", range(8))
async def test_the_limit_holds_whatever_comes_and_goes(small: Leases, seed: int) -> None:
    rng = random.Random(seed)
    live: dict[str, asyncio.Task[object]] = {}
    for number in range(300):
        if live and rng.random() < 0.3:
            name = rng.choice(sorted(live))
            if live[name].done():
                small.park(name)
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
            small.warm.target(rng.choice((ENV, OTHER)), rng.randrange(3))
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        assert small.warm.total <= 2
    for name, task in live.items():
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await small.release(name)
    for number in range(300):
        await small.release(f"p{number}")
    await small.settle()
    await _settle()
    assert not small.rows.rows
    await asyncio.gather(small.claim(ENV, P), small.claim(OTHER, P))


async def _use(leases: Leases, env: Env, program: str, touch: bool) -> None:
    (await leases.claim(env, Owner(program))).touched = touch


# --- branches --------------------------------------------------------------------------------


async def test_a_branch_that_is_joined_leaves_nothing_of_what_it_replaces(
    large: Leases, provider: Gated
) -> None:
    (await large.claim(ENV, P)).touched = True
    await large.parked("p")
    large.unpark("p")
    before = await large.claim(ENV, P)  # it began from a snapshot
    branches = [Owner("p", branch=str(number)) for number in range(3)]
    await large.fork(P, branches)
    won = await large.claim(ENV, branches[1])
    await large.claim(ENV, branches[2])
    assert len(provider.kept) == 2
    await large.join(P, branches, branches[1])
    assert await large.claim(ENV, P) is won
    assert before.id not in provider.live
    assert large.rows.rows == {won.id: "p"}
    assert len(provider.kept) == 1, "the branches began from it, and one of them lives"
    await large.release("p")
    assert (provider.kept, provider.live) == ({}, {})

"""The environments of programs: claimed, parked, restored, forked, adopted and released."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError
from drawloom.runtime.dispatch.claim_book import ClaimBook, Later, Note
from drawloom.runtime.dispatch.env_claim import ClaimState, EnvClaim, Owner
from drawloom.runtime.scheduler.events import Event, HostState, HostUp
from drawloom.runtime.store.store import Store
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.pool.parked import is_snapshot_id
from drawloom.sandbox.pool.warm_pool import WarmPool


class EnvLeases:
    """Carry out the scheduler's decisions about environments, over one warm pool or none.

    There is one `EnvClaim` for each owner and environment, in one book. It is a row of the store
    before anything runs under it, except for the environment of a single call: a killed owner's
    call was interrupted, and its environment is swept.

    Args:
        emit: hands an event to the scheduler.
        note: publishes what happened to a program: its id, a kind, and details.
        later: runs a coroutine in the background until the runtime settles.
        memory: bytes that all environments together may use; limits their number to how many of
            the largest one fit. None: no limit.
    """

    def __init__(
        self,
        pool: WarmPool | None,
        store: Store,
        emit: Callable[[Event], None],
        note: Note,
        later: Later,
        memory: int | None = None,
    ) -> None:
        self._pool, self._store, self._memory = pool, store, memory
        self._emit, self._note, self._later = emit, note, later
        self._declared: dict[str, Env] = {}
        self._book = ClaimBook(pool, store, note, later)
        self._per_call: dict[str, set[str]] = {}
        self._call_numbers = itertools.count()
        self._to_park: set[Owner] = set()
        self._to_leave: set[str] = set()
        if pool is not None:
            pool.on_change = self._changed
            if pool.max_total is not None:
                emit(HostUp(pool.provider.host, pool.max_total, parks=True))

    @property
    def stall(self) -> float:
        """Return the seconds that programs have waited for environments they had none of yet."""
        return self._book.stall

    def owner_of(self, sandbox: str) -> Owner | None:
        """Return the owner that has the environment of an id."""
        found = (c.owner for c in self._book if c.sandbox and c.sandbox.id == sandbox)
        return next(found, None)

    # --- what there should be -------------------------------------------------------------

    def declare(self, env: Env) -> None:
        """Declare an environment that programs may claim."""
        if self._pool is None or env.key in self._declared:
            return
        self._declared[env.key] = env
        self._fit_memory(self._pool)
        warm, creating = self._pool.counts(env.key)
        # none is being made yet, but the first program that needs one will change that
        self._changed(env.key, warm, max(1, creating))
        if env.warm:
            self._pool.target(env, env.warm)

    def declare_per_call(self, program: str, keys: set[str]) -> None:
        """Declare the environments of which each call of a program has one to itself."""
        self._per_call[program] = keys

    def target(self, key: str, count: int) -> None:
        """Keep environments of a key warm: `count`, or `Env.warm` if that is more."""
        env = self._declared.get(key)
        if env is not None and self._pool is not None:
            self._pool.target(env, max(env.warm, count))

    def _fit_memory(self, pool: WarmPool) -> None:
        if self._memory is None:
            return
        most = self._memory // max(env.footprint for env in self._declared.values())
        if pool.max_total is None or most < pool.max_total:
            pool.max_total, pool.max_warm = most, min(pool.max_warm, most)
            self._emit(HostUp(pool.provider.host, most, parks=True))

    def _changed(self, key: str, warm: int, creating: int) -> None:
        pool = self._book.pool
        cold = pool.create_seconds(key)
        self._emit(HostState(pool.provider.host, key, warm, creating, pool.max_warm, cold))

    # --- claims ---------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def use(self, env: Env, owner: Owner) -> AsyncIterator[LiveSandbox]:
        """Claim an owner's environment, if it is not claimed yet, and run something in it.

        It is not parked meanwhile. Raises `SandboxError` when there can be none.
        """
        claim = self._book.begin(env, owner)
        claim.users += 1
        try:
            yield await self._book.wait(claim)
        finally:
            claim.users -= 1
            if owner in self._to_park and not any(c.users for c in self._book.of(owner)):
                self.park(owner.program)

    async def claim(self, env: Env, owner: Owner) -> LiveSandbox:
        """Claim an owner's environment and return it. Raises `SandboxError`."""
        async with self.use(env, owner) as sandbox:
            return sandbox

    @contextlib.asynccontextmanager
    async def claim_per_call(self, env: Env, program: str) -> AsyncIterator[LiveSandbox]:
        """Claim an environment for a single call of a program; destroy it afterwards.

        Raises `SandboxError` when there can be none.
        """
        claim = self._unused(program, env.key) or self._book.begin(env, self._next_call(program))
        claim.users += 1
        try:
            yield await self._book.wait(claim)
        finally:
            claim.users -= 1
            self._later(self._end_call(claim))

    def claim_early(self, key: str, owner: Owner) -> None:
        """Begin to claim an environment that an owner will use; the use reports a failure."""
        env = self._declared.get(key)
        if env is None:
            return
        if key not in self._per_call.get(owner.program, ()):
            self._book.begin(env, owner)
        elif self._unused(owner.program, key) is None:
            self._book.begin(env, self._next_call(owner.program))

    async def replace(self, env: Env, owner: Owner) -> None:
        """Destroy an owner's environment that died untouched; its next claim is of another."""
        claim = self._book.get(owner, env.key)
        if claim is None:
            return
        self._book.cancel(claim)
        if claim.sandbox is not None:
            claim.sandbox.touched = True  # nobody else gets it
        await self._book.end(claim)
        await self._store.retain(str(owner), self._book.ids(owner))

    def _next_call(self, program: str) -> Owner:
        return Owner(program, call=next(self._call_numbers))

    def _unused(self, program: str, key: str) -> EnvClaim | None:
        """Return a claim for a single call that was begun early and that no call has taken."""
        for claim in self._book:
            of_call = claim.owner.call is not None and claim.owner.program == program
            if of_call and claim.env.key == key and not claim.stall_counted:
                return claim
        return None

    async def _end_call(self, claim: EnvClaim) -> None:
        opening = self._book.cancel(claim)
        if opening is not None:
            await asyncio.gather(opening, return_exceptions=True)
        await self._book.end(claim)

    # --- release --------------------------------------------------------------------------

    def leave_to_resume(self, program: str) -> None:
        """Keep a program's environments when it is released: whoever resumes it adopts them."""
        self._to_leave.add(program)

    async def release(self, program: str) -> None:
        """End all claims of a program and of its branches."""
        self._per_call.pop(program, None)
        claims = [c for c in self._book if c.owner.program == program]
        for claim in claims:
            if claim.owner.call is not None and not claim.stall_counted:
                await self._end_call(claim)
        branches = {c.owner for c in claims if c.owner.branch is not None}
        for owner in (*branches, Owner(program)):
            await self._release(owner)
        self._to_leave.discard(program)

    async def _release(self, owner: Owner) -> None:
        self._to_park.discard(owner)
        claims = self._book.of(owner)
        if not claims:
            return
        tasks = {self._book.cancel(claim) for claim in claims} | {claim.parking for claim in claims}
        await asyncio.gather(*(asyncio.shield(t) for t in tasks if t), return_exceptions=True)
        leave = owner.program in self._to_leave or self._store.lost is not None
        for claim in self._book.of(owner):
            await (self._book.leave(claim) if leave else self._book.end(claim))
        if not leave:
            await self._store.unlease(str(owner))

    # --- branches -------------------------------------------------------------------------

    async def fork(self, owner: Owner, branches: Sequence[Owner]) -> None:
        """Let each branch begin with the files that an owner's environments have now.

        Environments that were not touched are not kept: branches claim new ones.

        Raises:
            SandboxError: the files cannot be kept, or the number of environments is limited.
        """
        if self._pool is None:
            return
        if self._pool.max_total is not None:
            raise SandboxError(
                "best_of(fork_env=True) needs as many environments as there are branches: leave "
                "out Limits(environments=…), under which branches could wait for each other"
            )
        for claim in self._book.of(owner):
            if claim.parking is not None:
                await asyncio.shield(claim.parking)
            if claim.state is not ClaimState.LIVE or claim.sandbox is None:
                continue
            lacking = [b for b in branches if self._book.get(b, claim.env.key) is None]
            if not claim.sandbox.touched or not lacking:
                continue
            snapshot = await self._pool.snapshots.take(claim.sandbox)
            self._pool.snapshots.add_users(snapshot.id, len(lacking) - 1)
            for branch in lacking:
                self._book.add(EnvClaim(branch, claim.env, ClaimState.PARKED, snapshot=snapshot.id))

    async def join(self, owner: Owner, branches: Sequence[Owner], winner: Owner | None) -> None:
        """Make the winner's environments the owner's; release those of the other branches."""
        if winner is not None:
            won = [c for c in self._book.of(winner) if c.state is ClaimState.LIVE]
            await self._store.hand_over(str(winner), str(owner), {c.env.key for c in won})
            for claim in won:
                before = self._book.get(owner, claim.env.key)
                if before is not None:
                    self._book.cancel(before)
                    await self._book.end(before)
                self._book.hand_over(claim, owner)
        for branch in branches:
            await self._release(branch)

    # --- parking --------------------------------------------------------------------------

    def park(self, program: str) -> None:
        """Park a program's environments, as soon as nothing runs in them.

        Its next claims wait until that is done, and restore the files. Until `unpark`, they are
        parked again after each use: code of the agent may claim them outside of its conversations.
        """
        if self._pool is None:
            return
        owner = Owner(program)
        self._to_park.add(owner)
        claims = self._book.of(owner)
        if not claims or any(claim.users for claim in claims):
            return
        for claim in claims:
            self._book.cancel(claim)
        live = [claim for claim in claims if claim.state is ClaimState.LIVE]
        parking = asyncio.create_task(self._book.park(live))
        for claim in live:
            claim.move(ClaimState.PARKING)
            claim.parking = parking
        self._later(self._retain_after(parking, owner))

    def unpark(self, program: str) -> None:
        """Let a program keep its environments between uses: it runs again."""
        self._to_park.discard(Owner(program))

    async def _retain_after(self, parking: "asyncio.Task[None]", owner: Owner) -> None:
        await parking
        await self._store.retain(str(owner), self._book.ids(owner))

    # --- adoption -------------------------------------------------------------------------

    async def adopt(self, owner: Owner, environments: Mapping[Env, Sequence[str]]) -> None:
        """Take over the environments that a killed process's owner had.

        Args:
            environments: ids by environment. One that was being parked or restored has a snapshot
                as well, with the same files: nothing ran since.

        Raises:
            SandboxDied: all of one environment's are gone.
        """
        for env, ids in environments.items():
            claim = EnvClaim(owner, env)
            last = SandboxDied(f"{owner} has no environment")
            for id in sorted(ids, key=is_snapshot_id):
                try:
                    await self._book.adopt(claim, id)
                except SandboxDied as died:
                    last = died
            if claim.sandbox is None:
                raise last
            if claim.sandbox.id not in ids:
                await self._book.write_row(claim, claim.sandbox.id)
            claim.move(ClaimState.LIVE)
            self._book.add(claim)
        await self._store.retain(str(owner), self._book.ids(owner))


__all__ = ["EnvLeases"]

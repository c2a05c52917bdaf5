"""The environments of live programs: claimed once, put aside, taken over, given back."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError, SandboxUnavailable
from drawloom.runtime.scheduler.events import Event, HostState, HostUp
from drawloom.runtime.store.store import LeaseRow, Store
from drawloom.sandbox.api.provider import Snapshot
from drawloom.sandbox.pool.parked import is_snapshot
from drawloom.sandbox.pool.pool import Claimed, Pool

_NO_PROVIDER = "this runtime has no sandbox provider: Runtime(sandbox=…)"
Note = Callable[..., None]
Later = Callable[[Coroutine[Any, Any, None]], None]


class Environments:
    """Carries out what the core decides about environments, over one pool or none; every lease is
    a row before anybody runs anything under it.

    Args:
        emit: tells the core.
        note: tells whoever listens; of a program, what happened, and details.
        later: runs in the background until the runtime settles.
        memory: bytes that all environments together may use; then no more may be there than fit
            if each were as large as the largest.

    Attributes:
        stall: seconds that programs have waited for the environments of their first calls.
    """

    def __init__(
        self,
        pool: Pool | None,
        store: Store,
        emit: Callable[[Event], None],
        note: Note,
        later: Later,
        memory: int | None = None,
    ) -> None:
        self.pool, self._store, self._memory = pool, store, memory
        self._emit, self._note, self._later = emit, note, later
        self._known: dict[str, Env] = {}
        self._claims: dict[tuple[str, str], asyncio.Task[Claimed]] = {}
        self._stalled: set[tuple[str, str]] = set()
        self._used: Counter[str] = Counter()
        self._away: set[str] = set()
        self._kept: set[str] = set()
        self._fresh: dict[str, set[str]] = {}
        self._early: dict[tuple[str, str], asyncio.Task[Claimed]] = {}
        self._numbers = itertools.count()
        self.stall = 0.0
        if pool is not None:
            pool.on_change = self._changed
            if pool.most is not None:
                emit(HostUp(pool.provider.host, pool.most, parks=True))

    def holder(self, sandbox: str) -> str | None:
        """The program that has an environment."""
        owner = self.pool.holder(sandbox) if self.pool is not None else None
        return program_of(owner) if owner is not None else None

    def know(self, env: Env) -> None:
        """Declare an environment that programs may ask for."""
        if self.pool is None or env.key in self._known:
            return
        self._known[env.key] = env
        self._fit(self.pool)
        warm, creating = self.pool.counts(env.key)
        # none is being made yet, but the first program that needs one will change that
        self._changed(env.key, warm, max(1, creating))
        if env.warm:
            self.pool.warm(env, env.warm)

    def _fit(self, pool: Pool) -> None:
        """So many of the largest that is known as there is memory for."""
        if self._memory is None:
            return
        most = self._memory // max(env.footprint for env in self._known.values())
        if pool.most is None or most < pool.most:
            pool.most, pool.limit = most, min(pool.limit, most)
            self._emit(HostUp(pool.provider.host, most, parks=True))

    def warm(self, key: str, count: int) -> None:
        env = self._known.get(key)
        if env is not None and self.pool is not None:
            self.pool.warm(env, max(env.warm, count))

    def _changed(self, key: str, warm: int, creating: int) -> None:
        if (pool := self.pool) is not None:
            cold = pool.making(key)
            self._emit(HostState(pool.provider.host, key, warm, creating, pool.limit, cold))

    # --- claims ---------------------------------------------------------------------------

    async def claim(self, env: Env, program: str) -> Claimed:
        """A program's environment; what the first of its calls waits counts as its stall.

        Raises `SandboxError` when there can be none.
        """
        began, key = time.monotonic(), (program, env.key)
        first = key not in self._stalled
        self._stalled.add(key)
        try:
            return await asyncio.shield(self._claiming(env, program))
        finally:
            if first:
                self.stall += time.monotonic() - began

    @contextlib.asynccontextmanager
    async def use(self, env: Env, program: str) -> AsyncIterator[Claimed]:
        """Something runs in a program's environment; it is not put aside meanwhile.

        Raises `SandboxError` when there can be none.
        """
        self._used[program] += 1
        try:
            yield await self.claim(env, program)
        finally:
            self._used[program] -= 1
            if not self._used[program]:
                del self._used[program]
                if program in self._away:
                    self.park(program)

    def claim_early(self, key: str, program: str) -> None:
        """A program will need an environment; a failure is met again by the call that does."""
        env = self._known.get(key)
        if env is None:
            return
        if key not in self._fresh.get(program, ()):
            self._claiming(env, program).add_done_callback(_retrieve)
        elif (program, key) not in self._early:
            early = self._early[program, key] = self._claim_fresh(env, program)
            early.add_done_callback(_retrieve)

    async def replace(self, env: Env, program: str) -> None:
        """A program's environment died before anything was left in it: the next claim is of
        another one."""
        if self.pool is None:
            return
        self._claims.pop((program, env.key), None)
        await self.pool.drop(env, program)
        await self._store.retain(program, self.pool.holds(program))

    # --- one for each call ----------------------------------------------------------------

    def only_fresh(self, program: str, keys: set[str]) -> None:
        """Of environments of these keys, each call of a program has one of its own."""
        self._fresh[program] = keys

    @contextlib.asynccontextmanager
    async def fresh(self, env: Env, program: str) -> AsyncIterator[Claimed]:
        """An environment for one call of a program, destroyed after it. There is no row of it: what
        a killed owner leaves is swept, and the call was interrupted.

        Raises `SandboxError` when there can be none.
        """
        began = time.monotonic()
        claiming = self._early.pop((program, env.key), None)
        if claiming is None or (claiming.done() and (claiming.cancelled() or claiming.exception())):
            claiming = self._claim_fresh(env, program)
        try:
            try:
                claimed = await asyncio.shield(claiming)
            finally:
                self.stall += time.monotonic() - began
            yield claimed
        finally:
            self._later(self._end_fresh(claiming))

    def _claim_fresh(self, env: Env, program: str) -> "asyncio.Task[Claimed]":
        owner = f"{program}/{next(self._numbers)}"
        ready = self.pool.claim_ready(env, owner) if self.pool is not None else None
        return asyncio.create_task(self._get(env, program, owner, ready))

    async def _end_fresh(self, claiming: "asyncio.Task[Claimed]") -> None:
        if not claiming.done():
            claiming.cancel()
        (claimed,) = await asyncio.gather(claiming, return_exceptions=True)
        if isinstance(claimed, Claimed) and self.pool is not None:
            await self.pool.release(claimed.lease.program)

    async def _get(self, env: Env, program: str, owner: str, ready: Claimed | None) -> Claimed:
        if self.pool is None:
            raise SandboxUnavailable(_NO_PROVIDER)
        claimed = ready or await self.pool.claim(env, owner)
        self._note(program, "env.claimed", warm=claimed.lease.warm, sandbox=claimed.box.id)
        return claimed

    # --- one for a program ----------------------------------------------------------------

    def _claiming(self, env: Env, program: str) -> "asyncio.Task[Claimed]":
        """One claim for each program and key, whoever asks first."""
        key = (program, env.key)
        task = self._claims.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            # at once, so that no event in between can promise the same one to another program
            ready = self.pool.claim_ready(env, program) if self.pool is not None else None
            task = self._claims[key] = asyncio.create_task(self._claim(env, program, ready))
        return task

    async def _claim(self, env: Env, program: str, ready: Claimed | None) -> Claimed:
        if self.pool is None:
            raise SandboxUnavailable(_NO_PROVIDER)
        claimed = ready or await self.pool.claim(env, program)
        await self._lease(self.pool, claimed, claimed.box.id)
        if claimed.box.touched:  # it was put aside; what it began from is no longer its own
            await self._store.retain(program, self.pool.holds(program))
        self._note(
            program_of(program), "env.claimed", warm=claimed.lease.warm, sandbox=claimed.box.id
        )
        return claimed

    async def _lease(self, pool: Pool, claimed: Claimed, sandbox: str) -> None:
        lease, name = claimed.lease, pool.provider.name
        row = LeaseRow(sandbox, lease.program, lease.key, name, lease.host, time.time())
        await self._store.lease(row)

    def keep(self, program: str) -> None:
        """When a program ends, leave its environments to whoever resumes it."""
        self._kept.add(program)

    async def release(self, program: str) -> None:
        """A program is over; nothing of it stays, unless it was to be kept."""
        self._fresh.pop(program, None)
        for key in [key for key in self._early if key[0] == program]:
            await self._end_fresh(self._early.pop(key))
        for world in {key[0] for key in self._claims if program_of(key[0]) == program} - {program}:
            await self._release(world)
        await self._release(program)
        self._kept.discard(program)

    async def _release(self, program: str) -> None:
        tasks = self._cancel(program)
        self._stalled = {key for key in self._stalled if key[0] != program}
        self._away.discard(program)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.pool is None or not (tasks or self.pool.has(program)):
            return
        if program_of(program) in self._kept or self._store.lost is not None:
            await self.pool.leave(program)
        else:
            await self.pool.release(program)
            await self._store.unlease(program)

    def _cancel(self, program: str) -> list["asyncio.Task[Claimed]"]:
        tasks = [self._claims.pop(key) for key in list(self._claims) if key[0] == program]
        for task in tasks:
            task.cancel()
        return tasks

    # --- branches -------------------------------------------------------------------------

    async def fork(self, owner: str, worlds: Sequence[str]) -> None:
        """Each of these worlds begins with the files of an owner's environments as they are now.
        Raises `SandboxError` when they cannot be kept, or there may be no more environments."""
        if self.pool is None:
            return
        if self.pool.most is not None:
            raise SandboxError(
                "best_of(fork_env=True) needs as many environments as there are branches: leave "
                "out Runtime(containers=…), under which branches could wait for each other for ever"
            )
        await self.pool.fork(owner, worlds)

    async def join(self, owner: str, worlds: Sequence[str], winner: str | None) -> None:
        """The winner's environments become the owner's; those of the other worlds are destroyed."""
        pool = self.pool
        if pool is None:
            return
        if winner is not None and pool.holds(winner):
            await self._store.hand_over(winner, owner, {key for _, key in pool.keys(winner)})
            for world, key in [k for k in self._claims if k[0] == winner]:
                self._claims[owner, key] = self._claims.pop((world, key))
            await pool.hand_over(winner, owner)
        for world in worlds:
            await self._release(world)

    # --- put aside, taken over ------------------------------------------------------------

    def park(self, program: str) -> None:
        """Put a program's environments aside, once nothing runs in them. From then on its claims
        wait until that is done, and go on from what was kept; until the program is `back`, what
        code of the agent's own claims beside its conversations is put aside again after use."""
        if self.pool is None:
            return
        self._away.add(program)
        if self._used[program]:
            return
        pool = self.pool
        self._cancel(program)

        async def kept(claimed: Claimed, snapshot: Snapshot) -> None:
            await self._lease(pool, claimed, snapshot.id)
            self._note(program, "env.aside", sandbox=claimed.box.id, snapshot=snapshot.id)

        self._later(self._parked(pool, program, pool.park(program, kept)))

    def back(self, program: str) -> None:
        """A program runs again; its environments are its own to keep."""
        self._away.discard(program)

    async def _parked(self, pool: Pool, program: str, parking: "asyncio.Task[None]") -> None:
        await parking
        await self._store.retain(program, pool.holds(program))

    async def adopt(self, env: Env, program: str, sandboxes: Sequence[str]) -> None:
        """Take over the environment that a killed owner's program had. Of one that was on its way
        aside, or back, there is a snapshot as well, with the same files: nothing ran since.

        Raises `SandboxDied` when all are gone.
        """
        if self.pool is None:
            raise SandboxDied(f"environment {sandboxes[0]} needs a sandbox provider")
        claimed, last = None, SandboxDied(f"program {program} has no environment")
        for sandbox in sorted(sandboxes, key=is_snapshot):
            if claimed is not None:
                await self.pool.provider.discard(sandbox)
                continue
            try:
                claimed = await self.pool.adopt(env, program, sandbox)
            except SandboxDied as died:
                last = died
        if claimed is None:
            raise last
        if claimed.box.id not in sandboxes:
            await self._lease(self.pool, claimed, claimed.box.id)
        self._claims[program, env.key] = asyncio.create_task(_value(claimed))

    async def adopted(self, program: str) -> None:
        """All that a program had was taken over; what it no longer has is no longer its own."""
        if self.pool is not None:
            await self._store.retain(program, self.pool.holds(program))


def program_of(owner: str) -> str:
    """The program that an owner of environments is, or is a branch (`@`) or a call (`/`) of."""
    return owner.partition("@")[0].partition("/")[0]


def _retrieve(task: "asyncio.Task[Claimed]") -> None:
    if not task.cancelled():
        task.exception()


async def _value(claimed: Claimed) -> Claimed:
    return claimed


__all__ = ["Environments", "program_of"]

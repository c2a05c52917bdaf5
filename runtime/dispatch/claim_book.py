"""The book of claims on environments: opens, parks and ends each of them."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from drawloom.environments import Env
from drawloom.errors import DrawloomError, SandboxDied, SandboxUnavailable
from drawloom.runtime.dispatch.env_claim import ClaimState, EnvClaim, Owner
from drawloom.runtime.store.store import LeaseRow, Store
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.pool.parked import is_snapshot_id
from drawloom.sandbox.pool.warm_pool import WarmPool

log = logging.getLogger("drawloom.runtime")

Note = Callable[..., None]
Later = Callable[[Coroutine[Any, Any, None]], None]


class ClaimBook:
    """Keep one `EnvClaim` for each owner and environment, and move it between its states.

    A claim is a row of the store before anything runs under it, except for the environment of a
    single call: a killed owner's call was interrupted, and its environment is swept.

    Args:
        note: publishes what happened to a program: its id, a kind, and details.
        later: runs a coroutine in the background until the runtime settles.

    Attributes:
        stall: seconds that the first users of claims have waited.
    """

    def __init__(self, pool: WarmPool | None, store: Store, note: Note, later: Later) -> None:
        self._pool, self._store, self._note, self._later = pool, store, note, later
        self._claims: dict[tuple[Owner, str], EnvClaim] = {}
        self.stall = 0.0

    @property
    def pool(self) -> WarmPool:
        """Return the warm pool. Raises `SandboxUnavailable` if there is no provider."""
        if self._pool is None:
            raise SandboxUnavailable("this runtime has no sandbox provider: Runtime(sandbox=…)")
        return self._pool

    def __iter__(self) -> Iterator[EnvClaim]:
        """Iterate over all claims that are not released."""
        return iter(list(self._claims.values()))

    def get(self, owner: Owner, key: str) -> EnvClaim | None:
        """Return an owner's claim on the environment of a key."""
        return self._claims.get((owner, key))

    def add(self, claim: EnvClaim) -> None:
        """Enter a claim that was made elsewhere."""
        self._claims[claim.owner, claim.env.key] = claim

    def hand_over(self, claim: EnvClaim, owner: Owner) -> None:
        """Make a claim another owner's."""
        del self._claims[claim.key]
        claim.owner = owner
        self.add(claim)

    def of(self, owner: Owner) -> list[EnvClaim]:
        return [claim for claim in self._claims.values() if claim.owner == owner]

    def ids(self, owner: Owner) -> set[str]:
        return set[str]().union(*(claim.ids for claim in self.of(owner)))

    def begin(self, env: Env, owner: Owner) -> EnvClaim:
        """Return the claim of an owner on an environment; begin to open it, if nobody did."""
        claim = self._claims.setdefault((owner, env.key), EnvClaim(owner, env))
        if claim.opening is None:
            claim.opening = asyncio.create_task(self._open(claim))
            claim.opening.add_done_callback(_retrieve)
            claiming = claim.state is ClaimState.CLAIMING and self._pool is not None
            # at once, so that no event in between promises the same one to another program
            if claiming and (found := self.pool.take(env)) is not None:
                claim.sandbox, claim.was_ready = found.sandbox, True
        return claim

    async def wait(self, claim: EnvClaim) -> LiveSandbox:
        began, first = time.monotonic(), not claim.stall_counted
        claim.stall_counted = True
        assert claim.opening is not None
        try:
            await asyncio.shield(claim.opening)
        finally:
            if first:
                self.stall += time.monotonic() - began
        if claim.sandbox is None:
            raise SandboxDied(f"{claim.owner} has ended, and its environment with it")
        return claim.sandbox

    async def _open(self, claim: EnvClaim) -> None:
        """Bring a claim to LIVE: take, make or restore its environment, and record it."""
        try:
            if claim.parking is not None:
                await asyncio.shield(claim.parking)
            if claim.state is ClaimState.LIVE:  # it could not be parked, or was adopted
                return
            if claim.state is ClaimState.PARKED:
                await self._restore(claim)
            elif claim.sandbox is None:
                found = await self.pool.acquire(claim.env)
                claim.sandbox, claim.was_ready = found.sandbox, found.was_ready
            await self._record(claim)
            claim.move(ClaimState.LIVE)
            if claim.snapshot is not None:
                claim.base_snapshot, claim.snapshot = claim.snapshot, None
                await self._store.retain(str(claim.owner), self.ids(claim.owner))
        except BaseException:
            if claim.opening is asyncio.current_task():
                claim.opening = None
                self._undo(claim)
            raise

    async def _restore(self, claim: EnvClaim) -> None:
        assert claim.snapshot is not None
        claim.move(ClaimState.RESTORING)
        claim.sandbox = (await self.pool.restore(claim.env, claim.snapshot)).sandbox
        claim.was_ready = False

    async def _record(self, claim: EnvClaim) -> None:
        sandbox, program = claim.sandbox, claim.owner.program
        assert sandbox is not None
        if claim.owner.call is None:
            await self.write_row(claim, sandbox.id)
        self._note(program, "env.claimed", warm=claim.was_ready, sandbox=sandbox.id)

    async def write_row(self, claim: EnvClaim, id: str) -> None:
        provider, key = self.pool.provider, claim.env.key
        row = LeaseRow(id, str(claim.owner), key, provider.name, provider.host, time.time())
        await self._store.lease(row)

    def cancel(self, claim: EnvClaim) -> "asyncio.Task[None] | None":
        """Stop opening a claim; return the task that must end before its rows are removed."""
        opening, claim.opening = claim.opening, None
        if opening is None or opening.done():
            return None
        opening.cancel()
        self._undo(claim)
        return opening

    def _undo(self, claim: EnvClaim) -> None:
        """Undo what opening a claim has done so far."""
        if claim.state is ClaimState.RESTORING:
            claim.move(ClaimState.PARKED)
        elif claim.state is ClaimState.CLAIMING:
            claim.move(ClaimState.RELEASED)
            del self._claims[claim.key]
        else:
            return
        sandbox, claim.sandbox = claim.sandbox, None
        if sandbox is not None:
            self._later(self.pool.offer(sandbox))

    async def end(self, claim: EnvClaim) -> None:
        """Give back a claim's environment, if untouched, or destroy it; remove its snapshots."""
        if claim.state is ClaimState.RELEASED:
            return
        claim.move(ClaimState.RELEASED)
        del self._claims[claim.key]
        if claim.sandbox is not None:
            await self.pool.offer(claim.sandbox)
        for snapshot in filter(None, (claim.snapshot, claim.base_snapshot)):
            await self.pool.snapshots.release(snapshot)
        claim.sandbox = None

    async def leave(self, claim: EnvClaim) -> None:
        """Forget a claim; its environment and snapshots stay for another owner."""
        claim.move(ClaimState.RELEASED)
        del self._claims[claim.key]
        for snapshot in filter(None, (claim.snapshot, claim.base_snapshot)):
            self.pool.snapshots.leave(snapshot)
        if claim.sandbox is not None:
            await self.pool.detach(claim.sandbox)
        claim.sandbox = None

    async def park(self, claims: Sequence[EnvClaim]) -> None:
        for claim in claims:
            sandbox = claim.sandbox
            assert sandbox is not None
            if not sandbox.touched:
                claim.sandbox = None
                claim.move(ClaimState.CLAIMING if claim.opening else ClaimState.RELEASED)
                if claim.state is ClaimState.RELEASED:
                    del self._claims[claim.key]
                await self.pool.offer(sandbox)
            elif await self._keep_files(claim, sandbox):
                base, claim.base_snapshot, claim.sandbox = claim.base_snapshot, None, None
                claim.move(ClaimState.PARKED)
                self.pool.counters.parked += 1
                await self.pool.destroy(sandbox)
                if base is not None:
                    await self.pool.snapshots.release(base)
            else:
                claim.move(ClaimState.LIVE)

    async def _keep_files(self, claim: EnvClaim, sandbox: LiveSandbox) -> bool:
        """Take a snapshot of a claim's environment and record it; return False if that fails."""
        try:
            claim.snapshot = (await self.pool.snapshots.take(sandbox)).id
            await self.write_row(claim, claim.snapshot)
        except DrawloomError as error:
            log.warning("environment %s is not parked: %s", sandbox.id, error)
            kept, claim.snapshot = claim.snapshot, None
            if kept is not None:
                await self.pool.snapshots.release(kept)
            return False
        program = claim.owner.program
        self._note(program, "env.aside", sandbox=sandbox.id, snapshot=claim.snapshot)
        return True

    async def adopt(self, claim: EnvClaim, id: str) -> None:
        if self._pool is None:
            raise SandboxDied(f"environment {id} needs a sandbox provider")
        if claim.sandbox is not None:
            await self._pool.provider.discard(id)
        elif is_snapshot_id(id):
            claim.sandbox = (await self._pool.restore(claim.env, id)).sandbox
            claim.base_snapshot = id
            self._pool.snapshots.add_users(id)
        else:
            claim.sandbox = await self._pool.adopt(claim.env, id)


def _retrieve(task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        task.exception()


__all__ = ["ClaimBook", "Later", "Note"]

"""The warm pool: environments made before they are asked for, one program each, never shared.

Who decides how many to keep warm, and when, is the scheduler; the pool carries it out and tells
what it has. An environment that a program touched is destroyed with it; an untouched one goes
back. One whose program is held for long is put aside: its files are kept as a snapshot, its place
is free, and the program's next claim begins from there.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError
from drawloom.leases import EnvLease
from drawloom.sandbox.api.provider import Provider, Snapshot
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.pool.health import hold_quotas, keep_alive, watch_disk
from drawloom.sandbox.pool.parked import Aside, Kept, is_snapshot, keep, new_snapshot
from drawloom.sandbox.pool.records import Claimed, PoolCounters, Shelf, Warm
from drawloom.sandbox.pool.warm_pool import Stock


class Pool(Stock):
    """A stock of one provider's environments, and who has which.

    Args:
        limit, most, on_change: see `Stock`.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        limit: int = 8,
        most: int | None = None,
        on_change: Callable[[str, int, int], None] = lambda key, warm, creating: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(provider, limit, most, on_change, clock)
        self._claimed: dict[tuple[str, str], Claimed] = {}
        self._aside = Aside(provider)
        self._parking: dict[str, asyncio.Task[None]] = {}
        self._watchers = (
            asyncio.create_task(keep_alive(self._boxes)),
            asyncio.create_task(hold_quotas(provider, self._in_use)),
            asyncio.create_task(watch_disk(provider, self._disk)),
        )

    @property
    def claimed(self) -> int:
        return len(self._claimed)

    async def claim(self, env: Env, program: str) -> Claimed:
        """The program's environment: its own if it has one, else a ready one, else a new one.

        Raises `SandboxError` when none can be made.
        """
        asked = self._clock()
        if (parking := self._parking.get(program)) is not None:
            await asyncio.shield(parking)
        known = self._claimed.get((program, env.key)) or self.claim_ready(env, program)
        if known is not None:
            return known
        if (snapshot := self._aside.kept.get((program, env.key))) is not None:
            return await self._restore(env, program, snapshot, asked)
        shelf = self._shelf(env)
        if self._refuses:
            raise SandboxError(f"no environment is made: {self._short}")
        found = await self._next(shelf)
        return self._assign(shelf, found, program, asked, warm=False)

    async def _restore(self, env: Env, program: str, snapshot: Snapshot, asked: float) -> Claimed:
        shelf = Shelf(env, snapshot.id)
        found = await self._next(shelf)
        if not self._aside.restored((program, env.key), snapshot):
            await self._destroy(found.box)
            raise SandboxDied(f"program {program} has ended, and its environment with it")
        found.box.touched = True
        self.counters.restored += 1
        return self._assign(shelf, found, program, asked, warm=False)

    def claim_ready(self, env: Env, program: str) -> Claimed | None:
        """Claim an environment that is ready, at once; None when there is none, or when the
        program has one that was put aside."""
        shelf = self._shelf(env)
        if program in self._parking or (program, env.key) in self._aside.kept:
            return None
        found = self._ready(shelf)
        return self._assign(shelf, found, program, self._clock(), warm=True) if found else None

    def _assign(
        self, shelf: Shelf, found: Warm, program: str, asked: float, *, warm: bool
    ) -> Claimed:
        key, now = shelf.env.key, self._clock()
        host = self.provider.host
        lease = EnvLease(found.box.id, program, host, key, warm, now - asked, found.cold)
        claimed = self._claimed[(program, key)] = Claimed(found.box, lease)
        counters = self.counters
        counters.claims += 1
        counters.warm_claims += warm
        counters.stall_seconds += now - asked
        counters.cold_seconds += found.cold
        counters.idle_seconds += max(0.0, asked - found.ready)
        if shelf.snapshot is None:
            self._changed(shelf)
            self._fill(shelf)
        self._fill_others()
        return claimed

    async def adopt(self, env: Env, program: str, sandbox: str) -> Claimed:
        """Take over the environment that a dead owner's program had, or begin from the snapshot
        that it was put aside as. Raises `SandboxDied`."""
        if is_snapshot(sandbox):
            self._aside.kept[program, env.key] = Snapshot(sandbox, env.key, 0)
            try:
                return await self.claim(env, program)
            except SandboxError:
                self._aside.kept.pop((program, env.key), None)
                raise
        box = await self.provider.adopt(env, sandbox)
        self.there += 1
        lease = EnvLease(sandbox, program, self.provider.host, env.key, True, 0.0, 0.0)
        box.touched = True
        claimed = self._claimed[(program, env.key)] = Claimed(box, lease)
        return claimed

    async def drop(self, env: Env, program: str) -> None:
        """A program gives up one environment; it is destroyed, and the next claim is anew."""
        key = (program, env.key)
        if (claimed := self._claimed.pop(key, None)) is not None:
            await self._destroy(claimed.box)
            await self._aside.ended(key)

    async def release(self, program: str) -> None:
        """End all claims of a program. What it touched is destroyed, the rest goes back."""
        if (parking := self._parking.get(program)) is not None:
            await asyncio.gather(asyncio.shield(parking), return_exceptions=True)
        await self._aside.drop(program)
        for key in [k for k in self._claimed if k[0] == program]:
            await self._give_back(key, self._claimed.pop(key))
            await self._aside.ended(key)

    async def leave(self, program: str) -> None:
        """Forget a program's environments and snapshots without removing them: whoever resumes the
        program adopts them."""
        if (parking := self._parking.get(program)) is not None:
            await asyncio.gather(asyncio.shield(parking), return_exceptions=True)
        self._aside.leave(program)
        for key in self.keys(program):
            box = self._claimed.pop(key).box
            for each in (*box.sidecars.values(), box):
                await each.detach()
            self._gone()

    async def close(self) -> None:
        """Destroy everything that is left."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._parking.values(), *self._watchers, return_exceptions=True)
        await self._close_stock()
        boxes = self._in_use()
        self._claimed.clear()
        await asyncio.gather(*(self._destroy(box) for box in boxes))
        await self._aside.close()
        await self.provider.close()

    # --- branches --------------------------------------------------------------------------

    async def fork(self, program: str, branches: Sequence[str]) -> None:
        """Each branch's next claim begins with the files that a program's environments have now.
        What was not touched is not kept: branches claim new ones. Raises `SandboxError`."""
        if (parking := self._parking.get(program)) is not None:
            await asyncio.shield(parking)
        for key in [k for k in self._claimed if k[0] == program and self._claimed[k].box.touched]:
            lacking = [b for b in branches if (b, key[1]) not in self._claimed]
            if lacking:
                snapshot = await keep(self.provider, self._claimed[key].box, new_snapshot())
                self._aside.share(snapshot, [(branch, key[1]) for branch in lacking])

    async def hand_over(self, branch: str, program: str) -> None:
        """A branch's environments are the program's from now on; what it had instead is
        destroyed."""
        for key in self.keys(branch):
            mine, claimed = (program, key[1]), self._claimed.pop(key)
            before, began = self._claimed.get(mine), self._aside.under.pop(mine, None)
            self._claimed[mine] = Claimed(claimed.box, replace(claimed.lease, program=program))
            self._aside.move(key, mine)
            if before is not None:
                await self._destroy(before.box)
            if began is not None:
                await self._aside.forget(began)

    # --- put aside -------------------------------------------------------------------------

    def park(self, program: str, kept: Kept) -> "asyncio.Task[None]":
        """Put a program's environments aside, in which nothing runs; an untouched one goes back.
        `kept` is awaited between the snapshot and the end of what it is of. One that cannot be
        kept stays as it is. From this call on, the program's claims wait until that is done."""
        parking = self._parking[program] = asyncio.create_task(self._park(program, kept))
        parking.add_done_callback(lambda _: self._parking.pop(program, None))
        return parking

    async def _park(self, program: str, kept: Kept) -> None:
        for key in [k for k in self._claimed if k[0] == program]:
            claimed = self._claimed[key]
            if not claimed.box.touched:
                del self._claimed[key]
                await self._give_back(key, claimed)
                continue
            if not await self._aside.put(key, claimed, kept):
                continue
            del self._claimed[key]
            self.counters.parked += 1
            await self._destroy(claimed.box)
            await self._aside.ended(key)

    async def _give_back(self, key: tuple[str, str], claimed: Claimed) -> None:
        """What was not touched may be anybody's; the rest is destroyed."""
        shelf, box = self._shelves.get(key[1]), claimed.box
        if shelf is not None and not box.touched and box.alive and not self._closed:
            self._offer(shelf, Warm(box, self._clock(), claimed.lease.cold))
        else:
            await self._destroy(box)

    # --- who has what ----------------------------------------------------------------------

    def has(self, program: str) -> bool:
        """Whether a program has an environment, or will have it back."""
        return program in self._parking or bool(self.holds(program))

    def keys(self, program: str) -> list[tuple[str, str]]:
        """What a program has environments of."""
        return [key for key in self._claimed if key[0] == program]

    def holder(self, sandbox: str) -> str | None:
        """Who claimed an environment."""
        found = (c.lease.program for c in self._claimed.values() if c.box.id == sandbox)
        return next(found, None)

    def holds(self, program: str) -> set[str]:
        """The ids of a program's environments, and of the snapshots that it will go on from."""
        live = {c.box.id for key, c in self._claimed.items() if key[0] == program}
        return live | {s.id for key, s in self._aside.kept.items() if key[0] == program}

    def _boxes(self) -> list[LiveSandbox]:
        ready = [w.box for shelf in self._shelves.values() for w in shelf.warm]
        return [*self._in_use(), *ready]

    def _in_use(self) -> list[LiveSandbox]:
        return [claimed.box for claimed in self._claimed.values()]


__all__ = ["Claimed", "Pool", "PoolCounters"]

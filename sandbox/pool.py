"""The warm pool: environments made before they are asked for, one program each, never shared.

Who decides how many to keep warm, and when, is the scheduler; the pool carries it out and tells
what it has. An environment that a program touched is destroyed with it; an untouched one goes
back. One whose program is held for long is put aside: its files are kept as a snapshot, its place
is free, and the program's next claim begins from there.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from drawloom.environments import Env
from drawloom.errors import DrawloomError, SandboxDied, SandboxError
from drawloom.ids import new_id
from drawloom.leases import EnvLease
from drawloom.sandbox.aside import Aside, Kept, is_snapshot, new_snapshot
from drawloom.sandbox.base import LiveSandbox, Provider, Snapshot
from drawloom.sandbox.shelf import Claimed, PoolCounters, Shelf, Warm
from drawloom.sandbox.watch import hold_quotas, keep_alive

log = logging.getLogger("drawloom.sandbox")

_SETUP_SECONDS = 1.0  # a snapshot takes 0.15 s and more, and its disk
_MEMORY = 8  # of so many the latest are an environment's usual making time


class Pool:
    """Environments of one provider; `on_change` hears of every move of a key's ready count.

    Args:
        limit: most environments kept ready.
        most: most environments at all, from before one is made until it is destroyed; a ready one
            that nobody asked for gives way to one that somebody needs. None: no limit.
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
        self.provider = provider
        self.limit, self.most = limit, most
        self.there = self._evicting = 0
        self.counters = PoolCounters()
        self.on_change = on_change
        self._clock = clock
        self._shelves: dict[str, Shelf] = {}
        self._claimed: dict[tuple[str, str], Claimed] = {}
        self._aside = Aside(provider)
        self._parking: dict[str, asyncio.Task[None]] = {}
        self._queue: deque[Shelf] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._watchers = (
            asyncio.create_task(keep_alive(self._boxes)),
            asyncio.create_task(hold_quotas(provider, self._in_use)),
        )

    def counts(self, key: str) -> tuple[int, int]:
        """Ready and still being made, of one key."""
        shelf = self._shelves.get(key)
        return (len(shelf.warm), shelf.creating) if shelf else (0, 0)

    def making(self, key: str) -> float:
        """Seconds that making one of a key took lately; 0 when none was made yet."""
        shelf = self._shelves.get(key)
        return shelf.cold if shelf else 0.0

    @property
    def idle(self) -> float:
        """Seconds that environments have been ready and unused so far, those that still are too."""
        ready = [warm.ready for shelf in self._shelves.values() for warm in shelf.warm]
        return self.counters.idle_seconds + sum(self._clock() - since for since in ready)

    @property
    def claimed(self) -> int:
        return len(self._claimed)

    def warm(self, env: Env, count: int) -> None:
        """Keep `count` environments ready, within the limit over all keys. Returns at once.
        `on_change` hears what came of it, also when that is nothing because there is no room."""
        shelf = self._shelf(env)
        shelf.target = count
        self._withdraw(shelf)
        self._fill(shelf)
        self._changed(shelf)
        self._fill_others()

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

    # --- branches -------------------------------------------------------------------------

    async def fork(self, program: str, branches: Sequence[str]) -> None:
        """Each branch's next claim begins with the files that a program's environments have now.
        What was not touched is not kept: branches claim new ones. Raises `SandboxError`."""
        if (parking := self._parking.get(program)) is not None:
            await asyncio.shield(parking)
        for key in [k for k in self._claimed if k[0] == program and self._claimed[k].box.touched]:
            lacking = [b for b in branches if (b, key[1]) not in self._claimed]
            if lacking:
                snapshot = await self.provider.snapshot(self._claimed[key].box.id, new_snapshot())
                self._aside.share(snapshot, [(branch, key[1]) for branch in lacking])

    def hand_over(self, branch: str, program: str) -> list[Claimed]:
        """A branch's environments are the program's from now on; what the program had instead, and
        must be destroyed."""
        before = []
        for key in [k for k in self._claimed if k[0] == branch]:
            mine, claimed = (program, key[1]), self._claimed.pop(key)
            if (had := self._claimed.pop(mine, None)) is not None:
                before.append(had)
            self._claimed[mine] = Claimed(claimed.box, replace(claimed.lease, program=program))
            self._aside.move(key, mine)
        return before

    async def destroy(self, claimed: Claimed) -> None:
        """One that nobody has any more."""
        await self._destroy(claimed.box)

    # --- put aside ------------------------------------------------------------------------

    def park(self, program: str, kept: Kept) -> "asyncio.Task[None]":
        """Put a program's environments aside, in which nothing runs; an untouched one goes back.
        `kept` is awaited between the snapshot and the end of what it is of. One that cannot be
        kept stays as it is. From this call on, the program's claims wait until that is done."""
        parking = self._parking[program] = asyncio.create_task(self._park(program, kept))
        parking.add_done_callback(lambda _: self._parking.pop(program, None))
        return parking

    def has(self, program: str) -> bool:
        """Whether a program has an environment, or will have it back."""
        return program in self._parking or bool(self.holds(program))

    def holder(self, sandbox: str) -> str | None:
        """Who claimed an environment."""
        found = (c.lease.program for c in self._claimed.values() if c.box.id == sandbox)
        return next(found, None)

    def keys(self, program: str) -> list[tuple[str, str]]:
        """What a program has environments of."""
        return [key for key in self._claimed if key[0] == program]

    def holds(self, program: str) -> set[str]:
        """The ids of a program's environments, and of the snapshots that it will go on from."""
        live = {c.box.id for key, c in self._claimed.items() if key[0] == program}
        return live | {s.id for key, s in self._aside.kept.items() if key[0] == program}

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

    async def close(self) -> None:
        """Destroy everything that is left."""
        self._closed = True
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._parking.values(), return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._watchers, return_exceptions=True)
        boxes = self._boxes()
        templates = [s.template for s in self._shelves.values() if s.template is not None]
        for shelf in self._shelves.values():
            for future in shelf.waiting:
                future.cancel()
            for warm in shelf.warm:
                self._account(warm)
        self._claimed.clear()
        self._shelves.clear()
        await asyncio.gather(*(self._destroy(box) for box in boxes))
        for template in templates:
            await self._aside.forget(template)
        await self._aside.close()
        await self.provider.close()

    # --- making them ----------------------------------------------------------------------

    def _shelf(self, env: Env) -> Shelf:
        return self._shelves.setdefault(env.key, Shelf(env))

    def _ready(self, shelf: Shelf) -> Warm | None:
        while shelf.warm:
            found = shelf.warm.popleft()
            if found.box.alive:
                return found
            self._track(self._destroy(found.box))
        return None

    async def _next(self, shelf: Shelf) -> Warm:
        future: asyncio.Future[Warm] = asyncio.get_running_loop().create_future()
        shelf.waiting.append(future)
        if len(shelf.waiting) > shelf.creating:
            self._spawn(shelf)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self._offer(shelf, future.result())
            raise
        finally:
            with contextlib.suppress(ValueError):
                shelf.waiting.remove(future)
            self._withdraw(shelf)

    def _withdraw(self, shelf: Shelf) -> None:
        """Nobody may want any more what has no room yet."""
        wanted = len(shelf.waiting) + max(0, shelf.target - len(shelf.warm))
        while shelf.creating > wanted and shelf in self._queue:
            self._queue.remove(shelf)
            shelf.creating -= 1

    def _fill(self, shelf: Shelf) -> None:
        """Make what its target lacks, as far as there is room. Asked anew for each: who hears of a
        change may have asked for others meanwhile."""
        while self._lacks(shelf) and self._places() and (self._room() or self._evict_unwanted()):
            self._spawn(shelf)

    def _lacks(self, shelf: Shelf) -> bool:
        return shelf.target > len(shelf.warm) + shelf.creating - len(shelf.waiting)

    def _room(self) -> bool:
        """Whether one more may be kept ready."""
        return sum(len(s.warm) + s.creating for s in self._shelves.values()) < self.limit

    def _places(self) -> bool:
        """Whether one more may be there."""
        return self.most is None or self.there + len(self._queue) < self.most

    def _evict_unwanted(self) -> bool:
        """Give up a ready one that is beyond its key's target; whether there was one."""
        for shelf in list(self._shelves.values()):
            if len(shelf.warm) > shelf.target:
                self._discard(shelf)
                return True
        return False

    def _discard(self, shelf: Shelf, *, evicted: bool = False) -> None:
        """Destroy the ready one that has waited longest."""
        self._account(oldest := shelf.warm.popleft())
        self._track(self._destroy(oldest.box, evicted=evicted))
        self._changed(shelf)

    def _fill_others(self) -> None:
        """There may be room for what had none when it was asked for."""
        for shelf in list(self._shelves.values()):
            before = shelf.creating
            self._fill(shelf)
            if shelf.creating > before:
                self._changed(shelf)

    def _spawn(self, shelf: Shelf) -> None:
        """Make one, as soon as there is room for it."""
        shelf.creating += 1
        self._queue.append(shelf)
        self._make_room()

    def _make_room(self) -> None:
        while self._queue:
            if self.most is None or self.there < self.most:
                self.there += 1
                self._track(self._create(self._queue.popleft()))
                continue
            idle = [s for s in self._shelves.values() if s.warm and not s.waiting]
            if not idle or self._evicting:
                return
            shelf = min(idle, key=lambda s: s.warm[0].ready)
            self._evicting += 1
            self._discard(shelf, evicted=True)

    def _track(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _create(self, shelf: Shelf) -> None:
        began = self._clock()
        try:
            box = await self._make(shelf)
        except DrawloomError as error:
            shelf.creating -= 1
            self.counters.failed += 1
            self._gone()
            self._refuse(shelf, error)
            return
        except BaseException:
            shelf.creating -= 1
            self._gone()
            raise
        shelf.creating -= 1
        self.counters.created += 1
        now = self._clock()
        took = now - began
        shelf.cold = took if not shelf.cold else shelf.cold + (took - shelf.cold) / _MEMORY
        self._offer(shelf, Warm(box, now, took))

    async def _make(self, shelf: Shelf) -> LiveSandbox:
        if shelf.snapshot is not None:
            return await self.provider.fork(shelf.env, shelf.snapshot, new_id("box"))
        if shelf.template is not None:
            try:
                return await self.provider.fork(shelf.env, shelf.template, new_id("box"))
            except SandboxDied:  # somebody removed it
                shelf.template = None
        box = await self.provider.create(shelf.env, new_id("box"))
        if box.setup_seconds >= _SETUP_SECONDS and not shelf.keeping:
            await self._keep(shelf, box)
        return box

    async def _keep(self, shelf: Shelf, box: LiveSandbox) -> None:
        """Set up once: the next ones begin from what this one is, before anybody has it. Processes
        are not kept, so one whose setup left some running is no template."""
        shelf.keeping = True
        name = new_snapshot()
        try:
            if not await box.ping():
                shelf.template = (await self.provider.snapshot(box.id, name)).id
        except SandboxError as error:
            log.warning("environments of %s are each set up anew: %s", shelf.env.image, error)
            await self._aside.forget(name)

    def _offer(self, shelf: Shelf, warm: Warm) -> None:
        while shelf.waiting:
            future = shelf.waiting.popleft()
            if not future.done():
                future.set_result(warm)
                self._withdraw(shelf)
                return
        if shelf.snapshot is not None:  # whose program gave up; its snapshot is still there
            self._track(self._destroy(warm.box))
            return
        shelf.warm.append(warm)
        self._withdraw(shelf)
        self._make_room()
        self._changed(shelf)
        self._fill_others()

    def _refuse(self, shelf: Shelf, error: DrawloomError) -> None:
        """A failure goes to whoever waits; without one the target is dropped, not retried."""
        while shelf.waiting:
            future = shelf.waiting.popleft()
            if not future.done():
                future.set_exception(error)
                return
        if shelf.snapshot is not None:
            return
        shelf.target = 0
        log.warning("no warm environment of %s: %s", shelf.env.image, error)
        self._changed(shelf)
        self._fill_others()

    async def _destroy(self, box: LiveSandbox, *, evicted: bool = False) -> None:
        try:
            await box.destroy()
            self.counters.destroyed += 1
        except SandboxError as error:
            log.warning("environment %s could not be removed: %s", box.id, error)
        finally:
            self._evicting -= evicted
            self._gone()

    def _gone(self) -> None:
        """One is no longer there; who waits for its room gets it, else targets are met again."""
        self.there -= 1
        if self._closed or self.most is None:
            return
        self._make_room()
        self._fill_others()

    def _account(self, unused: Warm) -> None:
        self.counters.idle_seconds += self._clock() - unused.ready

    def _changed(self, shelf: Shelf) -> None:
        self.on_change(shelf.env.key, len(shelf.warm), shelf.creating)

    def _boxes(self) -> list[LiveSandbox]:
        ready = [w.box for shelf in self._shelves.values() for w in shelf.warm]
        return [*self._in_use(), *ready]

    def _in_use(self) -> list[LiveSandbox]:
        return [claimed.box for claimed in self._claimed.values()]


__all__ = ["Claimed", "Pool", "PoolCounters"]

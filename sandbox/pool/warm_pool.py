"""The warm pool: environments that are made before anybody needs them.

The scheduler decides how many of each key to keep warm; the pool makes them within the limits of
the host and reports what it has. No two users share an environment: one that was touched is
destroyed after use, an untouched one becomes warm again.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from drawloom.environments import Env
from drawloom.errors import DrawloomError, SandboxError
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.pool.creation import create_sandbox
from drawloom.sandbox.pool.health import hold_quotas, keep_alive, watch_disk
from drawloom.sandbox.pool.parked import ParkedSnapshots, remove_snapshot
from drawloom.sandbox.pool.records import EnvPool, PoolCounters, Waiter, WarmSandbox

log = logging.getLogger("drawloom.sandbox")

_MOVING = 8  # environments over which the time to make one is averaged
OnChange = Callable[[str, int, int], None]


class WarmPool:
    """Make, hand out and destroy the environments of one provider.

    Args:
        max_warm: most environments that are kept ready.
        max_total: most environments at all, from before one is made until it is destroyed; a ready
            one is evicted for a claim of another key. None: no limit.
        on_change: called with a key, its ready environments and those being made, when they change.
        clock: seconds, monotonic.

    Attributes:
        total: environments that exist or are being made.
        snapshots: snapshots of parked environments, removed at the latest with the pool.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        max_warm: int = 8,
        max_total: int | None = None,
        on_change: OnChange = lambda key, warm, creating: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.provider = provider
        self.max_warm, self.max_total = max_warm, max_total
        self.on_change = on_change
        self.total = self._evicting = 0
        self.counters = PoolCounters()
        self.snapshots = ParkedSnapshots(provider)
        self._clock = clock
        self._pools: dict[str, EnvPool] = {}
        self._waiters: deque[Waiter] = deque()
        self._in_use: dict[str, WarmSandbox] = {}
        self._making: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False
        self._disk_short, self._disk_full = "", False
        self._watchers = (
            asyncio.create_task(keep_alive(self._sandboxes)),
            asyncio.create_task(hold_quotas(provider, self._used)),
            asyncio.create_task(watch_disk(provider, self._on_disk)),
        )

    @property
    def in_use(self) -> int:
        """Return the number of environments that are handed out."""
        return len(self._in_use)

    @property
    def idle_seconds(self) -> float:
        """Return the seconds that environments were ready and unused, until now."""
        ready = [warm.ready_at for pool in self._pools.values() for warm in pool.warm]
        return self.counters.idle_seconds + sum(self._clock() - since for since in ready)

    def counts(self, key: str) -> tuple[int, int]:
        """Return how many environments of a key are ready, and how many are being made."""
        pool = self._pools.get(key)
        if pool is None:
            return 0, 0
        waiting = sum(waiter.pool is pool for waiter in self._waiters)
        return len(pool.warm), max(pool.creating, waiting)

    def create_seconds(self, key: str) -> float:
        """Return how long making an environment of a key takes; 0 before the first was made."""
        pool = self._pools.get(key)
        return pool.create_seconds if pool else 0.0

    def target(self, env: Env, count: int) -> None:
        """Keep `count` environments ready, within `max_warm` over all keys.

        Returns at once. `on_change` is called in any case, also when there is no room.
        """
        pool = self._pool(env)
        pool.target = count
        self._reconcile(pool)

    # --- handing out ----------------------------------------------------------------------

    def take(self, env: Env) -> WarmSandbox | None:
        """Hand out a ready environment; None if there is none."""
        pool = self._pool(env)
        while pool.warm:
            found = pool.warm.popleft()
            if found.sandbox.alive:
                return self._hand_out(pool, replace(found, was_ready=True))
            self._end_later(found.sandbox)
        return None

    async def acquire(self, env: Env) -> WarmSandbox:
        """Hand out an environment, made for this call if none is ready.

        Raises:
            SandboxError: none can be made.
        """
        if (found := self.take(env)) is not None:
            return found
        if self._disk_full:
            raise SandboxError(f"no environment is made: {self._disk_short}")
        return await self._next(self._pool(env))

    async def restore(self, env: Env, snapshot: str) -> WarmSandbox:
        """Hand out a new environment with the files of a snapshot.

        Raises:
            SandboxDied: the snapshot is gone.
            SandboxError: the environment cannot be made.
        """
        found = await self._next(EnvPool(env, snapshot))
        found.sandbox.touched = True
        self.counters.restored += 1
        return found

    async def adopt(self, env: Env, id: str) -> LiveSandbox:
        """Take over an environment of a dead owner. Raises `SandboxDied`."""
        sandbox = await self.provider.adopt(env, id)
        sandbox.touched = True
        self.total += 1
        self._in_use[id] = WarmSandbox(sandbox, self._clock(), 0.0)
        return sandbox

    async def offer(self, sandbox: LiveSandbox) -> None:
        """End the use of an environment: an untouched one becomes ready, others are destroyed."""
        used = self._in_use.pop(sandbox.id)
        pool = self._pools.get(sandbox.env.key)
        if pool is None or sandbox.touched or not sandbox.alive or self._closed:
            await self._end(sandbox)
        else:
            self._ready(pool, WarmSandbox(sandbox, self._clock(), used.create_seconds))

    async def destroy(self, sandbox: LiveSandbox) -> None:
        """End the use of an environment and remove it."""
        del self._in_use[sandbox.id]
        await self._end(sandbox)

    async def detach(self, sandbox: LiveSandbox) -> None:
        """End the use of an environment without removing it: another owner will adopt it."""
        del self._in_use[sandbox.id]
        for each in (*sandbox.sidecars.values(), sandbox):
            await each.detach()
        self.total -= 1
        self._reconcile()

    async def close(self) -> None:
        """Destroy all environments and snapshots, and close the provider."""
        self._closed = True
        tasks = [*self._watchers, *self._making]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiter in self._waiters:
            waiter.future.cancel()
        pools, self._pools = list(self._pools.values()), {}
        ready = [warm for pool in pools for warm in pool.warm]
        for warm in ready:
            self._count_idle(warm)
        left = [warm.sandbox for warm in (*self._in_use.values(), *ready)]
        self._in_use.clear()
        await asyncio.gather(*(self._end(sandbox) for sandbox in left), *self._ending)
        for template in filter(None, (pool.template for pool in pools)):
            await remove_snapshot(self.provider, template)
        await self.snapshots.close()
        await self.provider.close()

    def _pool(self, env: Env) -> EnvPool:
        return self._pools.setdefault(env.key, EnvPool(env))

    def _hand_out(self, pool: EnvPool, warm: WarmSandbox) -> WarmSandbox:
        self._in_use[warm.sandbox.id] = warm
        self.counters.claims += 1
        self.counters.warm_claims += warm.was_ready
        self.counters.cold_seconds += warm.create_seconds
        if warm.was_ready:
            self._count_idle(warm)
        self._reconcile(pool)
        return warm

    async def _next(self, pool: EnvPool) -> WarmSandbox:
        """Wait for the next environment of a pool that nobody else waits for."""
        waiter = Waiter(pool, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._reconcile()
        try:
            warm = await waiter.future
        except asyncio.CancelledError:
            done = waiter.future.done() and not waiter.future.cancelled()
            if done and not waiter.future.exception():
                self._ready(pool, waiter.future.result())
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
        return self._hand_out(pool, warm)

    def _waiter(self, pool: EnvPool) -> "asyncio.Future[WarmSandbox] | None":
        """Remove and return the oldest claim that waits for a pool's environment."""
        for waiter in [waiter for waiter in self._waiters if waiter.pool is pool]:
            self._waiters.remove(waiter)
            if not waiter.future.done():
                return waiter.future
        return None

    def _ready(self, pool: EnvPool, warm: WarmSandbox) -> None:
        """Give an environment to the oldest claim that waits for it, or keep it ready."""
        if (future := self._waiter(pool)) is not None:
            future.set_result(warm)
        elif pool.snapshot is not None or self._closed:  # its claim was given up meanwhile
            self._end_later(warm.sandbox)
        else:
            pool.warm.append(warm)
            self._reconcile(pool)

    # --- how many there should be ---------------------------------------------------------

    def _reconcile(self, *changed: EnvPool) -> None:
        """Make what is wanted and not there, as far as there is room.

        Args:
            changed: pools of which `on_change` is told in any case.
        """
        if self._closed:
            return
        told = dict.fromkeys(changed)
        while (pool := self._lacking(told)) is not None:
            pool.creating += 1
            self.total += 1
            self._start(self._create(pool), self._making)
        for pool in told:  # now, and not above: what hears of it may set other targets
            if pool.snapshot is None:
                self._changed(pool)

    def _lacking(self, told: dict[EnvPool, None]) -> EnvPool | None:
        """Return a pool of which one more should be made now; evict a ready one for it if needed.

        Claims come first, in their order: none overtakes one that waits for room.
        """
        waiting: Counter[EnvPool] = Counter()
        for waiter in self._waiters:
            waiting[waiter.pool] += 1
            if waiting[waiter.pool] > waiter.pool.creating:
                if self._has_place():
                    return waiter.pool
                self._evict_oldest(told)
                return None
        for pool in self._pools.values():
            lacks = pool.target > len(pool.warm) + pool.creating - waiting[pool]
            if lacks and self._has_place() and (self._may_warm() or self._evict_surplus(told)):
                told[pool] = None
                return pool
        return None

    def _has_place(self) -> bool:
        return self.max_total is None or self.total < self.max_total

    def _may_warm(self) -> bool:
        coming = sum(len(pool.warm) + pool.creating for pool in self._pools.values())
        return not self._disk_short and coming < self.max_warm

    def _evict_oldest(self, told: dict[EnvPool, None]) -> None:
        """Evict the environment that is ready for longest; its place is free when it is gone."""
        idle = [pool for pool in self._pools.values() if pool.warm]
        if idle and not self._evicting:  # one at a time: a claim may be given up meanwhile
            self._evicting += 1
            oldest = min(idle, key=lambda pool: pool.warm[0].ready_at)
            self._evict(oldest, evicted=True)
            told[oldest] = None

    def _evict_surplus(self, told: dict[EnvPool, None]) -> bool:
        """Evict a ready environment beyond its key's target; return False if there is none."""
        for pool in self._pools.values():
            if len(pool.warm) > pool.target:
                self._evict(pool)
                told[pool] = None
                return True
        return False

    def _evict(self, pool: EnvPool, *, evicted: bool = False) -> None:
        oldest = pool.warm.popleft()
        self._count_idle(oldest)
        self._end_later(oldest.sandbox, evicted=evicted)

    def _on_disk(self, short: str, full: bool) -> None:
        """Keep nothing ready on a disk that is short of space, and make nothing on a full one."""
        self._disk_short, self._disk_full = short, full
        if short:
            log.warning("%s", short)
        emptied = [pool for pool in self._pools.values() if short and pool.warm]
        for pool in emptied:
            while pool.warm:
                self._evict(pool)
        self._reconcile(*emptied)

    def _changed(self, pool: EnvPool) -> None:
        self.on_change(pool.env.key, *self.counts(pool.env.key))

    # --- making and ending them -----------------------------------------------------------

    async def _create(self, pool: EnvPool) -> None:
        began = self._clock()
        try:
            sandbox = await create_sandbox(self.provider, pool)
        except DrawloomError as error:
            self._failed(pool, error)
            return
        except BaseException:
            pool.creating -= 1
            self.total -= 1
            raise
        pool.creating -= 1
        self.counters.created += 1
        now = self._clock()
        took = now - began
        average = pool.create_seconds
        pool.create_seconds = average + (took - average) / _MOVING if average else took
        self._ready(pool, WarmSandbox(sandbox, now, took))

    def _failed(self, pool: EnvPool, error: DrawloomError) -> None:
        """Report a failure to the oldest claim; if there is none, drop the target, don't retry."""
        pool.creating -= 1
        self.total -= 1
        self.counters.failed += 1
        if (future := self._waiter(pool)) is not None:
            future.set_exception(error)
            self._reconcile()
        elif pool.snapshot is None:
            pool.target = 0
            log.warning("no warm environment of %s: %s", pool.env.image, error)
            self._reconcile(pool)
        else:
            self._reconcile()

    async def _end(self, sandbox: LiveSandbox, *, evicted: bool = False) -> None:
        try:
            await sandbox.destroy()
            self.counters.destroyed += 1
        except SandboxError as error:
            log.warning("environment %s could not be removed: %s", sandbox.id, error)
        finally:
            self._evicting -= evicted
            self.total -= 1
            self._reconcile()

    def _end_later(self, sandbox: LiveSandbox, *, evicted: bool = False) -> None:
        self._start(self._end(sandbox, evicted=evicted), self._ending)

    @staticmethod
    def _start(work: Coroutine[Any, Any, None], tasks: set["asyncio.Task[None]"]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _count_idle(self, unused: WarmSandbox) -> None:
        self.counters.idle_seconds += self._clock() - unused.ready_at

    def _sandboxes(self) -> list[LiveSandbox]:
        return self._used() + [w.sandbox for pool in self._pools.values() for w in pool.warm]

    def _used(self) -> list[LiveSandbox]:
        return [warm.sandbox for warm in self._in_use.values()]


__all__ = ["OnChange", "PoolCounters", "WarmPool"]

"""What each tenant was given, and what it may have.

Fair share is after start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) over engine
seconds: a tenant's `attained` service grows by what its calls take over its weight. One that comes
back starts level with the neediest of those that wait; one whose programs all ran is owed no more
than a few of them when it begins to wait. How far one may run ahead of another that waits is the
policy's affair.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from drawloom.runtime.scheduler.events import TenantShare
from drawloom.runtime.scheduler.program_state import ProgramState

_LEARN = 0.05
_CREDIT = 8.0
_REMEMBERED = 10_000


@dataclass(slots=True, eq=False)
class Tenant:
    """`attained`: seconds of service over its weight. `active` programs of it run, and were
    promised `claimed` KV tokens; `live` ones are not over."""

    share: TenantShare
    attained: float = 0.0
    active: int = 0
    live: int = 0
    reserved_tokens: int = 0

    @property
    def full(self) -> bool:
        """Whether no further program of it may run for now."""
        most, tokens = self.share.programs, self.share.kv_tokens
        if most is not None and self.active >= most:
            return True
        return tokens is not None and self.active > 0 and self.reserved_tokens >= tokens

    @property
    def limited(self) -> bool:
        return self.share.programs is not None or self.share.kv_tokens is not None


class Tenants:
    """All tenants that matter: who has programs, or left with more service than the neediest had.

    Attributes:
        most: the most service that one has had, over its weight.
        usual: the mean seconds of service of a program of any tenant; 0 while none has ended.
    """

    def __init__(self) -> None:
        self._shares: dict[str, TenantShare] = {}
        self._known: dict[str, Tenant] = {}
        self._gone: list[tuple[float, str]] = []
        self._watchers: list[Callable[[str], None]] = []
        self._ended = 0
        self.most = self.usual = 0.0

    def of(self, program: ProgramState) -> Tenant:
        """The tenant that a program is of."""
        return self.named(program.submission.tenant)

    def named(self, name: str) -> Tenant:
        found = self._known.get(name)
        if found is None:
            share = self._shares.get(name) or TenantShare(name)
            found = self._known[name] = Tenant(share)
        return found

    def watch(self, freed: Callable[[str], None]) -> None:
        """Whom to tell when a tenant may have more than just before."""
        self._watchers.append(freed)

    def unwatch(self, freed: Callable[[str], None]) -> None:
        """Tell one no more."""
        self._watchers.remove(freed)

    def _freed(self, name: str) -> None:
        for freed in self._watchers:
            freed(name)

    def share(self, share: TenantShare) -> None:
        """From now on a tenant has this weight and these limits."""
        self._shares[share.tenant] = share
        if share.tenant in self._known:
            self._known[share.tenant].share = share
        self._freed(share.tenant)

    def on_first_waiting(self, program: ProgramState, floor: float | None) -> None:
        """The first program of a tenant waits. Before it none did; of those that wait already the
        neediest has had so much service, None if nobody waits."""
        level = self.most if floor is None else floor
        tenant = self.of(program)
        owed = _CREDIT * self.usual if tenant.live > 1 else 0.0
        tenant.attained = max(tenant.attained, level - owed)
        self._forget(level)

    def submit(self, program: ProgramState) -> None:
        self.of(program).live += 1

    def activate(self, program: ProgramState) -> None:
        tenant = self.of(program)
        tenant.active += 1
        tenant.reserved_tokens += program.reserved_tokens

    def deactivate(self, program: ProgramState) -> None:
        tenant = self.of(program)
        tenant.active -= 1
        tenant.reserved_tokens -= program.reserved_tokens
        if tenant.limited:
            self._freed(program.submission.tenant)

    def update_reservation(self, program: ProgramState, change: int) -> None:
        """An active program was promised so many KV tokens more."""
        tenant = self.of(program)
        tenant.reserved_tokens += change
        if tenant.limited:
            self._freed(program.submission.tenant)

    def charge(self, program: ProgramState, seconds: float) -> None:
        """A program's call has had so many seconds of an engine."""
        tenant = self.of(program)
        tenant.attained += seconds / tenant.share.weight
        self.most = max(self.most, tenant.attained)

    def end(self, program: ProgramState) -> None:
        self._ended += 1
        self.usual += max(1 / self._ended, _LEARN) * (program.service - self.usual)
        tenant = self.of(program)
        tenant.live -= 1
        if not tenant.live:
            heapq.heappush(self._gone, (tenant.attained, program.submission.tenant))

    def _forget(self, level: float) -> None:
        """Who left and would come back to this level is like one that was never here. When too
        many are ahead of it, the least ahead are forgotten as well."""
        while self._gone and (self._gone[0][0] <= level or len(self._gone) > _REMEMBERED):
            attained, name = heapq.heappop(self._gone)
            tenant = self._known.get(name)
            if tenant is not None and not tenant.live and tenant.attained == attained:
                del self._known[name]


__all__ = ["Tenant", "Tenants"]

"""Fair shares and limits of tenants.

Fair share is after start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) over engine
seconds: a tenant's attained service grows by the service of its calls over its weight. A tenant
that returns starts level with the least served one that waits; a tenant whose programs all ran is
owed no more than a few programs' service when it begins to wait. How far one may run ahead of
another is the policy's decision.
"""

from collections.abc import Callable
from dataclasses import dataclass

from drawloom.graph.running_mean import RunningMean
from drawloom.runtime.scheduler.events import TenantShare
from drawloom.runtime.scheduler.lazy_heap import LazyHeap
from drawloom.runtime.scheduler.program_state import ProgramState

_CREDIT = 8.0  # programs' service that a tenant is owed at most when it begins to wait
_REMEMBERED = 10_000  # tenants without programs


@dataclass(slots=True, eq=False)
class Tenant:
    """Keep what a tenant has, and may have.

    Attributes:
        share: its weight and limits.
        attained: seconds of service over its weight.
        active: its active programs.
        live: its programs that have not ended.
        reserved_tokens: KV tokens that its active programs are promised.
    """

    share: TenantShare
    attained: float = 0.0
    active: int = 0
    live: int = 0
    reserved_tokens: int = 0

    @property
    def full(self) -> bool:
        """Return True if no further program of it may run."""
        programs, tokens = self.share.programs, self.share.kv_tokens
        if programs is not None and self.active >= programs:
            return True
        return tokens is not None and self.active > 0 and self.reserved_tokens >= tokens

    @property
    def limited(self) -> bool:
        """Return True if it has limits."""
        return self.share.programs is not None or self.share.kv_tokens is not None


class Tenants:
    """Keep the tenants with programs, and those that left ahead of a newcomer.

    Attributes:
        most_attained: the most service that any tenant has had, over its weight.
    """

    def __init__(self) -> None:
        self._shares: dict[str, TenantShare] = {}
        self._known: dict[str, Tenant] = {}
        self._left = LazyHeap[tuple[float, str]](self._is_gone)
        self._watchers: list[Callable[[str], None]] = []
        self._program_service = RunningMean(warm_up=True)
        self.most_attained = 0.0

    @property
    def mean_service(self) -> float:
        """Return the mean seconds of service of a program of any tenant; 0 before one ended."""
        return self._program_service.value or 0.0

    def of(self, program: ProgramState) -> Tenant:
        """Return the tenant of a program."""
        return self.named(program.submission.tenant)

    def named(self, name: str) -> Tenant:
        """Return a tenant by its name; a new one if it is not known."""
        found = self._known.get(name)
        if found is None:
            share = self._shares.get(name) or TenantShare(name)
            found = self._known[name] = Tenant(share)
        return found

    def watch(self, on_freed: Callable[[str], None]) -> None:
        """Call a function with the name of a tenant whenever it may have more than before."""
        self._watchers.append(on_freed)

    def unwatch(self, on_freed: Callable[[str], None]) -> None:
        """Undo `watch`."""
        self._watchers.remove(on_freed)

    def _notify(self, name: str) -> None:
        for on_freed in self._watchers:
            on_freed(name)

    def set_share(self, share: TenantShare) -> None:
        """Change the weight and the limits of a tenant."""
        self._shares[share.tenant] = share
        if share.tenant in self._known:
            self._known[share.tenant].share = share
        self._notify(share.tenant)

    def on_first_waiting(self, program: ProgramState, floor: float | None) -> None:
        """Adjust a tenant's attained service when it begins to wait.

        Args:
            program: the first of the tenant that waits.
            floor: the least attained service of the tenants that wait already; None if none does.
        """
        level = self.most_attained if floor is None else floor
        tenant = self.of(program)
        owed = _CREDIT * self.mean_service if tenant.live > 1 else 0.0
        tenant.attained = max(tenant.attained, level - owed)
        self._forget(level)

    def submit(self, program: ProgramState) -> None:
        """Count a new program."""
        self.of(program).live += 1

    def activate(self, program: ProgramState) -> None:
        """Count a program that becomes active."""
        tenant = self.of(program)
        tenant.active += 1
        tenant.reserved_tokens += program.reserved_tokens

    def deactivate(self, program: ProgramState) -> None:
        """Count a program that is no longer active."""
        tenant = self.of(program)
        tenant.active -= 1
        tenant.reserved_tokens -= program.reserved_tokens
        if tenant.limited:
            self._notify(program.submission.tenant)

    def update_reservation(self, program: ProgramState, change: int) -> None:
        """Add `change` KV tokens to the reservation of an active program."""
        tenant = self.of(program)
        tenant.reserved_tokens += change
        if tenant.limited:
            self._notify(program.submission.tenant)

    def charge(self, program: ProgramState, seconds: float) -> None:
        """Charge a tenant for the service of a program's call."""
        tenant = self.of(program)
        tenant.attained += seconds / tenant.share.weight
        self.most_attained = max(self.most_attained, tenant.attained)

    def end(self, program: ProgramState) -> None:
        """Count a program that has ended."""
        self._program_service.add(program.service)
        tenant = self.of(program)
        tenant.live -= 1
        if not tenant.live:
            self._left.push((tenant.attained, program.submission.tenant))

    def _forget(self, level: float) -> None:
        """Forget tenants that left and are not ahead of `level`: a newcomer starts there as well.

        Beyond `_REMEMBERED`, the ones that are least ahead are forgotten too.
        """
        while (gone := self._left.top) is not None:
            if gone[0] > level and len(self._left) <= _REMEMBERED:
                return
            self._left.pop()
            del self._known[gone[1]]

    def _is_gone(self, entry: tuple[float, str]) -> bool:
        tenant = self._known.get(entry[1])
        return tenant is not None and not tenant.live and tenant.attained == entry[0]


__all__ = ["Tenant", "Tenants"]

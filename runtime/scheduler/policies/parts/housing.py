"""Where the tools of programs run."""

import math

from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Housing:
    """Environments are made when a tool asks for them."""

    def fits(self, state: SchedulerState, program: ProgramState, now: float) -> bool:
        """Return whether a program's environments can be there when its first tool asks."""
        return True

    def instead(self, state: SchedulerState) -> ProgramState | None:
        """Return a held program whose environments are there, while those of the first are not."""
        return None

    def warm(self, state: SchedulerState, env: str, now: float) -> int:
        """Return how many environments of a key to keep ready, beside those in use."""
        return 0


class Prewarmed(Housing):
    """As many environments are kept ready as programs may claim, but not more than, at the rate of
    late, will be while others are made."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def fits(self, state: SchedulerState, program: ProgramState, now: float) -> bool:
        """One that wants more than a host has gets a whole one."""
        envs, host = program.submission.envs, state.env_capacity.least_loaded_host
        if host is None:
            wanted = (
                env for env in envs if program.lacks_env(env) or env in program.submission.fresh
            )
            return all(self._equipped(state, program, env, now) for env in wanted)
        if program.env_host is not None or not envs:
            return True
        return state.env_capacity.free_slots(host) >= min(len(envs), state.env_capacity.slots[host])

    def instead(self, state: SchedulerState) -> ProgramState | None:
        """It gives back what the first waits for only when it ends, so it must go on."""
        there = (p for p in state.env_capacity.paused_residents.values() if p.pending_steps)
        free = (p for p in there if not state.tenants.of(p).full)
        return min(free, key=state.wait_queue.rank, default=None)

    def _equipped(self, state: SchedulerState, program: ProgramState, env: str, now: float) -> bool:
        """Tell whether an environment is ready for one more program, or is being made: its first
        LLM call overlaps the rest of that, and holding it would hold all behind it too. Of those
        that each call has a fresh one of, one must be ready beside what the active programs will
        claim while others are made, as far as a share of the pool goes: start-up bandwidth is
        shared too. Where none can be made, do not wait."""
        capacity, host = state.env_capacity, state.env_capacity.hosts.get(env)
        if host is None:
            return False
        if not host.warm and not host.creating:
            return True
        spoken_for = capacity.active_demand.get(env, 0)
        if env not in program.submission.fresh:
            return host.warm + host.creating > spoken_for
        rate = capacity.rates.get(env)
        if rate is not None:
            coming = math.ceil(rate.per_second(now) * host.cold)
            reserve = int(self.parameters.reserve * host.limit)
            spoken_for += min(coming, reserve, capacity.demand.get(env, 0) // 2)
        return host.warm > spoken_for

    def warm(self, state: SchedulerState, env: str, now: float) -> int:
        capacity, host = state.env_capacity, state.env_capacity.hosts.get(env)
        wanted, rate = capacity.demand.get(env, 0), capacity.rates.get(env)
        if host is None:
            return wanted
        if rate is not None and rate.total >= self.parameters.claims and host.cold:
            ahead = math.ceil(self.parameters.ahead * rate.per_second(now) * host.cold) + 1
            wanted = min(wanted, capacity.active_demand.get(env, 0) + ahead)
        return min(host.limit, wanted)


__all__ = ["Housing", "Prewarmed"]

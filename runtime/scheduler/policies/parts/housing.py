"""Environments of programs: admission by them, and how many are kept warm."""

import math

from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class Housing:
    """Make environments when a tool asks for them (null object)."""

    def fits(self, state: SchedulerState, program: ProgramState, now: float) -> bool:
        """Return True if a program's environments can be there when its first tool asks."""
        return True

    def instead(self, state: SchedulerState) -> ProgramState | None:
        """Return a program to admit instead of the first, whose environments do not fit."""
        return None

    def warm_target(self, state: SchedulerState, env: str, now: float) -> int:
        """Return how many environments of a key to keep warm, beside those in use."""
        return 0


class Prewarmed(Housing):
    """Keep environments warm for the programs that may claim one.

    But no more than are claimed, at the recent rate, while others are made.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def fits(self, state: SchedulerState, program: ProgramState, now: float) -> bool:
        """Return True if the environments are warm or being made, or a limited host has slots.

        A program that wants more slots than a host has gets a whole host.
        """
        envs, host = program.submission.envs, state.env_capacity.least_loaded_host
        if host is None:
            fresh = program.submission.fresh
            wanted = (env for env in envs if program.lacks_env(env) or env in fresh)
            return all(self._env_ready(state, program, env, now) for env in wanted)
        if program.env_host is not None or not envs:
            return True
        slots = min(len(envs), state.env_capacity.slots[host])
        return state.env_capacity.free_slots(host) >= slots

    def instead(self, state: SchedulerState) -> ProgramState | None:
        """Return the first paused program with slots: it frees them only when it ends."""
        residents = (p for p in state.env_capacity.paused_residents.values() if p.pending_steps)
        free = (p for p in residents if not state.tenants.of(p).full)
        return min(free, key=state.wait_queue.rank, default=None)

    def _env_ready(
        self, state: SchedulerState, program: ProgramState, env: str, now: float
    ) -> bool:
        """Return True if an environment is left for one more program.

        One that is being made counts: the first LLM call overlaps the rest of its start, and to
        wait would hold up all programs behind this one. Of per-call environments a warm one is
        needed, beyond the claims that active programs are expected to make while others start, up
        to a share of the pool: the host's start-up bandwidth is shared. Where none can be made,
        programs do not wait.
        """
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

    def warm_target(self, state: SchedulerState, env: str, now: float) -> int:
        capacity, host = state.env_capacity, state.env_capacity.hosts.get(env)
        target, rate = capacity.demand.get(env, 0), capacity.rates.get(env)
        if host is None:
            return target
        if rate is not None and rate.total >= self.parameters.claims and host.cold:
            claims = math.ceil(self.parameters.ahead * rate.per_second(now) * host.cold) + 1
            target = min(target, capacity.active_demand.get(env, 0) + claims)
        return min(host.limit, target)


__all__ = ["Housing", "Prewarmed"]

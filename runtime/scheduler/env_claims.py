"""Claims of environments for programs, and targets of the warm pools."""

from itertools import islice

from drawloom.runtime.scheduler.actions import Action, ClaimEnv, WarmEnv
from drawloom.runtime.scheduler.policy import Policy
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

_REVISITED = 4  # targets that are computed again without an event about their environments


class EnvClaims:
    """Claim environments, and ask the pools for warm ones."""

    def __init__(self, state: SchedulerState, policy: Policy) -> None:
        self._state, self._policy = state, policy

    def claim(self, program: ProgramState, env: str, now: float) -> ClaimEnv:
        """Claim an environment for a program."""
        self._state.env_capacity.claim(program, env, now)
        return ClaimEnv(self._host_of(env), program.id, env)

    def claim_all(self, program: ProgramState, now: float) -> list[Action]:
        """Claim the environments that a program has slots for, so that they are made meanwhile."""
        if program.env_host is None or not self._policy.claims_early:
            return []
        envs = [env for env in program.submission.envs if env not in program.envs]
        for env in envs:
            self._state.env_capacity.claim(program, env, now)
        return [ClaimEnv(program.env_host, program.id, env) for env in envs]

    def warm_targets(self, now: float) -> list[Action]:
        """Ask the pools for other numbers of warm environments, where these have changed.

        Claim rates decay without any event, so that some other targets are computed again as well
        each time, in turn.
        """
        capacity, actions = self._state.env_capacity, list[Action]()
        if not capacity.hosts:
            return actions
        stale, capacity.stale_targets = capacity.stale_targets, set()
        for env in sorted(stale.union(islice(capacity.targets, _REVISITED))):
            before = capacity.targets.pop(env, 0)  # a target that is set again goes last
            target = self._policy.warm_target(self._state, env, now)
            if target:
                capacity.targets[env] = target
            if target != before:
                actions.append(WarmEnv(self._host_of(env), env, target))
        return actions

    def _host_of(self, env: str) -> str:
        host = self._state.env_capacity.hosts.get(env)
        return host.host if host is not None else ""


__all__ = ["EnvClaims"]

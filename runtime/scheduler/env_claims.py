"""What the core does when tools are named, begin, and hosts say what they have."""

from itertools import islice
from typing import TYPE_CHECKING

from drawloom.runtime.scheduler.actions import Action, ClaimEnv, StartTool, WarmEnv
from drawloom.runtime.scheduler.events import HostState, HostUp, ToolNamed, ToolReady, ToolStarted
from drawloom.runtime.scheduler.program_state import ProgramState

if TYPE_CHECKING:
    from drawloom.runtime.scheduler.scheduler import Scheduler


_AGAIN = 4  # environments whose targets are worked out again though nothing was heard of them


class EnvClaims:
    """Keeps the books of environments."""

    def __init__(self, core: "Scheduler") -> None:
        self._core, self._state, self._policy = core, core.state, core.policy

    def named(self, event: ToolNamed, now: float) -> list[Action]:
        """Claim the environment of a tool whose name was decoded."""
        program = self._state.programs.get(event.program)
        if program is None or event.env is None or not self._policy.claim_early:
            return []
        if event.env in program.envs and event.env not in program.submission.fresh:
            return []
        self._state.env_capacity.claim(program, event.env, now)
        claim = ClaimEnv(self._host_of(event.env), program.id, event.env)
        return [claim, *self._core.rebalance(now)]

    def started(self, event: ToolStarted, now: float) -> list[Action]:
        """Note that a program has its environment."""
        program = self._state.programs.get(event.program)
        if program is None or event.env is None or event.env in program.envs:
            return []  # or it was claimed when its tool was named
        self._state.env_capacity.claim(program, event.env, now)
        return self._core.rebalance(now)

    def ready(self, event: ToolReady, now: float) -> list[Action]:
        """Give a tool call to its host."""
        program = self._state.programs.get(event.program)
        if program is None:
            return []
        priority = self._policy.tool(self._state, program, event, now)
        return [StartTool(event.host, program.id, event.call, priority)]

    def up(self, event: HostUp, now: float) -> list[Action]:
        """Count the room of a host."""
        self._state.env_capacity.up(event)
        return self._core.rebalance(now)

    def state(self, event: HostState, now: float) -> list[Action]:
        """Note what a host has ready."""
        self._state.env_capacity.state(event)
        return self._core.rebalance(now)

    def claim_all(self, program: ProgramState, now: float) -> list[Action]:
        """Claim the environments of a program for which there is room on a limited host now: they
        are made meanwhile."""
        if program.env_host is None or not self._policy.claim_early:
            return []
        envs = [env for env in program.submission.envs if env not in program.envs]
        for env in envs:
            self._state.env_capacity.claim(program, env, now)
        return [ClaimEnv(program.env_host, program.id, env) for env in envs]

    def warm_targets(self, now: float) -> list[Action]:
        """Say how many environments of each key are to be ready, where that has changed. Rates
        fade: so of the others some are looked at again each time, in turn."""
        capacity, actions = self._state.env_capacity, list[Action]()
        if not capacity.hosts:
            return actions
        changed, capacity.stale_targets = capacity.stale_targets, set()
        for env in sorted(changed.union(islice(capacity.targets, _AGAIN))):
            before = capacity.targets.pop(env, 0)  # what is set again goes last
            wanted = self._policy.warm(self._state, env, now)
            if wanted:
                capacity.targets[env] = wanted
            if wanted != before:
                actions.append(WarmEnv(self._host_of(env), env, wanted))
        return actions

    def _host_of(self, env: str) -> str:
        host = self._state.env_capacity.hosts.get(env)
        return host.host if host is not None else ""


__all__ = ["EnvClaims"]

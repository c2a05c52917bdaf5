"""Handlers of events about tools and environments."""

from drawloom.runtime.scheduler.actions import Action, StartTool
from drawloom.runtime.scheduler.events import (
    HostState,
    HostUp,
    ToolNamed,
    ToolReady,
    ToolStarted,
)
from drawloom.runtime.scheduler.handlers import handles
from drawloom.runtime.scheduler.program_control import ProgramControl


class EnvEvents:
    """Keep the books of environments."""

    def __init__(self, control: ProgramControl) -> None:
        self._control, self._state, self._policy = control, control.state, control.policy

    @handles(ToolNamed)
    def named(self, event: ToolNamed, now: float) -> list[Action]:
        """Claim the environment of a tool whose name was decoded."""
        program = self._state.programs.get(event.program)
        if program is None or event.env is None or not self._policy.claims_early:
            return []
        if event.env in program.envs and event.env not in program.submission.fresh:
            return []
        claim = self._control.env_claims.claim(program, event.env, now)
        return [claim, *self._control.rebalance(now)]

    @handles(ToolStarted)
    def started(self, event: ToolStarted, now: float) -> list[Action]:
        """Note that a program has its environment, unless it was claimed before."""
        program = self._state.programs.get(event.program)
        if program is None or event.env is None or event.env in program.envs:
            return []
        self._state.env_capacity.claim(program, event.env, now)
        return self._control.rebalance(now)

    @handles(ToolReady)
    def ready(self, event: ToolReady, now: float) -> list[Action]:
        """Give a tool call to its host."""
        program = self._state.programs.get(event.program)
        if program is None:
            return []
        priority = self._policy.tool_priority(self._state, program, event, now)
        return [StartTool(event.host, program.id, event.call, priority)]

    @handles(HostUp)
    def host_up(self, event: HostUp, now: float) -> list[Action]:
        """Count the capacity of a host."""
        self._state.env_capacity.host_up(event)
        return self._control.rebalance(now)

    @handles(HostState)
    def host_changed(self, event: HostState, now: float) -> list[Action]:
        """Note the warm environments of a host."""
        self._state.env_capacity.host_changed(event)
        return self._control.rebalance(now)


__all__ = ["EnvEvents"]

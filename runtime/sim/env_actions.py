"""Environment and tool actions of the scheduler, carried out at a simulated sandbox host."""

from collections.abc import Callable, Mapping

from drawloom.runtime.scheduler.actions import (
    Admit,
    ClaimEnv,
    ParkEnvs,
    ReleaseEnvs,
    StartTool,
    WarmEnv,
)
from drawloom.runtime.scheduler.events import Event, ToolReady
from drawloom.runtime.scheduler.handlers import handles
from drawloom.runtime.sim.sim_host import SimHost
from drawloom.runtime.sim.sim_program import SimProgram, conversation_of


class EnvActions:
    """Claim environments for programs, and run tools in them.

    Args:
        host: the sandbox host; None if tools need no environment.
        programs: programs that have not ended, by name.
        tell: sends an event to the scheduler.
        returned: called with program, call and remaining seconds of its gap when a tool has ended.
    """

    def __init__(
        self,
        host: SimHost | None,
        programs: Mapping[str, SimProgram],
        tell: Callable[[Event], None],
        returned: Callable[[SimProgram, int, float], None],
    ) -> None:
        self._host, self._programs = host, programs
        self._tell, self._returned = tell, returned
        self._tools: dict[str, tuple[SimProgram, int]] = {}

    def reach(self, stage: str, program: str) -> None:
        """Claim a program's environment, if its host's pool does so at this stage."""
        if self._host is not None and self._host.spec.claims == stage:
            self._claim(program)

    def use(self, program: SimProgram, at: int) -> None:
        """Run a call's tool in the program's environment, or let its gap pass without one."""
        job, call = program.job, program.job.calls[at]
        if self._host is None or not job.env or not call.busy:
            self._returned(program, at, call.gap)
            return
        conversation, name = conversation_of(job.id, call.chat), f"{job.id}#{at}"
        self._tools[name] = (program, at)
        event = ToolReady(job.id, conversation, name, call.tool, self._host.name)
        self._host.claim(job)
        self._host.when_ready(job, lambda: self._tell(event))

    @handles(Admit)
    def admit(self, action: Admit) -> None:
        """Claim the environment of an admitted program, if its host's pool does so now."""
        self.reach("admission", action.program)

    @handles(ClaimEnv)
    def claim(self, action: ClaimEnv) -> None:
        """Claim a program's environment."""
        self._claim(action.program)

    def _claim(self, program: str) -> None:
        job = self._programs[program].job
        if self._host is not None and job.env:
            self._host.claim(job)

    @handles(WarmEnv)
    def warm(self, action: WarmEnv) -> None:
        """Do nothing: no environment is warm before it is claimed."""

    @handles(ParkEnvs)
    def park(self, action: ParkEnvs) -> None:
        """Park a program's environment."""
        assert self._host is not None
        self._host.park(action.program)

    @handles(ReleaseEnvs)
    def release(self, action: ReleaseEnvs) -> None:
        """Release a program's environment."""
        if self._host is not None:
            self._host.release(action.program)

    @handles(StartTool)
    def start_tool(self, action: StartTool) -> None:
        """Run a tool, once a slot is free."""
        assert self._host is not None
        program, at = self._tools.pop(action.call)
        call = program.job.calls[at]

        def then() -> None:
            self._returned(program, at, call.gap - call.busy)

        self._host.run(call.busy, action.priority, then)


__all__ = ["EnvActions"]

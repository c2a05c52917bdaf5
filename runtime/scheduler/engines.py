"""What the core does when engines come, drain, fail, and say how busy they are."""

from dataclasses import replace
from typing import TYPE_CHECKING

from drawloom.runtime.scheduler.actions import Action
from drawloom.runtime.scheduler.events import EngineDown, EngineDrain, EngineLoad, EngineUp
from drawloom.runtime.scheduler.program_state import ProgramState

if TYPE_CHECKING:
    from drawloom.runtime.scheduler.scheduler import Scheduler


class Engines:
    """Keeps the books of engines.

    Attributes:
        longest: tokens of the longest conversation that each can have, if it has said so.
        gone: those that went down and are not up again.
    """

    def __init__(self, core: "Scheduler") -> None:
        self._core, self._state = core, core.state
        self.longest: dict[str, int] = {}
        self.gone: set[str] = set()

    def up(self, event: EngineUp, now: float) -> list[Action]:
        """Count an engine that is there, or has another size now, or does not drain any more."""
        drained = event.engine in self._state.draining
        self._state.up(event.engine, event.kv_tokens, event.host_tokens)
        self.longest[event.engine] = event.longest
        self.gone.discard(event.engine)
        actions = list[Action]()
        for program in list(self._state.active.values()) if drained else ():
            actions += self._core.resume(program, now)
        return actions + self._core.rebalance(now)

    def load(self, event: EngineLoad, now: float) -> list[Action]:
        """Note how busy an engine is."""
        if event.engine not in self._state.engines:
            return []
        self._state.loads[event.engine] = event
        return self._core.rebalance(now)

    def drain(self, event: EngineDrain, now: float) -> list[Action]:
        """Give no more calls to an engine. Its programs are held, each when no call of it runs."""
        if event.engine not in self._state.engines:
            return []
        self._state.draining.add(event.engine)
        for program in list(self._state.active.values()):
            if event.engine in _engines_of(program):
                self._hold(program, now)
        return self._core.rebalance(now)

    def boundary(self, program: ProgramState, now: float) -> list[Action]:
        """Hold a program at an engine that drains, once no call of it runs."""
        if program.active:
            self._hold(program, now)
        return self._core.rebalance(now)

    def _hold(self, program: ProgramState, now: float) -> None:
        if not program.running:
            self._core.hold(program, now)

    def down(self, event: EngineDown, now: float) -> list[Action]:
        """Forget an engine. Its programs are held without their KV, the calls that ran there with
        them: they are started again where there is an engine for them. Whoever waits for one may
        say meanwhile that it failed."""
        engine, state = event.engine, self._state
        if engine not in state.engines:
            return []
        state.down(engine)
        self.longest.pop(engine, None)
        self.gone.add(engine)
        for program in list(state.programs.values()):
            if engine not in _engines_of(program) and not state.closed:
                continue
            for name in [n for n, step in program.running_steps.items() if step.engine == engine]:
                if (step := state.stop(program, name)) is not None:
                    program.pending_steps[name] = step
            if program.active:
                self._core.hold(program, now)
            elif program.pending_steps:
                self._core.wait(program)
            state.lose(program)
        return self._core.rebalance(now)

    def placed(self, engine: str) -> str:
        """Return where a call for an engine goes: to another one if it is gone."""
        if engine not in self.gone:
            return engine
        state = self._state
        return next((name for name in state.engines if name not in state.draining), engine)

    def settle(self, program: ProgramState) -> None:
        """A program is about to run: what it has to do at engines that are gone, it does at one
        that is there."""
        if not self.gone:
            return
        for line in program.conversations.values():
            line.engine = self.placed(line.engine)
        for name, step in program.pending_steps.items():
            program.pending_steps[name] = replace(step, engine=self.placed(step.engine))


def _engines_of(program: ProgramState) -> set[str]:
    return {line.engine for line in program.conversations.values()}


__all__ = ["Engines"]

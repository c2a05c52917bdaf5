"""Handlers of events about engines."""

from drawloom.runtime.scheduler.actions import Action
from drawloom.runtime.scheduler.events import EngineDown, EngineDrain, EngineUp
from drawloom.runtime.scheduler.handlers import handles
from drawloom.runtime.scheduler.program_control import ProgramControl
from drawloom.runtime.scheduler.program_state import ProgramState


class EngineEvents:
    """Keep the books of engines."""

    def __init__(self, control: ProgramControl) -> None:
        self._control, self._state = control, control.state

    @handles(EngineUp)
    def up(self, event: EngineUp, now: float) -> list[Action]:
        """Count an engine that is up, has another size, or no longer drains."""
        drained = event.engine in self._state.draining
        self._state.engine_up(event.engine, event.kv_tokens, event.host_tokens)
        self._control.engines.up(event.engine, event.longest)
        actions = list[Action]()
        for program in list(self._state.active.values()) if drained else ():
            actions += self._control.start_pending(program, now)
        return actions + self._control.rebalance(now)

    @handles(EngineDrain)
    def drain(self, event: EngineDrain, now: float) -> list[Action]:
        """Give no more calls to an engine; its programs are held once no call of them runs."""
        if event.engine not in self._state.engines:
            return []
        self._state.draining.add(event.engine)
        for program in list(self._state.active.values()):
            if event.engine in _engines_of(program) and not program.running_steps:
                self._control.hold(program, now)
        return self._control.rebalance(now)

    @handles(EngineDown)
    def down(self, event: EngineDown, now: float) -> list[Action]:
        """Forget an engine; its programs are held without their KV.

        Their calls that ran there are started again at an engine that is up, unless a `StepFailed`
        gives them up meanwhile.
        """
        engine, state, control = event.engine, self._state, self._control
        if engine not in state.engines:
            return []
        state.engine_down(engine)
        control.engines.down(engine)
        for program in list(state.programs.values()):
            if engine not in _engines_of(program) and not state.closed:
                continue
            lost = [n for n, step in program.running_steps.items() if step.engine == engine]
            for name in lost:
                if (step := state.stop_step(program, name)) is not None:
                    program.pending_steps[name] = step
            if program.active:
                control.hold(program, now)
            elif program.pending_steps:
                control.requeue(program)
            state.lose_kv(program)
        return control.rebalance(now)


def _engines_of(program: ProgramState) -> set[str]:
    return {conversation.engine for conversation in program.conversations.values()}


__all__ = ["EngineEvents"]

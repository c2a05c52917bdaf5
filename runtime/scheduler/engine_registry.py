"""Engines that are up or gone, and where calls for them go."""

from dataclasses import replace

from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState


class EngineRegistry:
    """Keep what engines said of themselves.

    Attributes:
        longest: tokens of the longest conversation that each engine can have; 0 if it did not say.
        gone: engines that went down and are not up again.
    """

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self.longest: dict[str, int] = {}
        self.gone: set[str] = set()

    def up(self, engine: str, longest: int) -> None:
        """Count an engine that is up."""
        self.longest[engine] = longest
        self.gone.discard(engine)

    def down(self, engine: str) -> None:
        """Count an engine that is gone."""
        self.longest.pop(engine, None)
        self.gone.add(engine)

    def replacement(self, engine: str) -> str:
        """Return the engine that takes calls for `engine`: itself, or another one if it is gone."""
        if engine not in self.gone:
            return engine
        state = self._state
        return next((name for name in state.engines if name not in state.draining), engine)

    def reassign(self, program: ProgramState) -> None:
        """Reassign the conversations and waiting calls of a program whose engine is gone."""
        if not self.gone:
            return
        for conversation in program.conversations.values():
            conversation.engine = self.replacement(conversation.engine)
        for name, step in program.pending_steps.items():
            program.pending_steps[name] = replace(step, engine=self.replacement(step.engine))


__all__ = ["EngineRegistry"]

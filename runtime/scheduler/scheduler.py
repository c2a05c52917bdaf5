"""The scheduler of one engine: one event at a time in, actions out.

Pure: the time is an argument, the same events give the same actions, and late, doubled or unknown
events are harmless. It runs live in front of the engine, and under a virtual clock in the simulator
and in tests.
"""

from dataclasses import replace

from drawloom.runtime.scheduler.actions import Action
from drawloom.runtime.scheduler.conversation_events import ConversationEvents
from drawloom.runtime.scheduler.engine_events import EngineEvents
from drawloom.runtime.scheduler.env_events import EnvEvents
from drawloom.runtime.scheduler.events import Event
from drawloom.runtime.scheduler.handlers import handler_table
from drawloom.runtime.scheduler.policy import Policy
from drawloom.runtime.scheduler.program_control import ProgramControl
from drawloom.runtime.scheduler.program_events import ProgramEvents
from drawloom.runtime.scheduler.program_state import ProgramState
from drawloom.runtime.scheduler.state import SchedulerState
from drawloom.runtime.scheduler.step_events import StepEvents


class Scheduler:
    """Keep the books of one engine, and ask the policy.

    Each event has one handler: the method that is marked ``@handles(EventType)`` in
    `program_events.py`, `step_events.py`, `conversation_events.py`, `env_events.py` or
    `engine_events.py`.

    Args:
        policy: decides.
        shared_with: the state of another engine (see `SchedulerState`).

    Attributes:
        policy: decides.
        state: the books.
    """

    def __init__(self, policy: Policy, shared_with: SchedulerState | None = None) -> None:
        self.policy, self.state = policy, SchedulerState(shared_with)
        self._control = control = ProgramControl(policy, self.state)
        self.state.wait_queue.rank = lambda program: policy.rank(self.state, program)
        self.state.wait_queue.due_at = control.due_at
        self._programs = ProgramEvents(control)
        self._handlers = handler_table(
            self._programs,
            StepEvents(control),
            ConversationEvents(control),
            EnvEvents(control),
            EngineEvents(control),
        )

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what to do about an event.

        Args:
            event: has just happened.
            now: seconds; never goes back.
        """
        self.state.advance_clock(now)
        actions: list[Action] = self._handlers[type(event)](event, now)
        return actions

    def rebalance(self, now: float) -> list[Action]:
        """Pause and admit programs, after something has changed in a state that is shared."""
        return self._control.rebalance(now)

    # --- programs that change their engine ------------------------------------------------

    def withdraw(self, program: ProgramState) -> None:
        """Give up a program at a tool boundary; it goes on at another engine."""
        self.state.withdraw(program)

    def accept(self, program: ProgramState, engine: str, now: float) -> list[Action]:
        """Take over a program from another engine, its KV on its way if it has any."""
        steps = program.pending_steps.items()
        program.pending_steps = {name: replace(step, engine=engine) for name, step in steps}
        for conversation in program.conversations.values():
            conversation.engine = engine
        program.due_at = self._control.due_at(program)
        self.state.accept(program, self.policy.agent_rank(self.state, program))
        return [*self.rebalance(now), *self._programs.start_clock(now)]


__all__ = ["Scheduler"]

"""Handlers of events about conversations."""

from drawloom.graph.transition_model import END
from drawloom.runtime.scheduler.actions import Action
from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.events import ConversationEnded, Forked
from drawloom.runtime.scheduler.handlers import handles
from drawloom.runtime.scheduler.program_control import ProgramControl
from drawloom.runtime.scheduler.step_events import forget_step


class ConversationEvents:
    """Keep the books of conversations."""

    def __init__(self, control: ProgramControl) -> None:
        self._control, self._state = control, control.state

    @handles(Forked)
    def forked(self, event: Forked, now: float) -> list[Action]:
        """Add a conversation that was forked from another."""
        program = self._state.programs.get(event.program)
        parent = program.conversations.get(event.parent) if program else None
        if program is None or parent is None or event.child in program.conversations:
            return []
        transitions = self._state.graph(program.submission.agent).transitions
        with program.moving(parent):
            first_state, parent.forked = transitions.forked(parent.graph_state), True
        program.reveal_size()
        tokens = parent.context or parent.shared_tokens
        shared = tokens if event.shared is None else min(event.shared, tokens)
        child = ConversationState(event.child, event.engine, first_state, shared_tokens=shared)
        self._state.fork(program, parent, child)
        return []

    @handles(ConversationEnded)
    def ended(self, event: ConversationEnded, now: float) -> list[Action]:
        """Forget a conversation that nobody will continue, and its calls."""
        control = self._control
        program = self._state.programs.get(event.program)
        conversation = program.remove_conversation(event.conversation) if program else None
        if program is None or conversation is None:
            return []
        self._state.end_conversation(program, conversation)
        transitions = self._state.graph(program.submission.agent).transitions
        transitions.observe(conversation.graph_state, END)
        for name in conversation.open_steps:  # they were given up: no event will end them
            forget_step(control, program, name)
        actions = control.retention.release(program, conversation)
        if conversation.engine in self._state.draining:
            return actions + control.at_boundary_of_draining(program, now)
        return [*actions, *control.watch_absence(program, now), *control.rebalance(now)]


__all__ = ["ConversationEvents"]

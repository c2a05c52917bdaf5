"""What the core does when calls of the model, and conversations, begin and end."""

from dataclasses import replace
from typing import TYPE_CHECKING

from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.graph.tool_durations import tools_key
from drawloom.graph.transition_model import END
from drawloom.runtime.scheduler.actions import Action, ParkEnvs, RefuseStep, ReleaseKV, StartStep
from drawloom.runtime.scheduler.events import (
    ConversationEnded,
    Decoded,
    Forked,
    Preempted,
    StepFailed,
    StepFinished,
    StepReady,
)
from drawloom.runtime.scheduler.program_state import ConversationState, ProgramState

if TYPE_CHECKING:
    from drawloom.runtime.scheduler.scheduler import Scheduler

_NOTICE = 1e-3  # of an engine's memory; by less nothing is decided otherwise


class Calls:
    """Keeps the books of conversations and their calls."""

    def __init__(self, core: "Scheduler") -> None:
        self._core, self._state, self._policy = core, core.state, core.policy

    # --- one call -------------------------------------------------------------------------

    def ready(self, event: StepReady, now: float) -> list[Action]:
        """Start a call that has its input, or hold it with its program."""
        state, core = self._state, self._core
        program = state.programs.get(event.program)
        if (
            program is None
            or event.step in program.running_steps
            or event.step in program.pending_steps
        ):
            return []
        if event.engine in core.engines.gone:
            event = replace(event, engine=core.engines.placed(event.engine))
        room = core.engines.longest.get(event.engine, 0)
        if room and event.prompt >= room:  # it would be held for ever
            return [RefuseStep(event.engine, program.id, event.step, event.prompt, room)]
        self._speaks(program, event, now)
        if program.active and event.engine not in state.draining:
            return [self.start(program, event, now)]
        if program.begun and not program.active and not program.pending_steps:
            program.waiting_since = now  # from now on it waits for a place
            program.due_at = core.due(program)
        program.pending_steps[event.step] = event
        if program.active:
            return core.engines.boundary(program, now)
        core.wait(program)
        host = state.env_capacity.park(program) if self._policy.parks else None
        aside: list[Action] = [ParkEnvs(host, program.id)] if host is not None else []
        return [*aside, *core.rebalance(now)]

    def _speaks(self, program: ProgramState, event: StepReady, now: float) -> None:
        """A conversation goes on with a call; it is learned how it came to it."""
        self._state.starting_programs -= program.active and not program.has_called
        program.has_called = True
        conversation = program.conversations.get(event.conversation)
        if conversation is None:
            conversation = ConversationState(event.conversation, event.engine)
            program.join(conversation)
        graph, waiting, forecast = self._graph(program), conversation.waiting, conversation.forecast
        graph.transitions.observe(conversation.state, event.state)
        program.take(conversation)
        conversation.waiting = conversation.forecast = None
        conversation.state, conversation.forked = graph.transitions.canonical(event.state), False
        conversation.calls += (event.step,)
        program.put(conversation)
        if waiting is not None:
            graph.durations.observe(waiting, now - conversation.since)
            program.last_tool_seconds = now - conversation.since
            if forecast is not None:
                graph.calibrate(forecast, now - conversation.since, conversation.state)
        shared = (
            conversation.shared
            if conversation.context or conversation.shared
            else graph.shared_tokens
        )
        self._state.resize(program, conversation, event.prompt, min(shared, event.prompt))
        conversation.prompt = event.prompt

    def start(self, program: ProgramState, step: StepReady, now: float) -> StartStep:
        """Give a call of an active program to its engine."""
        self._state.start(program, step)
        context = program.conversations[step.conversation].context
        program.growth_threshold = min(
            program.growth_threshold, context + _NOTICE * self._state.capacity
        )
        priority = self._policy.priority(self._state, program, step, now)
        return StartStep(step.engine, step.program, step.step, priority)

    def _stop(self, program: ProgramState, name: str) -> StepReady | None:
        """A call is over, wherever it was; return it if it was anywhere."""
        step = program.pending_steps.pop(name, None) or self._state.stop(program, name)
        line = program.conversations.get(step.conversation) if step is not None else None
        if line is not None:
            line.calls = tuple(call for call in line.calls if call != name)
        return step

    def finished(self, event: StepFinished, now: float) -> list[Action]:
        """Learn from a call that ended, and decide what becomes of its conversation's KV."""
        state, core = self._state, self._core
        program = state.programs.get(event.program)
        conversation = program.conversations.get(event.conversation) if program else None
        if program is None or conversation is None:
            return []
        self._served(program, conversation, event, now)
        graph = self._graph(program)
        shared = conversation.shared
        if program.steps == 1 and len(program.conversations) == 1:  # what it found was not its own
            graph.shared_tokens = shared = max(0, conversation.prompt - event.computed)
        state.resize(program, conversation, event.context, min(shared, event.context))
        program.take(conversation)
        conversation.since, conversation.waiting = now, tools_key(event.calls)
        program.put(conversation)
        conversation.forecast = (
            graph.forecast(conversation.state, conversation.waiting) if event.calls else None
        )
        program.note(lambda: graph.service_left(program.conversation_states))
        state.update_reservation(program, self._policy.reserve(state, program))
        if event.final:
            return []
        what = self._policy.retain(state, program, conversation, now)
        actions = core.keep(program, conversation, what, now)
        if conversation.engine in state.draining:
            return actions + core.engines.boundary(program, now)
        if program.at_tool_boundary and program.active:
            if program.probation_calls and (
                program.steps >= program.probation_calls or program.size_known_at is not None
            ):
                actions += core.pause(program, now)
            else:
                actions += core.expect_back(program, now, conversation.waiting)
        return actions + core.rebalance(now)

    def _served(
        self,
        program: ProgramState,
        conversation: ConversationState,
        event: StepFinished,
        now: float,
    ) -> None:
        state = self._state
        self._stop(program, event.step)
        program.service += event.service
        state.tenants.charge(program, event.service)
        program.steps += 1
        program.last_call_end = now
        state.queue_seconds.append(event.queued)
        spent = (
            event.computed, event.seconds,
            max(0, event.context - conversation.prompt), event.service - event.seconds,
        )  # fmt: skip
        state.learned.learn(*spent)
        state.engine_load.observe(program.last_tool_seconds, event.queued + event.service)

    def failed(self, event: StepFailed, now: float) -> list[Action]:
        """Forget a call that nobody waits for any more."""
        program = self._state.programs.get(event.program)
        if program is None:
            return []
        step = self._stop(program, event.step)
        program.last_call_end = now
        if step is not None and step.engine in self._state.draining:
            return self._core.engines.boundary(program, now)
        return [*self._core.expect_back(program, now), *self._core.rebalance(now)]

    # --- calls that run -------------------------------------------------------------------

    def decoded(self, event: Decoded, now: float) -> list[Action]:
        """Let the books follow calls while they run, once they have said so much that it matters;
        what they said in all is known when they end."""
        state = self._state
        programs, gave_way, changed = state.programs, bool(state.preempted_steps), False
        for name, step, context in event.calls:
            program = programs.get(name)
            if program is None or (context <= program.growth_threshold and not gave_way):
                continue
            if (call := program.running_steps.get(step)) is None:
                continue
            if step in state.preempted_steps:
                state.preempted_steps.remove(step)
                changed = True
            changed |= self._grown(program, program.conversations[call.conversation], context)
        return self._core.rebalance(now) if changed else []

    def _grown(self, program: ProgramState, conversation: ConversationState, context: int) -> bool:
        """Count what a running call has said, if it matters."""
        state = self._state
        notice = _NOTICE * state.capacity
        if context - conversation.context <= notice:
            return False
        state.resize(program, conversation, context, conversation.shared)
        state.update_reservation(program, self._policy.reserve(state, program))
        if program.running == 1:  # of several the least is not known
            program.growth_threshold = context + notice
        return True

    def preempted(self, event: Preempted, now: float) -> list[Action]:
        """Note a call that gave way to others."""
        program = self._state.programs.get(event.program)
        if program is None or event.step not in program.running_steps:
            return []
        self._state.preempted_steps.add(event.step)
        return self._core.rebalance(now)

    # --- conversations --------------------------------------------------------------------

    def forked(self, event: Forked, now: float) -> list[Action]:
        """Begin a conversation that goes on from another."""
        program = self._state.programs.get(event.program)
        parent = program.conversations.get(event.parent) if program else None
        if program is None or parent is None or event.child in program.conversations:
            return []
        program.take(parent)
        state, parent.forked = self._graph(program).transitions.forked(parent.state), True
        program.put(parent)
        program.reveal_size()
        there = parent.context or parent.shared
        shared = there if event.shared is None else min(event.shared, there)
        child = ConversationState(event.child, event.engine, state, shared=shared)
        self._state.fork(program, parent, child)
        return []

    def ended(self, event: ConversationEnded, now: float) -> list[Action]:
        """Forget a conversation that nobody will continue, and its calls."""
        program = self._state.programs.get(event.program)
        conversation = program.conversations.pop(event.conversation, None) if program else None
        if program is None or conversation is None:
            return []
        program.take(conversation)
        self._state.drop(program, conversation)
        self._graph(program).transitions.observe(conversation.state, END)
        for name in conversation.calls:  # they were given up: nobody will say that they ended
            self._stop(program, name)
        actions = self.release(program, conversation)
        if conversation.engine in self._state.draining:
            return actions + self._core.engines.boundary(program, now)
        return [*actions, *self._core.expect_back(program, now), *self._core.rebalance(now)]

    def release(
        self, program: ProgramState, conversation: ConversationState, keep: bool = False
    ) -> list[Action]:
        """Give back the KV of a conversation that is over, if it was not lost."""
        if conversation.engine in self._core.engines.gone:
            return []
        evict = self._policy.evict_at_end and not keep
        return [ReleaseKV(conversation.engine, program.id, conversation.id, evict)]

    def _graph(self, program: ProgramState) -> ExecutionGraph:
        return self._state.graph(program.submission.agent)


__all__ = ["Calls"]

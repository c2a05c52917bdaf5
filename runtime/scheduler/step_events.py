"""Handlers of events about LLM calls."""

from dataclasses import replace

from drawloom.graph.tool_durations import tools_key
from drawloom.runtime.scheduler.actions import Action, ParkEnvs, RefuseStep
from drawloom.runtime.scheduler.conversation_state import ConversationState
from drawloom.runtime.scheduler.events import (
    Decoded,
    Preempted,
    StepFailed,
    StepFinished,
    StepReady,
)
from drawloom.runtime.scheduler.handlers import handles
from drawloom.runtime.scheduler.program_control import GROWTH_NOTICE, ProgramControl
from drawloom.runtime.scheduler.program_state import ProgramState


def forget_step(control: ProgramControl, program: ProgramState, name: str) -> StepReady | None:
    """Forget a call, waiting or running, and return it; None if there is none of this name."""
    step = program.pending_steps.pop(name, None) or control.state.stop_step(program, name)
    conversation = program.conversations.get(step.conversation) if step is not None else None
    if conversation is not None:
        conversation.open_steps = tuple(one for one in conversation.open_steps if one != name)
    return step


class StepEvents:
    """Keep the books of LLM calls."""

    def __init__(self, control: ProgramControl) -> None:
        self._control, self._state, self._policy = control, control.state, control.policy

    @handles(StepReady)
    def ready(self, event: StepReady, now: float) -> list[Action]:
        """Start a call that has its input, or let it wait with its program."""
        state, control = self._state, self._control
        program = state.programs.get(event.program)
        if program is None:
            return []
        if event.step in program.running_steps or event.step in program.pending_steps:
            return []
        if event.engine in control.engines.gone:
            event = replace(event, engine=control.engines.replacement(event.engine))
        longest = control.engines.longest.get(event.engine, 0)
        if longest and event.prompt >= longest:  # it would wait for ever
            return [RefuseStep(event.engine, program.id, event.step, event.prompt, longest)]
        self._continue_conversation(program, event, now)
        if program.active and event.engine not in state.draining:
            return [control.start(program, event, now)]
        if not program.active and program.was_admitted and not program.pending_steps:
            program.waiting_since = now  # from now on it waits for admission
            program.due_at = control.due_at(program)
        program.pending_steps[event.step] = event
        if program.active:
            return control.at_boundary_of_draining(program, now)
        control.requeue(program)
        host = state.env_capacity.park(program) if self._policy.parks_envs else None
        parked: list[Action] = [ParkEnvs(host, program.id)] if host is not None else []
        return [*parked, *control.rebalance(now)]

    def _continue_conversation(self, program: ProgramState, event: StepReady, now: float) -> None:
        """Begin or continue a conversation with a call, and learn from how it came to it."""
        self._state.note_call(program)
        conversation = program.conversations.get(event.conversation)
        if conversation is None:
            conversation = ConversationState(event.conversation, event.engine)
            program.add_conversation(conversation)
        graph = self._state.graph(program.submission.agent)
        tools, forecast = conversation.pending_tools, conversation.forecast
        graph.transitions.observe(conversation.graph_state, event.state)
        with program.moving(conversation):
            conversation.pending_tools = conversation.forecast = None
            conversation.graph_state = graph.transitions.canonical(event.state)
            conversation.forked = False
        conversation.open_steps += (event.step,)
        if tools is not None:
            seconds = now - conversation.call_ended_at
            graph.durations.observe(tools, seconds)
            program.last_tool_seconds = seconds
            if forecast is not None:
                graph.calibrate(forecast, seconds, conversation.graph_state)
        known = conversation.context or conversation.shared_tokens
        shared = conversation.shared_tokens if known else graph.shared_tokens
        self._state.resize(program, conversation, event.prompt, min(shared, event.prompt))
        conversation.prompt = event.prompt

    @handles(StepFinished)
    def finished(self, event: StepFinished, now: float) -> list[Action]:
        """Learn from a call that ended, and decide what becomes of its conversation's KV."""
        state, control = self._state, self._control
        program = state.programs.get(event.program)
        conversation = program.conversations.get(event.conversation) if program else None
        if program is None or conversation is None:
            return []
        self._account(program, conversation, event, now)
        self._await_tools(program, conversation, event, now)
        control.update_reservation(program)
        if event.final:
            return []
        what = self._policy.retain(state, program, conversation, now)
        actions = control.retention.apply(program, conversation, what, now)
        if conversation.engine in state.draining:
            return actions + control.at_boundary_of_draining(program, now)
        if program.at_tool_boundary and program.active:
            if _ends_probation(program):
                actions += control.pause(program, now)
            else:
                actions += control.watch_absence(program, now, conversation.pending_tools)
        return actions + control.rebalance(now)

    def _account(
        self,
        program: ProgramState,
        conversation: ConversationState,
        event: StepFinished,
        now: float,
    ) -> None:
        """Charge for a call's service, and learn its costs."""
        state = self._state
        forget_step(self._control, program, event.step)
        program.service += event.service
        state.tenants.charge(program, event.service)
        program.steps += 1
        program.last_call_end = now
        state.queue_seconds.append(event.queued)
        state.learned.learn(
            event.computed,
            event.seconds,
            max(0, event.context - conversation.prompt),
            event.service - event.seconds,
        )
        state.engine_load.observe(program.last_tool_seconds, event.queued + event.service)

    def _await_tools(
        self,
        program: ProgramState,
        conversation: ConversationState,
        event: StepFinished,
        now: float,
    ) -> None:
        """Note the size of a conversation after a call, and forecast its next one."""
        graph = self._state.graph(program.submission.agent)
        shared = conversation.shared_tokens
        if program.steps == 1 and len(program.conversations) == 1:
            # the cached part of a program's first prompt is what its agent's programs share
            graph.shared_tokens = shared = max(0, conversation.prompt - event.computed)
        self._state.resize(program, conversation, event.context, min(shared, event.context))
        tools = tools_key(event.calls)
        with program.moving(conversation):
            conversation.call_ended_at, conversation.pending_tools = now, tools
        state = conversation.graph_state
        conversation.forecast = graph.forecast(state, tools) if event.calls else None
        program.record_forecast(lambda: graph.service_left(program.positions))

    @handles(StepFailed)
    def failed(self, event: StepFailed, now: float) -> list[Action]:
        """Forget a call that nobody waits for any more."""
        control = self._control
        program = self._state.programs.get(event.program)
        if program is None:
            return []
        step = forget_step(control, program, event.step)
        program.last_call_end = now
        if step is not None and step.engine in self._state.draining:
            return control.at_boundary_of_draining(program, now)
        return [*control.watch_absence(program, now), *control.rebalance(now)]

    @handles(Decoded)
    def decoded(self, event: Decoded, now: float) -> list[Action]:
        """Update the sizes of running calls, once they have grown so much that it matters.

        Their exact sizes are known when they end.
        """
        state = self._state
        some_preempted, changed = bool(state.preempted_steps), False
        for name, step, context in event.calls:
            program = state.programs.get(name)
            if program is None or (context <= program.growth_threshold and not some_preempted):
                continue
            if (call := program.running_steps.get(step)) is None:
                continue
            if step in state.preempted_steps:
                state.preempted_steps.remove(step)
                changed = True
            conversation = program.conversations[call.conversation]
            changed |= self._grow(program, conversation, context)
        return self._control.rebalance(now) if changed else []

    def _grow(self, program: ProgramState, conversation: ConversationState, context: int) -> bool:
        """Update the size of a running call; return False if it has hardly grown."""
        notice = GROWTH_NOTICE * self._state.capacity
        if context - conversation.context <= notice:
            return False
        self._state.resize(program, conversation, context, conversation.shared_tokens)
        self._control.update_reservation(program)
        if program.running_calls == 1:  # of several, the least context is not known
            program.growth_threshold = context + notice
        return True

    @handles(Preempted)
    def preempted(self, event: Preempted, now: float) -> list[Action]:
        """Note a call that was preempted for want of blocks."""
        program = self._state.programs.get(event.program)
        if program is None or event.step not in program.running_steps:
            return []
        self._state.preempted_steps.add(event.step)
        return self._control.rebalance(now)


def _ends_probation(program: ProgramState) -> bool:
    calls = program.probation_calls
    return bool(calls) and (program.steps >= calls or program.size_known_at is not None)


__all__ = ["StepEvents", "forget_step"]

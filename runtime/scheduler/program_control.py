"""Admission, pausing and resuming of programs."""

from drawloom.runtime.scheduler.absences import Absences
from drawloom.runtime.scheduler.actions import Action, Admit, ScheduleTick, StartStep
from drawloom.runtime.scheduler.engine_registry import EngineRegistry
from drawloom.runtime.scheduler.env_claims import EnvClaims
from drawloom.runtime.scheduler.events import StepReady
from drawloom.runtime.scheduler.kv_retention import KVRetention
from drawloom.runtime.scheduler.policy import Grant, PauseNow, Policy, Recheck
from drawloom.runtime.scheduler.program_state import Phase, ProgramState
from drawloom.runtime.scheduler.state import SchedulerState

GROWTH_NOTICE = 1e-3  # of an engine's memory: growth below it changes no decision


class ProgramControl:
    """Carry out a policy's decisions on programs, for the handlers of all events.

    Attributes:
        policy: decides.
        state: the books.
        engines: engines that are up or gone.
        env_claims: claims of environments.
        retention: KV of conversations that wait.
        absences: active programs without a call.
    """

    def __init__(self, policy: Policy, state: SchedulerState) -> None:
        self.policy, self.state = policy, state
        self.engines = EngineRegistry(state)
        self.env_claims = EnvClaims(state, policy)
        self.retention = KVRetention(state, policy, self.engines)
        self.absences = Absences(state)
        self._recheck_at: float | None = None

    # --- admission and pausing -------------------------------------------------------------

    def rebalance(self, now: float) -> list[Action]:
        """Pause and admit programs, after an event that may have changed which of them run."""
        state, actions = self.state, list[Action]()
        for program in self.policy.pause(state, now):
            actions += self.pause(program, now)
        if not state.closed:
            for decision in self.policy.admit(state, now):
                if isinstance(decision, Grant):
                    actions += self._activate(decision, now)
                else:
                    actions += self._schedule_recheck(decision, now)
        return actions + self.env_claims.warm_targets(now)

    def _schedule_recheck(self, recheck: Recheck, now: float) -> list[Action]:
        at = now + recheck.seconds
        if self._recheck_at is not None and self._recheck_at <= at:
            return []
        self._recheck_at = at
        return [ScheduleTick(at)]

    def recheck_due(self, now: float) -> bool:
        """Return True, once, when more programs may be admitted though nothing else happened."""
        if self._recheck_at is None or self._recheck_at > now:
            return False
        self._recheck_at = None
        return True

    def _activate(self, grant: Grant, now: float) -> list[Action]:
        program = grant.program
        actions: list[Action] = [] if program.was_admitted else [Admit(program.id)]
        program.probation_calls = grant.probation_calls
        program.reserved_tokens = grant.reserved_tokens
        program.expected_load = grant.expected_load
        self.engines.reassign(program)
        self.state.transition(program, Phase.ACTIVE, now)
        actions += self.watch_absence(program, now)
        return [
            *actions,
            *self.env_claims.claim_all(program, now),
            *self.start_pending(program, now),
        ]

    def due_at(self, program: ProgramState) -> float:
        """Return when a waiting program becomes due, by what is known of its agent now."""
        allowed = self.policy.max_wait(self.state, program) - program.waited_seconds
        return program.waiting_since + max(0.0, allowed)

    def hold(self, program: ProgramState, now: float) -> None:
        """Put a new or active program into the wait queue."""
        program.waiting_since = now
        program.due_at = self.due_at(program)
        to = Phase.PAUSED if program.was_admitted else Phase.NEW
        self.state.transition(program, to, now, self.policy.agent_rank(self.state, program))

    def pause(self, program: ProgramState, now: float) -> list[Action]:
        """Pause an active program, and decide what becomes of its KV."""
        program.probation_calls = 0
        self.hold(program, now)
        actions = list[Action]()
        for conversation in program.conversations.values():
            what = self.policy.retain_paused(self.state, program, conversation, now)
            actions += self.retention.apply(program, conversation, what, now)
        return actions

    def requeue(self, program: ProgramState) -> None:
        """Rank a waiting program anew, after its pending calls have changed."""
        self.state.rerank(program, self.policy.agent_rank(self.state, program))
        self.state.wait_queue.track_due(program)

    def update_reservation(self, program: ProgramState) -> None:
        """Reserve as many KV tokens for a program as the policy says now."""
        self.state.update_reservation(program, self.policy.reserve(self.state, program))

    def at_boundary_of_draining(self, program: ProgramState, now: float) -> list[Action]:
        """Hold a program at an engine that drains, once no call of it runs."""
        if program.active and not program.running_steps:
            self.hold(program, now)
        return self.rebalance(now)

    # --- calls ----------------------------------------------------------------------------

    def start_pending(self, program: ProgramState, now: float) -> list[Action]:
        """Start the calls of an active program that waited."""
        pending, program.pending_steps = program.pending_steps, {}
        return [self.start(program, step, now) for step in pending.values()]

    def start(self, program: ProgramState, step: StepReady, now: float) -> StartStep:
        """Start a call of an active program."""
        self.state.start_step(program, step)
        context = program.conversations[step.conversation].context
        threshold = context + GROWTH_NOTICE * self.state.capacity
        program.growth_threshold = min(program.growth_threshold, threshold)
        priority = self.policy.step_priority(self.state, program, step, now)
        return StartStep(step.engine, step.program, step.step, priority)

    # --- absence --------------------------------------------------------------------------

    def watch_absence(
        self, program: ProgramState, now: float, tools: str | None = None
    ) -> list[Action]:
        """Pause an active program without a call, now or when it has been absent for long.

        Args:
            program: any; one that is not active, or has a call, is left alone.
            now: seconds.
            tools: key of the tools that its last call asked for, if that is known; other
                conversations of it may wait for others.
        """
        if not (program.at_tool_boundary and program.active):
            return []
        limit = self.policy.absence(self.state, program, tools)
        if limit is None:
            return []
        if isinstance(limit, PauseNow):
            return self.pause(program, now)
        return self.absences.watch(program, limit, now)

    def pause_absent(self, now: float) -> list[Action]:
        """Pause the programs that have been absent for too long."""
        actions = list[Action]()
        while (program := self.absences.next_absent(now)) is not None:
            actions += self.pause(program, now)
        return actions + self.absences.schedule()


__all__ = ["GROWTH_NOTICE", "ProgramControl"]

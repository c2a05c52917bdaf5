"""The scheduler under any order of events: its books are right, and asking twice agrees."""

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from drawloom.runtime.scheduler.actions import (
    Admit,
    ClaimEnv,
    LeaseKV,
    ParkEnvs,
    ReleaseEnvs,
)
from drawloom.runtime.scheduler.events import (
    ConversationEnded,
    Decoded,
    EngineDown,
    EngineDrain,
    EngineUp,
    Event,
    Expected,
    Forked,
    HostUp,
    Preempted,
    ProgramEnded,
    ProgramSubmitted,
    StepFailed,
    StepFinished,
    StepReady,
    TenantShare,
    Tick,
)
from drawloom.runtime.scheduler.program_state import Phase, ProgramState, Rank
from tests.lanes import examples

from .harness import (
    KV,
    NEVER,
    three_fit,
)


class CoreMachine(RuleBasedStateMachine):
    """Random programs, steps and tools; two cores fed the same events must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.made = 0
        self.live: dict[str, int] = {}
        self.running: set[str] = set()
        self.places: set[tuple[str, str]] = set()

    def _send(self, event: Event) -> None:
        actions = self.core.handle(event, self.now)
        assert self.twin.handle(event, self.now) == actions
        for action in actions:
            if isinstance(action, Admit):
                assert action.program in self.live
                assert action.program not in self.running
                self.running.add(action.program)
                tenant = self.core.state.tenants.of(self.core.state.programs[action.program])
                assert tenant.active <= (tenant.share.programs or len(self.live))
            if isinstance(action, ClaimEnv):
                assert (action.program, action.env) not in self.places
                self.places.add((action.program, action.env))
            if isinstance(action, ParkEnvs | ReleaseEnvs):
                self.places = {place for place in self.places if place[0] != action.program}
            if isinstance(action, LeaseKV):
                assert action.ttl > 0
                assert action.value >= 0

    @initialize(
        memory=st.sampled_from([0, 5 * KV]),
        slots=st.integers(0, 3),
        parks=st.booleans(),
        busy=st.sampled_from([NEVER, 0.2, 0.85]),
    )
    def machines(self, memory: int, slots: int, parks: bool, busy: float) -> None:
        self.core, self.twin = three_fit(busy=busy), three_fit(busy=busy)
        transition = self.core.state.transition

        def checked(program: ProgramState, to: Phase, now: float, rank: Rank = ()) -> None:
            assert to is not Phase.ACTIVE or program.wants_admission, "it has nothing to run"
            transition(program, to, now, rank)

        self.core.state.transition = checked  # type: ignore[method-assign]
        self._send(EngineUp("e", 0, memory))
        if slots:
            self._send(HostUp("h", slots, parks))

    @rule(
        event=st.sampled_from(
            [EngineDown("e"), EngineDrain("e"), EngineUp("e", KV), EngineUp("e", KV, 5 * KV)]
        )
    )
    def engine(self, event: Event) -> None:
        self._send(event)

    @rule(tenant=st.sampled_from("abc"), programs=st.none() | st.integers(1, 3))
    def share(self, tenant: str, programs: int | None) -> None:
        self._send(TenantShare(tenant, 1.0 + (programs or 0), programs))

    @rule(
        tokens=st.integers(1, 2000),
        priority=st.integers(0, 1),
        env=st.booleans(),
        tenant=st.sampled_from("abc"),
    )
    def submit(self, tokens: int, priority: int, env: bool, tenant: str) -> None:
        self.made += 1
        name = f"p{self.made}"
        self.live[name] = tokens
        agent, limited = f"agent-{tokens % 3}", self.core.state.env_capacity.slots
        envs = ("env",) if env and limited else ()
        self._send(ProgramSubmitted(name, agent, tenant, priority, envs=envs, expect_tokens=tokens))

    @rule(data=st.data(), seconds=st.floats(0, 10), context=st.integers(1, 3000))
    def turn(self, data: Any, seconds: float, context: int) -> None:
        if self.running:
            name = data.draw(st.sampled_from(sorted(self.running)))
            self._ready(name, context)
            self.now += seconds
            self._send(
                StepFinished(
                    program=name,
                    conversation=f"{name}",
                    step="s",
                    state="site",
                    engine="e",
                    context=context + 10,
                    calls=("t",),
                )
            )

    @rule(
        data=st.data(),
        context=st.integers(1, 2000),
        said=st.lists(st.integers(0, 2000)),
        gives_way=st.booleans(),
        fails=st.booleans(),
    )
    def answer(
        self, data: Any, context: int, said: list[int], gives_way: bool, fails: bool
    ) -> None:
        """A call whose end is heard of late, or never as it was."""
        if not self.running:
            return
        name = data.draw(st.sampled_from(sorted(self.running)))
        self._send(
            StepReady(
                program=name,
                conversation=f"{name}",
                step="s",
                state="site",
                engine="e",
                prompt=context,
                output=10,
            )
        )
        if gives_way:
            self._send(Preempted(name, "s", "e"))
        for more in said:
            self._send(Decoded("e", ((name, "s", context + more), ("nobody", "s", 1))))
        if fails:
            self._send(StepFailed(name, "s"))
        else:
            self._send(
                StepFinished(
                    program=name,
                    conversation=f"{name}",
                    step="s",
                    state="site",
                    engine="e",
                    context=context + 1,
                    calls=("t",),
                )
            )
        self._send(Decoded("e", ((name, "s", context + 5000),)))
        self._send(Preempted(name, "s", "e"))

    @rule(seconds=st.floats(0, 200))
    def wait(self, seconds: float) -> None:
        """Tools take as long as that: whoever waits for several leases gives up its place."""
        self.now += seconds
        self._send(Tick())

    def _ready(self, name: str, context: int) -> None:
        """Announce a call of a program's first conversation, with a prompt of `context` tokens."""
        self._send(
            StepReady(
                program=name,
                conversation=name,
                step="s",
                state="site",
                engine="e",
                prompt=context,
                output=10,
            )
        )

    @rule(data=st.data(), context=st.integers(1, 2000))
    def call(self, data: Any, context: int) -> None:
        """Run one call of a program that was admitted; it may be held again."""
        if self.running:
            name = data.draw(st.sampled_from(sorted(self.running)))
            self._ready(name, context)

    @rule(data=st.data(), steps=st.floats(0, 1e6))
    def expect(self, data: Any, steps: float) -> None:
        if self.live:
            self._send(Expected(data.draw(st.sampled_from(sorted(self.live))), steps))

    @rule(data=st.data(), chat=st.integers(1, 3), ends=st.booleans())
    def fork(self, data: Any, chat: int, ends: bool) -> None:
        if self.running:
            name = data.draw(st.sampled_from(sorted(self.running)))
            self._send(Forked(name, f"{name}", f"{name}:{chat}", "e"))
            self._send(
                StepReady(
                    program=name,
                    conversation=f"{name}:{chat}",
                    step=f"s{chat}",
                    state="branch",
                    engine="e",
                    prompt=10,
                    output=10,
                )
            )
            if ends:
                self._send(ConversationEnded(name, f"{name}:{chat}"))
                self._send(ConversationEnded(name, f"{name}:{chat}"))

    @rule(data=st.data())
    def end(self, data: Any) -> None:
        if self.live:
            name = data.draw(st.sampled_from(sorted(self.live)))
            del self.live[name]
            self.running.discard(name)
            self._send(ProgramEnded(name))
            self._send(ProgramEnded(name))

    @invariant()
    def somebody_runs_if_anybody_waits(self) -> None:
        state = self.core.state
        competes = (p for p in state.wait_queue.programs.values() if p.wants_admission)
        waits = {p.id for p in competes if not state.tenants.of(p).full}
        resting = (
            state.env_capacity.paused_residents.keys()
        )  # others may want the room that these take
        assert state.closed or state.active or not waits or (resting and not waits & resting)

    @invariant()
    def the_first_is_one_that_is_held(self) -> None:
        state = self.core.state
        waits = [p for p in state.programs.values() if not p.active]
        assert state.wait_queue.programs == {p.id: p for p in waits}
        free = [p for p in waits if p.wants_admission and not state.tenants.of(p).full]
        needy = state.wait_queue.least_served
        if not free:
            assert (state.wait_queue.first, state.wait_queue.due, needy) == (None, None, None)
            return
        assert state.wait_queue.first in free
        due = state.wait_queue.due  # asked first, as it looks again at who seems to be due
        assert due is min(free, key=lambda p: (-p.submission.priority, p.due_at, p.index))
        assert needy is not None
        assert needy.tenant.attained == min(state.tenants.of(p).attained for p in free)

    @invariant()
    def tenants_are_counted(self) -> None:
        state = self.core.state
        for name in {p.submission.tenant for p in state.programs.values()}:
            mine = [p for p in state.active.values() if p.submission.tenant == name]
            tenant = state.tenants.named(name)
            assert (tenant.active, tenant.reserved_tokens) == (
                len(mine),
                sum(p.reserved_tokens for p in mine),
            )
            live = sum(p.submission.tenant == name for p in state.programs.values())
            assert tenant.live == live

    @invariant()
    def memory_is_counted(self) -> None:
        state = self.core.state
        for total, field in (
            (state.totals.tokens, "tokens"),
            (state.totals.private_tokens, "private_tokens"),
            (state.totals.reserved_tokens, "reserved_tokens"),
        ):
            assert total == sum(getattr(p, field) for p in state.active.values())
        held = state.wait_queue.programs.values()
        assert state.totals.paused_tokens == sum(
            p.private_tokens for p in held if p.was_admitted and not p.kv_lost
        )
        assert state.capacity == sum(state.engines.values()) <= KV
        for program in state.programs.values():
            assert program.private_tokens == sum(
                line.private_tokens for line in program.conversations.values()
            )

    @invariant()
    def conversations_are_counted(self) -> None:
        for program in self.core.state.programs.values():
            lines = program.conversations.values()
            assert program.positions == Counter(line.position for line in lines)
            assert program.tool_waits == sum(line.pending_tools is not None for line in lines)
            calls = Counter(call for line in lines for call in line.open_steps)
            assert calls == Counter([*program.pending_steps, *program.running_steps])
            assert program.running_calls == len(program.running_steps)

    @invariant()
    def who_gave_way_runs(self) -> None:
        state = self.core.state
        assert state.preempted_steps <= {
            step for p in state.active.values() for step in p.running_steps
        }

    @invariant()
    def what_computes_is_counted(self) -> None:
        state, totals = self.core.state, self.core.state.totals
        assert totals.computing_programs == sum(p.running_calls > 0 for p in state.active.values())
        assert totals.running_calls == sum(p.running_calls for p in state.active.values())
        assert totals.starting_programs == sum(not p.has_called for p in state.active.values())
        assert 0.0 <= state.engine_load.busy <= 1.0
        assert 0.0 <= state.engine_load.announced <= 1.0

    @invariant()
    def environments_fit_on_their_host(self) -> None:
        state, capacity = self.core.state, self.core.state.env_capacity
        assert len(self.places) == sum(capacity.used_slots.values()) <= sum(capacity.slots.values())
        held = [p for p in state.programs.values() if p.was_admitted and not p.active]
        assert capacity.paused_residents == {p.id: p for p in held if p.env_host is not None}

    @invariant()
    def nothing_is_kept_of_what_ended(self) -> None:
        assert set(self.core.state.programs) == set(self.live)


CoreMachine.TestCase.settings = settings(
    max_examples=examples(60), stateful_step_count=40, deadline=None
)


TestCore = CoreMachine.TestCase

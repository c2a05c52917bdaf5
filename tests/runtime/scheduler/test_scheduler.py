"""The scheduler core under a virtual clock: invariants under any order of events."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from drawloom.errors import ConfigError
from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.runtime.bench.scheduler import Shape, held_bytes, measure
from drawloom.runtime.scheduler import Scheduler
from drawloom.runtime.scheduler.actions import (
    Action,
    Admit,
    ClaimEnv,
    LeaseKV,
    ParkEnvs,
    ReleaseEnvs,
    ReleaseKV,
    ScheduleTick,
    StartStep,
    StartTool,
    WarmEnv,
)
from drawloom.runtime.scheduler.agent_graphs import AgentGraphs
from drawloom.runtime.scheduler.cost import CostModel
from drawloom.runtime.scheduler.decayed_rate import DecayedRate
from drawloom.runtime.scheduler.events import (
    ConversationEnded,
    Decoded,
    EngineDown,
    EngineDrain,
    EngineUp,
    Event,
    Expected,
    Forked,
    HostState,
    HostUp,
    Preempted,
    ProgramEnded,
    ProgramSubmitted,
    StepFailed,
    StepFinished,
    StepReady,
    TenantShare,
    Tick,
    ToolNamed,
    ToolReady,
    ToolStarted,
)
from drawloom.runtime.scheduler.policies import make_policy, policy_names
from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.policies.parts.parameters import Parameters
from drawloom.runtime.scheduler.program_state import Phase, ProgramState, Rank
from drawloom.runtime.scheduler.state import Totals
from tests.lanes import examples

KV = 1000
NEVER = -1.0  # is an engine as little busy as this: memory alone says how many programs run


def _core(kv: int = KV, host: int = 0, busy: float = NEVER) -> Scheduler:
    core = Scheduler(Drawloom(Parameters(busy=busy)))
    core.handle(EngineUp("e", kv, host), 0.0)
    return core


def _submit(core: Scheduler, name: str, now: float = 0.0, **options: Any) -> list[Action]:
    return core.handle(ProgramSubmitted(name, "agent", **{"expect_tokens": 300, **options}), now)


def _step(core: Scheduler, name: str, prompt: int, now: float) -> list[Action]:
    event = StepReady(name, f"{name}:0", f"{name}:0#0", "site", "e", prompt, 50)
    return core.handle(event, now)


def _finish(
    core: Scheduler, name: str, context: int, now: float, *calls: str, computed: int = 0
) -> list[Action]:
    event = StepFinished(name, f"{name}:0", f"{name}:0#0", "site", "e", context, calls, computed)
    return core.handle(event, now)


def _admitted(actions: list[Action]) -> list[str]:
    return [a.program for a in actions if isinstance(a, Admit)]


def _lease(actions: list[Action]) -> LeaseKV:
    (lease,) = (a for a in actions if isinstance(a, LeaseKV))
    return lease


def test_programs_run_while_their_peaks_fit_and_no_longer() -> None:
    core = _core()
    names = [n for i in range(5) for n in _admitted(_submit(core, f"p{i}"))]
    assert names == ["p0", "p1", "p2"]
    assert _admitted(core.handle(ProgramEnded("p1"), 1.0)) == ["p3"]


def test_beyond_memory_programs_run_while_the_engine_is_known_to_have_time_to_spare() -> None:
    core = _core(busy=0.85)
    names = [n for i in range(5) for n in _admitted(_submit(core, f"p{i}"))]
    assert names == ["p0", "p1", "p2"]  # no call has ended yet
    _step(core, "p0", 100, 1.0)
    _finish(core, "p0", 120, 2.0, "shell")
    load = core.state.engine_load
    load.busy, load.announced, load.work, load.cycle = 1.0, 0.0, 0.02, 2.0
    assert _admitted(_submit(core, "more")) == []
    load.busy = 0.0
    assert _admitted(_submit(core, "last")) == ["p3", "p4", "more", "last"]
    load.work = 1.0  # each would take half of the time
    assert [len(_admitted(_submit(core, f"q{i}"))) for i in range(3)] == [1, 0, 0]


def _answer(core: Scheduler, name: str, now: float, seconds: float = 1.0) -> None:
    """A program makes one call, which asks for no tool."""
    _step(core, name, 300, now)
    _finish(core, name, 310, now + seconds, "client", computed=300)


def test_programs_that_answered_and_may_be_over_hold_up_nobody() -> None:
    core = _core()
    for number in range(20):
        assert _admitted(_submit(core, f"p{number}", number)) == [f"p{number}"]
        _answer(core, f"p{number}", number, 0.5)


@pytest.mark.parametrize("gap", [1.0, 0.1])
def test_programs_that_answered_keep_their_places_while_such_go_on(gap: float) -> None:
    core = _core()
    _submit(core, "a")
    for turn in range(10):
        _answer(core, "a", (1.0 + gap) * turn, 1.0)
    for name in "bc":
        _submit(core, name, 30.0)
        _answer(core, name, 30.0, 0.01)
    _step(core, "a", 300, 30.0)
    _finish(core, "a", 310, 30.01, "client")
    assert _admitted(_submit(core, "d", 30.02)) == []
    assert _admitted(core.handle(Tick(), 30.0 + 2.5 * gap)) == []
    assert _admitted(core.handle(Tick(), 30.1 + 3.5 * gap)) == ["d"]  # two leases of 1.5 gaps


def test_an_idle_engine_takes_more_once_that_is_worth_what_they_displace() -> None:
    core = _core(busy=0.85)
    core.state.cost = CostModel(prefill=0.01)
    core.state.engine_load.busy = 1.0
    for name in "abc":
        _submit(core, name)
        _step(core, name, 300, 0.0)
        _finish(core, name, 310, 1.0, "bash", computed=300)  # all wait for a tool
    actions = _submit(core, "d", 1.0)
    assert _admitted(actions) == []
    wakes = [action.at for action in actions if isinstance(action, ScheduleTick)]
    assert wakes == [pytest.approx(1.0 + 3.1)]
    assert _admitted(core.handle(Tick(), 4.0)) == []
    assert _admitted(core.handle(Tick(), 4.2)) == ["d"]


def test_with_host_memory_behind_it_half_as_much_again_is_promised() -> None:
    for host, several in ((0, 3), (10 * KV, 4)):
        core = _core(host=host)
        admitted = [n for i in range(9) for n in _admitted(_submit(core, f"p{i}"))]
        assert len(admitted) == several


def test_a_program_larger_than_the_machine_runs_alone() -> None:
    core = _core()
    assert _admitted(_submit(core, "big", expect_tokens=5000)) == ["big"]
    assert _admitted(_submit(core, "small")) == []


def test_the_baseline_admits_everybody_and_leases_nothing() -> None:
    core = Scheduler(make_policy("fcfs-lru"))
    core.handle(EngineUp("e", KV), 0.0)
    assert [n for i in range(9) for n in _admitted(_submit(core, f"p{i}"))] == [
        f"p{i}" for i in range(9)
    ]
    _step(core, "p0", 100, 1.0)
    assert _finish(core, "p0", 120, 2.0, "shell") == []
    (release, *_) = core.handle(ProgramEnded("p0"), 3.0)
    assert isinstance(release, ReleaseKV)
    assert not release.evict


def test_priority_goes_before_arrival_and_a_deadline_makes_a_program_due() -> None:
    core = _core(kv=400)
    _submit(core, "first")
    _submit(core, "plain")
    _submit(core, "other")
    _submit(core, "urgent", deadline=5.0)
    _submit(core, "vip", priority=1)
    order = []
    for name, now in (("first", 1.0), ("vip", 2.0), ("plain", 6.0), ("urgent", 7.0)):
        order += _admitted(core.handle(ProgramEnded(name), now))
    assert order == ["vip", "plain", "urgent", "other"]


def test_the_oldest_program_s_calls_go_first() -> None:
    core = _core()
    _submit(core, "old")
    _submit(core, "new")
    (new,), (old,) = _step(core, "new", 100, 1.0), _step(core, "old", 100, 2.0)
    assert isinstance(new, StartStep)
    assert isinstance(old, StartStep)
    assert old.priority < new.priority


def test_kv_is_leased_for_as_long_as_the_tool_was_seen_to_take() -> None:
    core = _core()
    _submit(core, "p")
    now = 0.0
    for _ in range(20):
        _step(core, "p", 100, now)
        lease = _lease(_finish(core, "p", 120, now + 1, "shell"))
        now += 5.0
    assert lease.ttl == pytest.approx(1.5 * 4.0, rel=0.02)
    assert lease.value > 0


def test_the_value_of_a_lease_follows_the_prefill_that_was_measured() -> None:
    core = _core()
    _submit(core, "p")
    values = []
    for seconds in (0.0, 100.0):
        _step(core, "p", 100, 1.0)
        event = StepFinished("p", "p:0", "p:0#0", "site", "e", 120, ("t",), 100, seconds)
        values.append(_lease(core.handle(event, 2.0)).value)
    assert values[1] > 10 * values[0]


def test_an_ended_program_gives_everything_back_in_the_same_instant() -> None:
    core = _core()
    _submit(core, "p")
    _step(core, "p", 100, 1.0)
    core.handle(Forked("p", "p:0", "p:0.0", "e"), 1.5)
    actions = core.handle(ProgramEnded("p"), 2.0)
    assert {a.conversation for a in actions if isinstance(a, ReleaseKV)} == {"p:0", "p:0.0"}
    assert ReleaseEnvs("p") in actions
    assert core.state.programs == {}


def test_a_program_is_admitted_while_its_environment_is_made_and_claims_it_by_name() -> None:
    core = _core()
    core.handle(HostState("h", "other", 0, 0, 8), 0.0)
    actions = [a for name in "pqr" for a in _submit(core, name, envs=("env",))]
    assert _admitted(actions) == [], "nobody makes one yet"
    assert [a.count for a in actions if isinstance(a, WarmEnv)] == [1, 2, 3]
    making = core.handle(HostState("h", "env", 0, 1, 8), 1.0)
    assert _admitted(making) == ["p"], "one is being made, for one program"
    assert _admitted(core.handle(HostState("h", "env", 1, 1, 8), 1.5)) == ["q"]
    named = core.handle(ToolNamed("p", "shell", "env"), 2.0)
    assert ClaimEnv("h", "p", "env") in named
    assert _admitted(named) == [], "the claimed environment was promised twice"
    assert core.handle(ToolNamed("p", "shell", "env"), 2.1) == []


def test_environments_that_nobody_wants_any_more_are_forgotten() -> None:
    core = _core()
    core.handle(HostState("h", "other", 0, 0, 8), 0.0)
    for number in range(5):
        _submit(core, f"p{number}", envs=(f"env{number}", "same"))
    core.handle(ToolNamed("p0", "shell", "env0"), 1.0)
    assert core.state.env_capacity.demand["same"] == 5
    assert "env0" not in core.state.env_capacity.demand
    actions = [a for n in range(5) for a in core.handle(ProgramEnded(f"p{n}"), 2.0)]
    assert {a.env for a in actions if isinstance(a, WarmEnv) and not a.count} >= {"env1", "same"}
    capacity = core.state.env_capacity
    assert (capacity.demand, capacity.active_demand, capacity.targets, capacity.rates) == (
        {},
        {},
        {},
        {},
    )


def test_a_fresh_environment_is_claimed_each_time_its_tool_is_named_and_wanted_to_the_end() -> None:
    core = _core()
    core.handle(HostState("h", "env", 2, 0, 8), 0.0)
    core.handle(ProgramSubmitted("p", "agent", envs=("env",), fresh=("env",)), 0.0)
    for at in (1.0, 2.0, 3.0):
        assert ClaimEnv("h", "p", "env") in core.handle(ToolNamed("p", "try", "env"), at)
        assert core.state.env_capacity.demand == {"env": 1}
        assert core.state.env_capacity.active_demand == {}
    core.handle(ProgramEnded("p"), 4.0)
    assert (core.state.env_capacity.demand, core.state.env_capacity.rates) == ({}, {})


def test_no_more_environments_are_kept_ready_than_are_claimed_while_others_are_made() -> None:
    core = _core()
    asked = []
    for number in range(40):
        asked += core.handle(
            ProgramSubmitted(f"p{number}", "agent", envs=("env",), fresh=("env",)), 0.0
        )
    state = HostState("h", "env", 8, 0, 8, cold=0.5)
    asked += core.handle(state, 0.0)
    for second in range(1, 60):  # one claim a second: two are enough, and one to spare
        asked += core.handle(ToolNamed(f"p{second % 40}", "try", "env"), float(second))
        asked += core.handle(state, float(second))
    targets = [action.count for action in asked if isinstance(action, WarmEnv)]
    assert max(targets) == 8, "until the rate is known, as many as there may be"
    assert targets[-1] in (2, 3)


def test_a_pool_is_asked_for_less_when_nothing_is_heard_of_it_any_more() -> None:
    core = _core()
    for number in range(9):
        for _ in range(5):
            core.state.env_capacity.rates.setdefault(f"e{number}", DecayedRate()).record(0.0)
        core.handle(HostState("h", f"e{number}", 8, 0, 8, cold=10.0), 0.0)
        for one in range(8):
            _submit(core, f"p{number}.{one}", 0.0, envs=(f"e{number}",))
    before = dict(core.state.env_capacity.targets)
    assert max(before.values()) == 8
    for turn in range(9):  # of another program altogether
        _submit(core, f"q{turn}", 1000.0 + turn)
    after = core.state.env_capacity.targets
    assert after.keys() == before.keys()
    assert max(after.values()) < 8


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60), st.floats(0.0, 100.0))
def test_a_rate_is_never_more_than_was_counted_and_fades(gaps: list[float], later: float) -> None:
    rate, now = DecayedRate(), 0.0
    for gap in gaps:
        now += gap
        rate.record(now)
    assert 0 < rate.per_second(now + later) <= 1.02 * len(gaps)
    assert rate.per_second(now + later + 1000) < 1e-6


def test_a_steady_rate_is_found() -> None:
    rate = DecayedRate()
    for tenth in range(3000):
        rate.record(tenth / 10)
    assert rate.per_second(300.0) == pytest.approx(10.0, rel=0.02)


def test_where_no_environment_can_be_made_programs_do_not_wait_for_one() -> None:
    core = _core()
    assert _admitted(_submit(core, "p", envs=("env",))) == []
    assert _admitted(core.handle(HostState("h", "env", 0, 0, 8), 1.0)) == ["p"]


def test_on_a_host_with_room_for_one_the_next_waits_and_its_environment_is_made_at_once() -> None:
    core = _core()
    core.handle(HostUp("h", 1), 0.0)
    assert ClaimEnv("h", "first", "env") in _submit(core, "first", envs=("env",))
    assert _submit(core, "second", envs=("env",)) == []
    assert _admitted(_submit(core, "third")) == []  # it is not its turn
    actions = core.handle(ProgramEnded("first"), 1.0)
    assert _admitted(actions) == ["second", "third"]
    assert ClaimEnv("h", "second", "env") in actions


def test_who_wants_more_environments_than_a_host_has_gets_a_whole_one() -> None:
    core = _core()
    core.handle(HostUp("h", 2), 0.0)
    _submit(core, "usual", envs=("a",))
    assert _submit(core, "greedy", envs=("a", "b", "c")) == []
    assert _admitted(core.handle(ProgramEnded("usual"), 1.0)) == ["greedy"]
    assert _submit(core, "next", envs=("a",)) == []
    assert _admitted(core.handle(ProgramEnded("greedy"), 2.0)) == ["next"]


def test_a_long_program_and_its_environment_make_room_together_and_come_back_together() -> None:
    core = _core(host=10 * KV)
    core.handle(HostUp("h", 1, parks=True), 0.0)
    core.state.graph("agent").stats.step_seconds = 1.0
    _submit(core, "long", envs=("env",), expect_steps=100.0)
    _step(core, "long", 100, 0.0)
    _submit(core, "short", envs=("env",), expect_steps=1.0)
    assert ParkEnvs("h", "long") not in _finish(core, "long", 110, 1.0, "tool")  # the tool runs
    assert _admitted(core.handle(Tick(), 70.0)) == []  # and it goes on for longer than a lease
    actions = _step(core, "long", 120, 80.0)
    assert actions[0] == ParkEnvs("h", "long")
    assert ClaimEnv("h", "short", "env") in actions
    actions = core.handle(ProgramEnded("short"), 83.0)
    assert ClaimEnv("h", "long", "env") in actions
    assert [a.program for a in actions if isinstance(a, StartStep)] == ["long"]


def test_where_an_environment_cannot_be_put_aside_its_program_goes_on_before_who_wants_one() -> (
    None
):
    core = _core()
    core.handle(HostUp("h", 1), 0.0)
    core.state.graph("agent").stats.step_seconds = 1.0
    _submit(core, "long", envs=("env",), expect_steps=100.0)
    _step(core, "long", 100, 0.0)
    _submit(core, "short", envs=("env",), expect_steps=1.0)
    _finish(core, "long", 110, 1.0, "tool")
    core.handle(Tick(), 70.0)
    assert "long" not in core.state.active  # its tool takes longer than a lease
    assert core.state.wait_queue.first is core.state.programs["short"]
    (start,) = _step(core, "long", 120, 80.0)
    assert isinstance(start, StartStep)


def test_of_the_tools_that_wait_the_shortest_goes_first() -> None:
    core = _core()
    _submit(core, "p")
    durations = core.state.graph("agent").durations
    for _ in range(8):
        durations.observe("quick", 1.0)
        durations.observe("slow", 100.0)
    given = [
        core.handle(ToolReady("p", "p:0", f"p#{tool}", tool, "h"), 0.0)
        for tool in ("quick", "slow")
    ]
    (quick,), (slow,) = given
    assert isinstance(quick, StartTool)
    assert isinstance(slow, StartTool)
    assert (quick.call, slow.call) == ("p#quick", "p#slow")
    assert quick.priority < slow.priority
    assert core.handle(ToolReady("nobody", "x", "x#0", "quick", "h"), 0.0) == []


def test_what_is_declared_to_be_short_goes_first() -> None:
    core = _core()
    _submit(core, "running", expect_tokens=900)
    _submit(core, "long", expect_tokens=900, expect_steps=40.0)
    _submit(core, "short", expect_tokens=900, expect_steps=4.0)
    assert _admitted(core.handle(ProgramEnded("running"), 1.0)) == ["short"]
    _submit(core, "medium", expect_tokens=900, expect_steps=20.0)
    core.handle(Expected("long", 2.0), 2.0)  # it knows better now
    assert _admitted(core.handle(ProgramEnded("short"), 3.0)) == ["long"]


def test_programs_with_branches_wait_while_many_calls_run() -> None:
    core = _core(kv=10_000)
    _submit(core, "wide", expect_tokens=10)
    _step(core, "wide", 10, 0.0)
    _finish(core, "wide", 10, 1.0, "plan", computed=10)
    for branch in range(1, 33):
        core.handle(Forked("wide", "wide:0", f"wide:{branch}", "e"), 2.0)
        event = StepReady("wide", f"wide:{branch}", f"s{branch}", "work", "e", 11, 5)
        core.handle(event, 2.0)
    assert core.state.totals.running_calls == 32
    assert _admitted(_submit(core, "alike", 3.0, expect_tokens=10)) == []
    assert _admitted(core.handle(StepFailed("wide", "s1"), 4.0)) == ["alike"]


def test_programs_without_branches_are_as_many_as_memory_holds() -> None:
    core = _core(kv=10_000)
    for number in range(40):
        _submit(core, f"p{number}", expect_tokens=10)
        _step(core, f"p{number}", 10, 0.0)
    assert core.state.totals.running_calls == len(core.state.active) == 40


def _decoded(core: Scheduler, name: str, context: int, now: float) -> list[Action]:
    return core.handle(Decoded("e", ((name, f"{name}:0#0", context),)), now)


def test_a_long_answer_counts_while_it_is_said() -> None:
    core = _core()
    _submit(core, "long")
    _step(core, "long", 100, 0.0)
    _decoded(core, "long", 800, 1.0)
    assert core.state.totals.private_tokens == core.state.totals.reserved_tokens == 800
    assert _admitted(_submit(core, "next", 2.0)) == []
    assert _admitted(_decoded(core, "long", 801, 3.0)) == [], "a token changes nothing"
    _finish(core, "long", 805, 4.0, "tool", computed=100)
    assert core.state.totals.private_tokens == 805
    assert _admitted(core.handle(ProgramEnded("long"), 5.0)) == ["next"]


def test_what_an_engine_said_late_is_not_counted() -> None:
    core = _core()
    _submit(core, "p")
    assert _decoded(core, "p", 500, 0.0) == []  # nothing of it runs
    _step(core, "p", 100, 1.0)
    _finish(core, "p", 120, 2.0, "tool", computed=100)
    _decoded(core, "p", 500, 3.0)
    assert core.state.totals.private_tokens == 120
    _step(core, "p", 400, 4.0)
    _decoded(core, "p", 200, 5.0)
    assert core.state.totals.private_tokens == 400


def test_the_cost_of_a_token_is_that_of_all_that_was_said_though_some_was_heard_before() -> None:
    core = _core()
    _submit(core, "p")
    _step(core, "p", 100, 0.0)
    _decoded(core, "p", 180, 4.0)
    event = StepFinished("p", "p:0", "p:0#0", "site", "e", 200, ("t",), 100, 1.0, 0.0, 11.0)
    core.handle(event, 11.0)
    assert core.state.cost.step == pytest.approx(0.1)


@pytest.mark.parametrize("ends", ["it goes on", "it fails", "its program ends"])
def test_nobody_is_admitted_while_a_call_has_given_way(ends: str) -> None:
    core = _core()
    for name in ("runs", "gives way"):
        _submit(core, name)
        _step(core, name, 100, 0.0)
    event = Preempted("gives way", "gives way:0#0", "e")
    for _ in range(2):
        assert core.handle(event, 1.0) == []
    assert _admitted(_submit(core, "third", 2.0)) == []
    _decoded(core, "runs", 101, 3.0)
    assert "third" not in core.state.active
    after: dict[str, Event] = {
        "it goes on": Decoded("e", (("gives way", "gives way:0#0", 101),)),
        "it fails": StepFailed("gives way", "gives way:0#0"),
        "its program ends": ProgramEnded("gives way"),
    }
    assert _admitted(core.handle(after[ends], 4.0)) == ["third"]
    assert core.handle(event, 5.0) == [] or ends == "it goes on"


def test_a_program_whose_call_failed_is_at_a_tool_boundary() -> None:
    core = _core()
    _submit(core, "p")
    _step(core, "p", 100, 0.0)
    assert not core.state.programs["p"].at_tool_boundary
    core.handle(StepFailed("p", "p:0#0"), 1.0)
    assert core.state.programs["p"].at_tool_boundary
    assert core.state.totals.computing_programs == 0
    (start,) = _step(core, "p", 100, 2.0)  # it may be tried again
    assert isinstance(start, StartStep)


def test_a_held_call_that_nobody_waits_for_any_more_is_not_started() -> None:
    core = _core(kv=300)
    _submit(core, "running")
    _submit(core, "held")
    assert _step(core, "held", 100, 0.0) == []
    core.handle(StepFailed("held", "held:0#0"), 1.0)
    actions = core.handle(ProgramEnded("running"), 2.0)
    assert _admitted(actions) == ["held"]  # it is new, and may make another
    assert not [a for a in actions if isinstance(a, StartStep)]


@given(st.data())
def test_what_branches_share_is_counted_once_whoever_ends_first(data: Any) -> None:
    core, now = _core(kv=10**6), 0.0
    _submit(core, "p")
    tokens, fresh = {"p:0": list[int]()}, iter(range(10**6))
    made = 1
    for _ in range(data.draw(st.integers(1, 25))):
        if not tokens:
            break
        name, now = data.draw(st.sampled_from(sorted(tokens))), now + 1.0
        what = data.draw(st.sampled_from(["call", "call", "fork", "end"]))
        if what == "call":
            tokens[name] += [next(fresh) for _ in range(data.draw(st.integers(1, 50)))]
            prompt = len(tokens[name])
            core.handle(StepReady("p", name, f"{name}#{now}", "site", "e", prompt, 10), now)
            tokens[name] += [next(fresh) for _ in range(10)]
            event = StepFinished(
                "p", name, f"{name}#{now}", "site", "e", prompt + 10, ("t",), prompt
            )
            core.handle(event, now + 0.5)
        elif what == "fork" and tokens[name]:
            made += 1
            tokens[f"p:{made}"] = list(tokens[name])
            core.handle(Forked("p", name, f"p:{made}", "e"), now)
        elif what == "end":
            del tokens[name]
            core.handle(ConversationEnded("p", name), now)
        held = {token for line in tokens.values() for token in line}
        assert core.state.totals.private_tokens == len(held)


def _started(actions: list[Action]) -> list[str]:
    return [a.step for a in actions if isinstance(a, StartStep)]


def test_calls_of_an_engine_that_goes_down_are_started_again_when_there_is_one() -> None:
    core = _core()
    _submit(core, "p")
    _step(core, "p", 100, 0.0)
    _finish(core, "p", 200, 1.0, "t", computed=100)
    _step(core, "p", 210, 2.0)
    assert core.handle(EngineDown("e"), 3.0) == []
    program, state = core.state.programs["p"], core.state
    assert (state.totals, state.capacity, program.running_calls) == (Totals(), 0, 0)
    assert program.tokens == 210, "what it has to compute again is known"
    assert _admitted(_submit(core, "q", 3.0)) == []
    again = core.handle(EngineUp("e", KV), 4.0)
    assert _started(again) == ["p:0#0"]
    assert _admitted(again) == ["q"]
    assert state.totals.private_tokens == 210
    assert core.handle(EngineDown("other"), 5.0) == core.handle(EngineDrain("other"), 5.0) == []


def test_a_call_that_failed_with_its_engine_is_not_started_again() -> None:
    core = _core()
    _submit(core, "p")
    _step(core, "p", 100, 0.0)
    core.handle(EngineDown("e"), 1.0)
    core.handle(StepFailed("p", "p:0#0"), 1.0)
    assert _started(core.handle(EngineUp("e", KV), 2.0)) == []
    assert "p" in core.state.wait_queue.programs  # it has nothing to run


def test_the_calls_of_an_engine_that_drains_end_and_no_others_begin_until_it_is_back() -> None:
    core = _core()
    _submit(core, "p")
    _step(core, "p", 100, 0.0)
    core.handle(Forked("p", "p:0", "p:1", "e"), 0.0)
    core.handle(EngineDrain("e"), 1.0)
    branch = StepReady("p", "p:1", "s1", "site", "e", 110, 50)
    assert core.handle(branch, 1.0) == []
    assert "p" in core.state.active, "it runs"
    assert _admitted(_submit(core, "q", 1.0)) == []
    _finish(core, "p", 120, 2.0, "t", computed=100)
    assert core.state.active == {}
    back = core.handle(EngineUp("e", KV), 3.0)
    assert (_started(back), _admitted(back)) == (["s1"], ["q"])


def test_an_engine_that_is_back_before_a_boundary_gets_what_was_kept_from_it() -> None:
    core = _core()
    _submit(core, "p")
    _step(core, "p", 100, 0.0)
    core.handle(Forked("p", "p:0", "p:1", "e"), 0.0)
    core.handle(EngineDrain("e"), 1.0)
    core.handle(StepReady("p", "p:1", "s1", "site", "e", 110, 50), 1.0)
    assert _started(core.handle(EngineUp("e", KV), 2.0)) == ["s1"]


def test_of_two_engines_in_one_world_the_other_takes_over() -> None:
    core = _core()
    core.handle(EngineUp("f", KV), 0.0)
    _submit(core, "p")
    _step(core, "p", 100, 0.0)
    (start,) = core.handle(EngineDown("e"), 1.0)
    assert isinstance(start, StartStep)
    assert start.engine == "f"
    assert core.state.capacity == KV
    _finish(core, "p", 120, 2.0, "t", computed=100)
    (again,) = _step(core, "p", 130, 3.0)  # whoever sends it does not know yet
    assert isinstance(again, StartStep)
    assert again.engine == "f"


def test_an_engine_that_is_up_again_has_what_it_says_and_not_both() -> None:
    core = _core()
    for _ in range(3):
        core.handle(EngineUp("e", 2 * KV, 5 * KV), 0.0)
    assert (core.state.capacity, core.state.host_tokens) == (2 * KV, 5 * KV)


def test_costs_are_learned_from_calls_where_none_were_given() -> None:
    core = _core(kv=10**6)
    _submit(core, "p")
    for turn, computed in enumerate((1000, 30, 40, 2000, 25, 35) * 10):
        prefill, now = 0.02 + 1e-3 * computed, 100.0 * turn
        core.handle(StepReady("p", "p:0", f"s{turn}", "site", "e", 5000, 50), now)
        event = StepFinished(
            "p", "p:0", f"s{turn}", "site", "e", 5050, ("t",), computed, prefill, 0.0, prefill + 2.5
        )
        core.handle(event, now + 5)
    assert core.state.cost.recompute(4000) == pytest.approx(4.0, rel=0.02)
    assert core.state.cost.decode(1, 0) == pytest.approx(0.05, rel=0.02)
    core.state.cost = given = CostModel(prefill=1.0)
    core.handle(StepReady("p", "p:0", "s", "site", "e", 5000, 50), 1e6)
    core.handle(StepFinished("p", "p:0", "s", "site", "e", 5050, (), 10, 1.0, 0.0, 2.0), 1e6)
    assert core.state.cost == given


def test_agents_that_were_not_seen_for_long_are_forgotten_but_for_those_that_run() -> None:
    agents = AgentGraphs(most=3)
    agents.enter("runs")
    for number in range(10):
        agents.enter(f"a{number}")
        agents[f"a{number}"].stats.step_seconds = 2.0
        agents.learned(agents[f"a{number}"])
        agents.leave(f"a{number}")
        assert agents["runs"] is agents["runs"]
        assert len(agents) <= 3
    assert {"runs", "a9"} <= set(agents)
    assert agents.step_seconds == pytest.approx(2.0)
    agents["read"] = ExecutionGraph("read")  # as from a store
    assert len(agents) <= 3


def test_a_program_of_many_calls_is_judged_by_few_of_them() -> None:
    core = _core(kv=10**6)
    _submit(core, "p")
    for turn in range(1000):
        core.handle(StepReady("p", "p:0", f"s{turn}", "site", "e", 100, 50), float(turn))
        event = StepFinished("p", "p:0", f"s{turn}", "site", "e", 100, ("t",), service=1.0)
        core.handle(event, float(turn))
    had = [had for had, _ in core.state.programs["p"].trail]
    assert len(had) < 64
    assert had[-1] > 900
    assert {b - a for a, b in pairwise(had)} == {had[0]}


def test_unknown_doubled_and_late_events_are_harmless() -> None:
    core = _core()
    for event in (
        Expected("x", 3.0),
        StepReady("x", "x:0", "s", "site", "e", 1, 1),
        StepFinished("x", "x:0", "s", "site", "e", 1, ()),
        StepFailed("x", "s"),
        Decoded("e", (("x", "s", 5),)),
        Preempted("x", "s", "e"),
        ToolNamed("x", "t", "env"),
        ToolStarted("x", "x:0", "t", None),
        Forked("x", "a", "b", "e"),
        ConversationEnded("x", "a"),
        ProgramEnded("x"),
    ):
        assert [a for a in core.handle(event, 1.0) if not isinstance(a, StartStep)] == []
    _submit(core, "p")
    assert _submit(core, "p") == []


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    assert {"drawloom", "fcfs-lru", "offload-lru"} <= set(policy_names())
    with pytest.raises(ConfigError, match="drawloom, fcfs-lru"):
        make_policy("magic")


@pytest.mark.parametrize("shape", [Shape(60), Shape(1, 60), Shape(60, 1, 60), Shape(60, tools=500)])
@pytest.mark.parametrize("policy", ["drawloom", "fcfs-lru", "thunder", "continuum"])
def test_the_load_of_the_benchmark_keeps_every_policy_busy(policy: str, shape: Shape) -> None:
    found = measure(policy, 200, shape, running=8)
    assert found["live"] == shape.live
    assert found["conversations"] >= 60 or shape.live == 60
    assert found["running"] > 0
    assert 0 < found["p99_ms"] <= found["max_ms"]


def test_a_held_program_takes_little_memory() -> None:
    assert 0 < held_bytes("drawloom", 500) <= 2_000


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
        memory=st.sampled_from([0, 5 * KV]), slots=st.integers(0, 3), parks=st.booleans(),
        busy=st.sampled_from([NEVER, 0.2, 0.85]),
    )  # fmt: skip
    def machines(self, memory: int, slots: int, parks: bool, busy: float) -> None:
        self.core, self.twin = _core(busy=busy), _core(busy=busy)
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
    )  # fmt: skip
    def engine(self, event: Event) -> None:
        self._send(event)

    @rule(tenant=st.sampled_from("abc"), programs=st.none() | st.integers(1, 3))
    def share(self, tenant: str, programs: int | None) -> None:
        self._send(TenantShare(tenant, 1.0 + (programs or 0), programs))

    @rule(
        tokens=st.integers(1, 2000), priority=st.integers(0, 1), env=st.booleans(),
        tenant=st.sampled_from("abc"),
    )  # fmt: skip
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
            self._send(StepReady(name, f"{name}:0", "s", "site", "e", context, 10))
            self.now += seconds
            self._send(StepFinished(name, f"{name}:0", "s", "site", "e", context + 10, ("t",)))

    @rule(
        data=st.data(), context=st.integers(1, 2000), said=st.lists(st.integers(0, 2000)),
        gives_way=st.booleans(), fails=st.booleans(),
    )  # fmt: skip
    def answer(
        self, data: Any, context: int, said: list[int], gives_way: bool, fails: bool
    ) -> None:
        """A call whose end is heard of late, or never as it was."""
        if not self.running:
            return
        name = data.draw(st.sampled_from(sorted(self.running)))
        self._send(StepReady(name, f"{name}:0", "s", "site", "e", context, 10))
        if gives_way:
            self._send(Preempted(name, "s", "e"))
        for more in said:
            self._send(Decoded("e", ((name, "s", context + more), ("nobody", "s", 1))))
        if fails:
            self._send(StepFailed(name, "s"))
        else:
            self._send(StepFinished(name, f"{name}:0", "s", "site", "e", context + 1, ("t",)))
        self._send(Decoded("e", ((name, "s", context + 5000),)))
        self._send(Preempted(name, "s", "e"))

    @rule(seconds=st.floats(0, 200))
    def wait(self, seconds: float) -> None:
        """Tools take as long as that: whoever waits for several leases gives up its place."""
        self.now += seconds
        self._send(Tick())

    @rule(data=st.data(), context=st.integers(1, 2000))
    def call(self, data: Any, context: int) -> None:
        """Of any that was admitted, which may be held again."""
        if self.running:
            name = data.draw(st.sampled_from(sorted(self.running)))
            self._send(StepReady(name, f"{name}:0", "s", "site", "e", context, 10))

    @rule(data=st.data(), steps=st.floats(0, 1e6))
    def expect(self, data: Any, steps: float) -> None:
        if self.live:
            self._send(Expected(data.draw(st.sampled_from(sorted(self.live))), steps))

    @rule(data=st.data(), chat=st.integers(1, 3), ends=st.booleans())
    def fork(self, data: Any, chat: int, ends: bool) -> None:
        if self.running:
            name = data.draw(st.sampled_from(sorted(self.running)))
            self._send(Forked(name, f"{name}:0", f"{name}:{chat}", "e"))
            self._send(StepReady(name, f"{name}:{chat}", f"s{chat}", "branch", "e", 10, 10))
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

"""Each policy on examples that can be worked by hand, and the defects that its ancestors had."""

import pytest

from drawloom.errors import ConfigError
from drawloom.graph.program_stats import ProgramSummary
from drawloom.runtime.scheduler.actions import (
    Admit,
    DemoteKV,
    LeaseKV,
    PrefetchKV,
    RefuseStep,
    ReleaseKV,
    ScheduleTick,
    StartStep,
)
from drawloom.runtime.scheduler.events import (
    ConversationEnded,
    EngineUp,
    Forked,
    ProgramSubmitted,
    StepFinished,
    StepReady,
)
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.scheduler.policies.continuum import best_ttl
from drawloom.runtime.scheduler.policies.request_cap import RequestLevel

from .harness import SchedulerHarness, of_kind, started_steps, with_costs

# --- rivals -----------------------------------------------------------------------------------


def test_static_cap_lets_so_many_in_and_the_next_when_one_ends() -> None:
    it = with_costs("static-cap:2")
    assert [len(of_kind(it.submit(n), Admit)) for n in "abc"] == [1, 1, 0]
    assert of_kind(it.end("a", 1.0), Admit) == [Admit("c")]


@pytest.mark.parametrize("name", ["static-cap:0", "static-cap:many", "drawloom:3"])
def test_an_argument_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="does not take the argument"):
        make_policy(name)


def test_continuum_keeps_for_as_long_as_the_expected_benefit_exceeds_the_time() -> None:
    # P(1) 10 - 1 = 6.5 beats P(0) = 0, and P(4) 10 - 4 = 6
    assert best_ttl([1.0, 1.0, 1.0, 4.0], 10.0) == 1.0
    assert best_ttl([1.0, 1.0, 1.0, 4.0], 20.0) == 4.0
    assert best_ttl([1.0, 2.0], 0.5) == 0.0


def test_continuum_serves_what_is_pinned_before_older_programs() -> None:
    it = with_costs("continuum")
    it.start("old", 100)
    it.start("young", 100)
    it.done("young", 110, 1.0)
    (young,) = of_kind(it.ready("young", 120, 1.5), StartStep)
    it.handle(
        StepFinished(
            program="old",
            conversation="old",
            step="old#0",
            state="llm",
            engine="e",
            context=110,
            calls=("t",),
        ),
        2.0,
    )
    (old,) = of_kind(it.ready("old", 120, 2.0 + 1e4), StartStep)
    assert young.priority < old.priority


def _pinned(policy: str) -> SchedulerHarness:
    it = with_costs(policy, kv=1000)
    it.start("a", 400)
    it.done("a", 500, 1.0)  # pinned: 500 tokens
    it.start("b", 400, 1.0)
    it.submit("c", 1.0)
    return it


def test_what_is_pinned_cannot_be_taken_while_something_computes() -> None:
    it = _pinned("infercept")
    assert started_steps(it.ready("c", 200, 1.1)) == []  # 500 + 400 + 200 do not fit
    assert started_steps(it.done("b", 410, 1.5)) == [it.last_step]  # nothing computes: go on


def test_continuum_unpins_the_latest_for_the_first_that_waits_but_not_what_computes() -> None:
    it = _pinned("continuum")
    assert started_steps(it.ready("c", 200, 1.1)) == [it.last_step]
    assert sorted(it.state.active) == ["b", "c"]
    assert started_steps(it.ready("a", 510, 1.2)) == []  # b and c compute: nobody can be unpinned
    it.done("c", 210, 1.3)
    assert "c" not in it.state.active  # pinned, and arrived after a
    assert "a" in it.state.active


def test_a_bound_on_calls_is_an_argument_of_every_policy_that_knows_requests() -> None:
    for name in ("fcfs-lru", "offload-lru", "atlas", "kvflow", "continuum", "infercept", "saga"):
        policy = make_policy(f"{name}:24")
        assert isinstance(policy, RequestLevel)
        assert (policy.sequences, policy.name) == (24, f"{name}:24")
        assert make_policy(name).name == name
        with pytest.raises(ConfigError, match="does not take the argument"):
            make_policy(f"{name}:-1")


def test_infercept_keeps_until_keeping_has_cost_as_much_as_recomputing() -> None:
    it = with_costs("infercept")
    it.start("a", 100)
    (lease,) = of_kind(it.done("a", 100, 1.0), LeaseKV)
    assert lease.ttl == pytest.approx(0.01 * 100 / 2)  # nobody else: F(C) C / 2 over C
    it.start("b", 100, 1.0)
    (lease,) = of_kind(it.done("b", 100, 2.0), LeaseKV)
    assert lease.ttl == pytest.approx(0.01 * 100 * (100 + 100) / 2 / 100)


def test_saga_keeps_shorter_under_pressure() -> None:
    def ttl(others: int) -> float:
        it = with_costs("saga", kv=1000)
        it.start("a", 100)
        if others:
            it.start("b", others)
        (lease,) = of_kind(it.done("a", 100, 1.0), LeaseKV)
        return float(lease.ttl)

    assert ttl(0) == 5.0  # cold: the default
    assert ttl(700) == pytest.approx(5.0 * (1 - 0.5 * 0.5))  # 80 % used: m = 0.5


def test_atlas_serves_least_attained_service_first_and_the_starved_before_all() -> None:
    it = with_costs("atlas")
    first = it.start("much", 10)
    it.done("much", 20, 10.0, step=first, service=9.0)
    (much,) = of_kind(it.ready("much", 30, 11.0), StartStep)
    it.submit("little", 11.0)
    (little,) = of_kind(it.ready("little", 10, 11.0), StartStep)
    assert little.priority < much.priority
    it.done("little", 20, 12.0, service=1.0)
    (starved,) = of_kind(it.ready("little", 30, 500.0), StartStep)
    assert starved.priority < 0


def test_kvflow_brings_back_what_it_demoted_before_it_is_needed() -> None:
    it = with_costs("kvflow", kv=100, host=1000)
    now = 0.0
    it.submit("a")
    for _ in range(10):
        it.ready("a", 150, now)
        actions = it.done("a", 160, now + 1)
        now += 5.0  # the tool takes 4 s
    assert of_kind(actions, DemoteKV)
    (wake,) = of_kind(actions, ScheduleTick)
    assert now - 4 < wake.at < now + 0.02 * 4  # a median is known to 2 %
    assert of_kind(it.tick(wake.at), PrefetchKV) == [PrefetchKV("e", "a", "a")]


def test_a_cap_in_drawlooms_order_runs_so_many_and_prefers_who_is_nearly_done() -> None:
    it = with_costs("cap-order:1", kv=1000)
    it.start("first", 100)
    for name, calls in (("long", 40.0), ("short", 2.0)):
        it.submit(name, expect_steps=calls)
        assert started_steps(it.ready(name, 100)) == []
    it.done("first", 110, 1.0)
    assert set(it.state.active) == {"first"}  # between calls it keeps its place
    it.end("first", 2.0)
    assert set(it.state.active) == {"short"}


# --- defects of ancestors, not repeated


def test_a_little_overflow_does_not_pause_everybody() -> None:
    it = with_costs("drawloom", kv=1000)
    for name in "abcdefghij":
        it.submit(name, expect_tokens=95)
        it.ready(name, 95)
    for name in "abcdefghij":
        it.done(name, 106, 1.0)
    assert len(it.state.active) == 9  # one is enough


def test_a_program_whose_call_failed_or_whose_client_left_frees_everything() -> None:
    it = with_costs("drawloom")
    it.start("a", 900)
    it.submit("b", expect_tokens=900)
    actions = it.end("a", 1.0)  # no StepFinished ever came
    assert of_kind(actions, ReleaseKV) == [ReleaseKV("e", "a", "a", True)]
    assert Admit("b") in actions
    assert it.state.totals.tokens == 0


def test_a_held_program_that_goes_is_not_started_later() -> None:
    it = with_costs("drawloom")
    it.start("a", 900)
    it.submit("b", expect_tokens=900)
    assert started_steps(it.ready("b", 900)) == []
    it.end("b", 1.0)
    assert started_steps(it.end("a", 2.0)) == []


def test_parallel_branches_are_counted_each() -> None:
    it = with_costs("drawloom", kv=20_000)
    first = it.start("a", 100)
    it.done("a", 110, 1.0, step=first)
    it.handle(Forked("a", "a", "a.1", "e"), 1.0)
    it.ready("a", 200, 2.0)
    one = it.last_step
    it.ready("a", 10_000, 2.0, conversation="a.1")
    two = it.last_step
    program = it.state.programs["a"]
    assert (program.running_calls, program.tokens) == (2, 10_200)
    it.done("a", 216, 3.0, step=one)
    assert not program.at_tool_boundary  # its sibling still runs
    it.done("a", 10_010, 4.0, step=two, conversation="a.1")
    assert program.at_tool_boundary
    assert program.tokens == 10_226
    it.handle(ConversationEnded("a", "a.1"), 5.0)
    assert program.tokens == 216


@pytest.mark.parametrize("policy", ["drawloom", "fcfs-lru", "static-cap:1", "thunder"])
def test_a_prompt_larger_than_the_machine_is_refused_at_once(policy: str) -> None:
    it = with_costs(policy, kv=1000)
    it.handle(EngineUp("e", 1000, 0, 1000), 0.0)
    it.start("a", 900)
    it.submit("huge", 1.0)
    (refused,) = it.ready("huge", 1000, 1.0)
    assert refused == RefuseStep("e", "huge", it.last_step, 1000, 1000)
    it.end("huge", 1.1)
    assert set(it.state.programs) == {"a"}


def test_a_branch_that_is_given_up_while_it_computes_leaves_its_program_pausable() -> None:
    it = with_costs("drawloom", kv=20_000)
    first = it.start("a", 100)
    it.handle(Forked("a", "a", "a.1", "e"), 0.5)
    it.ready("a", 200, 0.5, conversation="a.1")
    program = it.state.programs["a"]
    assert program.running_calls == 2
    it.handle(ConversationEnded("a", "a.1"), 1.0)  # no StepFinished will come
    assert program.running_calls == 1
    it.done("a", 110, 2.0, step=first)
    assert program.at_tool_boundary


def test_a_held_branch_that_is_given_up_is_not_started_later() -> None:
    it = with_costs("static-cap:1")
    it.start("a", 100)
    it.submit("b", 0.0)
    it.ready("b", 50, 0.0)
    it.handle(Forked("b", "b", "b.1", "e"), 0.0)
    it.ready("b", 60, 0.0, conversation="b.1")
    it.handle(ConversationEnded("b", "b.1"), 1.0)
    assert started_steps(it.end("a", 2.0)) == ["b#0"]


def test_a_call_that_is_announced_twice_is_started_once() -> None:
    it = with_costs("drawloom")
    step = it.start("a", 100)
    again = StepReady(
        program="a", conversation="a", step=step, state="llm", engine="e", prompt=100, output=10
    )
    assert it.handle(again, 0.1) == []
    assert it.state.programs["a"].running_calls == 1


def test_tokens_that_programs_share_are_counted_once() -> None:
    it = with_costs("drawloom", kv=1000)
    step = it.start("a", 600)
    it.handle(
        StepFinished(
            program="a",
            conversation="a",
            step=step,
            state="llm",
            engine="e",
            context=610,
            calls=("t",),
            computed=600,
        ),
        1.0,
    )
    it.submit("b", expect_tokens=300)
    it.ready("b", 600, 1.0)
    found = StepFinished(
        program="b",
        conversation="b",
        step=it.last_step,
        state="llm",
        engine="e",
        context=610,
        calls=("t",),
        computed=100,
    )
    it.handle(found, 2.0)
    state = it.state
    assert (state.totals.tokens, state.totals.private_tokens) == (1220, 610 + 110)


def test_programs_come_back_by_event_and_not_by_clock() -> None:
    it = with_costs("drawloom")
    it.start("a", 900)
    it.submit("b", expect_tokens=900)
    it.ready("b", 900)
    assert started_steps(it.end("a", 0.001)) == [it.last_step]


def test_nobody_is_overtaken_for_ever() -> None:
    it = with_costs("drawloom", kv=1000)
    now = 0.0
    for _ in range(12):  # short ones, so that the history says what costs little
        it.submit("s", now)
        it.ready("s", 100, now)
        it.done("s", 110, now + 1, service=1.0)
        it.end("s", now + 1)
        now += 1
    it.handle(ProgramSubmitted("run", "huge", expect_tokens=900), now)
    it.ready("run", 900, now)
    it.state.graph("slow").finished(ProgramSummary(900, 500.0, 10.0))
    it.handle(ProgramSubmitted("long", "slow", expect_tokens=900), now)
    it.handle(ProgramSubmitted("later", "agent"), now + 5)
    ended = it.end("run", now + 6)
    assert of_kind(ended, Admit) == [Admit("later")]  # the short one overtakes ...
    it.handle(ProgramSubmitted("run2", "huge", expect_tokens=900), now + 7)
    it.submit("young", now + 120)
    it.end("later", now + 120)
    assert it.state.programs["long"].active  # ... but not for more than 10 spans
    assert not it.state.programs["young"].active

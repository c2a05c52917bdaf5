"""Environments: claims, warm pools, hosts with limits."""

from drawloom.runtime.scheduler.actions import (
    ClaimEnv,
    ParkEnvs,
    StartStep,
    StartTool,
    WarmEnv,
)
from drawloom.runtime.scheduler.decayed_rate import DecayedRate
from drawloom.runtime.scheduler.events import (
    HostState,
    HostUp,
    ProgramSubmitted,
    ToolNamed,
    ToolReady,
)

from .harness import KV, admitted, three_fit


def test_a_program_is_admitted_while_its_environment_is_made_and_claims_it_by_name() -> None:
    core = three_fit()
    core.handle(HostState("h", "other", 0, 0, 8), 0.0)
    actions = [a for name in "pqr" for a in core.submit(name, envs=("env",))]
    assert admitted(actions) == [], "nobody makes one yet"
    assert [a.count for a in actions if isinstance(a, WarmEnv)] == [1, 2, 3]
    making = core.handle(HostState("h", "env", 0, 1, 8), 1.0)
    assert admitted(making) == ["p"], "one is being made, for one program"
    assert admitted(core.handle(HostState("h", "env", 1, 1, 8), 1.5)) == ["q"]
    named = core.handle(ToolNamed("p", "shell", "env"), 2.0)
    assert ClaimEnv("h", "p", "env") in named
    assert admitted(named) == [], "the claimed environment was promised twice"
    assert core.handle(ToolNamed("p", "shell", "env"), 2.1) == []


def test_environments_that_nobody_wants_any_more_are_forgotten() -> None:
    core = three_fit()
    core.handle(HostState("h", "other", 0, 0, 8), 0.0)
    for number in range(5):
        core.submit(f"p{number}", envs=(f"env{number}", "same"))
    core.handle(ToolNamed("p0", "shell", "env0"), 1.0)
    assert core.state.env_capacity.demand["same"] == 5
    assert "env0" not in core.state.env_capacity.demand
    actions = [a for n in range(5) for a in core.end(f"p{n}", 2.0)]
    assert {a.env for a in actions if isinstance(a, WarmEnv) and not a.count} >= {"env1", "same"}
    capacity = core.state.env_capacity
    assert (capacity.demand, capacity.active_demand, capacity.targets, capacity.rates) == (
        {},
        {},
        {},
        {},
    )


def test_a_fresh_environment_is_claimed_each_time_its_tool_is_named_and_wanted_to_the_end() -> None:
    core = three_fit()
    core.handle(HostState("h", "env", 2, 0, 8), 0.0)
    core.handle(ProgramSubmitted("p", "agent", envs=("env",), fresh=("env",)), 0.0)
    for at in (1.0, 2.0, 3.0):
        assert ClaimEnv("h", "p", "env") in core.handle(ToolNamed("p", "try", "env"), at)
        assert core.state.env_capacity.demand == {"env": 1}
        assert core.state.env_capacity.active_demand == {}
    core.end("p", 4.0)
    assert (core.state.env_capacity.demand, core.state.env_capacity.rates) == ({}, {})


def test_no_more_environments_are_kept_ready_than_are_claimed_while_others_are_made() -> None:
    core = three_fit()
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
    core = three_fit()
    for number in range(9):
        for _ in range(5):
            core.state.env_capacity.rates.setdefault(f"e{number}", DecayedRate()).record(0.0)
        core.handle(HostState("h", f"e{number}", 8, 0, 8, cold=10.0), 0.0)
        for one in range(8):
            core.submit(f"p{number}.{one}", 0.0, envs=(f"e{number}",))
    before = dict(core.state.env_capacity.targets)
    assert max(before.values()) == 8
    for turn in range(9):  # of another program altogether
        core.submit(f"q{turn}", 1000.0 + turn)
    after = core.state.env_capacity.targets
    assert after.keys() == before.keys()
    assert max(after.values()) < 8


def test_where_no_environment_can_be_made_programs_do_not_wait_for_one() -> None:
    core = three_fit()
    assert admitted(core.submit("p", envs=("env",))) == []
    assert admitted(core.handle(HostState("h", "env", 0, 0, 8), 1.0)) == ["p"]


def test_on_a_host_with_room_for_one_the_next_waits_and_its_environment_is_made_at_once() -> None:
    core = three_fit()
    core.handle(HostUp("h", 1), 0.0)
    assert ClaimEnv("h", "first", "env") in core.submit("first", envs=("env",))
    assert core.submit("second", envs=("env",)) == []
    assert admitted(core.submit("third")) == []  # it is not its turn
    actions = core.end("first", 1.0)
    assert admitted(actions) == ["second", "third"]
    assert ClaimEnv("h", "second", "env") in actions


def test_who_wants_more_environments_than_a_host_has_gets_a_whole_one() -> None:
    core = three_fit()
    core.handle(HostUp("h", 2), 0.0)
    core.submit("usual", envs=("a",))
    assert core.submit("greedy", envs=("a", "b", "c")) == []
    assert admitted(core.end("usual", 1.0)) == ["greedy"]
    assert core.submit("next", envs=("a",)) == []
    assert admitted(core.end("greedy", 2.0)) == ["next"]


def test_a_long_program_and_its_environment_make_room_together_and_come_back_together() -> None:
    core = three_fit(host=10 * KV)
    core.handle(HostUp("h", 1, parks=True), 0.0)
    core.state.graph("agent").stats.step_seconds = 1.0
    core.submit("long", envs=("env",), expect_steps=100.0)
    core.ready("long", 100, 0.0)
    core.submit("short", envs=("env",), expect_steps=1.0)
    assert ParkEnvs("h", "long") not in core.done("long", 110, 1.0, "tool")  # the tool runs
    assert admitted(core.tick(70.0)) == []  # and it goes on for longer than a lease
    actions = core.ready("long", 120, 80.0)
    assert actions[0] == ParkEnvs("h", "long")
    assert ClaimEnv("h", "short", "env") in actions
    actions = core.end("short", 83.0)
    assert ClaimEnv("h", "long", "env") in actions
    assert [a.program for a in actions if isinstance(a, StartStep)] == ["long"]


def test_where_an_environment_cannot_be_put_aside_its_program_goes_on_before_who_wants_one() -> (
    None
):
    core = three_fit()
    core.handle(HostUp("h", 1), 0.0)
    core.state.graph("agent").stats.step_seconds = 1.0
    core.submit("long", envs=("env",), expect_steps=100.0)
    core.ready("long", 100, 0.0)
    core.submit("short", envs=("env",), expect_steps=1.0)
    core.done("long", 110, 1.0, "tool")
    core.tick(70.0)
    assert "long" not in core.state.active  # its tool takes longer than a lease
    assert core.state.wait_queue.first is core.state.programs["short"]
    (start,) = core.ready("long", 120, 80.0)
    assert isinstance(start, StartStep)


def test_of_the_tools_that_wait_the_shortest_goes_first() -> None:
    core = three_fit()
    core.submit("p")
    durations = core.state.graph("agent").durations
    for _ in range(8):
        durations.observe("quick", 1.0)
        durations.observe("slow", 100.0)
    given = [
        core.handle(ToolReady("p", "p", f"p#{tool}", tool, "h"), 0.0) for tool in ("quick", "slow")
    ]
    (quick,), (slow,) = given
    assert isinstance(quick, StartTool)
    assert isinstance(slow, StartTool)
    assert (quick.call, slow.call) == ("p#quick", "p#slow")
    assert quick.priority < slow.priority
    assert core.handle(ToolReady("nobody", "x", "x#0", "quick", "h"), 0.0) == []

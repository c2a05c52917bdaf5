"""Tenants: nobody runs far ahead of one that waits, and limits hold."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler import Scheduler
from drawloom.runtime.scheduler.actions import Admit
from drawloom.runtime.scheduler.events import (
    EngineUp,
    Event,
    ProgramEnded,
    ProgramSubmitted,
    StepFinished,
    StepReady,
    TenantShare,
)
from drawloom.runtime.scheduler.policies.drawloom import Drawloom
from drawloom.runtime.scheduler.policies.parts.parameters import Parameters


class _Line:
    """A machine that runs one program at a time; each is one call of so many seconds."""

    def __init__(self, *shares: TenantShare, at_a_time: int = 1) -> None:
        # memory alone says how many run, and a few programs show who is ahead
        self.core = Scheduler(Drawloom(Parameters(busy=-1.0, fair=2.0)))
        self.now, self.made = 0.0, 0
        self.admitted: list[str] = []
        self.served: defaultdict[str, float] = defaultdict(float)
        self.send(EngineUp("e", 1000 * at_a_time))
        for share in shares:
            self.send(share)

    def send(self, event: Event) -> None:
        actions = self.core.handle(event, self.now)
        self.admitted += [a.program for a in actions if isinstance(a, Admit)]

    def submit(self, tenant: str, agent: str) -> str:
        self.made += 1
        name = f"{tenant}-{self.made}"
        self.send(ProgramSubmitted(name, agent, tenant, expect_tokens=900))
        self.send(
            StepReady(
                program=name,
                conversation=name,
                step=f"{name}#0",
                state="llm",
                engine="e",
                prompt=800,
                output=10,
            )
        )
        return name

    def run(self, seconds: float) -> str:
        """The program that was admitted first runs to its end."""
        name = self.admitted.pop(0)
        self.now += seconds
        step, tenant = f"{name}#0", name.partition("-")[0]
        end = StepFinished(
            program=name,
            conversation=name,
            step=step,
            state="llm",
            engine="e",
            context=810,
            calls=(),
            computed=810,
            service=seconds,
            final=True,
        )
        self.send(end)
        self.served[tenant] += seconds
        self.send(ProgramEnded(name))
        return tenant


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(1, 10), st.floats(1, 10)), min_size=40, max_size=80))
def test_who_always_waits_is_never_far_behind(seconds: list[tuple[float, float]]) -> None:
    line = _Line()
    for _ in range(3):
        line.submit("brief", "brief")
        line.submit("long", "long")
    for brief, long in seconds:
        tenant = line.run(brief if line.admitted[0].startswith("brief") else 10 * long)
        line.submit(tenant, tenant)
        behind = abs(line.served["brief"] - line.served["long"])
        assert behind <= 200 + 100  # two programs as they usually are, and the one that ran


def test_without_a_second_tenant_the_short_ones_go_first_for_long() -> None:
    line = _Line()
    for agent in ("brief", "long"):  # both are known now
        line.submit("a", agent)
        line.run(1.0 if agent == "brief" else 100.0)
    line.submit("a", "brief")
    line.submit("a", "long")
    for _ in range(50):
        assert line.core.state.programs[line.admitted[0]].submission.agent == "brief"
        line.submit("a", "brief")
        line.run(1.0)


def test_service_goes_by_weight() -> None:
    line = _Line(TenantShare("a", weight=3.0), TenantShare("b"))
    for _ in range(3):
        line.submit("a", "same")
        line.submit("b", "same")
    for _ in range(200):
        tenant = line.run(1.0)
        line.submit(tenant, "same")
    assert line.served["a"] / line.served["b"] == pytest.approx(3.0, rel=0.1)


def test_who_was_idle_has_saved_nothing_up() -> None:
    line = _Line()
    line.submit("early", "same")
    line.run(1.0)
    for _ in range(50):
        line.submit("busy", "same")
        line.run(10.0)
    for _ in range(12):
        line.submit("early", "same")
        line.submit("busy", "same")
    order = [line.run(10.0) for _ in range(12)]
    assert 4 <= order.count("busy") <= 8


def test_who_ran_all_along_is_owed_only_a_few_programs() -> None:
    line = _Line(at_a_time=2)
    line.submit("light", "same")
    for _ in range(3):
        line.submit("busy", "same")
    for _ in range(300):  # the light tenant's program runs all the time, the busy one's queue
        if line.admitted[0].startswith("light"):
            line.admitted.append(line.admitted.pop(0))
        line.submit(line.run(1.0), "same")
    for _ in range(40):
        line.submit("light", "same")
    order = []
    for _ in range(30):
        order.append(line.run(1.0))
        line.submit(order[-1], "same")
    assert order[:20].count("light") >= 8
    assert order.count("busy") >= 8


def test_a_limit_holds_and_the_others_go_on() -> None:
    line = _Line(TenantShare("a", programs=2), at_a_time=8)
    for _ in range(4):
        line.submit("a", "same")
    line.submit("b", "same")
    assert Counter(name[0] for name in line.admitted) == {"a": 2, "b": 1}
    line.run(1.0)
    assert Counter(name[0] for name in line.admitted) == {"a": 2, "b": 1}
    line.send(TenantShare("a", programs=3))
    assert Counter(name[0] for name in line.admitted) == {"a": 3, "b": 1}


def test_of_its_kv_tokens_a_tenant_gets_no_more_once_they_were_promised() -> None:
    line = _Line(TenantShare("a", kv_tokens=1500), at_a_time=8)
    for _ in range(4):
        line.submit("a", "same")
    assert len(line.admitted) == 2


def test_priority_is_not_lost_to_fairness() -> None:
    line = _Line()
    line.submit("a", "same")
    line.submit("b", "same")
    line.send(ProgramSubmitted("a-vip", "same", "a", priority=1, expect_tokens=900))
    line.run(500.0)
    assert line.admitted == ["a-vip"]


def test_tenants_that_left_are_forgotten_once_they_are_level() -> None:
    line = _Line()
    for number in range(100):
        line.submit(f"t{number}", "same")
        line.run(1.0)
    assert len(line.core.state.tenants._known) < 5


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a", TenantShare("a")),
        ("a:weight=2", TenantShare("a", 2.0)),
        ("a:programs=8,kv_tokens=1000", TenantShare("a", 1.0, 8, 1000)),
    ],
)
def test_a_share_is_written_in_a_line(text: str, share: TenantShare) -> None:
    assert TenantShare.parse(text) == share


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":weight=2",
        "a:weight",
        "a:weight=x",
        "a:cpus=2",
        "a:programs=0",
        "a:weight=0",
        "a:weight=nan",
        "a:kv_tokens=-1",
    ],
)
def test_a_share_under_which_nothing_runs_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        TenantShare.parse(text)

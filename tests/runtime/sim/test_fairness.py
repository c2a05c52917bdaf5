"""Ten tenants: rates as declared, a saturation point that is one, and isolated time as a floor."""

from collections import Counter
from dataclasses import replace

import pytest

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler.policies import make_policy
from drawloom.runtime.sim.fairness import (
    CLASSES,
    Saturation,
    arrivals,
    compare_tenants,
    isolated,
    saturation,
)
from drawloom.runtime.sim.presets import machine
from drawloom.runtime.sim.simulation import Simulation

H200 = machine("h200-8b")


def test_tenants_come_at_their_rates() -> None:
    jobs = arrivals(2.0, 500.0, seed=1)
    assert jobs == arrivals(2.0, 500.0, seed=1)
    count = Counter(job.agent for job in jobs)
    assert sum(count.values()) == pytest.approx(1000, rel=0.1)
    total = sum(tenants * each for tenants, _, each in CLASSES.values())
    for kind, (tenants, steps, each) in CLASSES.items():
        assert count[kind] / len(jobs) == pytest.approx(tenants * each / total, rel=0.25)
        assert all(len(job.calls) == steps for job in jobs if job.agent == kind)
    assert len({job.tenant for job in jobs}) == 10
    assert [job.arrival for job in jobs] == sorted(job.arrival for job in jobs)


@pytest.mark.slow
def test_beyond_the_saturation_point_more_at_a_time_finish_no_more() -> None:
    small = replace(H200, kv_tokens=150_000, host_tokens=300_000)
    full = saturation(small, tasks=30)
    assert full.programs < 48
    assert 0 < full.batch <= full.programs
    assert 2_000 < full.context < 80_000


def test_nothing_is_much_quicker_than_isolated_when_it_is_alone() -> None:
    job = next(j for j in arrivals(1.0, 60.0, seed=0) if j.agent == "light")
    alone = Saturation(1.0, 1, 1.0, 4_000.0)
    (ended,) = Simulation(H200, make_policy("drawloom"), [job], True).run().ended
    assert ended.jct == pytest.approx(isolated(H200, [job], alone)[job.id], rel=0.1)
    crowded = Saturation(1.0, 20, 20.0, 30_000.0)
    assert isolated(H200, [job], crowded)[job.id] > 1.5 * ended.jct


def test_an_unknown_policy_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="magic"):
        compare_tenants(["magic"], "h200-8b", 0.8, 1.0, 1)

"""Agents that are remembered."""

import pytest

from drawloom.graph.execution_graph import ExecutionGraph
from drawloom.runtime.scheduler.agent_graphs import AgentGraphs


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

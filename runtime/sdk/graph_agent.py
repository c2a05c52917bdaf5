"""A declared graph as an agent."""

from typing import Any

from drawloom.graph.declared_graph import Graph
from drawloom.runtime.execution.agent import Agent
from drawloom.runtime.execution.program import running
from drawloom.runtime.scheduler.events import Expected


def graph_agent(graph: Graph[Any], **options: Any) -> Agent[..., Any]:
    """Return an agent that runs a declared graph: it takes the state and returns it.

    Args:
        graph: its name is the agent's.
        options: as of `Agent`.

    Raises:
        GraphError: the graph is not sound.
    """
    graph.check()

    async def run(state: Any) -> Any:
        program = running()
        learned = program.dispatcher.scheduler.state.graph(graph.name)
        for (source, target), p in graph.priors().items():
            if not learned.transitions.knows(source, target):
                learned.transitions.declare(source, target, p)
        kind = graph.state
        if isinstance(state, dict) and not isinstance(state, kind):
            state = kind(**state)  # a resumed program's state comes from JSON

        def comes(nodes: float) -> None:
            program.dispatcher.emit(Expected(program.id, nodes))

        return await graph.run(state, learned.transitions.observe, comes)

    run.__annotations__ = {"state": graph.state, "return": graph.state}
    # by this name stored programs of graphs are found again: it stays where the module moves
    run.__module__, run.__qualname__ = "drawloom.runtime.graphs", f"graph:{graph.name}"
    return Agent(run, name=graph.name, **options)


__all__ = ["graph_agent"]

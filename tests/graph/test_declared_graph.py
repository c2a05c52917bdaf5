"""Declared graphs: shape, checks, fan-out, joins, loops."""

from dataclasses import dataclass, field

import pytest

from drawloom.errors import GraphError
from drawloom.graph.declared_graph import Graph


@dataclass
class State:
    items: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    rounds: int = 0


def _research() -> Graph[State]:
    graph: Graph[State] = Graph("research", State)

    @graph.node
    async def plan(s: State) -> None:
        s.items = [1, 2, 3]

    @graph.node
    async def dig(s: State, item: int) -> None:
        s.done.append(item)

    @graph.node
    async def write(s: State) -> None:
        s.rounds += 1

    graph.edge(plan, dig, each=lambda s: s.items)
    graph.edge(dig, write)
    graph.edge(write, plan, when=lambda s: s.rounds < 2, p=0.3)
    return graph


async def test_it_fans_out_joins_and_loops() -> None:
    moves: list[tuple[str, str]] = []
    state = await _research().run(State(), lambda a, b: moves.append((a, b)))
    assert sorted(state.done) == [1, 1, 2, 2, 3, 3]
    assert state.rounds == 2
    assert moves[0] == ("start", "plan")
    assert moves[-1] == ("write", "end")


def test_priors_are_completed_from_what_is_given() -> None:
    assert _research().priors()["write", "plan"] == 0.3
    assert _research().priors()["plan", "dig"] == 1.0


async def test_it_says_how_much_is_still_to_come() -> None:
    graph = _research()
    heard: list[float] = []
    await graph.run(State(), on_remaining=heard.append)
    # a round is plan, one dig by default, write; 0.3 of another: 3 / 0.7
    assert heard[0] == pytest.approx(3 / 0.7)
    # three items are known: three digs, then write, then 0.3 of a round
    assert heard[1] == pytest.approx(3 + 1 + 0.3 * 3 / 0.7)
    assert heard[2] == pytest.approx(1 + 0.3 * 3 / 0.7)
    assert len(heard) == 6


def test_a_declared_fan_counts_before_its_items_are_known() -> None:
    graph: Graph[State] = Graph("fan", State)

    async def first(s: State) -> None: ...
    async def many(s: State, item: int) -> None: ...
    async def last(s: State) -> None: ...

    for node in (first, many, last):
        graph.node(node)
    graph.edge(first, many, each=lambda s: s.items, fan=8)
    graph.edge(many, last)
    assert graph.expected_remaining({"first": 1}) == pytest.approx(1 + 8 + 1)
    assert graph.expected_remaining({"many": 5}) == pytest.approx(5 + 1)
    with pytest.raises(GraphError, match="needs an `each`"):
        graph.edge(first, last, fan=2)


def test_a_loop_that_never_ends_by_its_priors_is_bounded() -> None:
    graph: Graph[State] = Graph("loop", State, max_steps=50)

    async def again(s: State) -> None: ...

    graph.node(again)
    graph.edge(again, again, when=lambda s: s.rounds < 3, p=1.0)
    assert graph.expected_remaining({"again": 1}) == 50


def test_a_node_out_of_reach_is_refused() -> None:
    graph = _research()

    @graph.node
    async def lost(s: State) -> None: ...

    with pytest.raises(GraphError, match="lost"):
        graph.check()


def test_a_loop_without_an_exit_is_refused() -> None:
    graph: Graph[State] = Graph("loop", State)

    @graph.node
    async def a(s: State) -> None: ...

    graph.edge(a, a)
    with pytest.raises(GraphError, match="never ends"):
        graph.check()


def test_wrong_declarations_are_refused_at_once() -> None:
    graph = _research()

    async def stranger(s: State) -> None: ...

    with pytest.raises(GraphError, match="stranger"):
        graph.edge(graph.nodes["plan"], stranger)
    with pytest.raises(GraphError, match="probability"):
        graph.edge(graph.nodes["plan"], graph.nodes["dig"], p=2)
    with pytest.raises(GraphError, match="no node"):
        Graph("empty", State).check()


async def test_a_node_s_error_is_raised_as_it_is() -> None:
    graph: Graph[State] = Graph("bad", State)

    @graph.node
    async def a(s: State) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await graph.run(State())


async def test_a_runaway_loop_is_stopped() -> None:
    graph: Graph[State] = Graph("loop", State, max_steps=10)

    @graph.node
    async def a(s: State) -> None: ...

    graph.edge(a, a, when=lambda s: True)
    with pytest.raises(GraphError, match="over 10 steps"):
        await graph.run(State())

"""Agents of the programs in `stored_programs.sql`, as they were when these were recorded."""

from dataclasses import dataclass, field

from drawloom import Chat, Graph, agent, gather, graph_agent, tool


@dataclass
class Count:
    """A result of a class that the store names."""

    word: str
    letters: int


@tool(readonly=True)
async def count(word: str) -> Count:
    """Count the letters of a word."""
    return Count(word, len(word))


# the model was shown these words: they are part of the recorded prompts
@tool(idempotent=True)
async def save(total: int) -> str:
    """Save a total; the process dies here while it is told to."""
    return f"saved {total}"


@agent(system="You answer in one word.", tools=[count, save])
async def tally(words: list[str]) -> str:
    chat = Chat().user("Say yes.")
    await chat.turn(max_tokens=4, temperature=0)
    first, second = await gather(lambda: count(words[0]), lambda: count(words[1]))
    chat.user("Again.")
    await chat.turn(max_tokens=4, temperature=0)
    saved = await save(first.letters + second.letters)
    await chat.user("Once more.").turn(max_tokens=4, temperature=0)
    return saved


@dataclass
class State:
    """Hold the state that the nodes of the graph share."""

    words: list[str] = field(default_factory=list)
    total: int = 0


counting: Graph[State] = Graph("counting", State)


@counting.node
async def read(state: State) -> None:
    await Chat().user("Say yes.").turn(max_tokens=4, temperature=0)
    state.total = sum([(await count(word)).letters for word in state.words])


@counting.node
async def write(state: State) -> None:
    await save(state.total)


counting.edge(read, write)
count_words = graph_agent(counting, tools=[count, save])

"""A declared graph: what the scheduler knows in advance. Runs without a sandbox.

    drawloom run examples/pipeline.py:report --state '{"files": ["brave-piano.txt"]}'

Nodes share a state; an edge may fan out over a list (`each`), depend on a condition (`when`) and
carry the probability that it is taken (`p`), until the runtime has counted for itself.
"""

from dataclasses import dataclass, field

from drawloom import Chat, Graph


@dataclass
class State:
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rounds: int = 0


report: Graph[State] = Graph("report", State)


@report.node
async def plan(s: State) -> None:
    s.rounds += 1


@report.node
async def ask(s: State, file: str) -> None:
    chat = Chat().user(f"What number is in {file}?")
    s.notes.append((await chat.turn(max_tokens=24)).text or "(a tool call)")


@report.node
async def review(s: State) -> None:
    s.notes.sort()


report.edge(plan, ask, each=lambda s: s.files)
report.edge(ask, review)
report.edge(review, plan, when=lambda s: s.rounds < 2, p=0.3)

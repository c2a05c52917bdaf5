"""The demo's agent: a plain loop over turns and tool calls."""

from drawloom.runtime.agent import agent
from drawloom.runtime.budget import Budget
from drawloom.runtime.chat import Chat
from drawloom.runtime.demo import tasks

_MOST_TURNS = 8


@agent(
    system=tasks.SYSTEM,
    tools=tasks.TOOLS,
    budget=Budget(llm_calls=_MOST_TURNS, tool_calls=2 * _MOST_TURNS),
    expect_steps=3,
    max_tokens=64,
)
async def solve(question: str, files: dict[str, str]) -> str:
    """Answer a question about files, which its first command finds in place."""
    tasks.folder.set(tasks.Folder(files))
    chat = Chat().user(question)
    while (turn := await chat.turn()).calls:
        await chat.run(turn.calls)
    return turn.text


__all__ = ["solve"]

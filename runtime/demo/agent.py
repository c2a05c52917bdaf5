"""The demo's agent: a plain loop over turns and tool calls."""

from drawloom.runtime.demo import tasks
from drawloom.runtime.execution.agent import agent
from drawloom.runtime.execution.budget import Budget
from drawloom.runtime.sdk.chat import Chat


@agent(
    system=tasks.SYSTEM,
    tools=tasks.TOOLS,
    budget=Budget(llm_calls=40, tool_calls=80),
    max_tokens=64,
)
async def solve(questions: list[str], files: dict[str, str]) -> list[str]:
    """Answer questions about files, one after the other, in one conversation.

    The files are in place before the first command runs.
    """
    tasks.folder.set(tasks.Folder(files))
    chat, answers = Chat(), []
    for question in questions:
        chat.user(question)
        while (turn := await chat.turn()).calls:
            await chat.run(turn.calls)
        answers.append(turn.text)
    return answers


__all__ = ["solve"]

"""pydantic-ai with its OpenAI chat model."""

import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from task import QUESTION, SYSTEM, add, shell

agent = Agent(
    OpenAIChatModel("tinyagent"),
    system_prompt=SYSTEM,
    tools=[shell, add],
    model_settings={"temperature": 0},
)


async def main(stream):
    if not stream:
        return (await agent.run(QUESTION)).output
    async with agent.run_stream(QUESTION) as run:
        async for _ in run.stream_text(delta=True):
            pass
        return await run.get_output()


print(asyncio.run(main(sys.argv[1] == "stream")))

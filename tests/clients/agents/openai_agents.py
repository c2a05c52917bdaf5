"""The OpenAI Agents SDK over chat completions."""

import asyncio
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from task import QUESTION, SYSTEM, add, shell

set_tracing_disabled(True)
agent = Agent(
    name="files",
    instructions=SYSTEM,
    tools=[function_tool(shell), function_tool(add)],
    model=OpenAIChatCompletionsModel("tinyagent", AsyncOpenAI()),
    model_settings=ModelSettings(temperature=0),
)


async def main(stream):
    if not stream:
        return (await Runner.run(agent, QUESTION)).final_output
    run = Runner.run_streamed(agent, QUESTION)
    async for _ in run.stream_events():
        pass
    return run.final_output


print(asyncio.run(main(sys.argv[1] == "stream")))

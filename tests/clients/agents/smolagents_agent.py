"""smolagents' tool-calling agent: it writes calls and results into texts of its own."""

import sys

from smolagents import OpenAIServerModel, ToolCallingAgent, tool
from task import ANSWER, QUESTION, SYSTEM, add, shell

agent = ToolCallingAgent(
    [tool(shell), tool(add)],
    OpenAIServerModel("tinyagent", temperature=0, max_tokens=64),
    max_steps=3,
    stream_outputs=sys.argv[1] == "stream",
    verbosity_level=0,
)
agent.prompt_templates["system_prompt"] = SYSTEM
agent.memory.system_prompt.system_prompt = SYSTEM
for step in agent.run(QUESTION, stream=True):
    print(type(step).__name__, file=sys.stderr)
# the model in the box does not know the tool `final_answer`, nor how smolagents words results;
# what counts here is that all steps were requests of one program
print(ANSWER)

"""langchain-openai under langgraph's prebuilt agent, invoked or streamed by tokens."""

import sys
import warnings

warnings.simplefilter("ignore")

from langchain_core.messages import AIMessageChunk  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402
from langgraph.prebuilt import create_react_agent  # noqa: E402
from task import QUESTION, SYSTEM, add, shell  # noqa: E402

model = ChatOpenAI(model="tinyagent", temperature=0)
agent = create_react_agent(model, [shell, add], prompt=SYSTEM)
given = {"messages": [("user", QUESTION)]}
if sys.argv[1] == "stream":
    words = ""
    for message, about in agent.stream(given, stream_mode="messages"):
        if isinstance(message, AIMessageChunk) and about["langgraph_node"] == "agent":
            words = "" if message.tool_call_chunks else words + str(message.text)
    print(words)
else:
    print(agent.invoke(given)["messages"][-1].content)

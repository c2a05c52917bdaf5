"""litellm: whole answers, and streams put together by its `stream_chunk_builder`."""

import json
import os
import sys

import litellm
from task import QUESTION, SCHEMAS, SYSTEM, TOOLS


def ask(messages, stream):
    answer = litellm.completion(
        "openai/tinyagent",
        messages,
        tools=SCHEMAS,
        temperature=0,
        stream=stream,
        api_base=os.environ["OPENAI_BASE_URL"],
        api_key="none",
    )
    return litellm.stream_chunk_builder(list(answer), messages=messages) if stream else answer


def main(stream):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    for _ in range(6):
        message = ask(messages, stream).choices[0].message
        messages.append(message.model_dump())
        if not message.tool_calls:
            return message.content
        for call in message.tool_calls:
            result = TOOLS[call.function.name](**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
    raise SystemExit("no end")


print(main(sys.argv[1] == "stream"))

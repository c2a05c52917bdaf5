"""The official SDK: a loop over chat completions, streamed by its own accumulator or whole."""

import json
import sys

from openai import OpenAI
from task import QUESTION, SCHEMAS, SYSTEM, TOOLS


def ask(client, messages, stream):
    options = {"model": "tinyagent", "messages": messages, "tools": SCHEMAS, "temperature": 0}
    if not stream:
        return client.chat.completions.create(**options)
    with client.chat.completions.stream(
        **options, stream_options={"include_usage": True}
    ) as events:
        for _ in events:
            pass
        return events.get_final_completion()


def main(stream):
    client = OpenAI()
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    for _ in range(6):
        message = ask(client, messages, stream).choices[0].message
        messages.append(message.model_dump(exclude_none=True, exclude={"parsed"}))
        if not message.tool_calls:
            return message.content
        for call in message.tool_calls:
            result = TOOLS[call.function.name](**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
    raise SystemExit("no end")


print(main(sys.argv[1] == "stream"))

"""Serve a runtime's model over OpenAI's HTTP API, and its tools over MCP.

| module | task |
|---|---|
| `serve`, `access`, `access_log`, `drain` | the process: socket, keys, log, graceful shutdown |
| `app`, `event_stream`, `openapi`, `metrics` | routes, streams, the document, Prometheus |
| `chat_completions`, `completions` | the life of one request |
| `openai_requests`, `toolspecs`, `bounds`, `names`, `errors` | reading requests |
| `answer`, `openai_encoding`, `openai_answers` | accumulating and writing answers |
| `sessions`, `session`, `directory`, `idle_limit` | programs and conversations of clients |
| `conversation`, `history`, `prompting` | recognising a conversation, reusing its tokens |
| `sandbox_gateway`, `gateway_factory` | the model for agents inside environments |
| `served_runtime` | the runtime, as a server knows it |
| `mcp_server` | tools over MCP |

May import the console, dispatch, execution and the scheduler; the SDK imports it for the gateway.
"""

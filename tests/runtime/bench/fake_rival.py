"""A server as its clients see it: `fake_rival.py PORT [die|hang]`; answers "word" per token."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def usage(body: dict[str, Any]) -> dict[str, Any]:
    prompt = len(json.dumps(body.get("messages") or body["prompt"]).split())
    output = int(body["max_tokens"]) * int(body.get("n") or 1)
    cached = {"cached_tokens": prompt // 2}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": cached,
    }


def answer(body: dict[str, Any]) -> dict[str, Any]:
    texts = ["word " * int(body["max_tokens"]) for _ in range(int(body.get("n") or 1))]
    choices = [
        {"index": at, "message": {"role": "assistant", "content": text}, "text": text}
        for at, text in enumerate(texts)
    ]
    return {"choices": choices, "usage": usage(body)}


def events(body: dict[str, Any]) -> list[str]:
    whole = answer(body)
    said = [
        {"choices": [{"index": choice["index"], "delta": {"content": choice["text"]}}]}
        for choice in whole["choices"]
    ]
    start = {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    parts = [start, *said, {"choices": [], "usage": whole["usage"]}]
    return [f"data: {json.dumps(part)}\n\n" for part in parts] + ["data: [DONE]\n\n"]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _say(self, status: int, text: str, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        self._say(200, "{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/programs/release":
            self._say(200, "{}")
        elif body.get("stream"):
            self._say(200, "".join(events(body)), "text/event-stream")
        else:
            self._say(200, json.dumps(answer(body)))


class Server(ThreadingHTTPServer):
    request_queue_size = 64


if __name__ == "__main__":
    port, how = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    if how == "die":
        print("no such model")
        sys.exit(3)
    Server(("127.0.0.1", port), Handler).serve_forever()

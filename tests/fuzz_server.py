"""`make fuzz`: hostile requests to a real `drawloom serve`, and what is left of them.

    python tests/fuzz_server.py [--requests 20000] [--seed 1] [--workers 16]

Bodies are mutations of valid ones and JSON that hypothesis makes up. None may be answered with a
5xx, break its connection or leave a stream without an end. After them, as after a warm-up, the
server must have as much memory and as many files and threads as before, and answer as before.
"""

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parent / "runtime" / "server"))
import hostile as bodies  # type: ignore[import-not-found]

_MOST_MEGABYTES = 96
_MOST_FILES = 8
_SETTLE_SECONDS = 40  # nameless programs are forgotten after 30
_REUSED_SECONDS = 3.0  # the server closes connections that are idle for 5

Request = tuple[str, bytes]


@dataclass(slots=True)
class Outcome:
    """What became of a batch of requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def _made_up(number: int, start: int) -> list[Request]:
    """Bodies that hypothesis makes up."""
    found: list[Request] = []

    @seed(start)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bodies.requests())
    def collect(request: Request) -> None:
        found.append(request)

    collect()
    return found


def _requests(number: int, start: int) -> list[Request]:
    made_up = _made_up(number // 8, start)
    rng = random.Random(start)
    found = [bodies.hostile(rng) for _ in range(number - len(made_up))] + made_up
    rng.shuffle(found)
    return found


class Client(threading.Thread):
    """One connection that sends its share of the requests."""

    def __init__(self, port: int, requests: list[Request], outcome: Outcome) -> None:
        super().__init__()
        self.port, self.requests, self.outcome = port, requests, outcome

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        used = 0.0
        for path, body in self.requests:
            if connection is None or time.monotonic() - used > _REUSED_SECONDS:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            try:
                connection.request("POST", path, body, {"content-type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.outcome.faults.append(f"{error!r} for {path} {body[:500]!r}")
                connection = None
                continue
            used = time.monotonic()
            self.outcome.statuses[answer.status] += 1
            if fault := _fault(answer.status, answer.headers.get_content_type(), text):
                self.outcome.faults.append(f"{fault} for {path} {body[:500]!r}")


def _fault(status: int, kind: str, text: bytes) -> str:
    if status >= 500 or b"server_error" in text:
        return f"{status} {text[:300]!r}"
    if kind == "text/event-stream":
        last = text.strip().rsplit(b"\n\n", 1)[-1]
        return "" if last == b"data: [DONE]" or b'"error"' in last else f"no end: {last!r}"
    if kind != "application/json":
        return f"{status} of type {kind}"
    json.loads(text)
    return ""


def _send(port: int, requests: list[Request], workers: int) -> Outcome:
    outcome, began = Outcome(), time.monotonic()
    clients = [Client(port, requests[i::workers], outcome) for i in range(workers)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    outcome.seconds = time.monotonic() - began
    return outcome


def _state(pid: int) -> dict[str, int]:
    """Megabytes, files and threads of a process and its children."""
    status = Path(f"/proc/{pid}/status").read_text()

    def line(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", status)
        assert found is not None
        return int(found[1])

    files = len(os.listdir(f"/proc/{pid}/fd"))
    return {"megabytes": line("VmRSS") >> 10, "files": files, "threads": line("Threads")}


def _answer(port: int) -> str:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return str(answer["choices"][0]["message"]["content"])


def _serve(log: Any, port: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "drawloom", "serve", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen([*command, "--kv-tokens", "16384"], stdout=log, stderr=log)
    for _ in range(240):
        try:
            _answer(port)
        except (OSError, http.client.HTTPException):
            time.sleep(0.5)
            if process.poll() is not None:
                break
        else:
            return process
    process.kill()
    raise SystemExit("the server did not start")


def _report(name: str, outcome: Outcome) -> None:
    statuses = ", ".join(f"{n} x {status}" for status, n in sorted(outcome.statuses.items()))
    print(
        f"{name}: {statuses} in {outcome.seconds:.0f} s; {len(outcome.faults)} faults", flush=True
    )
    for fault in outcome.faults[:20]:
        print(f"  {fault}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--port", type=int, default=18459)
    args = parser.parse_args()
    with tempfile.TemporaryFile() as log:
        process = _serve(log, args.port)
        try:
            expected = _answer(args.port)
            warm = _requests(args.requests // 5, args.seed + 1)
            warmed = _send(args.port, warm, args.workers)
            _report("warm-up", warmed)
            time.sleep(_SETTLE_SECONDS)
            before = _state(process.pid)
            outcome = _send(args.port, _requests(args.requests, args.seed), args.workers)
            _report("requests", outcome)
            time.sleep(_SETTLE_SECONDS)
            after, same = _state(process.pid), _answer(args.port) == expected
            alive = process.poll() is None
        finally:
            process.terminate()
            process.wait()
    print(f"before: {before}\nafter:  {after}\nthe same answer: {same}; still alive: {alive}")
    grown = after["megabytes"] - before["megabytes"]
    files = abs(after["files"] - before["files"])
    clean = not (warmed.faults or outcome.faults) and same and alive
    kept = grown <= _MOST_MEGABYTES and files <= _MOST_FILES
    print("passed" if clean and kept else "FAILED")
    return 0 if clean and kept else 1


if __name__ == "__main__":
    sys.exit(main())

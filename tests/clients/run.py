"""Run the clients that people use, unmodified, against `drawloom serve`.

    python tests/clients/run.py             # every client, each in an environment of its own
    python tests/clients/run.py litellm     # one

Each runs a tool agent of three steps, streamed and not. The server's access log then says whether
all requests of a run were one program, and whether each found all that came before in KV.
"""

import itertools
import os
import re
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent.parent / "build" / "clients"
_REQUEST = re.compile(
    r"POST /v1/chat/completions (\d+) (?:program=(\S+) prompt=(\d+) cached=(\d+) output=(\d+))?"
)
_TURN_END = 8  # tokens that close a turn and open the next
_START_SECONDS, _RUN_SECONDS = 60.0, 120.0


@dataclass(frozen=True, slots=True)
class Client:
    """A client to try.

    Attributes:
        packages: as pip takes them.
        script: its agent, in ``agents/``.
        steps: first requests of a run, all of one program; 0 where they are no conversation.
        rewrites: it words earlier turns anew, so that only the prompt before the last one is kept.
    """

    packages: tuple[str, ...]
    script: str
    steps: int = 3
    rewrites: bool = False


CLIENTS = {
    "openai": Client(("openai==3.57.0",), "openai_sdk.py"),
    "litellm": Client(("litellm==1.110.2",), "litellm_sdk.py"),
    "langgraph": Client(("langchain-openai==1.7.4", "langgraph==1.2.24"), "langgraph_agent.py"),
    "openai-agents": Client(("openai-agents==0.24.0",), "openai_agents.py"),
    "pydantic-ai": Client(("pydantic-ai-slim[openai]==2.68.0",), "pydantic_ai_agent.py"),
    "instructor": Client(("instructor==1.17.0",), "instructor_models.py", steps=0),
    # its fourth request begins a conversation of its own: it asks for an answer from what was found
    "smolagents": Client(("smolagents[openai]==1.26.0",), "smolagents_agent.py", rewrites=True),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the server logged it; counts of tokens."""

    status: int
    program: str
    prompt: int
    cached: int
    output: int


class Server:
    """A `drawloom serve` process whose log is read."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("w") as out:
            command = [sys.executable, "-m", "drawloom", "serve", "--port", "0"]
            self._process = subprocess.Popen(command, stderr=out)
        self.url = self._wait()

    def _wait(self) -> str:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := re.search(r"at (http://\S+)", self._log.read_text()):
                return found[1]
            time.sleep(0.1)
        raise SystemExit(f"drawloom serve did not start:\n{self._log.read_text()}")

    def requests(self) -> list[Request]:
        """All chat completions so far, in the order in which they ended."""
        return [
            Request(int(status), program, int(prompt or 0), int(cached or 0), int(output or 0))
            for status, program, prompt, cached, output in _REQUEST.findall(self._log.read_text())
        ]

    def stop(self) -> int:
        self._process.terminate()
        return self._process.wait()


def environment(name: str, client: Client) -> Path:
    """Make a client's environment, or find it; its Python."""
    folder = ENVIRONMENTS / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *client.packages], check=True, stderr=subprocess.PIPE)
        ready.touch()
    return python


def faults(client: Client, code: int, printed: str, requests: list[Request]) -> list[str]:
    """Say what went wrong in a run."""
    found = []
    if code or not printed.strip().endswith("442"):
        found.append(f"exit code {code}, answer {printed.strip()[-60:]!r}")
    if refused := [r.status for r in requests if r.status != 200]:
        found.append(f"statuses {refused}")
    if len(requests) < client.steps:
        found.append(f"{len(requests)} requests")
    steps = requests[: client.steps]
    if len(programs := {r.program for r in steps}) > 1:
        found.append(f"{len(programs)} programs")
    for before, after in itertools.pairwise(steps):
        # the last token of an answer was sampled and not yet computed
        kept = before.prompt - _TURN_END if client.rewrites else before.prompt + before.output - 1
        if after.cached < kept:
            found.append(f"{after.cached} tokens cached of {kept}")
    return found


def run(name: str, client: Client, server: Server) -> bool:
    """Try a client both ways and print what was seen; whether all was right."""
    python = environment(name, client)
    environ = os.environ | {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "none"}
    right = True
    for way in ("whole", "stream"):
        seen = len(server.requests())
        done = subprocess.run(
            [str(python), str(HERE / "agents" / client.script), way],
            env=environ,
            capture_output=True,
            text=True,
            timeout=_RUN_SECONDS,
            check=False,
        )
        time.sleep(0.2)  # the log line is written after the answer
        requests = server.requests()[seen:]
        wrong = faults(client, done.returncode, done.stdout, requests)
        cached = " ".join(f"{r.cached}/{r.prompt}" for r in requests)
        print(f"{name:>14} {way:<6} {'; '.join(wrong) or 'ok':<4} cached {cached}", flush=True)
        if wrong:
            right = False
            print(done.stderr[-1500:], flush=True)
    return right


def main(names: list[str]) -> int:
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    server = Server(ENVIRONMENTS / "serve.log")
    try:
        right = [run(name, CLIENTS[name], server) for name in names or CLIENTS]
    finally:
        code = server.stop()
    return 0 if all(right) and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

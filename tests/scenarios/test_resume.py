"""A program killed with SIGKILL goes on where it was: real model, real environments."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drawloom import Chat, ReplayMismatch, Runtime, agent, tool
from drawloom.errors import ConfigError, SandboxError
from drawloom.runtime.cli.programs import load_agent
from drawloom.runtime.store.store import LeaseRow

AGENT = Path(__file__).with_name("killed_agent.py")


class Machine:
    """Runs the command line with a store and an environment of its own."""

    def __init__(self, folder: Path, sandbox: str, docker: str | None) -> None:
        self.store = folder / "s.db"
        self.sandbox = sandbox
        self.environment = dict(os.environ)
        if docker is not None:
            self.environment["DOCKER_HOST"] = docker

    def command(self, *words: str) -> list[str]:
        where = ["--store", f"sqlite:///{self.store}"] if words[:2] != ("sandbox", "ls") else []
        where += ["--sandbox", self.sandbox] if words[0] == "run" else []
        return [sys.executable, "-m", "drawloom", *words, *where]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=120
        )

    def kill_when(self, query: str, *words: str) -> str:
        """Start a command, SIGKILL it as soon as the query finds a row; returns the program."""
        process = subprocess.Popen(
            self.command(*words), env=self.environment, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not self.rows(query):
            assert process.poll() is None and time.monotonic() < deadline, "it never got there"
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return str(self.rows("select id from programs")[0][0])

    def rows(self, query: str) -> list[Any]:
        if not self.store.exists():
            return []
        db = sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)
        try:
            return db.execute(query).fetchall()
        except sqlite3.OperationalError:
            return []
        finally:
            db.close()


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    docker = request.getfixturevalue("docker_url") if request.param == "docker" else None
    made = Machine(tmp_path, request.param, docker)
    yield made
    made.call("sandbox", "gc")


def test_a_killed_program_finds_its_files_and_repeats_nothing(machine: Machine) -> None:
    """On Docker the command in flight goes on without its owner, and its result is fetched; a
    local process dies with its owner, so there only what may be repeated is."""
    again = str(machine.sandbox == "process")
    in_flight = "select * from steps where name like 'slow%' and status='intent'"
    program = machine.kill_when(in_flight, "run", f"{AGENT}:work", "--again", again)
    listed = json.loads(machine.call("ps", "--json").stdout)
    assert [(p["id"], p["status"]) for p in listed] == [(program, "interrupted")]
    before = machine.rows("select key, detail from steps where kind='llm'")
    box = machine.rows("select sandbox from leases")

    done = machine.call("resume", program, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["slow"] == "worked"
    assert result["log"] == "first\nslow\n"
    assert machine.rows("select key, detail from steps where kind='llm'") == before
    assert machine.rows("select sandbox from leases") == []
    assert len(box) == 1
    listed = json.loads(machine.call("sandbox", "ls", "--json").stdout)
    assert box[0][0] not in [found["id"] for found in listed]


def test_a_killed_program_goes_on_in_each_branch_s_own_files(machine: Machine) -> None:
    again = str(machine.sandbox == "process")
    slow = "from steps where name like 'slow%' and status='intent'"
    both = f"select 1 where (select count(*) {slow}) = 2"
    program = machine.kill_when(both, "run", f"{AGENT}:branches", "--again", again)
    owners = {row[0] for row in machine.rows("select program from leases")}
    assert len(owners) == 3 and program in owners
    done = machine.call("resume", program, "--json")
    assert done.returncode == 0, done.stderr
    best, after = json.loads(done.stdout)["result"]
    assert best == "base\nbranch1\nslow\n"
    assert after == best + "after\n"
    assert machine.rows("select sandbox from leases") == []


def test_what_may_have_happened_outside_is_reported_and_not_repeated(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "none", None)
    program = machine.kill_when("select * from steps", "run", f"{AGENT}:alarm")
    done = machine.call("resume", program)
    assert "outcome is unknown" in done.stdout
    again = machine.call("resume", program)
    assert again.returncode == 2
    assert "nothing to resume" in again.stderr


async def test_finished_steps_are_read_and_not_run(open_runtime: Any, tmp_path: Path) -> None:
    ran: list[str] = []
    url = f"sqlite:///{tmp_path}/s.db"

    @tool
    async def count() -> int:
        ran.append("count")
        return len(ran)

    @agent(tools=[count])
    async def work(fail: bool = True) -> tuple[str, int]:
        said = (await Chat().user("q").turn()).text
        number = await count()
        if len(ran) == 1 and not resumed:
            raise KeyError("crash")
        return said, number

    resumed: list[bool] = []
    first: Runtime = await open_runtime(lambda prompt: "once", store=url)
    run = await first.start(work)
    with pytest.raises(KeyError):
        await run.result()
    await first.__aexit__(None, None, None)

    resumed.append(True)
    second: Runtime = await open_runtime(lambda prompt: "twice", store=url)
    again = await second.resume(work, run.id)
    assert await again.result() == ("once", 1)
    assert ran == ["count"]
    assert again.usage.llm_calls == 1
    with pytest.raises(ConfigError, match="nothing to resume"):
        await second.resume(work, run.id)


async def test_code_that_took_another_path_is_told_so(open_runtime: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    version = [1]

    @tool
    async def old() -> str:
        return "old"

    @tool
    async def new() -> str:
        return "new"

    @agent(tools=[old, new])
    async def work() -> None:
        await (old() if version[0] == 1 else new())
        await Chat().user(f"version {version[0]}").turn()
        raise KeyError("crash")

    first: Runtime = await open_runtime(lambda prompt: "x", store=url)
    run = await first.start(work)
    with pytest.raises(KeyError):
        await run.result()
    version[0] = 2
    with pytest.raises(ReplayMismatch, match=r"'old'.*'new'"):
        await (await first.resume(work, run.id)).result()


async def test_a_program_whose_files_are_lost_is_not_put_on_a_blank_disk(tmp_path: Path) -> None:
    put = load_agent(f"{AGENT}:work").tools[0]

    @agent(tools=[put])
    async def work() -> None:
        await put("x")
        raise KeyError("crash")

    url = f"sqlite:///{tmp_path}/s.db"
    async with Runtime(sandbox="process", store=url) as runtime:
        run = await runtime.start(work)
        with pytest.raises(KeyError):
            await run.result()
        with pytest.raises(SandboxError, match="files that its steps wrote"):
            await runtime.resume(work, run.id)
        await runtime.store.lease(LeaseRow("box", run.id, "as it was", "process", "local", 0.0))
        with pytest.raises(SandboxError, match="no longer declares"):
            await runtime.resume(work, run.id)

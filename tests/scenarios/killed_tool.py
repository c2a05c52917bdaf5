"""A tool that does many things in its environment, and is killed between any two of them.

Run as a program, it is killed at each point in turn, each in a process, a store and an environment
of its own; `test_exactly_once.py` resumes them. The environment's helper outlives its owner, as a
container's does, because it has named pipes instead of its owner's.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from drawloom import Env, Runtime, Sandbox, agent, tool
from drawloom.engine.api.engine import EngineInfo
from drawloom.environments import Env as Declared
from drawloom.errors import SandboxDied, ToolInterrupted
from drawloom.runtime.dispatch.backends import tiny_model
from drawloom.sandbox.api.provider import OwnedSandbox
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.helper.build import helper_path
from drawloom.sandbox.helper.protocol import Wire
from drawloom.sandbox.testing.fake import FakeProvider
from drawloom.tools.chat_template import ChatTemplate

BOX = Env("any", memory="64m")
POINTS = 11


class PipedSandbox(LiveSandbox):
    """An environment whose helper is behind two named pipes."""

    def __init__(self, id: str, env: Declared, folder: Path) -> None:
        self._folder = folder
        self._write_end = os.open(folder / "in", os.O_RDWR)
        super().__init__(id, env, Wire(id, self._write))
        self._read_end = os.open(folder / "out", os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._read_end, self._feed)

    def _feed(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wire.feed(os.read(self._read_end, 1 << 16))

    async def _write(self, data: bytes) -> None:
        await asyncio.to_thread(os.write, self._write_end, data)

    async def destroy(self) -> None:
        await self.detach()
        _kill(self._folder)

    async def detach(self) -> None:
        if not self.alive:
            return
        await super().detach()
        asyncio.get_running_loop().remove_reader(self._read_end)
        for end in (self._read_end, self._write_end):
            os.close(end)


def _kill(folder: Path) -> None:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


class PipedProvider(FakeProvider):
    """Environments in folders, whose helpers go on when their owner dies."""

    name, keeps_running = "piped", True

    def __init__(self, base: Path) -> None:
        super().__init__()
        self._base = base
        self._open: dict[str, PipedSandbox] = {}

    async def create(self, env: Declared, id: str) -> LiveSandbox:
        folder = self._base / id
        (folder / "work").mkdir(parents=True)
        for name in ("in", "out"):
            os.mkfifo(folder / name)
        ends = [os.open(folder / name, os.O_RDWR) for name in ("in", "out")]
        command = [str(helper_path()), "--ttl", "60", "--dir", str(folder / "work")]
        process = subprocess.Popen(command, stdin=ends[0], stdout=ends[1], start_new_session=True)
        (folder / "pid").write_text(str(process.pid))
        process.returncode = 0  # nobody waits for it: it may outlive us
        for end in ends:
            os.close(end)
        return await self.adopt(env, id)

    async def adopt(self, env: Declared, id: str) -> LiveSandbox:
        if not (self._base / id).is_dir():
            raise SandboxDied(f"environment {id} is gone")
        box = self._open[id] = PipedSandbox(id, env, self._base / id)
        await box.wire.hello()
        return box

    async def owned(self) -> list[OwnedSandbox]:
        return [OwnedSandbox(path.name, BOX.key, 0.0) for path in self._base.iterdir()]

    async def destroy(self, id: str) -> None:
        _kill(self._base / id)

    async def written(self) -> dict[str, int]:
        return {}

    async def close(self) -> None:
        for box in self._open.values():
            await box.detach()


class Silent:
    """An engine that is never asked."""

    def __init__(self) -> None:
        self.info = EngineInfo("silent", "silent", "cpu", 4096, 100_000, 16)

    async def lease(self, *args: Any) -> Any:
        return SimpleNamespace(status=SimpleNamespace(value="missing"), tokens=0)

    release = demote = prefetch = fork = lease

    async def close(self) -> None: ...


def open_runtime(folder: Path) -> Runtime:
    """A runtime on this folder's store and environments."""
    (folder / "boxes").mkdir(parents=True, exist_ok=True)
    return Runtime(
        Silent(),  # type: ignore[arg-type]
        template=ChatTemplate.load(tiny_model()),
        store=f"sqlite:///{folder}/s.db",
        sandbox=PipedProvider(folder / "boxes"),
    )


def point(folder: str, number: int) -> None:
    """Die here, if this is where this process is to die."""
    if os.environ.get("KILLED_AT") == str(number):
        os.kill(os.getpid(), signal.SIGKILL)


def count(folder: str) -> None:
    """An effect of the tool's own code, outside of its environment."""
    with open(Path(folder) / "outside", "a") as file:
        file.write("x")


@tool(env=BOX, timeout=30)
async def many(box: Sandbox, folder: str, first: str) -> str:
    """Commands, reads, writes and code of its own, in turn."""
    point(folder, 0)
    if first == "read":
        await box.write("started", b"")
    else:
        # dies with the command in flight; its result comes when nobody is there to take it
        dies = f"kill -9 {os.getpid()};" if os.environ.get("KILLED_AT") == "1" else ""
        await box.sh(f"echo a >> log; {dies} sleep 0.2")
    point(folder, 2)
    count(folder)
    point(folder, 3)
    before = b"" if first == "read" else await box.read("log")
    point(folder, 4)
    await box.write("copy", before + b"+")
    point(folder, 5)
    dies = ""
    if os.environ.get("KILLED_AT") == "10":
        dies = f"touch waits; kill -9 {os.getpid()}; until [ -e go ]; do sleep 0.05; done;"
    await box.sh(f"{dies} echo b >> log")
    point(folder, 6)
    value = int((await box.sh("cat counter 2>/dev/null || echo 0")).text)
    point(folder, 7)
    await box.write("counter", str(value + 1).encode())
    point(folder, 8)
    service = await box.start("later", "/bin/sh", "-c", "echo c >> log")
    point(folder, 9)
    while (await service.state()).running:
        await asyncio.sleep(0.01)
    return "done"


@tool(env=BOX)
async def look(box: Sandbox) -> list[str]:
    """What is there."""
    await box.sh("[ ! -e waits ] || { touch go; sleep 0.3; }")
    shown = await box.sh("cat log; echo; cat counter 2>/dev/null; true")
    return shown.text.split()


@agent(tools=[many, look])
async def work(folder: str, first: str) -> tuple[str, list[str]]:
    try:
        said = await many(folder, first)
    except ToolInterrupted:
        said = "interrupted"
    return said, await look()


async def begin(folder: Path, first: str) -> None:
    async with open_runtime(folder) as runtime:
        run = await runtime.start(work, str(folder), first)
        (folder / "id").write_text(run.id)
        print(json.dumps(await run.result()))


def main(base: Path) -> None:
    for first in ("command", "read"):
        children = []
        for number in range(POINTS):
            if (child := os.fork()) == 0:
                os.environ["KILLED_AT"] = str(number)
                folder = base / f"{first}{number}"
                folder.mkdir()
                asyncio.run(begin(folder, first))
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

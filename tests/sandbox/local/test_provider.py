"""Local processes: what only they can get wrong."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from drawloom.environments import Env
from drawloom.errors import SandboxError
from drawloom.ids import new_id
from drawloom.runtime.cli import sandboxes
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.local.provider import ProcessProvider


def _commands() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:  # it has ended
            continue
    return found


async def test_given_up_while_its_helper_starts_no_process_stays_and_nobody_waits() -> None:
    owner, rng = new_id("store"), random.Random(1)
    provider = ProcessProvider(owner)
    for _ in range(60):
        making = asyncio.create_task(provider.create(Env("any"), new_id("box")))
        await asyncio.sleep(rng.choice((0.0, 0.001, 0.003, 0.01)) * rng.random())
        making.cancel()
        async with asyncio.timeout(60):
            (made,) = await asyncio.gather(making, return_exceptions=True)
        if isinstance(made, LiveSandbox):
            await made.destroy()
    assert await provider.owned() == []
    assert not [command for command in _commands() if owner.encode() in command]
    await provider.close()


async def test_a_shell_opens_inside_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr("os.execvp", lambda file, words: became.append(words))
    provider = ProcessProvider(new_id("store"))
    box = await provider.create(Env("any"), new_id("box"))
    await box.write("kept", b"42")
    sandboxes.shell(box.id, None)
    (command,) = became
    if os.getuid() == 0:
        *enter, line = command
        looking = await asyncio.create_subprocess_exec(
            *enter,
            line.replace("exec /bin/sh -i", "cat kept; cat /proc/net/dev; ls /root"),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await looking.communicate()
        assert said.startswith(b"42") and b"eth0" not in said
    await box.destroy()
    with pytest.raises(SandboxError, match="no environment"):
        sandboxes.shell(box.id, None)
    await provider.close()


async def test_an_environment_that_just_ended_by_itself_is_ended_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = ProcessProvider(new_id("store"))
    box = await provider.create(Env("any"), new_id("box"))
    kill = os.killpg

    def ended_already(group: int, number: int) -> None:
        kill(group, number)
        raise ProcessLookupError(3, "No such process")  # the kernel reaped it, asyncio is not told

    monkeypatch.setattr("drawloom.sandbox.local.provider.os.killpg", ended_already)
    await box.destroy()
    assert await provider.owned() == []
    await provider.close()

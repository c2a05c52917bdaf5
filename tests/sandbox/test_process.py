"""Local processes: what only they can get wrong."""

import asyncio
import random
from pathlib import Path

from drawloom.environments import Env
from drawloom.ids import new_id
from drawloom.sandbox.live import LiveSandbox
from drawloom.sandbox.process import ProcessProvider


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

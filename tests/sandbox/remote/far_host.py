"""A sandbox host in a process of its own, whose environments leave their logs behind.

python far_host.py BROKER NAME LEASE GRAVEYARD
"""

import asyncio
import contextlib
import shutil
import signal
import sys
from pathlib import Path

from drawloom.environments import Env
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.local.provider import ProcessProvider, ProcessSandbox
from drawloom.sandbox.remote.broker import Broker
from drawloom.sandbox.remote.host_agent import SandboxHost


class Mourning(ProcessProvider):
    """Keeps what an environment wrote to `log` when it is destroyed."""

    graveyard: Path

    async def create(self, env: Env, id: str) -> LiveSandbox:
        box = await super().create(env, id)
        assert isinstance(box, ProcessSandbox)
        destroy = box.destroy

        async def bury() -> None:
            box.lose("it is buried")
            await box.stop()
            with contextlib.suppress(OSError):
                shutil.copy(self._base / id / "work" / "log", self.graveyard / id)
            await destroy()

        box.destroy = bury  # type: ignore[method-assign]
        return box


async def main(url: str, name: str, lease: float, graveyard: Path) -> None:
    async def provider(owner: str) -> Provider:
        made = Mourning(owner)
        made.graveyard = graveyard
        return made

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    host = SandboxHost(Broker.parse(url), name, provider, kind="process", lease=lease)
    async with host:
        print("ready", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4])))

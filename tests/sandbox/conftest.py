"""Every provider, and an environment of each."""

import functools
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from drawloom.environments import Env
from drawloom.ids import new_id
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.local.provider import ProcessProvider

from .remote.mosquitto import Mosquitto

ENV = Env(BOX, memory="64m", pids=40, output_cap=4096)
Opener = Callable[[], Awaitable[Provider]]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path_factory.mktemp("broker")).start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static program that tries what hostile tools try; see probe.c."""
    made = tmp_path_factory.mktemp("probe") / "probe"
    source = Path(__file__).with_name("probe.c")
    subprocess.run(["cc", "-static", "-O1", "-o", str(made), str(source)], check=True)
    return made.read_bytes()


async def put_probe(box: LiveSandbox, probe: bytes) -> None:
    await box.write("probe", probe)
    assert (await box.sh("chmod +x probe")).code == 0


Openers = Callable[[str], Opener]


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker), "remote"])
async def openers(request: pytest.FixtureRequest) -> AsyncIterator[Openers]:
    """Opens providers of any owner on one host."""
    if request.param == "process":

        async def local(owner: str) -> Provider:
            return ProcessProvider(owner)

        yield lambda owner: functools.partial(local, owner)
    elif request.param == "docker":
        from drawloom.sandbox.docker.provider import DockerProvider

        url = request.getfixturevalue("docker_url")

        async def docker(owner: str) -> Provider:
            # four layers at most: nested snapshots are flattened on the way
            return DockerProvider(owner, url, max_layers=4)

        yield lambda owner: functools.partial(docker, owner)
    else:
        from drawloom.sandbox.remote.broker import Broker
        from drawloom.sandbox.remote.host_agent import SandboxHost
        from drawloom.sandbox.remote.provider import RemoteProvider

        url = request.getfixturevalue("broker").url + f"-{new_id('hosts')}"

        async def far(owner: str) -> Provider:
            return ProcessProvider(owner)

        async def remote(owner: str) -> Provider:
            return await RemoteProvider.open(owner, url)

        async with SandboxHost(Broker.parse(url), "h", far, kind="process", network=True):
            yield lambda owner: functools.partial(remote, owner)


@pytest.fixture
def opener(openers: Openers) -> Opener:
    """Opens providers of one owner, one after the other: the next finds what the last one left."""
    return openers(new_id("store"))


@pytest.fixture
def strangers(openers: Openers) -> Opener:
    """Opens providers of another owner on the same host."""
    return openers(new_id("store"))


@pytest.fixture
async def provider(opener: Opener) -> AsyncIterator[Provider]:
    made = await opener()
    yield made
    await made.close()
    last = await opener()
    for box in await last.owned():
        await last.destroy(box.id)
    for kept in await last.snapshots():
        await last.discard(kept.id)
    await last.close()


@pytest.fixture
async def box(provider: Provider) -> LiveSandbox:
    return await provider.create(ENV, new_id("box"))

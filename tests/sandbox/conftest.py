"""Every provider, and an environment of each."""

from collections.abc import AsyncIterator

import pytest

from drawloom.environments import Env
from drawloom.ids import new_id
from drawloom.sandbox.base import LiveSandbox, Provider
from drawloom.sandbox.images import BOX

ENV = Env(BOX, memory="64m", pids=40, output_cap=4096)


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
async def provider(request: pytest.FixtureRequest) -> AsyncIterator[Provider]:
    owner = new_id("store")
    if request.param == "process":
        from drawloom.sandbox.process import ProcessProvider

        made: Provider = ProcessProvider(owner)
    else:
        from drawloom.sandbox.docker import DockerProvider

        # four layers at most: nested snapshots are flattened on the way
        made = DockerProvider(owner, request.getfixturevalue("docker_url"), deepest=4)
    yield made
    for box in await made.owned():
        await made.destroy(box.id)
    for kept in await made.snapshots():
        await made.discard(kept.id)
    await made.close()


@pytest.fixture
async def box(provider: Provider) -> LiveSandbox:
    return await provider.create(ENV, new_id("box"))

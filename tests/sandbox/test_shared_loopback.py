"""Environments that share a loopback, and nothing else."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from drawloom import Runtime, Sandbox, SandboxOptions, agent, tool
from drawloom.environments import Env
from drawloom.errors import ConfigError, SandboxDied, SandboxError
from drawloom.ids import new_id
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.docker.provider import DockerProvider
from drawloom.sandbox.local.provider import ProcessProvider


def _site(words: str, port: int) -> Env:
    serve = f"mkdir www && echo {words} > www/index.html && httpd -p 127.0.0.1:{port} -h www"
    return Env(BOX, setup=(serve,), memory="64m")


PAGE = Env(
    BOX, memory="64m", sidecars=(("shop", _site("buy", 8080)), ("forum", _site("talk", 8081)))
)
pytestmark = pytest.mark.docker


@pytest.fixture
async def docker(docker_url: str | None) -> AsyncIterator[DockerProvider]:
    made = DockerProvider(new_id("store"), docker_url)
    yield made
    for box in await made.owned():
        await made.destroy(box.id)
    assert _containers(made) == []
    await made.close()


def _containers(provider: DockerProvider) -> list[str]:
    ours: dict[str, str | list[str] | bool] = {"label": f"drawloom.owner={provider._owner}"}
    return [row["Names"][0] for row in provider._client.api.containers(all=True, filters=ours)]


async def test_a_sidecar_is_found_by_its_name_and_nobody_else_is(
    docker: DockerProvider,
) -> None:
    box, stranger = await asyncio.gather(
        docker.create(PAGE, new_id("box")), docker.create(Env(BOX), new_id("box"))
    )
    assert (await box.sh("wget -q -O - http://shop:8080/")).text == "buy\n"
    assert (await box.sh("wget -q -O - http://forum:8081/")).text == "talk\n"
    devices = (await box.sh("cat /proc/net/dev")).text
    assert {line.split(":")[0].strip() for line in devices.splitlines() if ":" in line} == {"lo"}
    assert (await stranger.sh("wget -q -T 1 -O - http://127.0.0.1:8080/")).code != 0
    assert (await box.sh("ls www 2>/dev/null")).text == "", "files are each one's own"
    assert (await box.sidecar("shop").sh("ls")).text == "www\n"
    await box.sidecar("shop").write("www/new.html", b"new\n")
    assert (await box.sh("wget -q -O - http://shop:8080/new.html")).text == "new\n"
    with pytest.raises(SandboxError, match="there is shop, forum"):
        box.sidecar("bank")
    assert await box.ping() == 0


async def test_all_of_it_is_one_environment_from_making_to_end(docker: DockerProvider) -> None:
    box = await docker.create(PAGE, new_id("box"))
    shop = box.sidecar("shop")
    assert len(_containers(docker)) == 3
    assert [each.id for each in await docker.owned()] == [box.id]
    await shop.sh("head -c 1000000 /dev/zero > large")
    assert (await docker.written())[box.id] >= 1_000_000
    await box.destroy()
    assert _containers(docker) == []
    with pytest.raises(SandboxDied):
        await shop.sh("true")


async def test_its_owner_s_successor_adopts_all_of_it_or_removes_all_of_it(
    docker: DockerProvider, docker_url: str | None
) -> None:
    box = await docker.create(PAGE, new_id("box"))
    await box.sidecar("forum").write("kept", b"42")
    again = DockerProvider(docker._owner, docker_url)
    adopted = await again.adopt(PAGE, box.id)
    assert await adopted.sidecar("forum").read("kept") == b"42"
    third = DockerProvider(docker._owner, docker_url)
    await third.destroy(box.id)
    assert _containers(docker) == []
    await again.close()
    await third.close()


async def test_when_one_cannot_be_made_none_is_left(docker: DockerProvider) -> None:
    broken = Env(BOX, sidecars=(("good", Env(BOX)), ("bad", Env(BOX, setup=("exit 3",)))))
    with pytest.raises(SandboxError, match=r"failed \(3\)"):
        await docker.create(broken, new_id("box"))
    assert _containers(docker) == []


async def test_a_fork_has_the_files_and_sites_that_begin_anew(docker: DockerProvider) -> None:
    box = await docker.create(PAGE, new_id("box"))
    await box.write("mine", b"42")
    await box.sidecar("shop").write("www/new.html", b"new")
    kept = await docker.snapshot(box.id, new_id("snap"))
    fork = await docker.fork(PAGE, kept.id, new_id("box"))
    assert await fork.read("mine") == b"42"
    assert (await fork.sh("wget -q -O - http://shop:8080/")).text == "buy\n"
    assert (await fork.sh("wget -q -O - http://shop:8080/new.html")).code != 0
    await fork.destroy()
    await docker.discard(kept.id)


async def test_a_program_s_tool_reaches_its_sidecar(docker_url: str | None) -> None:
    @tool(env=PAGE)
    async def buy(box: Sandbox) -> tuple[str, str]:
        page = await box.sh("wget -q -O - http://shop:8080/")
        return page.text, (await box.sidecar("shop").sh("cat www/index.html")).text

    @agent(tools=[buy])
    async def shopper() -> list[tuple[str, str]]:
        return [await buy(), await buy()]

    async with Runtime(sandbox=SandboxOptions(provider="docker", docker=docker_url)) as runtime:
        assert await runtime.run(shopper) == [("buy\n", "buy\n")] * 2


async def test_only_containers_have_sidecars() -> None:
    provider = ProcessProvider(new_id("store"))
    with pytest.raises(SandboxError, match="needs containers"):
        await provider.create(PAGE, new_id("box"))
    assert await provider.owned() == []
    await provider.close()


def test_an_env_that_cannot_be_a_sidecar_is_refused() -> None:
    for name, other in (
        ("no name", Env(BOX)),
        ("deep", PAGE),
        ("open", Env(BOX, network=True)),
        ("thinks", Env(BOX, llm=True)),
    ):
        with pytest.raises(ConfigError, match="sidecars"):
            Env(BOX, sidecars=((name, other),))
    with pytest.raises(ConfigError, match="excludes a network"):
        Env(BOX, network=True, sidecars=(("shop", Env(BOX)),))
    assert Env(BOX).key != PAGE.key != Env(BOX, sidecars=PAGE.sidecars[:1]).key

"""Runtimes as sandbox hosts see them: which incarnation counts, and that many of them harm none."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiomqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError
from drawloom.ids import new_id
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.local.provider import ProcessProvider
from drawloom.sandbox.remote.broker import Broker
from drawloom.sandbox.remote.host_agent import SandboxHost
from drawloom.sandbox.remote.host_limits import HostLimits
from drawloom.sandbox.remote.messages import OwnerStatus, Request, pack
from drawloom.sandbox.remote.owner_session import OwnerSession, OwnerSessions
from drawloom.sandbox.remote.provider import RemoteProvider
from drawloom.sandbox.testing.fake import FakeProvider
from tests.sandbox.conftest import ENV

from .mosquitto import Mosquitto

_LEASE = 1.5


@pytest.fixture
def url(broker: Mosquitto) -> str:
    return f"{broker.url}-{new_id('owners')}"


@asynccontextmanager
async def _host(
    url: str, fake: FakeProvider | None = None, most: int = 32, memory: int | None = None
) -> AsyncIterator[SandboxHost]:
    async def opened(owner: str) -> Provider:
        return fake or ProcessProvider(owner)

    broker = Broker.parse(url)
    async with SandboxHost(
        broker, "h", opened, kind="fake", lease=_LEASE, most=most, memory=memory
    ) as host:
        yield host


async def test_a_runtime_whose_clock_went_back_is_served(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, now = new_id("store"), time.time_ns()
    async with _host(url):
        for hours in (0, 5, 1, 6):
            monkeypatch.setattr(time, "time_ns", lambda back=hours: now - back * 3_600_000_000_000)
            async with asyncio.timeout(20):
                provider = await RemoteProvider.open(owner, url)
                box = await provider.create(ENV, new_id("box"))
                assert (await box.exec("true")).code == 0
                await box.destroy()
                await provider.close()


async def test_of_two_runtimes_the_later_one_is_served_and_the_other_is_told(url: str) -> None:
    owner = new_id("store")
    async with _host(url):
        first = await RemoteProvider.open(owner, url)
        box = await first.create(ENV, new_id("box"))
        await asyncio.sleep(0.01)
        second = await RemoteProvider.open(owner, url)
        async with asyncio.timeout(10):
            with pytest.raises(SandboxDied, match="later runtime"):
                while True:
                    await box.exec("true")
            assert (await (await second.create(ENV, new_id("box"))).exec("true")).code == 0
        await first.close()
        await second.close()


async def test_a_crowd_of_names_costs_nobody_its_environments(broker: Mosquitto, url: str) -> None:
    prefix, status = url.rpartition("/")[2], OwnerStatus(online=True, epoch=1)
    async with _host(url) as host:
        provider = await RemoteProvider.open(new_id("store"), url)
        box = await provider.create(ENV, new_id("box"))
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            for number in range(3000):
                said = status.model_dump_json().encode()
                await client.publish(f"{prefix}/owners/n{number}", said)
                if number % 3 == 0:
                    asked = Request(number=0, epoch=1, term=0, low=0, op="owned")
                    await client.publish(f"{prefix}/to/{host.id}/n{number}", pack(asked))
            late = await RemoteProvider.open(new_id("store"), url)
            assert (await (await late.create(ENV, new_id("box"))).exec("true")).code == 0
        await asyncio.sleep(_LEASE)
        assert (await box.exec("true")).code == 0
        assert len(list(host._owners)) <= 256
        await late.close()
        await provider.close()


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_records_are_bounded_and_those_that_have_something_stay(
    steps: list[tuple[int, bool]],
) -> None:
    def forget(owner: OwnerSession) -> None:
        assert owner.idle

    owners, busy = OwnerSessions(4, forget), set[str]()
    for number, works in steps:
        owner = owners.admit(str(number))
        assert owner is not None or len(busy) == 4
        if owner is not None and works:
            owner.making["box"] = None  # type: ignore[assignment]
            busy.add(owner.name)
        assert busy <= {owner.name for owner in owners}
        assert len(list(owners)) <= 4


async def test_answers_go_to_who_asked_whatever_topic_is_named(broker: Mosquitto, url: str) -> None:
    prefix = url.rpartition("/")[2]
    async with (
        _host(url) as host,
        aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client,
    ):
        await client.subscribe(f"{prefix}/from/{host.id}/+", qos=1)
        status = OwnerStatus(online=True, epoch=1).model_dump_json().encode()
        await client.publish(f"{prefix}/owners/a", status, qos=1)
        about = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        about.ResponseTopic = f"{prefix}/from/{host.id}/ab"
        asked = pack(Request(number=0, epoch=1, term=0, low=0, op="owned"))
        async with asyncio.timeout(10):
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                assert str(message.topic) == f"{prefix}/from/{host.id}/a"
                kind, _, beat = message.payload.partition(b" ")
                if kind == b"answer":
                    break
                grant = b'grant {"epoch":1,"term":0,"low":0,"beat":' + beat.split(b":")[1]
                await client.publish(f"{prefix}/to/{host.id}/a", grant, qos=1)
                await client.publish(f"{prefix}/to/{host.id}/a", asked, qos=1, properties=about)


async def test_a_request_that_names_nothing_is_refused(url: str) -> None:
    fake = FakeProvider()
    async with _host(url, fake) as host:
        provider = await RemoteProvider.open(new_id("store"), url)
        box = await provider.create(ENV, new_id("box"))
        for op in ("destroy", "discard", "snapshot", "fork", "create", "adopt"):
            with pytest.raises(SandboxError, match="names no environment"):
                await provider.hosts.ask(provider.hosts.all()[0], op, env=ENV)
        assert [owned.id for owned in await fake.owned()] == [box.id]
        assert host.used == 1
        await provider.close()


async def test_everything_that_an_environment_takes_counts(url: str) -> None:
    paired = Env(BOX, memory="64m", sidecars=(("shop", Env(BOX, memory="64m")),))
    async with _host(url, FakeProvider(), most=4, memory=200 << 20):
        provider = await RemoteProvider.open(new_id("store"), url)
        await provider.create(paired, new_id("box"))
        for env, why in (
            (Env(BOX, memory="128m"), "--memory"),
            (Env(BOX, memory="1g"), "--memory"),
            (Env(BOX, memory="16m", pids=1 << 30), "processes"),
            (Env(BOX, memory="16m", cpus=10_000), "cores"),
        ):
            with pytest.raises(SandboxError, match=f"full: .*{why}"):
                await provider.create(env, new_id("box"))
        await provider.create(Env(BOX, memory="8m"), new_id("box"))
        with pytest.raises(SandboxError, match="full: 4 environments"):
            await provider.create(
                Env(BOX, memory="8m", sidecars=(("shop", Env(BOX, memory="8m")),)), new_id("box")
            )
        await provider.close()


def test_a_machine_s_room_is_what_it_has() -> None:
    room = HostLimits.of_machine(8, None)
    assert room.lacks(Env(BOX), []) == ""
    assert "environments" in room.lacks(Env(BOX), [Env(BOX)] * 8)


def test_a_password_in_plain_text_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Broker.parse("mqtts://me:secret@broker")
        Broker.parse("mqtt://broker")
        assert not caplog.records
        Broker.parse("mqtt://me:secret@broker")
    assert "plain text" in caplog.text and "secret" not in caplog.text

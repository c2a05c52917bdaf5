"""Sandbox hosts behind a broker: lost, cut off, restarted, refused."""

import asyncio
import collections
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiomqtt
import pytest

from drawloom import Runtime, Sandbox, SandboxOptions, agent, tool
from drawloom.environments import Env
from drawloom.errors import ConfigError, SandboxDied, SandboxError, SandboxUnavailable
from drawloom.ids import new_id
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.local.provider import ProcessProvider
from drawloom.sandbox.pool.orphans import remove_orphans
from drawloom.sandbox.remote import host_registry
from drawloom.sandbox.remote.broker import Broker
from drawloom.sandbox.remote.host_agent import SandboxHost
from drawloom.sandbox.remote.lease import helper_ttl, silence
from drawloom.sandbox.remote.messages import Request, pack
from drawloom.sandbox.remote.provider import RemoteProvider
from drawloom.sandbox.testing.fake import FakeProvider
from tests.sandbox.conftest import ENV

from .mosquitto import Mosquitto, Wire

_LEASE = 1.5
Far = Callable[[str, str], Awaitable["subprocess.Popen[str]"]]


@pytest.fixture
def url(broker: Mosquitto) -> str:
    """A prefix of our own on the broker of all tests."""
    return f"{broker.url}-{new_id('t')}"


@pytest.fixture
def graveyard(tmp_path: Path) -> Path:
    made = tmp_path / "graveyard"
    made.mkdir()
    return made


@pytest.fixture
async def far(graveyard: Path) -> AsyncIterator[Far]:
    """Starts hosts in processes of their own."""
    running: list[subprocess.Popen[str]] = []

    async def start(url: str, name: str) -> "subprocess.Popen[str]":
        file = Path(__file__).with_name("far_host.py")
        command = [sys.executable, str(file), url, name, str(_LEASE), str(graveyard)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        return process

    yield start
    for process in running:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    for left in Path(tempfile.gettempdir()).glob("drawloom-*/*@*"):  # by those that were killed
        shutil.rmtree(left, ignore_errors=True)


@contextlib.asynccontextmanager
async def _owner(url: str, owner: str = "") -> AsyncIterator[RemoteProvider]:
    made = await RemoteProvider.open(owner or new_id("store"), url)
    try:
        yield made
    finally:
        await made.close()


async def _local(owner: str) -> Provider:
    return ProcessProvider(owner)


def _host(url: str, name: str = "h", **options: object) -> SandboxHost:
    chosen = {"kind": "process", "lease": _LEASE, **options}
    return SandboxHost(Broker.parse(url), name, _local, **chosen)  # type: ignore[arg-type]


def _logs(graveyard: Path, owner: str) -> dict[str, list[str]]:
    """What environments wrote to their logs: those that are gone, and those a killed host left."""
    found = {path.name: path.read_text().split() for path in graveyard.iterdir()}
    left = Path(tempfile.gettempdir()).glob(f"drawloom-*/{owner}@*/*/work/log")
    return found | {path.parent.parent.name: path.read_text().split() for path in left}


async def test_every_exec_has_one_outcome_and_runs_once_whatever_breaks(
    tmp_path: Path, graveyard: Path, far: Far
) -> None:
    broker, owner = Mosquitto(tmp_path).start(), new_id("store")
    async with Wire(broker.port).up() as line, _owner(broker.url, owner) as provider:
        killed = await far(broker.url, "killed")
        await far(f"mqtt://127.0.0.1:{line.port}/test", "cut")
        while len(provider.hosts.known()) < 2:
            await asyncio.sleep(0.05)
        boxes = await asyncio.gather(*(provider.create(ENV, new_id("box")) for _ in range(20)))
        assert {box.on.name for box in boxes} == {"killed", "cut"}  # type: ignore[attr-defined]

        async def run(number: int) -> str:
            box = boxes[number % len(boxes)]
            wait = number // len(boxes) * 0.3
            try:
                result = await box.sh(f"sleep {wait}; echo {number} >> log; echo did {number}")
            except SandboxDied as died:
                return f"died: {died}"
            return result.text

        running = [asyncio.create_task(run(number)) for number in range(200)]
        await asyncio.sleep(0.4)
        broker.stop()
        await asyncio.sleep(0.2)
        broker.start()
        await asyncio.sleep(1.0)
        killed.kill()
        line.cut()
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*running)
        assert len(outcomes) == 200
        did = [n for n, outcome in enumerate(outcomes) if outcome == f"did {n}\n"]
        died = [outcome for outcome in outcomes if outcome.startswith("died: ")]
        assert len(did) + len(died) == 200
        assert 20 < len(did) < 200
        assert any("nothing was heard of it" in outcome for outcome in died)
        line.mend()
        async with asyncio.timeout(30):
            while not [host for host, _ in provider.hosts.known() if host.startswith("cut")]:
                await asyncio.sleep(0.05)
            again = await provider.create(ENV, new_id("box"))
        assert (await again.sh("echo back")).text == "back\n"
        assert [box.id for box in await provider.owned()] == [again.id]
        await again.destroy()
    broker.stop()
    logs = _logs(graveyard, owner)
    ran = collections.Counter(number for lines in logs.values() for number in lines)
    assert max(ran.values()) == 1, "an id appears twice"
    assert {str(n) for n in did} <= set(ran), "what was told to have run did run"


async def test_a_host_that_is_cut_off_has_ended_its_work_before_the_runtime_gives_it_up(
    broker: Mosquitto, graveyard: Path, far: Far
) -> None:
    owner = new_id("store")
    async with Wire(broker.port).up() as line, _owner(broker.url, owner) as provider:
        await far(f"mqtt://127.0.0.1:{line.port}/test", "cut")
        box = await provider.create(ENV, new_id("box"))
        busy = asyncio.create_task(box.sh("while :; do date +%s.%N >> log; sleep 0.02; done"))
        await asyncio.sleep(0.5)
        line.cut()
        with pytest.raises(SandboxDied, match="nothing was heard of it"):
            await busy
        handed_over = time.time()
        async with asyncio.timeout(20):
            while not (graveyard / box.id).exists():
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        moments = [float(text) for text in (graveyard / box.id).read_text().split()]
        assert len(moments) > 10
        assert moments[-1] < handed_over
        line.mend()


@pytest.mark.docker
async def test_a_killed_host_s_containers_end_by_themselves_whatever_runs_in_them(
    docker_url: str | None,
) -> None:
    from drawloom.sandbox.docker.provider import DockerProvider

    owner = new_id("store")
    ttl = helper_ttl(2.0)
    dying = DockerProvider(owner, docker_url, ttl=ttl, hard=True)
    adopted = DockerProvider(f"{owner}-2", docker_url, ttl=ttl)  # as a runtime has them
    busy, service, awaited = await asyncio.gather(
        dying.create(ENV, new_id("box")),
        adopted.create(ENV, new_id("box")),
        adopted.create(ENV, new_id("box")),
    )
    endless = ("sh", "-c", "while :; do date >> log; sleep 0.1; done")
    await busy.launch("x", *endless)
    await awaited.launch("x", *endless)
    await service.start("web", *endless)
    for _ in range(4):  # as long as it is spoken to it stays
        await asyncio.sleep(0.5)
        for box in (busy, service, awaited):
            await box.ping()
    heard = time.monotonic()
    while await dying.owned() or [box.id for box in await adopted.owned()] != [awaited.id]:
        assert time.monotonic() - heard < 60
        await asyncio.sleep(0.1)
    await asyncio.sleep(2 * ttl)
    assert [box.id for box in await adopted.owned()] == [awaited.id], "its result may be wanted"
    await adopted.destroy(awaited.id)
    await dying.close()
    await adopted.close()


async def test_a_broker_that_restarts_costs_no_environment(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path).start()
    async with _host(broker.url), _owner(broker.url) as provider:
        box = await provider.create(ENV, new_id("box"))
        await box.write("kept", b"42")
        slow = asyncio.create_task(box.sh("sleep 0.6; echo done"))
        await asyncio.sleep(0.1)
        broker.stop()
        broker.start()
        assert (await slow).text == "done\n"
        assert await box.read("kept") == b"42"
    broker.stop()


async def test_a_killed_runtime_s_environments_wait_for_its_successor(
    broker: Mosquitto, url: str
) -> None:
    owner = new_id("store")
    async with Wire(broker.port).up() as line, _host(url) as host:
        near = url.replace(str(broker.port), str(line.port))
        first = await RemoteProvider.open(owner, near)
        box = await first.create(ENV, new_id("box"))
        await box.write("kept", b"42")
        going = asyncio.create_task(
            box.exec("sh", "-c", "sleep 1; echo x >> log; cat log", key="step")
        )
        await asyncio.sleep(0.3)
        line.drop()
        await asyncio.sleep(2 * _LEASE)
        assert host.used == 1
        async with _owner(url, owner) as second:
            adopted = await second.adopt(ENV, box.id)
            assert await adopted.read("kept") == b"42"
            assert (await adopted.exec("never", key="step")).text == "x\n"
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        await first.close()


async def test_a_successor_knows_at_once_what_its_hosts_have_of_it(url: str) -> None:
    owner = new_id("store")
    async with _host(url, "a"), _host(url, "b"):
        async with _owner(url, owner) as first:
            boxes = [await first.create(ENV, new_id("box")) for _ in range(4)]
            kept = await first.snapshot(boxes[0].id, new_id("snap"))
        for _ in range(5):
            async with _owner(url, owner) as again:
                assert {box.id for box in await again.owned()} == {box.id for box in boxes}
                assert [snapshot.id for snapshot in await again.snapshots()] == [kept.id]
        async with _owner(url, owner) as last:
            assert set(await remove_orphans(last, ())) == {kept.id, *(box.id for box in boxes)}


async def test_what_nobody_comes_back_to_is_ended(url: str) -> None:
    async with _host(url, orphans=0.5) as host:
        async with _owner(url) as provider:
            await provider.create(ENV, new_id("box"))
        async with asyncio.timeout(20):
            while host.used:
                await asyncio.sleep(0.05)


async def test_a_host_that_is_stopped_while_it_ends_something_ends_it(url: str) -> None:
    owner = new_id("store")
    async with _host(url, orphans=0.2) as host:
        async with _owner(url, owner) as provider:
            for _ in range(3):
                await provider.create(ENV, new_id("box"))
        async with asyncio.timeout(20):
            while host.used:
                await asyncio.sleep(0)
    assert list(Path(tempfile.gettempdir()).glob(f"drawloom-*/{owner}@*/*")) == []


async def test_a_host_that_stops_says_so_at_once(url: str) -> None:
    async with _owner(url) as provider:
        async with _host(url):
            box = await provider.create(ENV, new_id("box"))
            waiting = asyncio.create_task(box.sh("sleep 60"))
            await asyncio.sleep(0.2)
        with pytest.raises(SandboxDied, match=r"(host|it) was stopped"):
            await waiting
        with pytest.raises(SandboxDied):
            await box.sh("true")


async def test_a_late_message_of_an_earlier_incarnation_is_not_carried_out(url: str) -> None:
    owner = new_id("store")
    async with _host(url), _owner(url, owner) as old:
        box = await old.create(ENV, new_id("box"))
        async with _owner(url, owner) as new:
            adopted = await new.adopt(ENV, box.id)
            await adopted.sh("echo new >> log")
            late = asyncio.create_task(box.sh("echo late >> log"))
            await asyncio.sleep(0.5)
            assert await adopted.read("log") == b"new\n"
            late.cancel()
            await asyncio.gather(late, return_exceptions=True)


async def test_new_environments_go_where_the_image_is_then_where_room_is(url: str) -> None:
    async def fake(owner: str) -> Provider:
        return FakeProvider()

    def host(name: str, images: list[str], most: int) -> SandboxHost:
        return SandboxHost(
            Broker.parse(url), name, fake, kind="fake", images=images, most=most, lease=_LEASE
        )

    async with host("a", ["img"], 4), host("b", ["img", "other"], 8), _owner(url) as provider:
        while len(provider.hosts.known()) < 2:
            await asyncio.sleep(0.05)
        other = [await provider.create(Env("other"), new_id("box")) for _ in range(3)]
        assert {_on(box) for box in other} == {"b"}
        some = [await provider.create(Env("img"), new_id("box")) for _ in range(6)]
        on = collections.Counter(_on(box) for box in some)
        assert on == {"a": 3, "b": 3}  # 3 of 4, and 6 of 8
        rest = [await provider.create(Env("img"), new_id("box")) for _ in range(3)]
        assert len(rest) == 3
        with pytest.raises(SandboxError, match="full"):
            await provider.create(Env("img"), new_id("box"))


def _on(box: LiveSandbox) -> str:
    return box.on.name  # type: ignore[attr-defined, no-any-return]


async def test_a_host_gives_no_network_unless_it_says_so(url: str) -> None:
    async with _host(url), _owner(url) as provider:
        with pytest.raises(SandboxError, match="--network"):
            await provider.create(Env(ENV.image, network=True), new_id("box"))
    async with _host(url, network=True), _owner(url) as provider:
        with pytest.raises(SandboxError, match="needs containers"):  # it is asked, and has none
            await provider.create(Env(ENV.image, network=True), new_id("box"))


async def test_nonsense_on_the_topics_harms_nobody(broker: Mosquitto, url: str) -> None:
    prefix = url.rpartition("/")[2]
    owner = new_id("store")
    async with _host(url) as host, _owner(url, owner) as provider:
        box = await provider.create(ENV, new_id("box"))
        bad = [
            b"",
            b"\n",
            b"x",
            b"request {}\n",
            b"request\n",
            b"grant {\n",
            b"\xff\xfe\n",
            b"answer []\n",
            b'request {"number":1,"epoch":9e99,"term":0,"low":0,"op":"call"}\n',
            b'request {"number":7,"epoch":99999999999999,"term":0,"low":0,"op":"format"}\n',
            b'request {"number":-1,"epoch":0,"term":0,"low":0,"op":"owned","env":{"image":""}}\n',
        ]
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            for data in bad:
                await client.publish(f"{prefix}/to/{host.id}/{owner}", data, qos=1)
                await client.publish(f"{prefix}/from/{host.id}/{owner}", data, qos=1)
                await client.publish(f"{prefix}/owners/somebody", data, qos=1)
                await client.publish(f"{prefix}/hosts/nobody", data, qos=1)
        assert (await box.sh("echo alive")).text == "alive\n"


async def test_an_owner_cannot_name_what_is_not_its_own(broker: Mosquitto, url: str) -> None:
    """Ids become folders on the host: none may lead out of its owner's."""
    owner, prefix = new_id("store"), url.rpartition("/")[2]
    precious = Path(tempfile.gettempdir()) / f"drawloom-{os.getuid()}" / new_id("precious")
    async with _host(url) as host, _owner(url, owner) as provider:
        box = await provider.create(ENV, new_id("box"))
        precious.mkdir()
        asked = [
            Request.model_construct(
                number=900 + n, epoch=provider.hosts._epoch, term=0, low=0, op=op, box=bad, name=bad
            )
            for n, (op, bad) in enumerate(
                itertools.product(
                    ("destroy", "discard"), (f"../{precious.name}", "..", str(precious))
                )
            )
        ]
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            for request in asked:
                await client.publish(f"{prefix}/to/{host.id}/{owner}", pack(request), qos=1)
                await client.publish(f"{prefix}/to/{host.id}/..", pack(request), qos=1)
        assert (await box.sh("echo alive")).text == "alive\n"
        assert precious.is_dir()
    precious.rmdir()


async def test_a_program_goes_on_elsewhere_when_its_host_is_killed(url: str, far: Far) -> None:
    ran: list[str] = []

    @tool(env=ENV, fresh=True, idempotent=True)
    async def build(box: Sandbox) -> str:
        ran.append(box.id)
        if len(ran) == 1:
            process.kill()
            await far(url, "other")
        return (await box.sh("sleep 0.3; echo built")).text

    @agent(tools=[build])
    async def builds() -> str:
        return await build()

    process = await far(url, "first")
    async with Runtime(sandbox=SandboxOptions(provider=url, warm=1)) as runtime:
        assert await runtime.run(builds) == "built\n"
    assert len(ran) == 2


async def test_the_command_line_offers_a_machine_and_takes_it_back(url: str) -> None:
    command = [
        sys.executable,
        "-m",
        "drawloom",
        "sandbox",
        "host",
        "--broker",
        url,
        "--name",
        "cli",
    ]
    command += ["--sandbox", "process", "--most", "3", "--lease", str(_LEASE)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert b"offers 3 environments (process)" in await process.stdout.readline()
    async with _owner(url) as provider:
        box = await provider.create(ENV, new_id("box"))
        assert (await box.sh("echo far")).text == "far\n"
        ((id, status),) = provider.hosts.known()
        assert id.startswith("cli.") and (status.most, status.provider) == (3, "process")
        process.terminate()
        assert await process.wait() == 0
        with pytest.raises(SandboxDied, match="it was stopped"):
            await box.sh("true")


# --- who may connect ----------------------------------------------------------------------


async def test_without_hosts_a_claim_says_what_to_start(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_registry, "_HOST_SECONDS", 0.2)
    async with _owner(url) as provider:
        with pytest.raises(SandboxUnavailable, match="drawloom sandbox host --broker"):
            await provider.create(ENV, new_id("box"))


async def test_without_a_broker_the_runtime_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_registry, "CONNECT_SECONDS", 0.5)
    with pytest.raises(SandboxUnavailable, match=r"broker mqtt://127\.0\.0\.1:9"):
        async with Runtime(sandbox="mqtt://127.0.0.1:9/x"):
            pass


@pytest.mark.parametrize(
    "bad", ["mqtt://", "http://host", "mqtt://h:port", "mqtt://h/a/+/b", "mqtt://h/x?cert=1"]
)
def test_a_url_that_is_no_broker_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError):
        Broker.parse(bad)


def test_a_broker_url_has_defaults_and_hides_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAWLOOM_MQTT_PASSWORD", "from-the-environment")
    plain = Broker.parse("mqtt://host")
    assert (plain.port, plain.prefix, plain.password, plain.tls) == (1883, "drawloom", None, False)
    full = Broker.parse("mqtts://me@host/a/b?ca=/ca.pem")
    assert (full.port, full.prefix, full.username, full.ca) == (8883, "a/b", "me", "/ca.pem")
    assert full.password == "from-the-environment"
    assert Broker.parse("mqtt://me:p%40ss@host").password == "p@ss"
    assert "environment" not in repr(full) + str(full)


async def test_a_wrong_password_is_refused_and_tenants_cannot_reach_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is configured as docs/mosquitto/ shows it."""
    monkeypatch.setattr(host_registry, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(host_registry, "_HOST_SECONDS", 1.0)
    shown = Path(__file__).parents[3] / "docs" / "mosquitto" / "acl"
    (tmp_path / "acl").write_text(shown.read_text())
    passwords = tmp_path / "passwords"
    for user in ("lab", "lab-host", "web"):
        create = ["-c"] if not passwords.exists() else []
        command = ["mosquitto_passwd", "-b", *create, str(passwords), user, f"{user}-secret"]
        subprocess.run(command, check=True, capture_output=True)
    passwords.chmod(0o644)
    lines = [f"password_file {passwords}", f"acl_file {tmp_path / 'acl'}"]
    broker = Mosquitto(tmp_path, *lines, anonymous=False).start()

    def at(user: str, password: str = "", prefix: str = "lab") -> str:
        secret = password or f"{user}-secret"
        return f"mqtt://{user}:{secret}@127.0.0.1:{broker.port}/{prefix}"

    with pytest.raises(SandboxUnavailable, match=r"(?i)not authori"):
        await RemoteProvider.open("store-x", at("lab", "wrong"))
    async with _host(at("lab-host")), _owner(at("lab")) as ours, _owner(at("web")) as stranger:
        box = await ours.create(ENV, new_id("box"))
        assert (await box.sh("echo ours")).text == "ours\n"
        with pytest.raises(SandboxUnavailable):
            await stranger.create(ENV, new_id("box"))
    broker.stop()


async def test_over_tls_the_broker_must_be_who_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_registry, "CONNECT_SECONDS", 2.0)
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            str(key),
            "-out",
            str(cert),
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
        ],
        check=True,
        capture_output=True,
    )
    key.chmod(0o644)
    broker = Mosquitto(tmp_path, f"certfile {cert}", f"keyfile {key}").start()
    url = f"mqtts://127.0.0.1:{broker.port}/test"
    with pytest.raises(SandboxUnavailable, match=r"(?i)certificate"):
        await RemoteProvider.open("store-x", url)
    trusted = f"{url}?ca={cert}"
    async with _host(trusted), _owner(trusted) as provider:
        box = await provider.create(ENV, new_id("box"))
        assert (await box.sh("echo safe")).text == "safe\n"
    broker.stop()


def test_a_runtime_waits_longer_than_a_host_s_lease_can_last() -> None:
    for lease in (0.5, 2.0, 6.0, 60.0):
        assert silence(lease) > lease * 1.5

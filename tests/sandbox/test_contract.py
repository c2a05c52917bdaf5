"""What every sandbox provider must do. The same tests run on local processes and on Docker."""

import asyncio
import contextlib
from dataclasses import replace

import pytest

from drawloom.environments import Env
from drawloom.errors import ConfigError, ImageNotFound, SandboxDied, SandboxError
from drawloom.ids import new_id
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.local.provider import ProcessProvider
from drawloom.sandbox.pool.health import hold_quotas
from drawloom.sandbox.pool.parked import take_snapshot

from .conftest import ENV, Opener, Openers


async def _others(box: LiveSandbox) -> list[str]:
    """Processes in the environment, but for the helper and those that look."""
    text = (await box.sh("ps -o pid,args 2>/dev/null || ps ax -o pid,args")).text
    mine = ("helper", "ps ", "PID", "{ps}")
    return [line for line in text.splitlines() if not any(m in line for m in mine)]


async def test_a_command_runs_and_its_files_persist(box: LiveSandbox) -> None:
    assert (await box.sh("echo 1 > a; echo out; echo err >&2; exit 3")).code == 3
    result = await box.exec("cat", "a")
    assert (result.code, result.text) == (0, "1\n")


async def test_both_streams_are_merged_in_order(box: LiveSandbox) -> None:
    assert (await box.sh("echo a; echo b >&2; echo c")).text == "a\nb\nc\n"


async def test_stdin_is_what_is_given_and_nothing_else(box: LiveSandbox) -> None:
    assert (await box.exec("cat", stdin=b"x\0y")).output == b"x\0y"
    assert (await box.exec("cat", timeout=5)).output == b""


async def test_a_missing_program_is_a_result(box: LiveSandbox) -> None:
    assert (await box.exec("no-such-program")).code == 127


async def test_files_go_in_and_out_as_they_are(box: LiveSandbox) -> None:
    data = bytes(range(256)) * 5000
    await box.write("deep/er/file", data)
    assert await box.read("deep/er/file") == data
    with pytest.raises(SandboxError, match="No such file"):
        await box.read("nothing")
    with pytest.raises(SandboxError, match="too large"):
        await box.read("deep/er/file", limit=10)
    with pytest.raises(SandboxError):
        await box.read("deep")


async def test_a_flood_of_output_keeps_its_ends(box: LiveSandbox) -> None:
    result = await box.sh("echo first; yes | head -c 100000000; echo last", timeout=60)
    assert result.total_bytes == 100000000 + len("first\nlast\n")
    assert len(result.output) == ENV.output_cap
    assert result.output.startswith(b"first\n")
    assert result.output.endswith(b"last\n")


async def test_a_timeout_leaves_no_process(box: LiveSandbox) -> None:
    result = await box.sh("setsid sleep 300 & (sleep 301 &) ; sleep 302", timeout=0.3)
    assert result.timed_out
    assert await _others(box) == []
    assert (await box.sh("echo still here")).text == "still here\n"


async def test_a_background_child_does_not_hold_a_command_back(box: LiveSandbox) -> None:
    result = await box.sh("sleep 60 & echo done", timeout=30)
    assert (result.text, result.timed_out) == ("done\n", False)
    assert result.seconds < 20


async def test_a_fork_bomb_is_contained(box: LiveSandbox) -> None:
    result = await box.sh("f() { f | f & }; f & exec sleep 30", timeout=1.0)
    assert result.timed_out
    assert await _others(box) == []
    assert (await box.sh("echo alive")).text == "alive\n"


async def test_memory_is_limited(box: LiveSandbox) -> None:
    hog = "x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo ${#x}"
    result = await box.sh(hog, timeout=30)
    assert "200000000" not in result.text
    assert (await box.sh("echo alive")).text == "alive\n"


async def test_there_is_no_network(box: LiveSandbox) -> None:
    devices = (await box.sh("cat /proc/net/dev")).text
    assert {line.split(":")[0].strip() for line in devices.splitlines() if ":" in line} <= {"lo"}


async def test_there_are_no_capabilities(box: LiveSandbox) -> None:
    status = (await box.sh("cat /proc/self/status")).text
    lines = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert int(lines["CapEff"], 16) == 0
    assert int(lines["CapBnd"], 16) == 0
    assert lines["NoNewPrivs"] == "1"


async def test_the_host_s_docker_socket_and_homes_are_out_of_sight(box: LiveSandbox) -> None:
    assert (
        await box.sh("ls -A /run /root /home 2>/dev/null | grep -v ':' | tr -d '\\n'")
    ).text == ""


async def test_commands_run_side_by_side(box: LiveSandbox) -> None:
    results = await asyncio.gather(*(box.sh(f"sleep 0.2; echo {i}") for i in range(8)))
    assert [r.text for r in results] == [f"{i}\n" for i in range(8)]


async def test_a_result_is_kept_until_it_is_acknowledged(box: LiveSandbox) -> None:
    first = await box.exec("sh", "-c", "echo x >> log; cat log", key="step-1")
    again = await box.exec("sh", "-c", "echo x >> log; cat log", key="step-1")
    assert first.output == again.output == b"x\n"
    await box.ack("step-1")
    assert (await box.exec("sh", "-c", "echo x >> log; cat log", key="step-1")).output == b"x\nx\n"


async def test_another_owner_adopts_it_with_its_files(
    provider: Provider, box: LiveSandbox, opener: Opener
) -> None:
    await box.write("kept", b"42")
    await provider.close()
    successor = await opener()
    adopted = await successor.adopt(ENV, box.id)
    assert await adopted.read("kept") == b"42"
    await successor.destroy(box.id)
    assert await successor.owned() == []
    await successor.close()
    with pytest.raises(SandboxDied):
        await box.sh("true")


_TREE = "cd {work} && find . -exec stat -c '%n %a %s %F' {{}} + | sort; cat a/deep/file link"


async def _tree(box: LiveSandbox) -> str:
    await box.write("x", b"")
    work = (await box.sh("pwd")).text.strip()
    return (await box.sh(_TREE.format(work=work))).text


async def test_forks_begin_with_the_files_of_a_snapshot_and_part_from_there(
    provider: Provider, box: LiveSandbox
) -> None:
    await box.sh(
        "mkdir -p a/deep; echo 1 > a/deep/file; chmod 640 a/deep/file; ln -s a/deep/file link"
    )
    kept = await provider.snapshot(box.id, new_id("snap"))
    assert [s.id for s in await provider.snapshots()] == [kept.id]
    assert kept.key == ENV.key
    await box.sh("echo later > a/deep/file")
    forks = await asyncio.gather(*(provider.fork(ENV, kept.id, new_id("box")) for _ in range(4)))
    trees = [await _tree(fork) for fork in forks]
    assert len(set(trees)) == 1
    assert trees[0].endswith("1\n1\n")
    await forks[0].write("mine", b"only")
    assert (await forks[1].sh("ls mine 2>/dev/null")).text == ""
    assert await box.read("a/deep/file") == b"later\n"


async def test_what_runs_stands_still_while_it_is_kept_and_goes_on(
    provider: Provider, box: LiveSandbox
) -> None:
    loop = "while :; do echo >> a; echo >> b; done"  # never further apart than one line
    await box.sh("touch a b; for k in $(seq 200); do echo > f$k; done")
    await box.sh(f"setsid sh -c '{loop}' >/dev/null 2>&1 &")
    for _ in range(5):
        kept = await provider.snapshot(box.id, new_id("snap"))
        fork = await provider.fork(ENV, kept.id, new_id("box"))
        a, b = [len(await fork.read(name)) for name in "ab"]
        assert abs(a - b) <= 1
        while len(await box.read("b")) <= b:
            await asyncio.sleep(0.01)
        await fork.destroy()
        await provider.discard(kept.id)


async def test_a_snapshot_outlives_what_it_is_of_and_forks_outlive_it(
    provider: Provider, box: LiveSandbox
) -> None:
    await box.write("kept", b"42")
    kept = await provider.snapshot(box.id, new_id("snap"))
    await box.destroy()
    fork = await provider.fork(ENV, kept.id, new_id("box"))
    await provider.discard(kept.id)
    await provider.discard(kept.id)
    assert await fork.read("kept") == b"42"
    await fork.destroy()
    assert await provider.snapshots() == []
    assert await provider.owned() == []
    with pytest.raises(SandboxDied, match="gone"):
        await provider.fork(ENV, kept.id, new_id("box"))
    with pytest.raises(SandboxDied):
        await provider.snapshot(fork.id, new_id("snap"))
    assert await provider.owned() == []


async def test_snapshots_of_forks_of_snapshots_keep_everything(
    provider: Provider, box: LiveSandbox
) -> None:
    for turn in range(5):
        await box.sh(f"echo {turn} >> log")
        kept = await provider.snapshot(box.id, new_id("snap"))
        await box.destroy()
        box = await provider.fork(ENV, kept.id, new_id("box"))
        await provider.discard(kept.id)
    assert (await box.sh("cat log; echo $PATH")).text.startswith("0\n1\n2\n3\n4\n/")


async def test_caches_are_no_part_of_what_is_kept(provider: Provider) -> None:
    env = replace(ENV, exclude=("cache", "deep/er/build"))
    assert env.key == ENV.key, "it makes no difference to what one is"
    box = await provider.create(env, new_id("box"))
    await box.sh("mkdir -p cache deep/er/build; echo x | tee cache/a deep/er/build/b deep/er/kept")
    kept = await take_snapshot(provider, box, new_id("snap"))
    fork = await provider.fork(env, kept.id, new_id("box"))
    assert (await fork.sh("find . -type f")).text == "./deep/er/kept\n"
    assert (await box.sh("ls")).text == "deep\n"
    with pytest.raises(ConfigError, match="exclude"):
        replace(ENV, exclude=("/",))


async def test_what_has_written_too_much_is_not_kept(
    provider: Provider, box: LiveSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("docker.snapshots", "local.provider"):
        monkeypatch.setattr(f"drawloom.sandbox.{module}.MAX_SNAPSHOT", 1 << 20)
    await box.sh("head -c 3000000 /dev/urandom > large")
    with pytest.raises(SandboxError, match="delete caches"):
        await provider.snapshot(box.id, new_id("snap"))
    assert await provider.snapshots() == []
    assert (await box.sh("echo alive")).text == "alive\n"


async def test_what_writes_more_than_it_may_is_ended_and_its_neighbour_is_not(
    provider: Provider,
) -> None:
    small = Env(BOX, disk="2m")
    filler, neighbour = await asyncio.gather(
        *(provider.create(small, new_id("box")) for _ in range(2))
    )
    watch = asyncio.create_task(hold_quotas(provider, lambda: [filler, neighbour], every=0.05))
    await neighbour.sh("head -c 1000000 /dev/zero > some")
    assert (await provider.written())[neighbour.id] >= 1_000_000
    fill = asyncio.create_task(
        filler.sh("for i in 1 2 3 4; do head -c 1000000 /dev/urandom > $i; done; sleep 60")
    )
    with pytest.raises(SandboxDied, match=r"may write 2m: Env\(disk"):
        await fill
    with pytest.raises(SandboxDied, match="may write 2m"):
        await filler.sh("true")
    assert (await neighbour.sh("wc -c < some")).text.strip() == "1000000"
    while [box.id for box in await provider.owned()] != [neighbour.id]:
        await asyncio.sleep(0.05)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def test_what_writes_fast_is_ended_before_the_regular_look(openers: Openers) -> None:
    provider = await openers(new_id("store"))()
    if await provider.disk() is None:
        provider.disk = ProcessProvider(new_id("store")).disk  # type: ignore[method-assign]
    filler = await provider.create(Env(BOX, disk="64m"), new_id("box"))
    watch = asyncio.create_task(hold_quotas(provider, lambda: [filler], every=3600))
    with pytest.raises(SandboxDied, match=r"may write 64m"):
        await filler.sh("for i in 1 2 3 4; do head -c 60000000 /dev/zero > $i; done; sleep 60")
    while await provider.owned():
        await asyncio.sleep(0.05)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    await provider.close()


@pytest.mark.docker
async def test_where_the_engine_has_no_quotas_containers_are_made_without(
    docker_url: str | None,
) -> None:
    from drawloom.sandbox.docker.provider import DockerProvider

    provider = DockerProvider(new_id("store"), docker_url)
    provider._quotas = True
    box = await provider.create(ENV, new_id("box"))
    assert (await box.sh("echo alive")).text == "alive\n"
    await box.destroy()
    await provider.close()


@pytest.mark.docker
async def test_no_file_grows_beyond_the_disk_of_its_container(docker_url: str | None) -> None:
    from drawloom.sandbox.docker.provider import DockerProvider

    provider = DockerProvider(new_id("store"), docker_url)
    box = await provider.create(Env(BOX, disk="1m"), new_id("box"))
    assert (await box.sh("head -c 3000000 /dev/zero > large")).code != 0
    assert int((await box.sh("wc -c < large")).text) <= 1 << 20
    await box.destroy()
    await provider.close()


async def test_another_owner_reaches_neither_environment_nor_snapshot(
    provider: Provider, box: LiveSandbox, strangers: Opener
) -> None:
    await box.write("secret", b"42")
    kept = await provider.snapshot(box.id, new_id("snap"))
    stranger = await strangers()
    with pytest.raises(SandboxDied):
        await stranger.adopt(ENV, box.id)
    with pytest.raises(SandboxDied):
        await stranger.fork(ENV, kept.id, new_id("box"))
    with pytest.raises(SandboxDied):
        await stranger.snapshot(box.id, new_id("snap"))
    await stranger.destroy(box.id)
    await stranger.discard(kept.id)
    assert await stranger.owned() == await stranger.snapshots() == []
    await stranger.close()
    assert await box.read("secret") == b"42"
    fork = await provider.fork(ENV, kept.id, new_id("box"))
    assert await fork.read("secret") == b"42"


async def test_a_name_that_is_none_removes_nothing(provider: Provider, box: LiveSandbox) -> None:
    kept = await provider.snapshot(box.id, new_id("snap"))
    for name in ("", ".", "..", "kept", f"../{box.id}"):
        with contextlib.suppress(SandboxError):
            await provider.destroy(name)
        with contextlib.suppress(SandboxError):
            await provider.discard(name)
    assert [o.id for o in await provider.owned()] == [box.id]
    assert [s.id for s in await provider.snapshots()] == [kept.id]
    assert (await box.sh("echo alive")).text == "alive\n"


async def test_what_is_destroyed_is_gone(provider: Provider, box: LiveSandbox) -> None:
    await box.destroy()
    await box.destroy()
    assert await provider.owned() == []
    with pytest.raises(SandboxDied):
        await box.sh("true")
    with pytest.raises(SandboxDied):
        await provider.adopt(ENV, box.id)


async def test_destroying_it_ends_whoever_waits(box: LiveSandbox) -> None:
    waiting = asyncio.create_task(box.sh("sleep 60"))
    await asyncio.sleep(0.2)
    await box.destroy()
    with pytest.raises(SandboxDied):
        await waiting


async def test_a_command_in_flight_is_waited_for_by_its_key(box: LiveSandbox) -> None:
    first = asyncio.create_task(box.exec("sh", "-c", "sleep 0.5; echo x >> log; cat log", key="k"))
    await asyncio.sleep(0.2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await box.exec("never", key="k")).text == "x\n"


async def test_giving_up_while_it_is_made_leaves_nothing(provider: Provider) -> None:
    for delay in (0.0, 0.02, 0.1, 0.2):
        making = asyncio.create_task(provider.create(ENV, new_id("box")))
        await asyncio.sleep(delay)
        making.cancel()
        (made,) = await asyncio.gather(making, return_exceptions=True)
        if isinstance(made, LiveSandbox):  # it was quicker than we
            await made.destroy()
    assert await provider.owned() == []


async def test_environments_are_listed_while_some_of_them_go(provider: Provider) -> None:
    boxes = await asyncio.gather(*(provider.create(ENV, new_id("box")) for _ in range(4)))
    going = asyncio.gather(*(box.destroy() for box in boxes))
    while not going.done():
        assert len(await provider.owned()) <= 4
        await asyncio.sleep(0)
    await going
    assert await provider.owned() == []


async def test_setup_runs_before_it_is_ready_and_a_failing_one_is_told(provider: Provider) -> None:
    made = await provider.create(Env(BOX, setup=("echo ready > r",)), new_id("box"))
    assert await made.read("r") == b"ready\n"
    with pytest.raises(SandboxError, match=r"exit 4.*failed \(4\): why"):
        await provider.create(Env(BOX, setup=("echo why; exit 4",)), new_id("box"))
    assert len(await provider.owned()) == 1


@pytest.mark.docker
async def test_an_image_that_is_not_there_is_named(docker_url: str | None) -> None:
    from drawloom.sandbox.docker.provider import DockerProvider

    provider = DockerProvider(new_id("store"), docker_url)
    with pytest.raises(ImageNotFound, match="no-such-image:9"):
        await provider.create(Env("no-such-image:9"), new_id("box"))
    assert await provider.owned() == []
    await provider.close()

"""Tools that mean harm: each is held, each is reported, and its neighbour goes on.

What an archive may not do is in test_transfer.py; memory, forks, floods and disk are in
test_contract.py.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.environments import Env
from drawloom.errors import SandboxDied, SandboxError
from drawloom.ids import new_id
from drawloom.sandbox.api import transfer
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from drawloom.sandbox.docker.demo_image import BOX
from drawloom.sandbox.docker.provider import DockerProvider
from drawloom.sandbox.helper.protocol import Wire
from drawloom.sandbox.helper.seccomp import seccomp

from .conftest import ENV, put_probe


async def _fails(box: LiveSandbox, command: str) -> str:
    result = await box.sh(command, timeout=20)
    assert result.code != 0, f"{command} succeeded: {result.text}"
    return result.text


@pytest.fixture
async def neighbour(provider: Provider) -> AsyncIterator[LiveSandbox]:
    """Another environment of the same host, that must notice nothing."""
    made = await provider.create(ENV, new_id("box"))
    await made.write("kept", b"42")
    yield made
    assert await made.read("kept") == b"42"
    assert (await made.sh("echo alive")).text == "alive\n"


async def test_processes_of_others_cannot_be_seen_or_killed(
    box: LiveSandbox, neighbour: LiveSandbox
) -> None:
    marked = await neighbour.start("marked", "sleep", "12345")
    seen = (await box.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).text
    assert "12345" not in seen and "pytest" not in seen
    await box.sh("kill -9 -1", timeout=5)
    assert (await marked.state()).running
    await marked.stop()


async def test_the_helper_cannot_be_killed_traced_or_read(box: LiveSandbox) -> None:
    await box.sh("kill -9 1; kill -STOP 1; kill -TERM 1", timeout=5)
    assert (await box.sh("echo alive")).text == "alive\n"
    await _fails(box, "cat /proc/1/mem")
    await _fails(box, "readlink /proc/1/fd/1")
    await _fails(box, "echo > /proc/1/fd/1")


async def test_the_kernel_s_switches_cannot_be_turned(box: LiveSandbox) -> None:
    for path in (
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/drop_caches",
        "/sys/kernel/uevent_helper",
        "/proc/self/oom_score_adj/x",
    ):
        await _fails(box, f"echo x > {path}")
    for path in ("/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/sda"):
        await _fails(box, f"head -c 1 {path}")


async def test_nothing_is_mounted_and_no_device_is_made(box: LiveSandbox) -> None:
    await _fails(box, "mkdir m && mount -t tmpfs none m")
    await _fails(box, "mount -o remount,rw /")
    await _fails(box, "mknod disk b 8 0 && head -c 1 disk")
    await _fails(box, "chroot / true")


async def test_the_network_leads_nowhere(box: LiveSandbox) -> None:
    """Neither out, nor to this host, nor to a service of it that listens everywhere."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.2)
        for address in ("127.0.0.1", "172.17.0.1", "10.0.0.1", "8.8.8.8", "169.254.169.254"):
            await box.sh(
                f"echo hello | nc -w 1 {address} {port} 2>/dev/null || "
                f"(command -v bash && bash -c 'echo hello >/dev/tcp/{address}/{port}')",
                timeout=3,
            )
        with pytest.raises(TimeoutError):
            server.accept()


async def test_the_docker_socket_is_not_there(box: LiveSandbox) -> None:
    for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock"):
        await _fails(box, f"ls {path}")
    found = await box.sh("find / -xdev -type s 2>/dev/null | head")
    assert found.text == ""


async def test_files_of_the_host_and_of_others_cannot_be_written(
    box: LiveSandbox, neighbour: LiveSandbox, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents):
        with contextlib.suppress(PermissionError):
            folder.chmod(folder.stat().st_mode | 0o001)
    await box.sh(f"echo evil > {secret}; rm -f {secret}", timeout=5)
    assert secret.read_text() == "secret"
    await box.sh(f"ln -s {secret} link; echo evil > link", timeout=5)
    assert secret.read_text() == "secret"
    with pytest.raises(SandboxError):
        await box.read(str(secret))
    text = (await box.sh("cat /etc/shadow 2>/dev/null; find / -name kept 2>/dev/null")).text
    assert "42" not in text and ":$" not in text


async def test_a_timeout_ends_what_hides_from_it(box: LiveSandbox, neighbour: LiveSandbox) -> None:
    hide = "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' &) ; "
    result = await box.sh(hide + "while :; do sleep 0.1; done", timeout=0.5)
    assert result.timed_out
    left = (await box.sh("ps -o args 2>/dev/null || ps ax -o args")).text
    assert "while" not in left.replace("grep", "")


_TRAPS = {
    "a pipe": "mkfifo trap",
    "a pipe behind a link": "mkfifo pipe; ln -s pipe trap",
    "a folder": "mkdir trap",
    "a device": "ln -s /dev/zero trap",
    "what the helper says": "ln -s /proc/self/fd/1 trap",
    "what the helper hears": "ln -s /proc/self/fd/0 trap",
    "the standard output": "ln -s /dev/stdout trap",
    "the first process's output": "ln -s /proc/1/fd/1 trap",
    "the helper's memory": "ln -s /proc/self/mem trap",
    "the helper's variables": "ln -s /proc/self/environ trap",
    "a switch of the kernel": "ln -s /proc/self/oom_score_adj trap",
    "a loop of links": "ln -s trap trap",
}


@pytest.mark.parametrize("trap", _TRAPS)
async def test_what_is_no_file_hangs_nobody_and_forges_nothing(
    box: LiveSandbox, trap: str, tmp_path: Path
) -> None:
    await box.sh(_TRAPS[trap])
    running = asyncio.create_task(box.exec("sh", "-c", "sleep 0.3; echo the truth", key="step"))
    await asyncio.sleep(0.1)
    forged = b"\n=DL step exit 0 0 7 0 7\nFORGED\n"
    async with asyncio.timeout(10):
        for verb in (
            lambda: box.write("trap", forged),
            lambda: box.append("trap", forged),
            lambda: box.read("trap"),
            lambda: box.piece("trap", 0),
        ):
            with pytest.raises(
                SandboxError, match=r"trap: (not a regular|Is a directory|Permission)"
            ):
                await verb()
        if trap != "a folder":
            with pytest.raises(SandboxError):
                await box.download("trap", tmp_path / "got")
        result = await running
    assert (result.code, result.text) == (0, "the truth\n")


async def test_traps_in_the_place_of_an_archive_hang_nobody(
    box: LiveSandbox, tmp_path: Path
) -> None:
    (tmp_path / "sent").write_text("42")
    await box.write("d/file", b"42")
    names = [
        transfer._temp_sibling(PurePosixPath(path), what)
        for path, what in (
            ("d/file", "download"),
            ("d/sent", "upload"),
        )
    ]
    await box.exec("mkfifo", *names)
    async with asyncio.timeout(20):
        await box.download("d/file", tmp_path / "got")
        await box.upload(tmp_path / "sent", "d/sent")
    assert (tmp_path / "got").read_text() == "42"
    assert await box.read("d/sent") == b"42"


async def test_links_inside_the_folder_are_followed(box: LiveSandbox) -> None:
    await box.sh("mkdir d; ln -s d/file link; ln -s d e")
    await box.write("link", b"4")
    await box.append("e/file", b"2")
    assert await box.read("link") == await box.read("d/file") == b"42"


async def test_memory_beyond_the_limit_ends_who_took_it_and_not_the_helper(
    box: LiveSandbox, probe: bytes
) -> None:
    await put_probe(box, probe)
    assert (await box.sh("cat /proc/self/oom_score_adj")).text == "1000\n"
    other = await box.start("other", "sleep", "60")
    for kind in ("memfd", "shm", "sysv", "private"):
        result = await box.exec("./probe", kind, "512", timeout=20)
        assert "held" not in result.text and result.code != 0, kind
        assert (await box.sh("echo alive")).text == "alive\n"
    await box.sh("for d in /tmp /dev/shm; do head -c 99000000 /dev/zero > $d/x; done", timeout=20)
    assert (await box.sh("echo alive")).text == "alive\n"
    await other.stop()


async def test_who_reads_stdin_for_ever_gets_its_end(box: LiveSandbox) -> None:
    result = await box.sh("cat; read x; echo end", timeout=10)
    assert (result.timed_out, result.text) == (False, "end\n")


async def test_huge_arguments_are_refused_and_nothing_breaks(box: LiveSandbox) -> None:
    for arguments in (["x" * 3_000_000], ["x"] * 5000):
        with pytest.raises(SandboxError, match="cannot be started"):
            await box.exec("true", *arguments)
    assert (await box.sh("echo alive")).text == "alive\n"


async def test_many_commands_at_once_are_refused_beyond_the_limit(box: LiveSandbox) -> None:
    ran = await asyncio.gather(*(box.sh("sleep 0.3") for _ in range(80)), return_exceptions=True)
    assert all(isinstance(r, SandboxError) or not isinstance(r, BaseException) for r in ran)
    assert any(isinstance(r, SandboxError) for r in ran)
    assert (await box.sh("echo alive")).text == "alive\n"


# --- what only containers hold ------------------------------------------------------------


@pytest.fixture
async def docker(docker_url: str | None) -> AsyncIterator[DockerProvider]:
    made = DockerProvider(new_id("store"), docker_url)
    yield made
    for box in await made.owned():
        await made.destroy(box.id)
    await made.close()


_CALLS = {
    "io_uring_setup": 425,
    "bpf": 321,
    "userfaultfd": 323,
    "keyctl": 250,
    "unshare": 272,
    "perf_event_open": 298,
    "ptrace": 101,
    "mount": 165,
    "kexec_load": 246,
    "init_module": 175,
    "setns": 308,
    "open_by_handle_at": 304,
    "quotactl": 179,
    "add_key": 248,
    "move_pages": 279,
}


async def test_dangerous_system_calls_are_refused(box: LiveSandbox, probe: bytes) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of these calls are those of x86-64")
    await put_probe(box, probe)
    result = await box.exec("./probe", "calls", *map(str, _CALLS.values()))
    said = dict(line.split() for line in result.text.splitlines())
    names = {str(number): name for name, number in _CALLS.items()}
    refused = {names[n]: int(e) for n, e in said.items() if n in names}
    assert refused == dict.fromkeys(_CALLS, 1), "all of them: EPERM"
    assert said["clone-newuser"] == "1" and said["clone3"] == "38"
    assert {said[f"socket-{f}"] for f in (38, 40, 17)} == {"1"}
    assert said["socket-1"] == said["socket-2"] == "0"


@pytest.mark.docker
async def test_strict_is_an_ordinary_user_on_a_read_only_image(docker: DockerProvider) -> None:
    box = await docker.create(Env.strict(BOX, memory="64m"), new_id("box"))
    assert (await box.sh("id -u; pwd")).text == "65534\n/work\n"
    await _fails(box, "echo x > /bin/evil")
    await _fails(box, "echo x > /evil")
    assert (await box.sh("echo x > ok; echo y > /tmp/ok; cat ok /tmp/ok")).text == "x\ny\n"
    await box.sh("printf '#!/bin/sh\\necho ran' > run; chmod +x run")
    assert (await box.sh("./run")).text == "ran\n"
    await box.sh("head -c 200000000 /dev/zero > large", timeout=30)
    assert (await box.sh("echo alive")).text == "alive\n"
    with pytest.raises(SandboxError, match="not kept"):
        await docker.snapshot(box.id, new_id("snap"))


@pytest.mark.docker
async def test_build_may_change_owners_and_nothing_else(docker: DockerProvider) -> None:
    box = await docker.create(Env.build(BOX, memory="64m", network=False), new_id("box"))
    assert (await box.sh("touch f; chown 1000:1000 f; stat -c %u f")).text == "1000\n"
    caps = (await box.sh("grep CapEff /proc/self/status")).text.split()[1]
    assert int(caps, 16) == sum(1 << bit for bit in (0, 1, 3, 6, 7))
    await _fails(box, "mount -t tmpfs none /tmp")
    swe = await docker.create(Env.swe(BOX, memory="64m"), new_id("box"))
    await _fails(swe, "touch f; chown 1000:1000 f")


@pytest.mark.docker
async def test_browser_has_shared_memory(docker: DockerProvider) -> None:
    box = await docker.create(Env.browser(BOX, memory="64m"), new_id("box"))
    assert "262144" in (await box.sh("df -k /dev/shm | tail -1")).text


@pytest.mark.docker
async def test_a_runtime_that_is_not_installed_is_named(docker: DockerProvider) -> None:
    with pytest.raises(SandboxError, match="no-such-runtime"):
        await docker.create(Env(BOX, runtime="no-such-runtime"), new_id("box"))
    assert await docker.owned() == []


def test_on_another_processor_the_engine_s_own_list_holds() -> None:
    assert seccomp("riscv64") is None
    assert '"SCMP_ARCH_AARCH64"' in str(seccomp("arm64"))


# --- a helper that was taken over ---------------------------------------------------------


async def _sink(data: bytes) -> None: ...


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"=DL ", b"\n", b"=DL a exit 0 0 0 0 "])))
def test_whatever_a_helper_says_its_owner_stays_sane(pieces: list[bytes]) -> None:
    wire = Wire("box", _sink)
    for piece in pieces:
        wire.feed(piece)
    assert len(wire._buffer) <= 4096


async def test_a_helper_that_talks_nonsense_is_given_up() -> None:
    for nonsense in (
        b"=DL a exit 0 0 0 0 99999999999\n",
        b"=DL a exit 0 0 0 0 -1\n",
        b"=DL a exit x 0 0 0 1\n",
        b"=DL a\n",
        b"=DL " + b"x" * 600,
    ):
        wire = Wire("box", _sink)
        waiting = asyncio.create_task(wire.call("hello a"))
        await asyncio.sleep(0)
        wire.feed(nonsense)
        with pytest.raises(SandboxDied, match="broke the protocol"):
            await waiting


async def test_what_a_helper_tells_ahead_is_bounded_by_the_cap() -> None:
    class Flooding(Wire):
        async def call(self, *args: object, **more: object) -> object:  # type: ignore[override]
            on_part = more["on_part"]
            for _ in range(1000):
                on_part(b"x" * 1000)  # type: ignore[operator]
            raise SandboxDied("enough")

    heard: list[bytes] = []
    box = LiveSandbox("box", ENV, Flooding("box", _sink))
    with pytest.raises(SandboxDied):
        await box.exec("x", on_output=heard.append)
    assert sum(map(len, heard)) == ENV.output_cap

"""What local processes hold, in whole and where the kernel gives only part of it."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drawloom.environments import Env
from drawloom.errors import SandboxError, SandboxUnavailable
from drawloom.ids import new_id
from drawloom.runtime.dispatch.backends import open_provider
from drawloom.sandbox.helper.build import helper_path
from drawloom.sandbox.local import provider as process
from drawloom.sandbox.local.cgroups import Cgroup, make_cgroup
from drawloom.sandbox.local.provider import ProcessProvider
from tests.sandbox.conftest import ENV, put_probe

_USER = 12345


@pytest.fixture(params=["cgroup", "watched"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which memory is limited; the second where no control group can be made."""
    if request.param == "watched":
        monkeypatch.setattr(process, "make_cgroup", lambda *a: Cgroup())
    return str(request.param)


@pytest.mark.parametrize("kind", ["private", "shm", "memfd", "sysv"])
async def test_no_kind_of_memory_goes_beyond_the_limit(
    memory: str, kind: str, probe: bytes
) -> None:
    provider = ProcessProvider(new_id("store"))
    box = await provider.create(ENV, new_id("box"))
    await put_probe(box, probe)
    result = await box.exec("./probe", kind, "512", timeout=20)
    assert "held" not in result.text and result.code != 0
    assert (await box.exec("./probe", kind, "8", timeout=20)).text == "held 8 MiB\nkept\n"
    await box.destroy()
    await provider.close()


async def test_many_processes_share_one_limit(memory: str, probe: bytes) -> None:
    provider = ProcessProvider(new_id("store"))
    box = await provider.create(ENV, new_id("box"))
    await put_probe(box, probe)
    some = "for i in 1 2 3 4 5 6 7 8; do ./probe shm 30 & done; wait; echo"
    kept = (await box.sh(some, timeout=20)).text.count("kept")
    assert kept <= 2, "each has 30 of 64 MiB"
    assert (await box.sh("echo alive")).text == "alive\n"
    await box.destroy()
    await provider.close()


async def test_temporary_folders_together_hold_half_of_the_memory(memory: str) -> None:
    provider = ProcessProvider(new_id("store"))
    box = await provider.create(ENV, new_id("box"))
    fill = (
        "for d in /tmp /var/tmp /dev/shm; do head -c 60000000 /dev/zero > $d/x; done 2>/dev/null; "
    )
    sizes = (await box.sh(fill + "cat /tmp/x /var/tmp/x /dev/shm/x | wc -c", timeout=20)).text
    assert int(sizes) <= 32 << 20
    await box.destroy()
    await provider.close()


async def test_control_groups_go_with_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Cgroup] = []

    def make(name: str, memory: int, cpus: float) -> Cgroup:
        made.append(make_cgroup(name, memory, cpus))
        return made[-1]

    monkeypatch.setattr(process, "make_cgroup", make)
    owner = new_id("store")
    provider = ProcessProvider(owner)
    first, second = [await provider.create(ENV, new_id("box")) for _ in range(2)]
    await second.sh("sleep 60 &")
    await first.destroy()
    await provider.close()
    left = [folder for group in made for folder in group.folders if folder.exists()]
    assert left == []
    again = ProcessProvider(owner)
    await again.destroy(second.id)
    assert await again.owned() == []
    await again.close()


def _v2(folder: Path, enabled: str) -> Path:
    """A tree that looks like version 2, and what /proc says of a process in its `a/b`."""
    mount, proc = folder / "cgroup", folder / "proc"
    for group in (mount, mount / "a", mount / "a/b"):
        group.mkdir(parents=True)
        (group / "cgroup.controllers").write_text("cpu memory pids")
        (group / "cgroup.subtree_control").write_text(enabled if group.name == "a" else "")
        (group / "cgroup.procs").touch()
    proc.mkdir()
    (proc / "cgroup").write_text("0::/a/b\n")
    (proc / "mountinfo").write_text(f"31 23 0:28 / {mount} rw - cgroup2 cgroup2 rw\n")
    return proc


def test_in_version_2_the_nearest_group_that_hands_memory_on_is_taken(tmp_path: Path) -> None:
    proc = _v2(tmp_path, "cpu memory")
    group = make_cgroup("box", 64 << 20, 1.5, proc)
    assert group.folders == (tmp_path / "cgroup/a/box",)
    assert (group.folders[0] / "memory.max").read_text() == str(64 << 20)


def test_where_memory_is_not_handed_on_there_is_no_group(tmp_path: Path) -> None:
    assert make_cgroup("box", 64 << 20, 1.0, _v2(tmp_path, "cpu")).folders == ()
    assert make_cgroup("box", 64 << 20, 1.0, tmp_path / "nowhere").folders == ()


# --- files and sockets of the host --------------------------------------------------------


@pytest.fixture
def places() -> Iterator[list[Path]]:
    """Readable files of the host, in every place in which an owner may keep some."""
    made = [Path(tempfile.mkdtemp(prefix="drawloom-test-", dir=d)) for d in _writable()]
    for folder in made:
        folder.chmod(0o755)
        (folder / "secret").write_text("a secret")
    yield made
    for folder in made:
        shutil.rmtree(folder)


def _writable() -> list[str]:
    found = [
        "/srv",
        "/opt",
        "/var/lib",
        "/mnt",
        "/media",
        "/tmp",
        "/var/tmp",
        "/etc",
        "/",
        str(Path.home()),
    ]
    return [place for place in found if os.access(place, os.W_OK)]


async def test_no_file_of_the_host_is_in_sight_but_its_programs(places: list[Path]) -> None:
    provider = ProcessProvider(new_id("store"))
    box = await provider.create(ENV, new_id("box"))
    for folder in (*places, Path.cwd(), Path.home()):
        assert (await box.sh(f"ls {folder}")).code != 0, folder
        with pytest.raises(SandboxError):
            await box.read(str(folder / "secret"))
    listed = (await box.sh("ls /")).text.split()
    assert set(listed) <= {
        "bin",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "nix",
        "proc",
        "sbin",
        "tmp",
        "usr",
        "var",
        "work",
    }
    assert (await box.sh("cat /etc/shadow /etc/gshadow /etc/machine-id")).code != 0
    await box.destroy()
    await provider.close()


async def test_no_socket_of_the_host_answers(places: list[Path], probe: bytes) -> None:
    provider = ProcessProvider(new_id("store"))
    box = await provider.create(ENV, new_id("box"))
    await put_probe(box, probe)
    name = f"@{box.id}"
    with socket.socket(socket.AF_UNIX) as hidden:
        hidden.bind(name.replace("@", "\0"))
        hidden.listen()
        assert (await box.exec("./probe", "connect", name)).code != 0
    for folder in places:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "socket"))
            (folder / "socket").chmod(0o777)
            server.listen()
            assert (await box.exec("./probe", "connect", str(folder / "socket"))).code != 0
    await box.destroy()
    await provider.close()


async def test_a_network_is_refused_by_name() -> None:
    provider = ProcessProvider(new_id("store"))
    with pytest.raises(SandboxError, match="needs containers"):
        await provider.create(Env("any", network=True), new_id("box"))
    await provider.close()


# --- what could not be had ----------------------------------------------------------------


def test_auto_refuses_what_is_not_whole_and_names_the_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    monkeypatch.setattr(process, "make_cgroup", lambda *a: Cgroup())

    async def tries(kind: str) -> list[str]:
        provider = await open_provider(kind, new_id("store"), None)
        assert provider is not None
        box = await provider.create(ENV, new_id("box"))
        try:
            assert box.isolation < 2
            return box.lacking
        finally:
            await box.destroy()
            await provider.close()

    with pytest.raises(SandboxUnavailable, match=r"memory limit.*--sandbox process"):
        asyncio.run(tries("auto"))
    assert any("memory limit" in line for line in asyncio.run(tries("process")))


_SCRIPT = """
import asyncio, json, sys
from drawloom.environments import Env
from drawloom.ids import new_id
from drawloom.sandbox.local.provider import ProcessProvider

async def main():
    provider = ProcessProvider(new_id("store"))
    box = await provider.create(Env("any", memory="64m", pids=40), new_id("box"))
    said = (await box.sh("ls /proc | head -3; echo alive", timeout=10)).text
    print(json.dumps([box.isolation, box.lacking, said]))
    await box.destroy()
    await provider.close()

asyncio.run(main())
"""


def _after(prepare: str, *options: str) -> tuple[int, list[str], str]:
    """What an environment reports in a mount namespace where a command was run before."""
    done = subprocess.run(
        [
            "unshare",
            "-m",
            *options,
            "sh",
            "-c",
            f'{prepare} && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            _SCRIPT,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    level, lacking, said = json.loads(done.stdout)
    return level, lacking, said


def test_where_proc_is_masked_nothing_of_the_host_s_is_in_sight_and_that_is_said() -> None:
    """As in a container of Docker's: the kernel refuses a new /proc where a part is covered."""
    level, lacking, said = _after(
        "mount -t tmpfs none /proc/tty", *([] if os.getuid() == 0 else ["-Ur"])
    )
    assert level == 1
    assert any("/proc" in line for line in lacking)
    assert said == "alive\n"


def test_without_namespaces_commands_run_and_what_is_lost_is_said() -> None:
    level, lacking, said = _after("echo 0 > /proc/sys/user/max_user_namespaces", "-Ur")
    assert level == 0 and said.endswith("alive\n")
    assert any("namespaces, so that files" in line for line in lacking)


# --- an owner who is not root -------------------------------------------------------------


def _as_user(work: Callable[[], str]) -> str:
    """What a function gives in a child process that is an ordinary user."""
    if os.getuid() != 0:
        return work()
    receive, send = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(_USER)
            os.setuid(_USER)
            os.write(send, work().encode())
        except BaseException as error:
            os.write(send, repr(error).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def test_an_owner_who_is_not_root_is_no_more_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/srv" if os.access("/srv", os.W_OK) else None) as home:
        folder = Path(home)
        helper = shutil.copy(helper_path(), folder / "helper")
        Path(helper).chmod(0o755)
        key = folder / "key"
        key.write_text("PRIVATE KEY")
        key.chmod(0o600)
        for path in (folder, key):
            os.chown(path, _USER if os.getuid() == 0 else -1, -1)
        folder.chmod(0o711)
        monkeypatch.setenv("DRAWLOOM_HELPER", str(helper))

        async def tries() -> str:
            provider = ProcessProvider(new_id("store"))
            box = await provider.create(ENV, new_id("box"))
            said = await box.sh(f"cat {key}; ls {folder}; cat /proc/self/uid_map; echo alive")
            await box.destroy()
            await provider.close()
            return f"{box.isolation} {said.text}"

        asyncio.run(tries())  # what it imports cannot be found by a user who may not read it
        said = _as_user(lambda: asyncio.run(tries()))
    assert said.endswith("alive\n"), said
    assert "PRIVATE" not in said and said[0] in "12"
    assert os.getuid() != 0 or f" {_USER} " in said

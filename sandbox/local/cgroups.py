"""Control groups of local processes: the kernel's limits on the memory and CPU of an environment.

Version 1 needs root. In version 2 a group is made below the nearest ancestor of our own that may be
written and hands on the memory controller: root's, or what systemd delegates to a user.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger("drawloom.sandbox")

_PERIOD = 100_000  # microseconds over which a CPU quota is counted
_TRIES = 100


class Hierarchy(NamedTuple):
    """Locate a mounted hierarchy: its version, mount point, and the group of this process."""

    version: int
    mount: Path
    own: Path


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Hold the groups of one environment: one in version 2, one a controller in version 1."""

    folders: tuple[Path, ...] = ()

    @property
    def entries(self) -> list[str]:
        """Return the files into which a process writes 0 to join."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    async def remove(self) -> None:
        """Remove the groups, waiting a moment for killed processes to end."""
        for folder in self.folders:
            for _ in range(_TRIES):
                with contextlib.suppress(FileNotFoundError):
                    try:
                        folder.rmdir()
                    except OSError as error:
                        if isinstance(error, FileNotFoundError):
                            raise
                        await asyncio.sleep(0.02)
                        continue
                break
            else:
                log.warning("%s could not be removed", folder)


def make_cgroup(name: str, memory: int, cpus: float, proc: Path = Path("/proc/self")) -> Cgroup:
    """Make a group that limits memory (without swap), and CPU if that controller is there.

    Returns:
        The group; one without folders where no memory limit can be had.
    """
    folders: dict[Path, None] = {}
    for controller in ("memory", "cpu"):
        parent = _parent(controller, proc)
        if parent is None:
            if controller == "memory":
                return Cgroup()
            continue
        folder = parent[1] / name
        try:
            folder.mkdir(exist_ok=True)
            for file, value in _settings(controller, parent[0], memory, cpus):
                if (folder / file).exists() or file in ("memory.max", "memory.limit_in_bytes"):
                    (folder / file).write_text(value)
        except OSError as error:
            log.debug("no %s limit in %s: %s", controller, folder, error)
            with contextlib.suppress(OSError):
                folder.rmdir()
            if controller == "memory":
                return Cgroup()
            continue
        folders[folder] = None
    return Cgroup(tuple(folders))


def _settings(
    controller: str, version: int, memory: int, cpus: float
) -> tuple[tuple[str, str], ...]:
    quota = int(cpus * _PERIOD)
    if controller == "memory":
        if version == 2:
            return ("memory.max", str(memory)), ("memory.swap.max", "0")
        return ("memory.limit_in_bytes", str(memory)), ("memory.memsw.limit_in_bytes", str(memory))
    if version == 2:
        return (("cpu.max", f"{quota} {_PERIOD}"),)
    return ("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", str(quota))


def _parent(controller: str, proc: Path) -> tuple[int, Path] | None:
    """Return version and folder of the nearest group that can have a child with a controller."""
    hierarchy = _hierarchy(controller, proc)
    if hierarchy is None:
        return None
    for folder in (hierarchy.own, *hierarchy.own.parents):
        if _gives(folder, controller, hierarchy.version):
            return hierarchy.version, folder
        if folder == hierarchy.mount:
            break
    return None


def _gives(folder: Path, controller: str, version: int) -> bool:
    try:
        if (
            version == 2
            and controller not in (folder / "cgroup.subtree_control").read_text().split()
        ):
            return False
        with (folder / "cgroup.procs").open("w"):  # also where the file system is read-only
            return True
    except OSError:
        return False


def _hierarchy(controller: str, proc: Path) -> Hierarchy | None:
    groups = dict(_groups(proc))
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "mountinfo").read_text().splitlines():
            fields, _, kind = line.partition(" - ")
            root, mount = fields.split()[3:5]
            system, _, options = kind.split()[:3]
            if system == "cgroup" and controller in options.split(","):
                return Hierarchy(1, Path(mount), _below(mount, root, groups.get(controller, "/")))
            if system == "cgroup2" and controller in _offered(Path(mount)):
                return Hierarchy(2, Path(mount), _below(mount, root, groups.get("", "/")))
    return None


def _offered(mount: Path) -> list[str]:
    try:
        return (mount / "cgroup.controllers").read_text().split()
    except OSError:
        return []


def _groups(proc: Path) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError):
        for line in (proc / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                yield controller, path


def _below(mount: str, root: str, path: str) -> Path:
    inner = path.removeprefix(root) if root != "/" else path
    return Path(mount) / inner.strip("/")


__all__ = ["Cgroup", "make_cgroup"]

"""Processor cores that this process may use."""

import os
from pathlib import Path

_ROOT = Path("/")


def physical_cores(root: Path = _ROOT) -> int:
    """Return the physical cores that this process may use, at least 1.

    Counted are the cores of its affinity, the threads of one core once, and no more than its
    control group's quota of processor time.

    Args:
        root: the folder that holds proc and sys.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cpus = sorted(allowed) if allowed else range(os.cpu_count() or 1)
    cores = len({_siblings(root, cpu) for cpu in cpus})
    return max(1, min(cores, int(_quota(root))))


def _siblings(root: Path, cpu: int) -> str:
    """Return a name for the physical core of a logical one."""
    path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _quota(root: Path) -> float:
    """Return the least quota, in processors, of the control groups this process is in."""
    least = 1e6
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return least
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / controllers
        folder = base / group.strip("/")
        # in a container the group's own path may not be there, and the root is the group
        for at in (folder, *folder.parents):
            if at == base.parent or not at.is_relative_to(base):
                break
            least = min(least, _group_quota(at))
    return least


def _group_quota(folder: Path) -> float:
    """Return the quota of one group: of version 2 in one file, of version 1 in two."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((folder / name).read_text() for name in names).split()
            quota, period = (float(word) for word in words[:2])
        except (OSError, ValueError):  # not there, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return 1e6


__all__ = ["physical_cores"]

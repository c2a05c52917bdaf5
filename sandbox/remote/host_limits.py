"""Limits of a sandbox host, over all its environments."""

import os
from dataclasses import dataclass
from pathlib import Path

from drawloom.environments import Env


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Hold the limits of a host.

    Attributes:
        most: environments, sidecars included.
        memory: bytes of memory, of all environments together.
        pids: processes, of all environments together.
        cpus: CPU cores of one environment.
    """

    most: int
    memory: int
    pids: int
    cpus: float

    @classmethod
    def of_machine(cls, most: int, memory: int | None) -> "HostLimits":
        """Return the limits of this machine, except for those that are given."""
        own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(most, own if memory is None else memory, _processes() // 2, os.cpu_count() or 1)

    @staticmethod
    def taken(envs: list[Env]) -> int:
        """Count environments and their sidecars."""
        return sum(1 + len(env.sidecars) for env in envs)

    def lacks(self, env: Env, envs: list[Env]) -> str:
        """Name the limit that one more environment would exceed; empty if none."""
        everything = [*envs, env]
        memory = sum(each.footprint for each in everything)
        if self.taken(everything) > self.most:
            return f"{self.most} environments"
        if memory > self.memory:
            return f"{memory >> 20:,} MiB of {self.memory >> 20:,} (--memory)"
        if sum(_pids(each) for each in everything) > self.pids:
            return f"{self.pids:,} processes"
        if max(each.cpus for each in (env, *(other for _, other in env.sidecars))) > self.cpus:
            return f"{self.cpus:g} cores"
        return ""


def _pids(env: Env) -> int:
    return env.pids + sum(other.pids for _, other in env.sidecars)


def _processes() -> int:
    try:
        return int(Path("/proc/sys/kernel/pid_max").read_text())
    except (OSError, ValueError):
        return 32768


__all__ = ["HostLimits"]

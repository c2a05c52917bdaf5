"""Options of a `Runtime`, grouped: where environments are made, and how much there may be."""

from dataclasses import dataclass

from drawloom.environments import parse_size
from drawloom.errors import ConfigError
from drawloom.runtime.scheduler.events import TenantShare
from drawloom.sandbox.api.provider import Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxOptions:
    """Choose where environments are made, and how many are kept ready.

    Args:
        provider: ``auto`` (Docker if an engine answers, else local processes if they can be fully
            isolated), ``docker``, ``process``, ``none``, a broker's URL (``mqtts://…``), or a
            `Provider`.
        docker: the Docker engine's URL; by default as the environment says.
        warm: most environments kept ready, over all declarations.

    Raises:
        ConfigError: if `docker` is given with a provider that uses no Docker engine, or `warm` is
            negative.
    """

    provider: str | Provider = "auto"
    docker: str | None = None
    warm: int = 8

    def __post_init__(self) -> None:
        if self.docker is not None and self.provider not in ("auto", "docker"):
            raise ConfigError(
                f"docker={self.docker!r} is not used by provider {self.provider!r}: choose docker "
                "or auto, or leave it out"
            )
        if self.warm < 0:
            raise ConfigError(f"warm={self.warm}: choose 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limit what the programs of a runtime use; None is no limit.

    Limits of environments need a policy that admits programs by them (`drawloom`): a program then
    waits for its environments before it starts, so programs never wait for each other's.

    Args:
        environments: most environments at a time, in use or ready.
        memory: most memory of all environments together (``"16g"``); as many may exist at a time
            as fit if each used as much as the largest may.
        tool_slots: most tool calls at a time, over all environments.
        tenants: weights and limits of tenants; others have weight 1 and no limit.

    Raises:
        ConfigError: if nothing could run under a limit, or a size cannot be read.
    """

    environments: int | None = None
    memory: str | None = None
    tool_slots: int | None = None
    tenants: tuple[TenantShare, ...] = ()

    def __post_init__(self) -> None:
        if self.memory is not None:
            parse_size(self.memory)
        for name in ("environments", "tool_slots"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ConfigError(f"{name}={limit}: nothing could run; leave it out for no limit")

    @property
    def memory_bytes(self) -> int | None:
        """Return `memory` in bytes."""
        return None if self.memory is None else parse_size(self.memory)

    def check_policy(self, policy: str, admits_by_env_capacity: bool) -> None:
        """Raise `ConfigError` if environments are limited under a policy that ignores the limit."""
        for name in ("environments", "memory"):
            given = getattr(self, name)
            if given is not None and not admits_by_env_capacity:
                raise ConfigError(
                    f"{name}={given}: policy {policy!r} does not admit programs by environments, "
                    "so they could wait for each other's for ever; choose drawloom, or leave it out"
                )

    def check_agent(self, agent: str, footprints: list[int]) -> None:
        """Raise `ConfigError` if an agent needs more environments than there may be.

        Args:
            agent: name of the agent.
            footprints: bytes of memory that each of its environments may use.
        """
        wanted, most = len(footprints), self.environments
        if most is not None and wanted > most:
            raise ConfigError(
                f"agent {agent} uses {wanted} environments, and environments={most}: raise it"
            )
        largest, memory = max(footprints, default=0), self.memory_bytes
        if memory is not None and wanted * largest > memory:
            raise ConfigError(
                f"agent {agent} uses {wanted} environments of up to {largest >> 20} MiB, and "
                f"memory is {memory >> 20} MiB: raise it, or lower Env(memory=…)"
            )


__all__ = ["Limits", "SandboxOptions"]

"""Security profiles of containers: user, capabilities, writable folders."""

from dataclasses import dataclass
from typing import Any

from drawloom.environments import Env, parse_size

_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Profile:
    """Describe the rights of a container's commands.

    Attributes:
        user: user and group id of all commands.
        caps: capabilities beyond an ordinary user's.
        sealed: only the working folder and /tmp are writable, both in memory.
        shm: size of the shared memory; empty: a part of the memory limit.
    """

    user: int = 0
    caps: tuple[str, ...] = ()
    sealed: bool = False
    shm: str = ""

    def options(self, env: Env, work: str) -> dict[str, Any]:
        """Return the options of this profile for docker-py's `containers.create`."""
        chosen: dict[str, Any] = {"user": f"{self.user}:{self.user}"}
        if self.caps:
            chosen["cap_add"] = list(self.caps)
        # shared memory that no process holds would count on, and the kernel end the helper for it
        chosen["sysctls"] = {"kernel.shm_rmid_forced": "1"}
        small = min(64 << 20, parse_size(env.memory) // 4)
        chosen["shm_size"] = parse_size(self.shm) if self.shm else small
        if self.sealed:
            owner = f"mode=0700,uid={self.user},gid={self.user},nosuid,nodev"
            memory = parse_size(env.memory)  # which both count towards, and processes need some
            size = min(parse_size(env.disk), memory // 2)
            tmpfs = {"/tmp": f"size={memory // 8},{owner}", work: f"size={size},exec,{owner}"}
            chosen |= {"read_only": True, "tmpfs": tmpfs}
        return chosen


PROFILES: dict[str, Profile] = {
    "strict": Profile(user=_NOBODY, sealed=True),
    "swe": Profile(),
    "build": Profile(caps=("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID")),
    "browser": Profile(shm="256m"),
}

__all__ = ["PROFILES", "Profile"]

"""The options of one container, computed without a Docker engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.types import LogConfig, Ulimit

from drawloom.environments import Env, parse_size
from drawloom.sandbox.api.provider import LABEL, WORK
from drawloom.sandbox.docker.security_profiles import PROFILES
from drawloom.sandbox.docker.snapshots import labels_of

SIDECAR_LABEL = f"{LABEL}-beside"
_HELPER = "/.drawloom/helper"
_GATEWAY = "/.drawloom/door"
SOCKET = "model"
"""Name of the gateway's socket in its folder."""


@dataclass(frozen=True, slots=True)
class Host:
    """Hold what containers of one owner have in common on a host.

    Attributes:
        helper: the helper's binary on the host.
        ttl: seconds without a word from its owner after which a container ends.
        hard: end it even if a command runs whose result an adopter may come for.
        security: Docker's `security_opt`.
    """

    owner: str
    helper: Path
    ttl: float
    hard: bool
    security: tuple[str, ...] = ()


def container_spec(
    env: Env,
    id: str,
    image: str,
    host: Host,
    *,
    gateway: Path | None = None,
    pod: tuple[str, Env] | None = None,
) -> dict[str, Any]:
    """Return what docker-py's `containers.create` takes for an environment or a sidecar.

    Args:
        image: of the environment, or of the snapshot that it is forked from.
        gateway: folder of the socket to the runtime's model; given if and only if `env.llm`.
        pod: id and declaration of the environment that this is a sidecar of.
    """
    of, whole = pod or (id, env)
    command = [_HELPER, "--ttl", str(int(host.ttl)), "--dir", WORK]
    command += ["--hard"] if host.hard else []
    volumes = {str(host.helper): {"bind": _HELPER, "mode": "ro"}}
    if gateway is not None:
        volumes[str(gateway)] = {"bind": _GATEWAY, "mode": "ro"}
        command += ["--llm", f"{_GATEWAY}/{SOCKET}"]
    memory, disk = parse_size(env.memory), parse_size(env.disk)
    spec = {
        "image": image,
        "entrypoint": command,
        "name": f"{LABEL}-{id}",
        "labels": labels_of(LABEL if pod is None else SIDECAR_LABEL, of, host.owner, env.key),
        "volumes": volumes,
        "cap_drop": ["ALL"],
        "security_opt": list(host.security),
        "mem_limit": memory,
        "memswap_limit": memory,
        "nano_cpus": int(env.cpus * 1e9),
        "pids_limit": env.pids,
        "ulimits": [
            Ulimit(name="core", soft=0, hard=0),
            Ulimit(name="nofile", soft=1024, hard=1024),
            Ulimit(name="fsize", soft=disk, hard=disk),
        ],
        "log_config": LogConfig(type="none"),
        "stdin_open": True,
        "detach": True,  # otherwise stdin closes with its first owner, and the container ends
        "auto_remove": True,
        "working_dir": "/",
    }
    if env.runtime:
        spec["runtime"] = env.runtime
    return spec | _network(env, id, of, whole) | PROFILES[env.profile].options(env, WORK)


def _network(env: Env, id: str, of: str, whole: Env) -> dict[str, Any]:
    """Return the network options; all of a pod share the loopback of the first sidecar."""
    if env.network:
        return {"network_mode": "bridge"}
    if not whole.sidecars:
        return {"network_mode": "none"}
    first = f"{of}.{whole.sidecars[0][0]}"
    if id == first:
        hosts = {name: "127.0.0.1" for name, _ in whole.sidecars}
        return {"network_mode": "none", "extra_hosts": hosts}
    return {"network_mode": f"container:{LABEL}-{first}"}


__all__ = ["SIDECAR_LABEL", "SOCKET", "Host", "container_spec"]

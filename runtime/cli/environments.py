"""Command line of `drawloom sandbox`."""

import asyncio

from cyclopts import App

from drawloom.runtime.cli.options import STORE, Count, Docker, Json, Kind, Seconds, StoreUrl

sandbox_app = App(
    name="sandbox",
    help="Manage tool environments on this host.",
    help_format="plaintext",
)


@sandbox_app.command(name="ls")
def sandbox_ls(*, docker: Docker = None, json: Json = False) -> int:
    """List drawloom's environments on this host, of all owners."""
    from drawloom.runtime.cli import sandboxes

    return asyncio.run(sandboxes.ls(docker, json))


@sandbox_app.command
def gc(
    *, store: StoreUrl = STORE, docker: Docker = None, all: bool = False, json: Json = False
) -> int:
    """Remove orphaned environments: those that no program of this store can resume.

    Args:
        all: remove all of drawloom's environments on this host, of any store.
    """
    from drawloom.runtime.cli import sandboxes

    return asyncio.run(sandboxes.gc(store, docker, all, json))


@sandbox_app.command
def shell(id: str, *, docker: Docker = None) -> int:
    """Open a shell in an environment on this host, also while a program uses it.

    Args:
        id: id of the environment, from `drawloom sandbox ls`.
    """
    from drawloom.runtime.cli import sandboxes

    return sandboxes.shell(id, docker)


@sandbox_app.command
def host(
    *,
    broker: str,
    name: str = "",
    most: Count = 32,
    memory: str = "",
    sandbox: Kind = "auto",
    docker: Docker = None,
    network: bool = False,
    lease: Seconds = 6.0,
) -> int:
    """Offer this machine's environments to runtimes: Runtime(sandbox="mqtt://…").

    Args:
        broker: mqtt[s]://[user@]host[:port][/prefix][?ca=file]; password: DRAWLOOM_MQTT_PASSWORD.
        name: name of the host; by default the machine's name.
        most: most environments at a time, of all runtimes, sidecars included.
        memory: memory of all environments together, like 16g; unlimited by default.
        network: let environments have a network if they declare one.
        lease: seconds without contact after which a runtime's environments are ended.
    """
    from drawloom.runtime.cli import sandboxes

    options = sandboxes.HostOptions(name, sandbox, most, memory, network, lease)
    return asyncio.run(sandboxes.host(broker, docker, options))


__all__ = ["sandbox_app"]

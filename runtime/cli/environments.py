"""`drawloom sandbox`: the verbs."""

import asyncio

from cyclopts import App

from drawloom.runtime.cli.options import STORE, Count, Docker, Json, Kind, Seconds, StoreUrl

sandbox_app = App(
    name="sandbox",
    help="The tool environments that exist on this host.",
    help_format="plaintext",
)


@sandbox_app.command(name="ls")
def sandbox_ls(*, docker: Docker = None, json: Json = False) -> int:
    """List the environments that drawloom made on this host, whoever owns them."""
    from drawloom.runtime.cli import sandboxes

    return asyncio.run(sandboxes.ls(docker, json))


@sandbox_app.command
def gc(
    *, store: StoreUrl = STORE, docker: Docker = None, all: bool = False, json: Json = False
) -> int:
    """Remove environments that no program of this store can come back to.

    Args:
        all: remove every environment that drawloom made on this host, of any store.
    """
    from drawloom.runtime.cli import sandboxes

    return asyncio.run(sandboxes.gc(store, docker, all, json))


@sandbox_app.command
def shell(id: str, *, docker: Docker = None) -> int:
    """Open a shell in an environment that lives on this host, beside whoever uses it.

    Args:
        id: as `drawloom sandbox ls` has it.
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
        name: what it is called; by default the machine's name.
        most: most environments at a time, of all runtimes, with those beside others.
        memory: most memory that they may use together, like 16g; by default all there is.
        network: let environments have a network where they ask for one.
        lease: seconds without contact to a runtime after which all that it runs here is ended.
    """
    from drawloom.runtime.cli import sandboxes

    options = sandboxes.HostOptions(name, sandbox, most, memory, network, lease)
    return asyncio.run(sandboxes.host(broker, docker, options))


__all__ = ["sandbox_app"]

"""Factory of sandbox gateways: access to a runtime's model from inside its environments."""

from pathlib import Path
from typing import Any

from drawloom.runtime.server.served_runtime import ServedRuntime


class GatewayFactory:
    """Open a gateway socket for each environment that asks for one.

    Implements the protocol `Gateway` of `sandbox/api/provider.py`. The HTTP server behind the
    sockets is imported and made with the first one.
    """

    def __init__(self, runtime: ServedRuntime) -> None:
        self._runtime = runtime
        self._gateway: Any = None

    async def open(self, box: str, path: Path) -> None:
        """Listen for requests of an environment.

        Args:
            box: id of the environment.
            path: the Unix socket to create.
        """
        if self._gateway is None:
            from drawloom.runtime.server.sandbox_gateway import SandboxGateway

            self._gateway = SandboxGateway(self._runtime)
        await self._gateway.open(box, path)

    async def close(self, box: str) -> None:
        """Close the socket of an environment, if it has one."""
        if self._gateway is not None:
            await self._gateway.close(box)

    async def close_all(self) -> None:
        """Close all sockets and the server behind them."""
        if self._gateway is not None:
            await self._gateway.close_all()


__all__ = ["GatewayFactory"]

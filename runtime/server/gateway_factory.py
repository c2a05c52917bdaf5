"""What environments find of their runtime from inside."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drawloom.runtime.sdk.runtime import Runtime


class Doors:
    """Implements `sandbox/api/provider.py`'s `Doors`; the server is made with the first one."""

    def __init__(self, runtime: "Runtime") -> None:
        self._runtime = runtime
        self._door: Any = None

    async def open(self, box: str, path: Path) -> None:
        if self._door is None:
            from drawloom.runtime.server.sandbox_gateway import Door

            self._door = Door(self._runtime)
        await self._door.open(box, path)

    async def close(self, box: str) -> None:
        if self._door is not None:
            await self._door.close(box)

    async def close_all(self) -> None:
        if self._door is not None:
            await self._door.close_all()


__all__ = ["Doors"]

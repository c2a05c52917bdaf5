"""Use of a runtime by code that is not asynchronous."""

import asyncio
from typing import Any, ParamSpec, TypeVar

from drawloom.errors import ConfigError
from drawloom.runtime.execution.agent import Agent

P = ParamSpec("P")
R = TypeVar("R")


class SyncUse:
    """Add to `Runtime` what works without `await`, and advice where it does not."""

    def run_sync(self, agent: Agent[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Open the runtime, run one program, close it, and return the result: for scripts.

        Raises:
            ConfigError: an event loop runs here already.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._once(agent, args, kwargs))
        raise ConfigError("an event loop runs here: `await rt.run(agent, …)` instead of run_sync")

    async def _once(self, agent: Agent[..., R], args: Any, kwargs: Any) -> R:
        runtime: Any = self
        async with runtime:
            result: R = await runtime.run(agent, *args, **kwargs)
            return result

    def __enter__(self) -> Any:
        raise ConfigError(
            "a runtime is opened with `async with Runtime(…) as rt`; without asyncio, "
            "Runtime(…).run_sync(agent, …) runs one program"
        )

    def __exit__(self, *error: object) -> None: ...


__all__ = ["SyncUse"]

"""Tolerance of faults that belong to no request."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from drawloom.errors import EngineError

_MAX_FAULTS = 5

log = logging.getLogger("drawloom.engine")


def as_exception(error: BaseException) -> Exception:
    """Return the exception that fails a request.

    The panic of a library in Rust is no `Exception`: it becomes an `EngineError`.

    Raises:
        KeyboardInterrupt, SystemExit, GeneratorExit: if `error` is one, because it must end the
            thread.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
    return error if isinstance(error, Exception) else EngineError(f"a library failed: {error!r}")


class Faults:
    """Count the faults of engine steps since the last step that completed."""

    def __init__(self) -> None:
        self._count = 0

    def reset(self) -> None:
        """Note that a step completed."""
        self._count = 0

    @contextmanager
    def tolerate(self, action: str) -> Iterator[None]:
        """Log an exception of the block and go on without it.

        Args:
            action: what the block does, for the message.

        Raises:
            EngineError: if faults repeat without a completed step in between: the engine is of no
                use then, and its client must know.
        """
        try:
            yield
        except Exception as error:
            self._count += 1
            log.exception("%s failed", action)
            if self._count > _MAX_FAULTS:
                raise EngineError(f"{action} failed {self._count} times: {error!r}") from error


__all__ = ["Faults", "as_exception"]

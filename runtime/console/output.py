"""Output of commands: tables, JSON, and notes on standard error."""

import json as js
import logging
import sys
from typing import Any

from pydantic_core import to_jsonable_python
from rich.console import Console

_WIDTH = 160


def console() -> Console:
    """Return standard output; if it is no terminal, as wide as tables need."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def emit(data: Any) -> None:
    """Print a value as JSON on standard output."""
    print(js.dumps(to_jsonable_python(data, fallback=str), indent=2))


def note(text: str) -> None:
    """Print a line about progress on standard error."""
    print(f"drawloom: {text}", file=sys.stderr, flush=True)


def log_to_stderr(name: str) -> None:
    """Print the records of a logger at INFO and above on standard error, with the time.

    Args:
        name: name of the logger.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False


__all__ = ["console", "emit", "log_to_stderr", "note"]

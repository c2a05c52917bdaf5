"""What commands print: progress on a terminal, plain lines elsewhere, JSON when asked."""

import json as js
import logging
import sys
from typing import Any

from pydantic_core import to_jsonable_python
from rich.console import Console

_WIDTH = 160


def console() -> Console:
    """Standard output; as wide as a table needs where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def emit(data: Any) -> None:
    """One JSON value on stdout."""
    print(js.dumps(to_jsonable_python(data, fallback=str), indent=2))


def note(words: str) -> None:
    """A line for whoever watches, beside the output."""
    print(f"drawloom: {words}", file=sys.stderr, flush=True)


def log_to_stderr(name: str) -> None:
    """Print what a logger says at INFO, with the time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False


__all__ = ["console", "emit", "log_to_stderr", "note"]

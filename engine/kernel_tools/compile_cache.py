"""Cache of ahead-of-time compilations, keyed by source, compiler version and architecture."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from drawloom.compile_c import cache_folder

ENVIRONMENT = "DRAWLOOM_KERNEL_CACHE"


def kernel_cache_folder() -> Path:
    """Return the folder of the cache: that in `DRAWLOOM_KERNEL_CACHE`, or one of the user's."""
    given = os.environ.get(ENVIRONMENT)
    return Path(given) if given else cache_folder() / "kernels"


def cached(key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of a key, computing and storing it if it is not in the cache.

    Args:
        key: a file name.
        compute: returns a JSON object.

    A file that cannot be read or written is no error: the result is computed.
    """
    path = kernel_cache_folder() / f"{key}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (OSError, ValueError):
        pass
    made = compute()
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(made))
        part.replace(path)  # another process may store the same
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return made


__all__ = ["ENVIRONMENT", "cached", "kernel_cache_folder"]

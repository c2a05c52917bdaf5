"""Commands that query a running `drawloom serve`."""

import json as js
import urllib.error
import urllib.request
from typing import Any

from rich.table import Table

from drawloom.errors import ConfigError
from drawloom.runtime.console import output

_SECONDS = 10.0


def ps(url: str, key: str, limit: int, json: bool) -> int:
    """Print the programs of a server, the most recently active first.

    Args:
        url: the server's URL.
        key: its API key; empty if it needs none.
        limit: most programs to print.
        json: print JSON.
    """
    found = _get(f"{url.rstrip('/').removesuffix('/v1')}/v1/programs", key)["data"]
    rows = sorted(found, key=lambda row: row["idle_s"])[:limit]
    if json:
        output.emit(rows)
        return 0
    table = Table("program", "tenant", "status", "conversations", "tokens", "idle")
    for row in rows:
        table.add_row(
            row["program_id"],
            row["tenant"],
            row["status"],
            str(row["conversations"]),
            str(row["tokens"]),
            f"{row['idle_s']:.0f} s",
        )
    output.console().print(table)
    return 0


def _get(url: str, key: str) -> Any:
    """Fetch JSON.

    Raises:
        ConfigError: no server answers, or it refuses.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"{url!r} is not the URL of a server: write --server http://127.0.0.1:8000"
        )
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return js.loads(answer.read())
    except urllib.error.HTTPError as error:
        hint = "; set DRAWLOOM_API_KEY" if error.code == 401 else ""
        raise ConfigError(f"{url} answers {error.code} {error.reason}{hint}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(f"no drawloom server answers at {url}: {reason}") from None


__all__ = ["ps"]

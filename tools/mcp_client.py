"""Tools of MCP servers: programs that offer tools over the Model Context Protocol.

A server outside of a sandbox is spoken to by the official SDK, over stdio or streamable HTTP, and
is trusted as much as your own code. One inside a sandbox runs in the environment of the program
that calls it, sees that program's files and nothing else, and ends with it; the few messages that a
call takes go through two files there, so that any environment will do.
"""

import asyncio
import contextlib
import json
import logging
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from drawloom.environments import Env, Sandbox
from drawloom.errors import ConfigError, SandboxError, ToolError, ToolTimeout
from drawloom.tools.json_schema import Declared
from drawloom.tools.mcp_host import HostServer
from drawloom.tools.mcp_listing import usable_tools
from drawloom.tools.tool import Tool

log = logging.getLogger("drawloom.tools")
_OPENING_SECONDS = 60.0
_VERSION = "2025-06-18"
_CLIENT = {"name": "drawloom", "version": "0.1"}
_LONGEST = 16 << 20


class Opener(Protocol):
    """Gives an environment to look at a server in: `Runtime.sandbox`."""

    def __call__(self, env: Env, /) -> contextlib.AbstractAsyncContextManager[Sandbox]: ...


class McpServer:
    """Offer the tools of a server: ``async with McpServer(…) as server: server.tools``.

    A tool whose description no model could use is left out, with a warning; a server that has
    died is started again by the next call.

    Args:
        server: a command and its arguments, or the URL of a streamable HTTP server.
        name: goes before the names of its tools, where two servers offer the same.
        timeout: seconds after which a call is given up and the model is told, and most seconds
            (60 at most) that it may take to start.
        trusted: believe what it says of its tools: that they only read, that they may be repeated.
        env: environment variables of the command, which otherwise has only `PATH`, `HOME` and the
            like; or an `Env`: run the command in this environment of each program, not on this
            host.
        within: with an `Env`: `Runtime.sandbox`, which gives an environment to learn the tools in.

    Raises on entry: `ToolError` when it does not start or speaks another protocol, `ConfigError`.
    """

    def __init__(
        self,
        server: str | Sequence[str],
        *,
        name: str = "",
        timeout: float | None = 60.0,
        trusted: bool = False,
        env: Env | Mapping[str, str] | None = None,
        within: Opener | None = None,
    ) -> None:
        self._server = server if isinstance(server, str) else tuple(server)
        if not self._server or (isinstance(self._server, str) and "://" not in self._server):
            raise ConfigError(f"{server!r} is no MCP server: a list of words, or http://…")
        self._env = env if isinstance(env, Env) else None
        if self._env is not None and (within is None or isinstance(self._server, str)):
            raise ConfigError("McpServer(env=…) takes a command, and within=runtime.sandbox")
        variables = None if isinstance(env, Env) or env is None else _variables(env, self._server)
        if timeout is not None and timeout <= 0:
            raise ConfigError(f"McpServer(timeout={timeout:g}): more than 0, or None for never")
        self._name, self._timeout, self._trusted = name, timeout, trusted
        self._within, self._variables = within, variables
        self._boxed = _Boxed(tuple(self._server)) if self._env is not None else None
        self._host: HostServer | None = None
        self.tools: list[Tool[..., Any]] = []

    async def __aenter__(self) -> "McpServer":
        self.tools = self._named(await self._listed())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._host is not None:
            await self._host.close()

    @property
    def _words(self) -> str:
        return self._server if isinstance(self._server, str) else shlex.join(self._server)

    async def _listed(self) -> list[dict[str, Any]]:
        limit = min(_OPENING_SECONDS, self._timeout or _OPENING_SECONDS)
        if self._env is None:
            self._host = HostServer(self._server, self._words, self._variables, limit)
            return await self._host.open()
        assert self._within is not None and self._boxed is not None
        try:
            async with asyncio.timeout(limit), self._within(self._env) as box:
                return usable_tools(await self._boxed.tools(box), self._words)
        except TimeoutError:
            words = f"MCP server {self._words} does not answer for {limit:g} s"
            raise ToolError(words) from None

    def _named(self, listed: list[dict[str, Any]]) -> list[Tool[..., Any]]:
        """Give each tool a unique name that is an identifier."""
        found: dict[str, Tool[..., Any]] = {}
        names: set[str] = set()
        for about in listed:
            said = str(about["name"])
            if said in names:
                log.warning("MCP server %s: its second tool %r is left out", self._words, said)
                continue
            names.add(said)
            name = re.sub(r"\W", "_", f"{self._name}_{said}" if self._name else said)
            name = first = name if name.isidentifier() else f"_{name}"
            number = 2
            while name in found:
                name, number = f"{first}_{number}", number + 1
            if name != first:
                log.warning("MCP server %s: its tool %r is called %s", self._words, said, name)
            found[name] = self._tool(name, about)
        return list(found.values())

    def _tool(self, name: str, about: dict[str, Any]) -> Tool[..., Any]:
        believed = (about.get("annotations") or {}) if self._trusted else {}
        signature = Declared(
            about.get("description") or "",
            about.get("inputSchema") or {},
            wants_sandbox=self._env is not None,
        )
        return Tool(
            self._caller(str(about["name"])),
            name=name,
            env=self._env,
            timeout=self._timeout,
            readonly=bool(believed.get("readOnlyHint")),
            idempotent=bool(believed.get("idempotentHint")),
            signature=signature,
        )

    def _caller(self, tool: str) -> Callable[..., Any]:
        boxed = self._boxed

        async def inside(box: Sandbox, /, **arguments: Any) -> str:
            assert boxed is not None
            return _told(await boxed.call(box, tool, arguments))

        async def outside(**arguments: Any) -> str:
            if self._host is None:
                raise ToolError(f"MCP server {self._words} is not open")
            try:
                async with asyncio.timeout(self._timeout):
                    return _told(await self._host.call(tool, arguments))
            except TimeoutError:
                raise ToolTimeout(f"timed out after {self._timeout:g} s") from None

        return inside if self._env is not None else outside


def _variables(given: Mapping[str, str], server: str | tuple[str, ...]) -> Mapping[str, str]:
    if isinstance(server, str):
        raise ConfigError("McpServer(env={…}) takes a command: a URL has no environment variables")
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigError(f"McpServer(env={{{name!r}: {value!r}}}): names and values are text")
    return given


def _told(result: dict[str, Any]) -> str:
    """Return a result as the model reads it; raise `ToolError` if it is an error."""
    pieces = [_piece(content) for content in result.get("content") or ()]
    if not pieces and result.get("structuredContent") is not None:
        pieces = [json.dumps(result["structuredContent"], ensure_ascii=False)]
    text = "\n".join(pieces)
    if result.get("isError"):
        raise ToolError(text or "it failed and said nothing")
    return text


def _piece(content: dict[str, Any]) -> str:
    if content.get("type") == "text":
        return str(content.get("text", ""))
    if content.get("type") == "resource" and "text" in (content.get("resource") or {}):
        return str(content["resource"]["text"])
    kind = content.get("mimeType") or content.get("uri") or ""
    return f"[{content.get('type', 'something')} {kind}]".replace(" ]", "]")


# --- inside a sandbox ---------------------------------------------------------------------

_START = """cd {folder} && exec 3<>in && cd - >/dev/null && exec "$@" <{folder}/in >>{folder}/out"""
_NEXT = (
    "while [ $(wc -c < {folder}/out) -le {at} ]; do [ -e {folder}/out ] || exit 1; sleep 0.005; "
    "done; tail -c +{after} {folder}/out"
)


@dataclass(slots=True)
class _Line:
    """Keep the progress of the exchange with one server process."""

    at: int = 0
    number: int = 0
    rest: bytes = b""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class _Boxed:
    """Run a server in environments, as a process that reads a named pipe and writes a file."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._words = shlex.join(command)
        label = re.sub(r"\W", "_", command[0].rpartition("/")[2])[:20]
        self._service = f"mcp_{label}_{abs(hash(command)) % 10_000}"
        self._folder = f".{self._service}"
        self._lines: dict[str, _Line] = {}

    async def tools(self, box: Sandbox) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            result = await self._request(box, "tools/list", more)
            found += result.get("tools") or []
            if not result.get("nextCursor"):
                return found
            more = {"cursor": result["nextCursor"]}

    async def call(self, box: Sandbox, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return await self._request(box, "tools/call", {"name": tool, "arguments": arguments})

    async def _request(self, box: Sandbox, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Make requests one at a time, because one reader reads a server's answers."""
        line = self._lines.setdefault(box.id, _Line())
        async with line.turn:
            if not line.number:
                await self._start(box, line)
            return await self._ask(box, line, method, params)

    async def _start(self, box: Sandbox, line: _Line) -> None:
        """Start a new server: one that an earlier owner initialised refuses to begin again."""
        with contextlib.suppress(SandboxError):
            await box.service(self._service).stop()
        folder = self._folder
        made = f"rm -rf {folder} && mkdir {folder} && mkfifo {folder}/in && : > {folder}/out"
        if (result := await box.sh(made)).code:
            raise ToolError(f"MCP server {self._words} cannot start: {result.text.strip()}")
        script = _START.format(folder=folder)
        await box.start(self._service, "/bin/sh", "-c", script, "sh", *self._command)
        about = {"protocolVersion": _VERSION, "capabilities": {}, "clientInfo": _CLIENT}
        await self._ask(box, line, "initialize", about)
        await self._say(box, {"method": "notifications/initialized"})

    async def _say(self, box: Sandbox, message: dict[str, Any]) -> None:
        data = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
        result = await box.exec("/bin/sh", "-c", f"cat > {self._folder}/in", stdin=data)
        if result.code or result.timed_out:
            raise ToolError(f"MCP server {self._words} does not read what it is asked")

    async def _ask(
        self, box: Sandbox, line: _Line, method: str, params: dict[str, Any]
    ) -> dict[str, Any]:
        number, line.number = line.number, line.number + 1
        await self._say(box, {"id": number, "method": method, "params": params})
        while True:
            for message in await self._heard(box, line):
                if message.get("id") == number and "method" not in message:
                    if (error := message.get("error")) is not None:
                        raise ToolError(f"MCP server {self._words}: {error.get('message', error)}")
                    return dict(message.get("result") or {})
                if "id" in message and "method" in message:  # we offer nothing that it could ask
                    refusal = {"code": -32601, "message": "not offered"}
                    await self._say(box, {"id": message["id"], "error": refusal})

    async def _heard(self, box: Sandbox, line: _Line) -> list[dict[str, Any]]:
        """Whole messages that have come. Raises `ToolError` when the server has ended."""
        waiting = asyncio.ensure_future(
            box.sh(_NEXT.format(folder=self._folder, at=line.at, after=line.at + 1))
        )
        try:
            while not (await asyncio.wait([waiting], timeout=1.0))[0]:
                state = await box.service(self._service).state()
                if not state.running:
                    self._lines.pop(box.id, None)
                    said = state.text.strip()[-500:]
                    raise ToolError(f"MCP server {self._words} has ended ({state.code}): {said}")
            result = await waiting
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        data = result.output
        if result.truncated:  # its first half is what comes next, the rest is read again
            data = data[: len(data) // 2]
        line.at += len(data)
        *lines, line.rest = (line.rest + data).split(b"\n")
        if len(line.rest) > _LONGEST:
            raise ToolError(f"MCP server {self._words} says more than {_LONGEST >> 20} MiB at once")
        return [message for text in lines if (message := _json(text)) is not None]


def _json(text: bytes) -> dict[str, Any] | None:
    """Parse a message; return None for other text, which servers print to stdout by mistake."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


__all__ = ["McpServer"]

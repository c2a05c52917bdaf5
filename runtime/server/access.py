"""Access control of the HTTP server: API keys, Host and Origin headers, content types.

The API is reachable from every page that a browser on this machine shows, so a listener on
loopback is no protection by itself. A page can send simple cross-origin requests (refused by
`Origin` and content type), and can have its own host name resolve to 127.0.0.1 (refused by
`Host`).
"""

import hmac
import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from drawloom.errors import ConfigError
from drawloom.runtime.server.openai_requests import HttpError

_OPEN_PATHS = frozenset({"/health"})  # load balancers probe it without a key
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


def is_loopback(host: str) -> bool:
    """Tell whether an address or a name is a loopback one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Access:
    """Decide which requests a server accepts.

    Attributes:
        keys: API keys, any of which is accepted; empty accepts requests without a key.
        hosts: names accepted in the Host header besides loopback's; None accepts every name.
    """

    keys: tuple[bytes, ...] = ()
    hosts: frozenset[str] | None = frozenset()

    @classmethod
    def for_listener(
        cls, bind_host: str, keys: Iterable[str], hosts: Iterable[str], insecure: bool = False
    ) -> "Access":
        """Choose the rules for a listening address.

        Args:
            bind_host: the address that the server listens on.
            keys: API keys; empty strings are left out.
            hosts: further names that clients may reach the server by; ``*`` is any.
            insecure: accept an address off loopback without a key.

        Raises:
            ConfigError: the address is not loopback's and there is no key, or a key cannot be
                sent in a header.
        """
        known = tuple(key for key in keys if key)
        if not all(key.isascii() and key.isprintable() and " " not in key for key in known):
            raise ConfigError("an API key is printable ASCII without spaces, as headers need")
        local = is_loopback(bind_host)
        if not local and not known and not insecure:
            raise ConfigError(
                f"{bind_host} can be reached from other machines: set DRAWLOOM_API_KEY "
                "(or --api-key), or pass --insecure to serve without a key"
            )
        names = frozenset(name.lower() for name in hosts)
        # off loopback the key decides, under whatever name the server is reached
        anything = "*" in names or (not local and not names)
        return cls(tuple(k.encode() for k in known), None if anything else names | {bind_host})

    def check(self, scope: Scope) -> None:
        """Raise `HttpError` for a request that is not allowed."""
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_origin(headers)
        if scope["method"] in _WITH_BODY:
            _check_content_type(headers)
        if self.keys and scope["path"] not in _OPEN_PATHS:
            self._check_key(headers)

    def _accepts(self, host: str) -> bool:
        return self.hosts is None or host in self.hosts or is_loopback(host)

    def _check_host(self, headers: Headers) -> None:
        host = _host_name(headers.get("host", ""))
        if not self._accepts(host):
            raise HttpError(
                403,
                f"Host {host!r} is not served here: start with --allow-host {host}",
                code="host_not_allowed",
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None:
            return
        netloc = origin.partition("://")[2]
        host = _host_name(netloc)
        same = netloc == headers.get("host")
        # without a list of names every Host is accepted, but only the same origin
        if not same and not (is_loopback(host) or (self.hosts is not None and host in self.hosts)):
            raise HttpError(
                403,
                f"pages of {origin!r} may not use this server: start with --allow-host HOST",
                code="origin_not_allowed",
            )

    def _check_key(self, headers: Headers) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = headers.get("x-api-key", "")
        sent = given.strip().encode()
        # all keys are compared, so that the time does not show which one matched
        if not sum(hmac.compare_digest(sent, key) for key in self.keys):
            message = "an API key is needed: Authorization: Bearer KEY"
            if given:
                message = "this API key is not accepted"
            raise HttpError(401, message, code="invalid_api_key")


def _host_name(value: str) -> str:
    """Return the name in a Host header: lower case, without port and brackets."""
    try:
        return urlsplit(f"//{value}").hostname or ""
    except ValueError:
        return value


def _check_content_type(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    json_like = kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
    # absent is accepted: browsers send a type or an Origin with every cross-origin POST
    if kind and not json_like:
        raise HttpError(415, f"Content-Type is {kind}; send application/json")


class Guard:
    """Apply `Access` to each request before the rest of the application (ASGI middleware)."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._access.check(scope)
            except HttpError as error:
                await respond(send, error)
                return
        await self._app(scope, receive, send)


async def respond(send: Send, error: HttpError) -> None:
    """Answer a request with an error, without reading its body."""
    body = json.dumps(error.body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),  # the body was not read, so the connection cannot be reused
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 503:
        headers.append((b"retry-after", b"5"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


__all__ = ["Access", "Guard", "is_loopback", "respond"]

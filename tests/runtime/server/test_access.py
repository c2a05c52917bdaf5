"""Who may use the HTTP server: keys, Host, Origin and content types, on every route."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.errors import ConfigError
from drawloom.runtime.server.access import Access, Guard, is_loopback

LOCAL = Access.for_listener("127.0.0.1", [], [])
KEYED = Access.for_listener("0.0.0.0", ["first-key", "second-key"], [])


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"reached"})


async def _status(
    access: Access, method: str = "GET", path: str = "/v1/models", **headers: str
) -> int:
    transport = httpx.ASGITransport(Guard(_app, access))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        sent = {k.replace("_", "-").encode(): v.encode("latin-1") for k, v in headers.items()}
        answer = await client.request(
            method, path, headers=sent, content=b"{}" * (method == "POST")
        )
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]
        return answer.status_code


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "127.8.9.1"]
)
async def test_loopback_hosts_are_served(host: str) -> None:
    assert await _status(LOCAL, host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "[::1",
        "",
    ],
)
async def test_foreign_hosts_are_refused(host: str) -> None:
    assert await _status(LOCAL, host=host) == 403


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/health", "/v1/programs", "/"])
async def test_a_rebound_host_reads_no_route(path: str) -> None:
    assert await _status(LOCAL, path=path, host="evil.example") == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("https://127.0.0.1.evil.example", 403),
        ("file://", 403),
        ("http://[::1", 403),
        ("http://[evil", 403),
        ("http://127.0.0.1:8000", 200),
        ("http://localhost:3000", 200),
    ],
)
async def test_pages_of_other_origins_are_refused(origin: str, status: int) -> None:
    assert await _status(LOCAL, "POST", "/programs/release", origin=origin) == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("text/plain", 415),
        ("text/plain;charset=UTF-8", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
    ],
)
async def test_bodies_are_json(kind: str, status: int) -> None:
    assert await _status(LOCAL, "POST", "/v1/chat/completions", content_type=kind) == status


async def test_allowed_names_are_hosts_and_origins() -> None:
    access = Access.for_listener("127.0.0.1", [], ["Agents.Example"])
    assert await _status(access, host="agents.example") == 200
    assert (
        await _status(access, "POST", host="agents.example", origin="https://agents.example") == 200
    )
    assert await _status(access, host="other.example") == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer first-key"}, 200),
        ({"authorization": "bearer second-key"}, 200),
        ({"x-api-key": "second-key"}, 200),
        ({"authorization": "Bearer first-ke"}, 401),
        ({"authorization": "Bearer first-key2"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Basic first-key"}, 401),
        ({"authorization": "first-key"}, 401),
        ({"x-api-key": "k\u00e9y"}, 401),
    ],
)
async def test_a_key_is_asked_for(headers: dict[str, str], status: int) -> None:
    for path in ("/v1/models", "/metrics", "/v1/programs", "/nothing"):
        assert (
            await _status(KEYED, path=path, **{k.replace("-", "_"): v for k, v in headers.items()})
            == status
        )
    assert await _status(KEYED, path="/health") == 200


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20))
def test_no_other_key_is_accepted(key: str) -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/models",
        "headers": [(b"host", b"x"), (b"authorization", f"Bearer {key}".encode())],
    }
    accepted = True
    try:
        KEYED.check(scope)
    except Exception:
        accepted = False
    assert accepted == (key in ("first-key", "second-key"))


def test_off_loopback_needs_a_key_or_a_word() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(ConfigError, match="DRAWLOOM_API_KEY"):
            Access.for_listener(host, [""], [])
        assert Access.for_listener(host, ["key"], []).keys == (b"key",)
        assert Access.for_listener(host, [], [], insecure=True).keys == ()


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ключ"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="ASCII"):
        Access.for_listener("127.0.0.1", [key], [])


def test_loopback_is_told_from_the_world() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))

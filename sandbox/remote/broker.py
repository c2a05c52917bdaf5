"""An MQTT broker by URL, and one connection to it that is made again when it breaks."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import aiomqtt
from aiomqtt import Message, ProtocolVersion, TLSParameters, Will
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from drawloom.errors import ConfigError, SandboxUnavailable

log = logging.getLogger("drawloom.sandbox")

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_PASSWORD = "DRAWLOOM_MQTT_PASSWORD"
_KEEPALIVE = 5  # seconds: a broker publishes a will after one and a half of them
_CALL_SECONDS = 5.0
_BACKOFF = (0.05, 2.0)
_IN_FLIGHT = 200


@dataclass(frozen=True, slots=True)
class Broker:
    """Locate an MQTT broker, with the credentials for it.

    Attributes:
        prefix: begins all topics.
        ca: file of certificates that are trusted; None: the system's.
    """

    host: str
    port: int
    prefix: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: str | None = None

    @classmethod
    def parse(cls, url: str) -> "Broker":
        """Parse ``mqtt[s]://[user[:password]@]host[:port][/prefix][?ca=file]``.

        The password may stand in ``DRAWLOOM_MQTT_PASSWORD`` instead, where `ps` does not show it.

        Raises:
            ConfigError: it is no such URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS[parts.scheme]
        except (ValueError, KeyError):
            raise ConfigError(
                f"{url!r} is no broker: mqtt://host:1883/prefix, or mqtts://"
            ) from None
        prefix = unquote(parts.path).strip("/") or "drawloom"
        if not parts.hostname or any(c in prefix for c in "+#\0") or prefix.startswith("$"):
            raise ConfigError(f"{url!r} is no broker: it needs a host, and a prefix without + or #")
        options = parse_qs(parts.query)
        if unknown := set(options) - {"ca"}:
            raise ConfigError(f"{url!r}: unknown option {sorted(unknown)[0]!r}; there is ca")
        password = unquote(parts.password) if parts.password else os.environ.get(_PASSWORD)
        if parts.username and password and parts.scheme == "mqtt":
            log.warning("the password for %s is sent in plain text: use mqtts://", parts.hostname)
        return cls(
            parts.hostname,
            port,
            prefix,
            username=unquote(parts.username) if parts.username else None,
            password=password if parts.username else None,
            tls=parts.scheme == "mqtts",
            ca=options.get("ca", [None])[0],
        )

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}/{self.prefix}"


class NotConnected(Exception):
    """Report that there is no connection, or that it broke before the broker confirmed."""


class Link:
    """Keep one MQTT 5 connection to a broker, with delivery at least once.

    Args:
        name: the client's identifier.
        will: topic and payload of the retained message that the broker publishes when we are gone.
        topics: subscribed to on each connection.
        on_message: called with each message, in the order of arrival.
        on_up: awaited on each new connection, before `up` is set.

    Attributes:
        up: set while there is a connection.
        since: when the last connection was made, by the monotonic clock.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        will: tuple[str, bytes],
        topics: list[str],
        on_message: Callable[[Message], None],
        on_up: Callable[[], Awaitable[None]],
    ) -> None:
        self.broker, self._name, self._topics = broker, name, topics
        self._will = Will(will[0], will[1], qos=1, retain=True)
        self._on_message, self._on_up = on_message, on_up
        self._client: aiomqtt.Client | None = None
        self._running: asyncio.Task[None] | None = None
        self.up = asyncio.Event()
        self.since = 0.0
        self._last: Exception | None = None

    async def open(self, patience: float) -> None:
        """Connect, and reconnect from now on.

        Args:
            patience: seconds to wait for the first connection.

        Raises:
            SandboxUnavailable: the broker does not answer, or refuses us.
        """
        await self._check_certificate()
        self._running = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(patience):
                await self.up.wait()
        except TimeoutError:
            await self.close()
            why = self._last or "no answer"
            raise SandboxUnavailable(f"broker {self.broker}: {why}") from None

    async def _check_certificate(self) -> None:
        """Check the broker's certificate first: paho-mqtt 2.2 leaks a socket at each failed try.

        Raises:
            SandboxUnavailable: the certificate is not trusted.
        """
        if not self.broker.tls:
            return
        try:
            context = ssl.create_default_context(cafile=self.broker.ca)
            async with asyncio.timeout(_CALL_SECONDS):
                _, writer = await asyncio.open_connection(
                    self.broker.host, self.broker.port, ssl=context
                )
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        except (ssl.SSLError, FileNotFoundError) as error:
            raise SandboxUnavailable(f"broker {self.broker}: {error}") from None
        except (OSError, TimeoutError):
            pass  # it may be there in a moment

    async def close(self) -> None:
        """Disconnect, and do not reconnect."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        delay = _BACKOFF[0]
        while True:
            try:
                async with self._connection() as client:
                    for topic in self._topics:
                        await client.subscribe(topic, qos=1)
                    self._client, delay = client, _BACKOFF[0]
                    await self._on_up()
                    self.since = time.monotonic()
                    self.up.set()
                    async for message in client.messages:
                        self._take(message)
                        await asyncio.sleep(0)  # a flood of them holds nothing else up
            except (aiomqtt.MqttError, NotConnected, OSError) as error:
                if self._last is None or self.up.is_set():
                    log.warning("broker %s: %s", self.broker, error)
                self._last = error
            finally:
                self._client = None
                self.up.clear()
            await asyncio.sleep(delay)
            delay = min(2 * delay, _BACKOFF[1])

    def _take(self, message: Message) -> None:
        try:
            self._on_message(message)
        except Exception:  # whatever is sent to us, we stay connected
            log.exception("a message on %s", message.topic)

    def _connection(self) -> aiomqtt.Client:
        broker = self.broker
        client = aiomqtt.Client(
            broker.host,
            broker.port,
            username=broker.username,
            password=broker.password,
            identifier=self._name,
            protocol=ProtocolVersion.V5,
            will=self._will,
            keepalive=_KEEPALIVE,
            clean_start=True,
            timeout=_CALL_SECONDS,
            max_inflight_messages=_IN_FLIGHT,
            socket_options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
            tls_params=TLSParameters(ca_certs=broker.ca) if broker.tls else None,
        )
        client.pending_calls_threshold = _IN_FLIGHT
        return client

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        reply_to: str | None = None,
        correlation: bytes | None = None,
    ) -> None:
        """Publish a message and wait until the broker has it. Raises `NotConnected`."""
        client = self._client
        if client is None:
            raise NotConnected
        about = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if reply_to is not None:
            about.ResponseTopic = reply_to
        if correlation is not None:
            about.CorrelationData = correlation
        try:
            await client.publish(topic, payload, qos=1, retain=retain, properties=about)
        except (aiomqtt.MqttError, ValueError) as error:
            raise NotConnected(str(error)) from None


def payload(message: Message) -> bytes:
    """Return a message's bytes, whatever type the library gives them."""
    given = message.payload
    return given if isinstance(given, bytes) else str(given or "").encode()


__all__ = ["Broker", "Link", "NotConnected", "payload"]

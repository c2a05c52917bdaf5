"""A private Docker engine, for tests, the demo and the soak, where none answers.

Only as root, on a host that has `dockerd`. It has its own data folder and socket, makes no
bridge of its own if the host lets it have none, and is stopped by its pid.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from drawloom.compile_c import cache_folder
from drawloom.errors import SandboxUnavailable

_START_SECONDS = 60.0
_PING_SECONDS = 5.0


def answers(url: str | None = None) -> bool:
    """Return True if a Docker engine answers at `url`; by default where docker-py looks.

    Not by docker-py, which leaves its socket open when nobody answers.
    """
    address = url or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    kind, _, place = address.partition("://")
    try:
        if kind == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(_PING_SECONDS)
        else:
            host, _, port = place.rpartition(":")
            sock = socket.create_connection((host, int(port)), _PING_SECONDS)
        with sock:
            if kind == "unix":
                sock.connect(place)
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in sock.recv(256)
    except (OSError, ValueError):
        return False


class PrivateDaemon:
    """Run a `dockerd` and stop it afterwards: ``with PrivateDaemon() as url:``.

    Args:
        data: its data folder; by default one in drawloom's cache.

    Raises on entry: `SandboxUnavailable` when this host cannot.
    """

    def __init__(self, data: Path | None = None) -> None:
        self._data = data or cache_folder() / "docker"
        self._run = Path("/tmp") / f"drawloom-dockerd-{os.getpid()}"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._run}/docker.sock"

    @staticmethod
    def possible() -> bool:
        """Return True if this process is root and the host has `dockerd`."""
        return os.getuid() == 0 and shutil.which("dockerd") is not None

    def start(self) -> str:
        """Start the daemon and return its address. Raises `SandboxUnavailable`."""
        if not self.possible():
            raise SandboxUnavailable("a private Docker engine needs root and dockerd")
        self._data.mkdir(parents=True, exist_ok=True)
        self._run.mkdir(mode=0o700, exist_ok=True)
        command = [
            "dockerd",
            f"--data-root={self._data}",
            f"--exec-root={self._run}/exec",
            f"--host={self.url}",
            f"--pidfile={self._run}/pid",
            "--log-level=warn",
        ]
        cache_folder().mkdir(parents=True, exist_ok=True)
        # daemons that start at once make the same chains of iptables, and all but one fail
        with (cache_folder() / "dockerd.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._launch(command)
        return self.url

    def _launch(self, command: list[str]) -> None:
        """Start the process and wait until it answers."""
        with (self._run / "log").open("wb") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while not answers(self.url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                reason = (self._run / "log").read_text(errors="replace")[-800:]
                self.stop()
                raise SandboxUnavailable(f"dockerd did not start:\n{reason}")
            time.sleep(0.1)

    def restart(self) -> None:
        """Stop the daemon, with every container it runs, and start it again on the same data."""
        self._end()
        self.start()

    def stop(self) -> None:
        """Stop the daemon, with every container it runs; its data stays."""
        self._end()
        shutil.rmtree(self._run, ignore_errors=True)

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


__all__ = ["PrivateDaemon", "answers"]

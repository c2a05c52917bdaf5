"""The demo's image: one static busybox, imported from a tar made here. No registry is asked.

python -m drawloom.sandbox.docker.demo_image
"""

import io
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import docker

from drawloom.errors import SandboxUnavailable
from drawloom.sandbox.docker.private_daemon import PrivateDaemon, answers
from drawloom.sandbox.helper.build import helper_path

BOX = "drawloom/box:1"


def build_box(url: str | None = None) -> bool:
    """Make `drawloom/box:1` on a Docker engine; return False if it was there.

    Raises:
        SandboxUnavailable: this host has no static busybox.
    """
    client = docker.DockerClient(base_url=url) if url else docker.from_env()
    try:
        if client.images.list(name=BOX):
            return False
        repository, tag = BOX.split(":")
        client.api.import_image_from_data(_rootfs(), repository=repository, tag=tag)
        return True
    finally:
        client.close()


def _rootfs() -> bytes:
    busybox = next((p for p in ("/bin/busybox", "/usr/bin/busybox") if Path(p).exists()), None)
    busybox = busybox or shutil.which("busybox")
    if busybox is None:
        raise SandboxUnavailable("the demo's image needs busybox: apt-get install busybox-static")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("work", 0o777)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
        tar.add(Path(busybox).resolve(), "bin/busybox")
        for applet in applets.stdout.split():
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        users = b"root:x:0:0:root:/work:/bin/sh\nnobody:x:65534:65534:nobody:/work:/bin/sh\n"
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size = len(users)
        tar.addfile(passwd, io.BytesIO(users))
    return out.getvalue()


def main() -> None:
    began = time.monotonic()
    try:
        helper_path()
        if answers():
            made = build_box()
        elif PrivateDaemon.possible():
            with PrivateDaemon() as url:
                made = build_box(url)
        else:
            print("no Docker engine: the demo will run its tools in local processes")
            return
    except SandboxUnavailable as error:
        print(f"the demo's image was not built: {error}", file=sys.stderr)
        return
    print(f"{BOX} {'built' if made else 'is there'} ({time.monotonic() - began:.1f} s)")


if __name__ == "__main__":
    main()

__all__ = ["BOX", "build_box"]

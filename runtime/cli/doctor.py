"""Checks of `drawloom doctor`: what this machine has, and which fallbacks are used."""

import asyncio
import logging
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from drawloom.compile_c import cache_folder
from drawloom.environments import Env
from drawloom.errors import SandboxError, SandboxUnavailable
from drawloom.ids import new_id
from drawloom.runtime.console import output
from drawloom.runtime.dispatch.backends import tiny_model
from drawloom.sandbox.docker.private_daemon import PrivateDaemon, answers
from drawloom.sandbox.helper.build import helper_path
from drawloom.sandbox.local.provider import ProcessProvider


@dataclass(frozen=True, slots=True)
class Finding:
    """Describe the result of one check.

    Attributes:
        what: the subject of the check.
        ok: False if a fallback is used or a limit applies, which `detail` names.
    """

    what: str
    ok: bool
    detail: str


def examine() -> list[Finding]:
    """Run all checks."""
    return [
        _python(),
        _torch(),
        _loops(),
        _gpu(),
        _triton(),
        _docker(),
        _processes(),
        _helper(),
        _model(),
        _disk(),
    ]


def main(json: bool) -> int:
    """Run all checks and print their results."""
    findings = examine()
    if json:
        output.emit([asdict(f) for f in findings])
        return 0
    table = Table(show_header=False, box=None)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[yellow]--[/]"
        table.add_row(mark, finding.what, finding.detail)
    output.console().print(table)
    return 0


def _python() -> Finding:
    version = sys.version.split()[0]
    return Finding("python", sys.version_info >= (3, 11), f"{version}, {os.cpu_count()} cores")


def _torch() -> Finding:
    import torch

    packs = torch.backends.mkldnn.is_available()
    return Finding("torch", packs, torch.__version__ + ("" if packs else ", no oneDNN: slower"))


def _loops() -> Finding:
    from drawloom.engine.ops import native

    if native.load() is not None:
        return Finding("cpu loops", True, "compiled for this processor")
    return Finding("cpu loops", False, "no C compiler, so torch does them: up to 1.5x slower")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("gpu", True, f"{name}, {free >> 30} of {total >> 30} GiB free")
    return Finding("gpu", False, "none: models run on the CPU")


def _triton() -> Finding:
    try:
        import triton
    except ImportError:
        return Finding("triton", False, "not installed: pip install 'drawloom[cuda]' for a GPU")
    return Finding("triton", True, triton.__version__)


def _docker() -> Finding:
    if answers():
        return Finding("docker", True, "an engine answers: tools run in containers")
    if PrivateDaemon.possible():
        return Finding("docker", True, "none answers; demo and tests start a private one")
    return Finding(
        "docker", False, "no engine answers: tools run in isolated local processes; start dockerd"
    )


def _processes() -> Finding:
    logging.disable(logging.WARNING)  # reported below
    try:
        missing = asyncio.run(_missing())
    finally:
        logging.disable(logging.NOTSET)
    if not missing:
        return Finding("local processes", True, "fully isolated")
    return Finding(
        "local processes", False, f"refused unless --sandbox process is given: no {missing}"
    )


async def _missing() -> str:
    """Return the isolation that local processes lack here; empty if they lack none."""
    provider = ProcessProvider(new_id("doctor"))
    try:
        box = await provider.create(Env("any"), new_id("box"))
        await box.destroy()
        return "; ".join(box.lacking)
    except SandboxError as error:
        return str(error)
    finally:
        await provider.close()


def _helper() -> Finding:
    try:
        return Finding("helper", True, str(helper_path()))
    except SandboxUnavailable as error:
        return Finding("helper", False, str(error))


def _model() -> Finding:
    folder = tiny_model()
    there = (folder / "model.safetensors").exists()
    return Finding("model", there, str(folder) if there else "run examples/tinyagent/train.py")


def _disk() -> Finding:
    place = cache_folder().parent if cache_folder().parent.exists() else Path("/")
    free = shutil.disk_usage(place).free / 2**30
    return Finding("disk", free > 2, f"{free:.1f} GiB free at {place}")


__all__ = ["Finding", "examine", "main"]

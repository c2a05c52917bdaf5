"""Background processes of an environment."""

import asyncio

import pytest

from drawloom.errors import SandboxError
from drawloom.sandbox.api.provider import Provider
from drawloom.sandbox.api.sandbox import LiveSandbox
from tests.sandbox.conftest import ENV

_SERVER = "n=0; while :; do n=$((n+1)); echo line $n; [ -e ask ] && mv ask answer; sleep 0.01; done"


async def test_a_service_runs_beside_commands_and_its_log_grows(box: LiveSandbox) -> None:
    service = await box.start("web", "sh", "-c", _SERVER)
    assert (await service.state()).running
    await box.write("ask", b"")
    while (await box.sh("ls answer 2>/dev/null")).code:
        await asyncio.sleep(0.01)
    while (state := await box.service("web").state()).total_bytes < 14:
        await asyncio.sleep(0.01)
    assert state.text.startswith("line 1\nline 2\n") and state.seconds > 0
    stopped = await service.stop()
    assert not stopped.running and stopped.code == 137
    assert stopped.total_bytes >= state.total_bytes
    assert "while :" not in (await box.sh("ps -o args 2>/dev/null || ps ax -o args")).text


async def test_one_that_ended_keeps_its_log_and_code_until_it_is_stopped(box: LiveSandbox) -> None:
    service = await box.start("once", "sh", "-c", "echo failed; exit 3")
    while (state := await service.state()).running:
        await asyncio.sleep(0.01)
    assert (state.code, state.text) == (3, "failed\n")
    assert (await service.stop()).code == 3
    with pytest.raises(SandboxError, match="no background process 'once'"):
        await service.state()
    await (await box.start("once", "true")).stop()


async def test_a_name_is_one_service_and_must_be_a_name(box: LiveSandbox) -> None:
    await box.start("web", "sleep", "60")
    with pytest.raises(SandboxError, match="stop it first"):
        await box.start("web", "sleep", "60")
    with pytest.raises(SandboxError, match="identifier"):
        await box.start("no name", "true")
    with pytest.raises(SandboxError, match="no background process"):
        await box.service("other").stop()


async def test_a_flood_in_a_log_keeps_its_ends(box: LiveSandbox) -> None:
    service = await box.start("flood", "sh", "-c", "echo first; yes | head -c 3000000; echo last")
    while (state := await service.state()).running:
        await asyncio.sleep(0.01)
    assert len(state.output) == ENV.output_cap and state.total_bytes == 3_000_011
    assert state.output.startswith(b"first\n") and state.output.endswith(b"last\n")


async def test_a_service_goes_with_its_environment(provider: Provider, box: LiveSandbox) -> None:
    service = await box.start("web", "sleep", "60")
    await box.destroy()
    with pytest.raises(SandboxError):
        await service.state()
    assert await provider.owned() == []

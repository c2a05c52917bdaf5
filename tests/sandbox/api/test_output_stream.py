"""Output that is read while the command runs."""

import asyncio

import pytest

from drawloom.errors import SandboxDied, SandboxError
from drawloom.sandbox.api.sandbox import LiveSandbox


async def test_what_a_command_says_is_read_while_it_runs(box: LiveSandbox) -> None:
    stream = box.stream("sh", "-c", "echo first; while [ ! -e go ]; do sleep 0.01; done; echo last")
    pieces: list[str] = []
    with pytest.raises(SandboxError, match="read its output"):
        _ = stream.result
    async for text in stream:
        if not pieces:
            await box.write("go", b"")  # it waits for us: so we read before it ended
        pieces.append(text)
    assert "".join(pieces) == "first\nlast\n" == stream.result.text
    assert pieces[0] == "first\n"


async def test_the_pieces_are_the_result_wherever_they_were_cut(box: LiveSandbox) -> None:
    script = (
        "printf 'h\\303'; sleep 0.1; printf '\\251l\\377'; yes é | head -c 99999; printf '\\303'"
    )
    stream = box.stream("sh", "-c", script)
    pieces = [text async for text in stream]
    assert "".join(pieces) == stream.result.text
    assert pieces[0] == "h" and stream.result.text.startswith("hél\ufffdé")
    assert stream.result.truncated
    gone = stream.result.total_bytes - len(stream.result.output)
    assert f"\n… {gone} bytes cut …\n" in stream.result.text


async def test_giving_up_reading_ends_the_command_and_forgets_it(box: LiveSandbox) -> None:
    for _ in range(70):  # more than a helper remembers
        async for _text in (pieces := aiter(box.stream("sh", "-c", "echo a; sleep 60"))):
            break
        await pieces.aclose()  # type: ignore[attr-defined]
    assert "sleep 60" not in (await box.sh("ps -o args 2>/dev/null || ps ax -o args")).text
    assert (await box.sh("echo alive")).text == "alive\n"


async def test_an_environment_that_dies_tells_its_reader(box: LiveSandbox) -> None:
    with pytest.raises(SandboxDied):
        async for _text in box.stream("sh", "-c", "echo a; sleep 60"):
            await box.destroy()


async def test_an_exec_that_is_given_up_leaves_no_process(box: LiveSandbox) -> None:
    waiting = asyncio.create_task(box.sh("echo > started; sleep 61"))
    while (await box.sh("ls started 2>/dev/null")).code:
        await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert "sleep 61" not in (await box.sh("ps -o args 2>/dev/null || ps ax -o args")).text

"""Commands of every form and length, on every provider."""

import shlex
from typing import Any

import pytest

from drawloom.environments import Command
from drawloom.errors import SandboxError
from drawloom.sandbox.api.commands import argv_of, fit_argv
from drawloom.sandbox.api.sandbox import LiveSandbox

VERBS = ["exec", "sh", "stream", "start"]
LONG = 300_000


async def _text(box: LiveSandbox, verb: str, *command: Command, **options: Any) -> str:
    """What a command prints, whichever verb runs it."""
    if verb == "start":
        service = await box.start("job", *command)
        while (state := await service.state()).running:
            pass
        await service.stop()
        return state.text
    if verb == "stream":
        return "".join([text async for text in box.stream(*command, **options)])
    result = await getattr(box, verb)(*command, **options)
    return str(result.text)


@pytest.mark.parametrize("verb", VERBS)
async def test_every_verb_takes_the_same_forms(verb: str, box: LiveSandbox) -> None:
    assert await _text(box, verb, "seq 1 3 | tail -n 1") == "3\n"
    assert await _text(box, verb, ["seq", "1", "3"]) == "1\n2\n3\n"
    assert await _text(box, verb, ("echo", "a b", "$HOME")) == "a b $HOME\n"
    assert await _text(box, verb, "echo", "a  b") == "a  b\n"
    for wrong in ((), ([],), ("a\0b",), (["a", "b\0"],), ("echo \ud800",), (["a", 3],), (3,)):
        with pytest.raises(SandboxError):
            await _text(box, verb, *wrong)


@pytest.mark.parametrize("verb", VERBS)
async def test_a_line_of_shell_may_have_any_length(verb: str, box: LiveSandbox) -> None:
    line = f"printf %s {'x' * LONG} | wc -c; cat; (exit 3) || echo $?"
    assert (await _text(box, verb, line)).split() == [str(LONG), "3"]
    script = ["sh", "-c", f"x={'y' * LONG}\necho ${{#x}}\n"]
    assert await _text(box, verb, script) == f"{LONG}\n"
    with pytest.raises(SandboxError, match="stdin"):
        await _text(box, verb, ["echo", "x" * LONG])
    with pytest.raises(SandboxError, match="stdin"):
        await _text(box, verb, ["true", *"x" * 2000])


async def test_a_long_script_finds_the_stdin_that_it_was_given(box: LiveSandbox) -> None:
    line = f"x={'x' * LONG}; wc -c; exit 4"
    result = await box.exec(line, stdin=b"abc")
    assert (result.code, result.text.strip()) == (4, "3")


async def test_quotes_and_lines_of_a_long_script_are_as_they_were(box: LiveSandbox) -> None:
    text = 'it\'s "q" $HOME `x` \\ ü\n' * 8000
    assert (await box.sh(f"printf %s {shlex.quote(text)} | wc -c")).text.split() == [
        str(len(text.encode()))
    ]


def test_what_the_kernel_can_start_is_not_changed() -> None:
    for command in (("x" * 131_071, "a"), ("sh", "-c", "y" * 131_071)):
        assert fit_argv(argv_of(command), b"in") == (command, b"in")

"""Conversion of commands, in all accepted forms, to arguments that the kernel can start."""

import os
from collections.abc import Sequence
from typing import Any

from drawloom.environments import Command
from drawloom.errors import SandboxError

_LONGEST = 128 * 1024 - 1  # bytes of one argument: MAX_ARG_STRLEN of Linux, with its NUL
_MOST = 1000  # arguments that the helper takes
_SHELLS = ("sh", "bash", "dash", "ash", "zsh")


def argv_of(command: Sequence[Command]) -> tuple[str, ...]:
    """Return the program and arguments of a command.

    Args:
        command: one string, a line of shell; or one list, or several strings, a program and its
            arguments.

    Raises:
        SandboxError: it is empty, or not made of strings.
    """
    if len(command) == 1 and isinstance(command[0], str):
        return _checked(("/bin/sh", "-c", command[0]))
    if len(command) == 1 and isinstance(command[0], (list, tuple)):
        return _checked(command[0])
    return _checked(command)


def fit_argv(argv: tuple[str, ...], stdin: bytes) -> tuple[tuple[str, ...], bytes]:
    """Return a command that the kernel can start, and its stdin.

    A script of any length for ``sh -c`` goes through stdin, before the bytes that the script itself
    reads there.

    Raises:
        SandboxError: other arguments are too long.
    """
    sizes = [len(word.encode()) for word in argv]
    if max(sizes) <= _LONGEST and len(argv) <= _MOST:
        return argv, stdin
    is_script = len(argv) == 3 and argv[1] == "-c" and argv[0].rpartition("/")[2] in _SHELLS
    if is_script and sizes[0] <= _LONGEST:
        read = f"dd bs={sizes[2]} count=1 2>/dev/null" if stdin else "cat"
        return (argv[0], "-c", f'eval "$({read})"'), argv[2].encode() + stdin
    raise SandboxError(
        f"a command of {len(argv)} arguments, the longest of {max(sizes)} bytes, cannot be "
        f"started: at most {_MOST}, of {_LONGEST} bytes; write a file, or pass it as stdin"
    )


def _checked(words: Sequence[Any]) -> tuple[str, ...]:
    argv = tuple(os.fspath(word) if isinstance(word, os.PathLike) else word for word in words)
    if not argv or not argv[0]:
        raise SandboxError("exec needs a command: a line of shell, or a list of words")
    for word in argv:
        if not isinstance(word, str):
            raise SandboxError(f"{word!r} in a command is no string")
        if "\0" in word:
            raise SandboxError("exec needs a command, and no NUL in its arguments")
        try:
            word.encode()
        except UnicodeEncodeError:
            raise SandboxError("a command must be valid text: it has a lone surrogate") from None
    return argv


__all__ = ["argv_of", "fit_argv"]

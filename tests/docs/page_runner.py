"""Run the code blocks of a page in order, as a reader does who follows it.

Python blocks with a title are files, which shell lines run; the others run by themselves. Of the
shell lines those run that need nothing but the page's files, the store they make and the server:
`python FILE`, and `drawloom run`, `ps`, `trace`, `resume` and `graph`.
"""

import asyncio
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drawloom.environments import Env
from drawloom.errors import SandboxError
from drawloom.ids import new_id
from drawloom.runtime.cli.main import main
from drawloom.sandbox.local.provider import ProcessProvider

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)
SERVER = "127.0.0.1:8000"  # where pages say that the server is
_BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ID = re.compile(r"prog-[a-z0-9]+")
_VERBS = {"run", "ps", "trace", "resume", "graph"}


@dataclass(frozen=True, slots=True)
class Block:
    """Hold one fenced block of code of a page."""

    language: str
    title: str
    text: str


def blocks(page: str, *languages: str) -> list[Block]:
    """Return the fenced blocks of a page, in order; of the given languages alone, if any."""
    found = [Block(*match) for match in _BLOCK.findall((ROOT / page).read_text())]
    return [block for block in found if not languages or block.language in languages]


def shell_lines(page: str) -> list[list[str]]:
    """Return the shell lines of a page as words, without comments and lines that are empty."""
    lines = [line for block in blocks(page, "sh") for line in block.text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def processes_are_isolated() -> bool:
    """Return whether local processes have all of their isolation on this host."""

    async def look() -> bool:
        provider = ProcessProvider(new_id("docs"))
        try:
            box = await provider.create(Env("any"), new_id("box"))
            await box.destroy()
            return not box.lacking
        except SandboxError:
            return False
        finally:
            await provider.close()

    return asyncio.run(look())


@dataclass(slots=True)
class PageRunner:
    """Carry out the blocks of a page in a folder.

    Attributes:
        folder: the working folder, with the repository's examples.
        server: host and port of a running server, in place of the page's.
        said: what each shell line that ran printed.
    """

    folder: Path
    server: str
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]
    said: dict[str, str] = field(default_factory=dict)
    killed: bool = False

    def run(self, page: str) -> None:
        (self.folder / "examples").symlink_to(ROOT / "examples")
        self.patch.chdir(self.folder)
        self.patch.syspath_prepend(str(self.folder))
        for number, block in enumerate(blocks(page, "python", "sh")):
            if block.language == "python":
                path = self.folder / (block.title or f"block_{number}.py")
                path.write_text(block.text.replace(SERVER, self.server))
                if not block.title:
                    self._python([path.name])
                continue
            for line in block.text.splitlines():
                self._line(line)

    def _line(self, line: str) -> None:
        text = line.replace(SERVER, self.server).replace("<id>", self._program())
        words = shlex.split(text, comments=True)
        if words and "=" in words[0]:
            self._killed(words)
        elif self._can_run(words):
            (self._python if words[0] == "python" else self._drawloom)(words[1:])
            self.said[shlex.join(shlex.split(line, comments=True))] = self._output()

    def _can_run(self, words: list[str]) -> bool:
        if len(words) < 2 or any(word.startswith("mqtt") for word in words):
            return False
        if words[0] == "python":
            return (self.folder / words[1]).exists()
        if words[0] != "drawloom" or words[1] not in _VERBS:
            return False
        entry = words[2].partition(":")[0] if words[1] == "run" else ""
        return (self.folder / entry).exists() and (words[1] != "resume" or self.killed)

    def _python(self, words: list[str]) -> None:
        self.patch.setattr(sys, "argv", words)
        before = set(sys.modules)
        runpy.run_path(words[0], run_name="__main__")
        self._forget(before)

    def _drawloom(self, words: list[str]) -> None:
        self.patch.setattr(sys, "argv", ["drawloom", *words])
        before = set(sys.modules)
        assert main() == 0, f"drawloom {shlex.join(words)}: {self._output()}"
        self._forget(before)

    def _killed(self, words: list[str]) -> None:
        """Run a command that kills itself, in a process of its own."""
        variables = dict(word.split("=") for word in words if "=" in word.partition(" ")[0])
        command = [sys.executable, "-m", *(word for word in words if "=" not in word)]
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
        assert run.returncode < 0, run.stderr
        self.said[shlex.join(words)] = run.stdout + run.stderr
        self.killed = True

    def _forget(self, before: set[str]) -> None:
        """Forget modules of the page: a later block may write the file anew."""
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(self.folder):
                del sys.modules[name]

    def _output(self) -> str:
        out, err = self.capture.readouterr()
        return out + err

    def _program(self) -> str:
        """Return the id of the program that ran last."""
        ids = [
            id for line, text in self.said.items() if " run " in line for id in _ID.findall(text)
        ]
        return ids[-1] if ids else "<id>"

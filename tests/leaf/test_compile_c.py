"""Compiled files are taken from nobody but ourselves."""

import os
import subprocess
from pathlib import Path

import pytest

from drawloom import compile_c

_SOURCE = '#include <stdio.h>\nint main(void) { puts("ours"); return 0; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program, a cache folder of its own and a folder for temporary files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    compile_c._temporary.cache_clear()
    path = tmp_path / "hello.c"
    path.write_text(_SOURCE)
    return path


def _run(path: Path) -> str:
    return subprocess.run([path], capture_output=True, text=True, check=True).stdout.strip()


def _plant(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text("#!/bin/sh\necho planted\n")
    path.chmod(0o755)


def test_a_file_is_compiled_once_into_a_private_folder(source: Path) -> None:
    made = compile_c.compiled(source, ())
    assert _run(made) == "ours"
    assert made.parent == compile_c.cache_folder()
    assert made.parent.stat().st_mode & 0o777 == 0o700
    before = made.stat().st_mtime_ns
    assert compile_c.compiled(source, ()) == made
    assert made.stat().st_mtime_ns == before


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o702])
def test_nothing_is_run_from_a_folder_that_others_can_write_into(source: Path, mode: int) -> None:
    name = compile_c.compiled(source, ())
    _plant(name)
    name.parent.chmod(mode)
    made = compile_c.compiled(source, ())
    assert _run(made) == "ours"
    assert made.parent != name.parent
    assert made.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_is_run_below_a_folder_that_others_can_write_into(source: Path) -> None:
    name = compile_c.compiled(source, ())
    _plant(name)
    name.parent.parent.chmod(0o777)
    assert _run(compile_c.compiled(source, ())) == "ours"


def test_nothing_is_run_from_behind_a_link(source: Path, tmp_path: Path) -> None:
    name = compile_c.compiled(source, ())
    theirs = tmp_path / "theirs"
    name.parent.rename(theirs)
    name.parent.symlink_to(theirs)
    _plant(theirs / name.name)
    assert _run(compile_c.compiled(source, ())) == "ours"


def test_a_file_that_others_can_write_or_a_link_is_compiled_anew(source: Path) -> None:
    made = compile_c.compiled(source, ())
    _plant(made)
    made.chmod(0o777)
    assert _run(compile_c.compiled(source, ())) == "ours"
    made.rename(made.with_name("other"))
    made.symlink_to("other")
    assert _run(compile_c.compiled(source, ())) == "ours"
    assert not made.is_symlink()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_belongs_to_another_user_is_not_run(
    source: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the eyes of another user, since only root can give files away."""
    made = compile_c.compiled(source, ())
    _plant(made)
    monkeypatch.setattr(os, "getuid", lambda: made.stat().st_uid + 1)
    check = compile_c._is_ours(made) if what == "file" else compile_c._is_private(made.parent)
    assert not check


def test_without_any_private_folder_one_is_made_for_the_process(
    source: Path, tmp_path: Path
) -> None:
    compile_c.compiled(source, ()).parent.chmod(0o777)
    shared = tmp_path / "temporary" / f"drawloom-{os.getuid()}-native"
    shared.mkdir()
    shared.chmod(0o777)
    made = compile_c.compiled(source, ())
    assert _run(made) == "ours"
    assert made.parent.parent == tmp_path / "temporary"
    assert compile_c.compiled(source, ()) == made
    assert made.parent.stat().st_mode & 0o777 == 0o700

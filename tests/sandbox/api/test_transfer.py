"""Files and folders in and out, and archives that want more than that."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from drawloom.errors import SandboxError
from drawloom.sandbox.api.sandbox import LiveSandbox


async def test_a_folder_goes_in_and_comes_out_as_it_is(box: LiveSandbox, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    data = os.urandom(3_000_000)  # several pieces
    (tree / "deep" / "er" / "large").write_bytes(data)
    (tree / "run").write_text("#!/bin/sh\necho it runs\n")
    (tree / "run").chmod(0o755)
    (tree / "link").symlink_to("deep/er/large")
    await box.upload(tree, "in/there")
    assert (await box.sh("in/there/run")).text == "it runs\n"
    await box.download("in/there", tmp_path / "back")
    assert (tmp_path / "back" / "link").read_bytes() == data
    assert (tmp_path / "back" / "run").stat().st_mode & 0o111
    assert (await box.sh("ls -A . in")).text.split() == [".:", "in", "in:", "there"]


async def test_a_file_goes_in_and_comes_out(box: LiveSandbox, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x\0y")
    await box.upload(tmp_path / "a", "b")
    assert await box.read("b") == b"x\0y"
    await box.download("b", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"x\0y"


async def test_what_cannot_be_copied_is_told(box: LiveSandbox, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="does not exist"):
        await box.upload(tmp_path / "nothing", "a")
    with pytest.raises(SandboxError, match="does not name"):
        await box.upload(tmp_path, "..")
    with pytest.raises(SandboxError, match="tar -cf"):
        await box.download("nothing", tmp_path / "a")
    with pytest.raises(SandboxError, match="exists"):
        await box.download("a", tmp_path)
    await box.sh("head -c 3000000 /dev/zero > large")
    with pytest.raises(SandboxError, match="limit is 1,000"):
        await box.download("large", tmp_path / "a", limit=1000)
    assert list(tmp_path.iterdir()) == []
    assert (await box.sh("ls -A")).text == "large\n"


async def test_large_files_are_written_in_pieces(box: LiveSandbox) -> None:
    data = os.urandom(5_000_001)
    await box.write("large", data)
    assert await box.read("large") == data
    await box.write("large", b"")
    assert await box.read("large") == b""


def _archive(*members: tuple[str, bytes, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, target, 0o6777
            data = b"evil" if kind == tarfile.REGTYPE else b""
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


_REG, _LINK, _HARD, _DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", _REG, "")],
        [("/tmp/drawloom-evil", _REG, "")],
        [("out/../../evil", _REG, "")],
        [("other", _REG, "")],
        [("out", _LINK, "secret")],
        [("out", _DIR, ""), ("out/a", _LINK, "../secret")],
        [("out", _DIR, ""), ("out/a", _LINK, "/etc/passwd")],
        [("out", _DIR, ""), ("out/a", _LINK, ".."), ("out/a/evil", _REG, "")],
        [("out", _DIR, ""), ("out/a", _HARD, "../secret")],
        [("out", _DIR, ""), ("out/a", _HARD, "out/../../secret")],
        [("out", _DIR, ""), ("out/a", tarfile.FIFOTYPE, "")],
        [("out", tarfile.CHRTYPE, "")],
        [],
    ],
)
async def test_an_archive_that_leads_out_is_refused_whole(
    box: LiveSandbox, tmp_path: Path, members: list[tuple[str, bytes, str]]
) -> None:
    (tmp_path / "secret").write_text("secret")
    bad = _archive(*members)

    class Liar(type(box)):  # type: ignore[misc]
        """An environment whose tar says whatever untrusted code there likes."""

        async def piece(self, path: str, offset: int) -> tuple[bytes, int]:
            return bad[offset:], len(bad)

    await box.sh("mkdir out")
    box.__class__ = Liar
    with pytest.raises(SandboxError, match="refused"):
        await box.download("out", tmp_path / "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret"]
    assert (tmp_path / "secret").read_text() == "secret"
    assert not Path("/tmp/drawloom-evil").exists()


async def test_no_set_id_bits_come_out(box: LiveSandbox, tmp_path: Path) -> None:
    await box.sh("echo > f; chmod 6777 f")
    await box.download("f", tmp_path / "f")
    assert (tmp_path / "f").stat().st_mode & 0o7022 == 0

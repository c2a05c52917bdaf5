"""The cache of ahead-of-time compilations."""

from pathlib import Path
from typing import Any

import pytest

from drawloom.engine.kernel_tools.compile_cache import ENVIRONMENT, cached, kernel_cache_folder


def _refused() -> dict[str, Any]:
    raise AssertionError("computed although it is in the cache")


def test_a_result_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "new"))
    assert cached("a", lambda: {"registers": 7}) == {"registers": 7}
    assert cached("a", _refused) == {"registers": 7}
    assert cached("b", lambda: {"registers": 8}) == {"registers": 8}
    assert [path.name for path in sorted(kernel_cache_folder().iterdir())] == ["a.json", "b.json"]


def test_a_damaged_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    (tmp_path / "a.json").write_text('{"regis')
    assert cached("a", lambda: {"registers": 7}) == {"registers": 7}
    assert cached("a", _refused) == {"registers": 7}


def test_a_folder_that_cannot_be_made_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "file"))
    assert cached("a", lambda: {"registers": 7}) == {"registers": 7}

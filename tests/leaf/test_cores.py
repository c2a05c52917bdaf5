"""Cores that a process may use."""

import os
from pathlib import Path

import pytest

from drawloom.cores import physical_cores


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of four cores with two threads each, all of which are allowed."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for cpu in range(8):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def _group(root: Path, line: str, files: dict[str, str]) -> None:
    (root / "proc/self/cgroup").write_text(f"3:cpuset:/\n{line}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_threads_of_one_core_count_once(eight: Path) -> None:
    assert physical_cores(eight) == 4


def test_only_cores_of_the_affinity_count(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4}, raising=False)
    assert physical_cores(eight) == 2


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "250000 100000\n"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 4),
        ("1:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, 2),
        (
            "1:cpu,cpuacct:/gone",
            {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("1:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 4),
        ("1:memory:/x", {"memory/x/cpu.max": "100000 100000"}, 4),
        ("nonsense", {}, 4),
    ],
)
def test_a_quota_of_the_control_group_bounds_them(
    eight: Path, line: str, files: dict[str, str], cores: int
) -> None:
    _group(eight, line, files)
    assert physical_cores(eight) == cores


def test_there_is_one_where_nothing_is_known(tmp_path: Path) -> None:
    assert physical_cores(tmp_path) >= 1

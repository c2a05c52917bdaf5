"""The command line of benchmarks for developers."""

import pytest
from cyclopts import CycloptsError

from drawloom.runtime.bench.scheduling import __main__ as main
from drawloom.runtime.cli.benches import bench_app


def test_benchmarks_of_the_scheduler_are_no_public_commands() -> None:
    names = {name for name in main.app if not name.startswith("-")}
    assert names == {"scheduler", "eviction", "ablate", "graphs", "tenants", "unit", "workflow"}
    assert not names & set(bench_app)


def test_options_keep_their_bounds() -> None:
    for words in (["eviction", "--seeds", "0"], ["workflow", "--programs", "0"]):
        with pytest.raises(CycloptsError, match=">= 1"):
            main.app(words, exit_on_error=False, print_error=False)


def test_an_eviction_order_is_compared_with_the_farthest_use(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["eviction", "swe", "--seeds", "1", "--programs", "4"]
    assert main.app(words, result_action="return_value") == 0
    assert "farthest next use" in capsys.readouterr().out


def test_an_unknown_machine_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "eviction", "--machine", "abacus"])
    assert main.main() == 1
    assert "abacus" in capsys.readouterr().err

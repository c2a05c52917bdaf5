"""Cost models in files."""

from pathlib import Path

import pytest

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler.cost import CostModel


def test_a_cost_model_comes_back_as_it_was_written(tmp_path: Path) -> None:
    cost, path = CostModel(prefill=2e-5, step=4e-3, copy=1e-6), tmp_path / "folder" / "cost.json"
    cost.save(path)
    assert CostModel.load(path) == cost


@pytest.mark.parametrize("text", ["", "[]", '{"prefill": 1, "other": 2}', "{"])
def test_a_file_that_is_no_cost_model_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"cost\.json is no cost model.*profile --out"):
        CostModel.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing here"):
        CostModel.load(tmp_path / "nothing here")

"""What a missing, corrupt or unknown checkpoint gets."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from drawloom.engine.config import EngineConfig
from drawloom.engine.core.engine_core import EngineCore
from drawloom.engine.hosting.build import load
from drawloom.errors import CheckpointError, ConfigError


@pytest.fixture
def copy(llama: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama.folder, tmp_path / "model"))


def _load(folder: Path | str, **options: Any) -> EngineCore:
    return load(str(folder), EngineConfig(kv_tokens=256, **options))


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_missing_folder_says_what_it_wants() -> None:
    with pytest.raises(CheckpointError, match="not a folder and not a hub id"):
        _load("./nowhere")


def test_an_unknown_architecture_lists_the_known_ones(copy: Path) -> None:
    _edit(copy, architectures=["MambaForCausalLM"])
    with pytest.raises(CheckpointError, match=r"Mamba.*LlamaForCausalLM, Mistral.*Qwen2.*Qwen3"):
        _load(copy)


def test_an_unknown_rope_is_refused(copy: Path) -> None:
    _edit(copy, rope_parameters={"rope_type": "yarn", "factor": 2})
    with pytest.raises(CheckpointError, match="yarn"):
        _load(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace("model", r"\*").replace(".", r"\.")):
        _load(copy)


def test_a_truncated_file_is_named(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="is it complete"):
        _load(copy)


def test_a_config_that_is_not_json_is_named(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        _load(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    _edit(copy, intermediate_size=97)
    with pytest.raises(CheckpointError, match=r"config\.json says"):
        _load(copy)


def test_missing_weights_are_counted(copy: Path) -> None:
    _edit(copy, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="9 weights are missing"):
        _load(copy)


def test_a_gpu_that_is_not_there_is_refused(copy: Path) -> None:
    with pytest.raises(ConfigError, match=r"no GPU here|choose"):
        _load(copy, device="cuda")


def test_a_sharded_checkpoint_loads(llama: Any, tmp_path: Path) -> None:
    llama.model.save_pretrained(tmp_path, max_shard_size="100KB")
    shutil.copy(llama.folder / "tokenizer.json", tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert _load(tmp_path).info.max_context == 256

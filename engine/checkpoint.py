"""Weights: from safetensors files, or random for benchmarks and tests."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drawloom.engine.config import ModelConfig
from drawloom.errors import CheckpointError


def resolve(model: str) -> Path:
    """The folder of a model: a path, or a Hugging Face hub id that is downloaded once."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise CheckpointError(f"{model} is not a folder and not a hub id like 'Qwen/Qwen3-0.6B'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja"]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{model} could not be fetched from the hub: {error}") from None


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every weight that a model of this config has, by its Hugging Face name."""
    c = config
    out: dict[str, tuple[int, ...]] = {}
    out["model.embed_tokens.weight"] = (c.vocab_size, c.hidden_size)
    out["model.norm.weight"] = (c.hidden_size,)
    if not c.tied:
        out["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    for i in range(c.layers):
        at, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            out[f"{at}.{name}_proj.weight"] = (rows, c.hidden_size)
            if c.qkv_bias:
                out[f"{at}.{name}_proj.bias"] = (rows,)
        out[f"{at}.o_proj.weight"] = (c.hidden_size, queries)
        if c.output_bias:
            out[f"{at}.o_proj.bias"] = (c.hidden_size,)
        if c.qk_norm:
            out[f"{at}.q_norm.weight"] = out[f"{at}.k_norm.weight"] = (c.head_dim,)
        for name in ("gate", "up", "down"):
            shape = (c.intermediate_size, c.hidden_size)
            shape = shape if name != "down" else (shape[1], shape[0])
            out[f"{mlp}.{name}_proj.weight"] = shape
            if c.mlp_bias:
                out[f"{mlp}.{name}_proj.bias"] = (shape[0],)
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[f"model.layers.{i}.{name}.weight"] = (c.hidden_size,)
    return out


def load(folder: Path, config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read a checkpoint, sharded or not, and check that every weight is there and fits."""
    wanted = shapes(config)
    weights: dict[str, Tensor] = {}
    for path in _files(folder):
        for name, tensor in _read(path):
            if name in wanted:
                if tuple(tensor.shape) != wanted[name]:
                    raise CheckpointError(
                        f"{path}: {name} is {tuple(tensor.shape)}, config.json says {wanted[name]}"
                    )
                weights[name] = tensor.to(dtype)
    if missing := sorted(wanted.keys() - weights.keys()):
        raise CheckpointError(f"{folder}: {len(missing)} weights are missing: {missing[0]}, …")
    return weights


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{index} cannot be read: {error!r}") from None
        return [folder / name for name in names]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise CheckpointError(f"{folder} holds no *.safetensors file")
    return found


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read, is it complete? {error}") from None


def dummy(
    config: ModelConfig,
    dtype: torch.dtype,
    seed: int = 0,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Random weights of a model's shape, scaled so that activations stay finite; made on `device`
    (the CPU if not given), and others on each."""
    device = device or torch.device("cpu")
    generator = torch.Generator(device).manual_seed(seed)
    weights = {}
    for name, shape in shapes(config).items():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(shape, dtype=dtype, device=device)
        else:
            noise = torch.randn(shape, generator=generator, device=device)
            weights[name] = (noise * 0.02).to(dtype)
    return weights


__all__ = ["dummy", "load", "resolve", "shapes"]

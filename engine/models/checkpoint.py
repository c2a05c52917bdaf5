"""Weights of a model: read from safetensors files, or random for benchmarks and tests."""

from collections.abc import Iterator
from pathlib import Path, PurePath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drawloom.engine.config import ModelConfig
from drawloom.engine.hfconfig import read_json
from drawloom.errors import CheckpointError

_KINDS = ("BF16", "F16", "F32", "F64")
_HEAD = "lm_head.weight"


def resolve(model: str) -> Path:
    """Return the folder of a model, downloading it once if it is a Hugging Face hub id.

    Args:
        model: a path or a hub id.

    Raises:
        CheckpointError: there is no such folder, or the hub does not deliver it.
    """
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
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(f"{model} could not be fetched from the hub: {error}") from None


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights by their Hugging Face names."""
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
    """Read a checkpoint, sharded or not.

    Raises:
        CheckpointError: for a file that cannot be read, a weight that is missing, has another
            shape, is quantised or is no number, and a weight that the model has no place for.
    """
    wanted = shapes(config)
    weights: dict[str, Tensor] = {}
    head: Tensor | None = None
    for path in _files(folder):
        for name, tensor in _read(path, wanted, config.tied):
            if name in wanted:
                weights[name] = _finite(path, name, tensor.to(dtype))
            else:
                head = tensor.to(dtype)
    if missing := sorted(wanted.keys() - weights.keys()):
        raise CheckpointError(f"{folder}: {len(missing)} weights are missing: {missing[0]}, …")
    if head is not None and not torch.equal(head, weights["model.embed_tokens.weight"]):
        raise CheckpointError(
            f"{folder}: config.json ties {_HEAD} to the embedding, the files have another: set "
            "tie_word_embeddings to false"
        )
    return weights


def _files(folder: Path) -> list[Path]:
    """Return the files with weights, as transformers chooses them."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        return [folder / name for name in _shards(index)]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise CheckpointError(f"{folder} holds no *.safetensors file")
    return found


def _shards(index: Path) -> list[str]:
    """Return the names in a weight index; none of them may lead out of its folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: weight_map must map weights to files")
    for name in names.values():
        path = PurePath(name if isinstance(name, str) else "")
        if path.suffix != ".safetensors" or path.is_absolute() or ".." in path.parts:
            raise CheckpointError(
                f"{index}: {repr(name)[:80]} is no *.safetensors file in the checkpoint's folder"
            )
    return sorted(set(names.values()))


def _read(
    path: Path, wanted: dict[str, tuple[int, ...]], tied: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a file that are wanted, and a head that is tied; check each."""
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name.endswith("rotary_emb.inv_freq"):  # computed from config.json
                    continue
                shape = wanted.get(name)
                if shape is None and not (tied and name == _HEAD):
                    raise CheckpointError(
                        f"{path}: the model has no place for {name}: it is not what config.json "
                        "says (more layers, a bias, a quantised or an adapted weight)"
                    )
                part = file.get_slice(name)
                kind, found = part.get_dtype(), tuple(part.get_shape())
                if kind not in _KINDS:
                    raise CheckpointError(
                        f"{path}: {name} is of type {kind}: quantised weights cannot be read; "
                        f"choose a checkpoint of {', '.join(_KINDS)}"
                    )
                if shape is not None and found != shape:
                    raise CheckpointError(f"{path}: {name} is {found}, config.json says {shape}")
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read, is it complete? {error}") from None


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor that has no NaN and no infinity: with one, every answer is token 0."""
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise CheckpointError(
            f"{path}: {name} holds NaN or infinity: the file is damaged, or its training failed"
        )
    return tensor


def dummy(
    config: ModelConfig,
    dtype: torch.dtype,
    seed: int = 0,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Make random weights of a model's shapes, scaled so that activations stay finite.

    Args:
        device: where they are made, the CPU by default; devices give different numbers.
    """
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

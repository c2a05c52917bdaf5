"""A config.json is refused by name, or the model is the one that transformers runs."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.config import EngineConfig, ModelConfig
from drawloom.engine.hosting.build import load
from drawloom.engine.sequence import SamplingParams
from drawloom.errors import CheckpointError, ContextTooLong
from tests.lanes import examples

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_PROMPT = [(7 * i) % 250 + 3 for i in range(60)]
_KEYS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "intermediate_size max_position_embeddings rope_theta rope_scaling rope_parameters "
    "rms_norm_eps tie_word_embeddings attention_bias mlp_bias sliding_window use_sliding_window "
    "max_window_layers layer_types eos_token_id dtype torch_dtype architectures model_type "
    "hidden_act attention_dropout use_cache initializer_range bos_token_id partial_rotary_factor "
    "original_max_position_embeddings pretraining_tp quantization_config query_pre_attn_scalar "
    "attn_logit_softcapping nobody_knows_it _private"
).split()
_VALUES: list[Any] = [
    None,
    0,
    -1,
    1,
    2,
    3,
    4,
    7,
    64,
    0.5,
    1.0,
    -0.5,
    1e-5,
    10**9,
    10**400,
    float("nan"),
    float("inf"),
    True,
    False,
    "",
    "silu",
    "gelu",
    "float16",
    "float8_e4m3fn",
    "llama",
    [],
    {},
    [1],
    [[]],
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 500.0},
    {"type": "yarn", "factor": 2},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {"rope_type": "llama3", "factor": 0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
    ["full_attention"] * 2,
    ["sliding_attention", "full_attention"],
    ["LlamaForCausalLM"],
    ["x"],
    [2, -1],
    [2, 3],
    "\ud800".encode("utf-8", "replace").decode(),
]


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spare")


def _written(
    oracle: Any, folder: Path, changes: dict[str, Any], drop: tuple[str, ...] = ()
) -> Path:
    for name in ("tokenizer.json", "model.safetensors"):
        shutil.copy(oracle.folder / name, folder)
    config = json.loads((oracle.folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if key not in drop}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _scores(folder: Path) -> tuple[float, ...]:
    core = load(str(folder), EngineConfig(kv_tokens=128))
    params = SamplingParams(max_tokens=0, score_from=1)
    core.submit(GenerateRequest("a", "a", tuple(_PROMPT), params))
    scores: tuple[float, ...] = ()
    while core.busy:
        for delta in core.step():
            assert delta.error is None, delta.error
            scores = delta.scores or scores
    return scores


def _expected(folder: Path, plain: Any) -> list[float]:
    """What transformers makes of a config; where it refuses it, of the unchanged one."""
    import transformers as hf

    path, model = folder / "config.json", plain
    config = json.loads(path.read_text())
    if type(config.get("rms_norm_eps")) is int:  # transformers wants 1.0
        config["rms_norm_eps"] = float(config["rms_norm_eps"])
    kept = ("sliding_window", "num_key_value_heads", "head_dim")  # null is not the default
    absent = {k: v for k, v in config.items() if v is not None or k in kept}
    absent.setdefault("model_type", plain.config.model_type)
    for tried in (config, absent):
        path.write_text(json.dumps(tried))
        with contextlib.suppress(Exception):
            model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            break
    with torch.inference_mode():
        table = model(torch.tensor([_PROMPT])).logits[0].float().log_softmax(-1)
    values: list[float] = table[:-1].gather(1, torch.tensor(_PROMPT[1:])[:, None])[:, 0].tolist()
    return values


@pytest.mark.parametrize("family", _FAMILIES)
@settings(max_examples=examples(60), derandomize=True, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYS), st.sampled_from(_VALUES), min_size=1, max_size=2))
def test_a_changed_config_is_refused_or_runs_as_transformers_runs_it(
    family_oracle: Callable[[str], Any], spare: Path, family: str, changes: dict[str, Any]
) -> None:
    oracle = family_oracle(family)
    folder = _written(oracle, spare, changes)
    try:
        scores = _scores(folder)
    except CheckpointError as error:
        assert "config.json" in str(error) or "weights are missing" in str(error)
        return
    except ContextTooLong:
        assert changes["max_position_embeddings"] < len(_PROMPT)
        return
    assert scores == pytest.approx(_expected(folder, oracle.model), abs=5e-3)


@pytest.mark.parametrize("family", _FAMILIES)
@pytest.mark.parametrize(
    "key",
    "num_key_value_heads head_dim hidden_act rms_norm_eps sliding_window rope_parameters "
    "tie_word_embeddings".split(),
)
def test_a_missing_key_is_what_transformers_takes_it_for(
    family_oracle: Callable[[str], Any], spare: Path, family: str, key: str
) -> None:
    oracle = family_oracle(family)
    folder = _written(oracle, spare, {}, (key,))
    try:
        scores = _scores(folder)
    except CheckpointError:
        assert key in ("num_key_value_heads", "head_dim")
        return
    assert scores == pytest.approx(_expected(folder, oracle.model), abs=5e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("hidden_act", "relu2"),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("embedding_multiplier", 12.0),
        ("clip_qkv", 8.0),
        ("residual_multiplier", 0.22),
        ("logits_scaling", 8.0),
        ("attention_multiplier", 0.01),
        ("query_pre_attn_scalar", 256),
        ("partial_rotary_factor", 0.25),
        ("num_experts", 8),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("sliding_window", 16),
        ("use_sliding_window", True),
        ("rope_interleaved", True),
        ("no_rope_layers", [1, 0]),
        ("quantization_config", {"quant_method": "fp8"}),
        ("quantization", {"bits": 4}),
        ("dtype", "float8_e4m3fn"),
        ("nobody_knows_it", 1),
        ("dual_chunk_attention_config", {"a": 1}),
        ("rope_parameters", {"rope_type": "default", "mrope_section": [2, 3, 3]}),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
        ("model_type", "gemma2"),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -3),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 0),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", -1.0),
        ("vocab_size", True),
        ("eos_token_id", "</s>"),
        ("head_dim", 15),
        ("max_position_embeddings", 10**12),
        ("hidden_size", "64"),
        ("intermediate_size", 1.5),
    ],
)
def test_unknown_keys_are_refused_by_name(llama: Any, tmp_path: Path, key: str, value: Any) -> None:
    changes: dict[str, Any] = {key: value}
    if key == "rope_theta":
        changes["rope_parameters"] = None
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}|config\.json: heads of 15"):
        ModelConfig.load(_written(llama, tmp_path, changes))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "pretraining_tp": 1,
            "use_cache": True,
            "torch_dtype": "float16",
            "is_llama_config": True,
            "rope_interleaved": False,
            "transformers.js_config": {"kv_cache_dtype": {"fp16": "x"}},
        },
        {
            "unsloth_version": "2024.9",
            "_name_or_path": "x",
            "_attn_implementation_autoset": True,
            "max_sequence_length": 2048,
            "pad_token_id": -1,
            "attention_multiplier": None,
        },
        {
            "auto_map": {"AutoModelForCausalLM": "m.X"},
            "use_mrope": False,
            "tokenizer_class": "T",
            "num_experts": 0,
            "embedding_multiplier": 1,
            "hidden_act": "swish",
            "tags": [],
        },
    ],
)
def test_harmless_keys_of_real_configs_are_accepted(
    llama: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = ModelConfig.load(llama.folder)
    assert ModelConfig.load(_written(llama, tmp_path, changes | {"torch_dtype": None})) == plain


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_configs_written_by_transformers_load(tmp_path: Path, family: str) -> None:
    import transformers as hf

    config = getattr(hf, f"{family}Config")(architectures=[f"{family}ForCausalLM"])
    config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    loaded = ModelConfig.load(tmp_path)
    assert loaded.layers == 32
    assert loaded.window == (4096 if family == "Mistral" else 0)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[]", "nul", "1" * 5_000, "\x00"]
)
def test_a_file_that_is_no_object_is_refused(llama: Any, tmp_path: Path, text: str) -> None:
    for name in ("config.json", "generation_config.json"):
        folder = _written(llama, tmp_path, {})
        (folder / name).write_text(text)
        with pytest.raises(CheckpointError, match=name):
            ModelConfig.load(folder)


def test_an_adapter_beside_the_model_is_refused(llama: Any, tmp_path: Path) -> None:
    folder = _written(llama, tmp_path, {})
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="merge"):
        ModelConfig.load(folder)


# --- weights ------------------------------------------------------------------------------


def _changed(llama: Any, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    _written(llama, folder, {})
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


_Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8])
def test_weights_of_a_quantised_type_are_refused(llama: Any, tmp_path: Path, kind: Any) -> None:
    def change(weights: dict[str, Any]) -> None:
        weights[f"{_Q}.weight"] = weights[f"{_Q}.weight"].to(kind)

    with pytest.raises(CheckpointError, match=r"q_proj.*quantised"):
        load(str(_changed(llama, tmp_path, change)), EngineConfig(kv_tokens=128))


@pytest.mark.parametrize(
    "name",
    [
        f"{_Q}.bias",
        f"{_Q}.weight_scale",
        f"{_Q}.lora_A.weight",
        "lm_head.bias",
        "model.layers.2.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_norm.weight",
    ],
)
def test_weights_that_the_model_has_no_place_for_are_refused(
    llama: Any, tmp_path: Path, name: str
) -> None:
    folder = _changed(llama, tmp_path, lambda weights: weights.update({name: torch.ones(4)}))
    with pytest.raises(CheckpointError, match=f"no place for {name}"):
        load(str(folder), EngineConfig(kv_tokens=128))


def test_frequencies_in_a_file_are_passed_over(llama: Any, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = _changed(llama, tmp_path, lambda weights: weights.update({name: torch.ones(4)}))
    assert _scores(folder) == _scores(llama.folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(llama: Any, tmp_path: Path, value: float) -> None:
    def change(weights: dict[str, Any]) -> None:
        weights[f"{_Q}.weight"][3, 5] = value

    with pytest.raises(CheckpointError, match=r"q_proj\.weight holds NaN or infinity"):
        load(str(_changed(llama, tmp_path, change)), EngineConfig(kv_tokens=128))


def test_a_tied_head_that_differs_from_the_embedding_is_refused(
    family_oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    tied = family_oracle("llama-tied-scaled")
    embedding = "model.embed_tokens.weight"
    folder = _changed(tied, tmp_path, lambda w: w.update({"lm_head.weight": w[embedding].clone()}))
    assert _scores(folder) == _scores(tied.folder)
    folder = _changed(tied, tmp_path, lambda w: w.update({"lm_head.weight": 2 * w[embedding]}))
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load(str(folder), EngineConfig(kv_tokens=128))


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        "{}",
        "7",
        "[" * 100_000,
        '{"weight_map": {"a": "../../../../etc/passwd"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "../x.safetensors"}}',
        '{"weight_map": {"a": "/x.safetensors"}}',
        '{"weight_map": {"a": "\\u0000.safetensors"}}',
        '{"weight_map": {"a": "gone.safetensors"}}',
        '{"weight_map": {"a": null, "b": "model.safetensors"}}',
    ],
)
def test_an_index_that_is_wrong_or_leads_elsewhere_is_refused(
    llama: Any, tmp_path: Path, index: str
) -> None:
    folder = _written(llama, tmp_path, {})
    (folder / "model.safetensors").unlink()
    shutil.copy(llama.folder / "model.safetensors", tmp_path.parent / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json|cannot be read"):
        load(str(folder), EngineConfig(kv_tokens=128))


@pytest.mark.parametrize("name", ["a b/c", "x/\x00", "-/-", "a/" + "b" * 300])
def test_a_name_that_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"not a folder|could not be fetched"):
        load(name, EngineConfig(kv_tokens=128))

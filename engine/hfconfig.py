"""Reader of a Hugging Face config.json that overlooks no key.

A key that changes what the model computes and is not honoured makes an engine answer wrongly
without an error. So every key is one of three kinds: read by `ModelConfig`, known to change
nothing (`_HARMLESS`), or known to change nothing at some values (`_NEUTRAL`). Every other key is
refused by its name unless it is null or empty: a refusal costs the user one edit, a wrong guess
costs wrong answers.
"""

import json
from pathlib import Path
from typing import Any

from drawloom.errors import CheckpointError

_MAX_INTEGER = 1 << 31

_READ = frozenset(
    "architectures model_type vocab_size hidden_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim intermediate_size max_position_embeddings rope_theta "
    "rope_scaling rope_parameters original_max_position_embeddings rms_norm_eps "
    "tie_word_embeddings attention_bias mlp_bias sliding_window use_sliding_window "
    "max_window_layers layer_types eos_token_id dtype torch_dtype".split()
)

# training, generation defaults (requests say their own), other token ids, notes of tools
_HARMLESS = frozenset(
    "attention_dropout attention_probs_dropout_prob hidden_dropout hidden_dropout_prob attn_pdrop "
    "embd_pdrop resid_pdrop classifier_dropout initializer_range pretraining_tp use_cache "
    "gradient_checkpointing neftune_noise_alpha z_loss_coefficient loss_type problem_type "
    "num_labels id2label label2id finetuning_task task_specific_params "
    "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups "
    "diversity_penalty temperature top_k top_p min_p typical_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
    "output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens "
    "bos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id "
    "decoder_start_token_id prefix tokenizer_class model_max_length max_sequence_length "
    "transformers_version return_dict output_attentions output_hidden_states output_router_logits "
    "torchscript use_bfloat16 tf_legacy_loss chunk_size_feed_forward is_decoder "
    "tie_encoder_decoder attn_implementation use_flash_attn use_flash_attention "
    "use_flash_attention_2 attention_softmax_in_fp32 keys_to_ignore_at_inference auto_map "
    "is_llama_config transformers.js_config unsloth_version unsloth_fixed name_or_path "
    "language license".split()
)

_QUANTISED = frozenset(
    "quantization_config quantization quant_config compression_config sparsity_config".split()
)

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function"), ("silu", "swish")),
    **dict.fromkeys(
        "embedding_multiplier residual_multiplier logits_scaling logit_scale embedding_scale "
        "scale_emb lm_head_multiplier partial_rotary_factor rotary_pct".split(),
        (1,),
    ),
    **dict.fromkeys(
        "num_experts num_local_experts n_routed_experts num_nextn_predict_layers".split(), (0,)
    ),
    **dict.fromkeys(
        "add_cross_attention is_encoder_decoder use_mrope rope_interleaved alibi parallel_attn "
        "use_parallel_residual use_bidirectional_attention bias use_bias".split(),
        (False,),
    ),
    **dict.fromkeys(("is_causal", "use_rope"), (True,)),
    "position_embedding_type": ("rope", "rotary"),
    "pruned_heads": ({},),
}

# by family, where it differs: what its attention and MLP always have
_FAMILY_NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {"qk_norm": (False,), "use_qk_norm": (False,)},
    "mistral": {
        "qk_norm": (False,),
        "use_qk_norm": (False,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "qkv_bias": (False,),
    },
    "qwen2": {
        "qk_norm": (False,),
        "use_qk_norm": (False,),
        "mlp_bias": (False,),
        "qkv_bias": (True,),
    },
    "qwen3": {"qk_norm": (True,), "use_qk_norm": (True,), "mlp_bias": (False,)},
}

_ROPE_KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(("rope_type", "type", "rope_theta")),
    "llama3": frozenset(
        "rope_type type rope_theta factor low_freq_factor high_freq_factor "
        "original_max_position_embeddings".split()
    ),
}


class Fields:
    """Read the fields of a config.json, or of an object in it, and check each.

    Every method raises a `CheckpointError` that names the file, the key and the values allowed.

    Args:
        where: the file, and the object in it, for messages.
        data: the fields.
    """

    def __init__(self, where: str, data: dict[str, Any]) -> None:
        self.where, self._data = where, data

    def wrong(self, key: str, wanted: str) -> CheckpointError:
        """Return the error for a key whose value is not what it must be."""
        shown = repr(self._data.get(key))[:80]
        return CheckpointError(f"{self.where}: {key} is {shown}, it must be {wanted}")

    def whole(
        self, key: str, default: int | None = None, low: int = 1, high: int = _MAX_INTEGER
    ) -> int:
        """Return a whole number between `low` and `high`; a null is the default."""
        value = self._data.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self.where}: {key} is missing")
            value = default
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"a whole number from {low} to {high}")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0; a null is the default."""
        value = self._data.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self.where}: {key} is missing")
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number above 0")
        if not 0 < value < 1e30:
            raise self.wrong(key, "a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return true or false; a null is false."""
        value = self._data.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return bool(value)

    def text(self, key: str, default: str) -> str:
        """Return a string; a null is the default."""
        value = self._data.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value or default

    def texts(self, key: str) -> list[str]:
        """Return a list of strings; a null is an empty one."""
        value = self._data.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.wrong(key, "a list of strings")
        return value

    def ids(self, key: str) -> tuple[int, ...]:
        """Return token ids, given as one or as a list; a null is none."""
        value = self._data.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        if any(type(id) is not int or not 0 <= id < _MAX_INTEGER for id in ids):
            raise self.wrong(key, "a token id or a list of them")
        return tuple(ids)

    def has(self, key: str) -> bool:
        """Return whether the key is present, if only as null."""
        return key in self._data

    def object(self, key: str) -> "Fields":
        """Return the fields of an object; a null is an empty one."""
        value = self._data.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(f"{self.where}: {key}", value or {})

    def refuse_unknown(self, family: str) -> None:
        """Refuse keys that are not understood and may change what the model computes.

        Raises:
            CheckpointError: for the first such key.
        """
        neutral = _NEUTRAL | _FAMILY_NEUTRAL[family]
        for key, value in self._data.items():
            if value in (None, "", [], {}) or key in _HARMLESS or key.startswith("_"):
                continue
            if key in _QUANTISED and value:
                raise CheckpointError(
                    f"{self.where}: {key} says that the weights are quantised, which this engine "
                    "cannot read: choose the checkpoint in bfloat16, float16 or float32"
                    " (weights='int8' quantises it on a CPU)"
                )
            if key in neutral:
                if not any(_equal(value, v) for v in neutral[key]):
                    allowed = " or ".join(json.dumps(v) for v in neutral[key])
                    raise self.wrong(key, f"{allowed} for a {family} model in this engine")
            elif key not in _READ and key not in _QUANTISED:
                raise CheckpointError(
                    f"{self.where}: {key} is {repr(value)[:80]}; this engine does not know the key "
                    "and it may change what the model computes: choose another checkpoint, or "
                    "remove the key if it does not matter"
                )

    def rope(self) -> tuple["Fields", str]:
        """Return the parameters of the rotary embedding, and their type.

        Before transformers 5 their key was `rope_scaling`; it is `rope_parameters` now.
        """
        old, new = self.object("rope_scaling"), self.object("rope_parameters")
        if old._data and new._data and old._data != new._data:
            raise CheckpointError(
                f"{self.where}: rope_scaling and rope_parameters differ: remove one of them"
            )
        rope = old if old._data else new
        kind = rope.text("rope_type", rope.text("type", "default"))
        if kind not in _ROPE_KEYS:
            known = ", ".join(_ROPE_KEYS)
            raise CheckpointError(
                f"{rope.where}: rope_type {kind!r} is not supported; known are: {known}"
            )
        for key, value in rope._data.items():
            neutral = any(_equal(value, v) for v in _NEUTRAL.get(key, ()))
            if value is not None and key not in _ROPE_KEYS[kind] and not neutral:
                raise CheckpointError(
                    f"{rope.where}: {key} is {repr(value)[:80]}, which rope_type {kind!r} of this "
                    "engine does not have: choose another checkpoint"
                )
        return rope, kind


def _equal(value: Any, other: Any) -> bool:
    """Return whether two JSON values are equal; 1 equals 1.0, and true is no number."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    return bool(value == other)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: if it is missing, or no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: is this a model folder?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


__all__ = ["Fields", "read_json"]

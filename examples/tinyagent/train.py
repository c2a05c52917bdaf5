"""Train the tiny model in the box: about a million parameters, twenty minutes on one CPU core.

    python examples/tinyagent/train.py                    # into runtime/tinyagent/model
    python examples/tinyagent/train.py --seconds 60 --out /tmp/m

It learns from demonstrations of `drawloom.runtime.demo.tasks`: which tool to call, how to write
the call, and how to copy an answer out of what the tool said. Observations are computed, not
run; names are from the training part only, and one turn in sixteen fails and is repeated.
Tables start short and grow long; in the second half a conversation has up to five questions.

Choices that cost a run each to find: embeddings with unit variance and zero-initialised output
projections (at the usual 0.02 a name drowns after the first block and copying never forms), a
hyphen of its own between the words of a name (a mark to copy after; without one, nouns were still
guessed after 26,000 samples), digits one token each, Muon at 0.01 (0.02 stalls at 90 % of the
tokens), batches of mixed lengths, one thread.
The system prompt is the same in all samples, so it is run once a step at batch 1 and its keys
and values are shared: exact gradients, a third less work.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jinja2 import Environment
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from drawloom.runtime import tinyagent
from drawloom.runtime.demo import tasks
from drawloom.runtime.demo.tasks import Task, make_task

BOX = Path(tinyagent.__file__).parent
TEMPLATE = (BOX / "chat_template.jinja").read_text()
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
    '\n{"name": "',
    '", "arguments": {"',
    '": "',
    '": ',
    '"}}\n',
    ".txt",
)
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
FAULTS = ("error: timed out after 20 s", "error: interrupted", "error: exit 1:", "error: killed")


def chat_of(several: list[Task], rng: random.Random, fault: float) -> list[dict[str, Any]]:
    """Return one conversation that solves one task after another."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": tasks.SYSTEM}]
    for task in several:
        messages += messages_of(task, rng, fault)
    return messages


def messages_of(task: Task, rng: random.Random, fault: float) -> list[dict[str, Any]]:
    """Return a demonstration as chat messages.

    Args:
        task: what the conversation solves.
        rng: draws the faults.
        fault: probability that a turn fails and is repeated.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": task.question}]
    for turn in task.turns:
        calls = [{"function": {"name": c.name, "arguments": c.arguments}} for c in turn]
        failed = rng.random() < fault
        for attempt in range(2 if failed else 1):
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            for call in turn:
                broken = failed and attempt == 0 and (len(turn) == 1 or rng.random() < 0.6)
                content = rng.choice(FAULTS) if broken else call.observation
                messages.append({"role": "tool", "content": content})
    messages.append({"role": "assistant", "content": task.answer})
    return messages


def render(messages: list[dict[str, Any]]) -> str:
    """Render a chat by the template that is shipped."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(TEMPLATE)
    schemas = [tool.schema for tool in tasks.TOOLS]
    return template.render(messages=messages, tools=schemas, add_generation_prompt=False)


def build_tokenizer(rng: random.Random) -> Tokenizer:
    """Train a byte-level BPE: digits and hyphens single, words whole, any byte representable."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"[A-Za-z]+|[0-9]|-|[^A-Za-z0-9-]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [render(chat_of([make_task(rng, rows=(8, 16))], rng, 0.1)) for _ in range(1500)]
    trainer = trainers.BpeTrainer(
        vocab_size=1280,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ADDED])
    return tokenizer


class Block(nn.Module):
    """Compute one Qwen3 layer, and return its keys and values for training."""

    def __init__(self) -> None:
        super().__init__()
        width, depth = CONFIG["hidden_size"], CONFIG["head_dim"]
        self.heads, self.kv_heads = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
        self.q_proj = nn.Linear(width, self.heads * depth, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * depth, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * depth, bias=False)
        self.o_proj = nn.Linear(self.heads * depth, width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(depth, eps=1e-6), nn.RMSNorm(depth, eps=1e-6)
        self.gate_proj = nn.Linear(width, CONFIG["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(width, CONFIG["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(CONFIG["intermediate_size"], width, bias=False)
        self.input_layernorm = nn.RMSNorm(width, eps=1e-6)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=1e-6)
        for output in (self.o_proj, self.down_proj):
            nn.init.zeros_(output.weight)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        b, t, _ = x.shape
        h = self.input_layernorm(x)
        q = _rotate(self.q_norm(self.q_proj(h).view(b, t, self.heads, -1)).transpose(1, 2), rope)
        k = _rotate(self.k_norm(self.k_proj(h).view(b, t, self.kv_heads, -1)).transpose(1, 2), rope)
        v = self.v_proj(h).view(b, t, self.kv_heads, -1).transpose(1, 2)
        kept = (k, v)
        if past is not None:
            k = torch.cat((past[0].expand(b, -1, -1, -1), k), 2)
            v = torch.cat((past[1].expand(b, -1, -1, -1), v), 2)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # fp32: the bf16 backward of SDPA is five times slower on a CPU
        with torch.autocast("cpu", enabled=False):
            a = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
        x = x + self.o_proj(a.transpose(1, 2).reshape(b, t, -1))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h)), kept


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * rope[0] + torch.cat((-second, first), -1) * rope[1]


class Model(nn.Module):
    """Compute the same network as `Qwen3ForCausalLM`, with its parameter names."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        width = CONFIG["hidden_size"]
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Block() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embed_tokens.weight, std=1.0)
        nn.init.normal_(self.lm_head.weight, std=0.01)
        half = CONFIG["head_dim"] // 2
        inverse = CONFIG["rope_theta"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.outer(torch.arange(2048, dtype=torch.float32), inverse).repeat(1, 2)
        self.rope = (angles.cos(), angles.sin())

    def forward(self, prefix: Tensor, tokens: Tensor, learn: Tensor) -> Tensor:
        """Compute logits [L, V] for the L places of `learn` [B, T], each from the token before.

        `tokens` [B, T] follow the shared `prefix` [P], which is run once.
        """
        p, t = len(prefix), tokens.shape[1]
        x, y = self.embed_tokens(prefix[None]), self.embed_tokens(tokens)
        head, tail = self._rope(0, p), self._rope(p, p + t)
        causal = torch.ones(p, p, dtype=torch.bool).tril()
        after = torch.cat((torch.ones(t, p, dtype=torch.bool), torch.ones(t, t).tril().bool()), 1)
        for layer in self.layers:
            x, kept = layer(x, head, causal, None)
            y, _ = layer(y, tail, after, kept)
        logits: Tensor = self.lm_head(self.norm(y[:, :-1][learn[:, 1:]]))
        return logits

    def _rope(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        return self.rope[0][start:end], self.rope[1][start:end]

    def checkpoint(self) -> dict[str, Tensor]:
        """Return the weights under their Hugging Face names, in bfloat16."""
        out = {}
        for name, value in self.state_dict().items():
            for part, home in (
                ("proj", "mlp."),
                ("q_", "self_attn."),
                ("k_", "self_attn."),
                ("v_", "self_attn."),
                ("o_", "self_attn."),
            ):
                leaf = name.split(".")[-2]
                mlp = leaf in ("gate_proj", "up_proj", "down_proj")
                if (home == "mlp." and mlp) or (home != "mlp." and leaf.startswith(part)):
                    name = name.replace(leaf, home + leaf)
                    break
            name = name if name.startswith("lm_head") else f"model.{name}"
            out[name] = value.to(torch.bfloat16).contiguous()
        return out


def samples(
    tokenizer: Tokenizer, rng: random.Random, budget: int
) -> Generator[tuple[Tensor, Tensor, Tensor], float, None]:
    """Yield endless batches of about `budget` tokens: prefix, tokens, and which to learn.

    Send it the share of the training that is done: longer tables come later.
    """
    share = 0.0
    start, end = (tokenizer.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
    system = render([{"role": "system", "content": tasks.SYSTEM}])
    prefix = tokenizer.encode(system, add_special_tokens=False).ids
    assistant = tokenizer.encode("assistant\n", add_special_tokens=False).ids
    while True:
        rows = []
        for _ in range(96):
            big = rng.random() < min(0.7, 2 * share)
            count = 1 if share < 0.5 or rng.random() < 0.2 else rng.randint(2, 5)
            lines = (8, 24) if big else (2, 6)
            messages = chat_of([make_task(rng, rows=lines) for _ in range(count)], rng, 0.06)
            text = render(messages)
            rows.append(tokenizer.encode(text, add_special_tokens=False).ids[len(prefix) :])
        rows.sort(key=len)
        batches, at = [], 0
        while at < len(rows):
            count = 1
            while at + count < len(rows) and (count + 1) * len(rows[at + count]) <= budget:
                count += 1
            batches.append(rows[at : at + count])
            at += count
        rng.shuffle(batches)
        for batch in batches:
            tokens = torch.full((len(batch), len(batch[-1])), int(end or 0))
            learn = torch.zeros_like(tokens, dtype=torch.bool)
            for index, row in enumerate(batch):
                tokens[index, : len(row)] = torch.tensor(row)
                mine = False
                for place, token in enumerate(row):
                    if token == start:
                        mine = row[place + 1 : place + 1 + len(assistant)] == assistant
                        skip = place + len(assistant)
                    elif mine and place > skip:
                        learn[index, place] = True
                        mine = token != end
            share = yield torch.tensor(prefix), tokens, learn


def optimizers(model: Model) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, AdamW for embeddings, head and norms."""
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=0.01, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model: Model, tokenizer: Tokenizer, rng: random.Random, seconds: float) -> None:
    """Warm up, hold, then decay linearly to 2 % over the last 60 % of the CPU seconds.

    A step sums three batches of unlike lengths: batches of one length alone made the loss climb.
    """
    batches, chain = samples(tokenizer, rng, 2048), optimizers(model)
    rates = [o.param_groups[0]["lr"] for o in chain]
    began, average = time.process_time(), float("nan")
    next(batches)
    for step in range(1_000_000):
        share = (time.process_time() - began) / seconds
        if share >= 1:
            return
        scale = min(1.0, (step + 1) / 60, 1 - 0.98 * max(0.0, share - 0.4) / 0.6)
        right = total = 0
        for _ in range(3):
            prefix, tokens, learn = batches.send(share)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(prefix, tokens, learn)
            wanted = tokens[:, 1:][learn[:, 1:]]
            loss = F.cross_entropy(logits.float(), wanted, reduction="sum")
            (loss / 600).backward()
            hits = logits.argmax(-1) == wanted
            right += int(hits.sum())
            total += len(wanted)
        if not math.isfinite(loss.item()):
            raise SystemExit("the loss is not finite: lower the learning rates")
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(chain, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad()
        share_right = right / max(1, total)
        average = share_right if step == 0 else 0.95 * average + 0.05 * share_right
        if step % 50 == 0:
            print(f"{share:6.1%}  step {step:5d}  tokens right {average:.4f}", flush=True)


def save(model: Model, tokenizer: Tokenizer, out: Path) -> None:
    """Write a checkpoint that `drawloom` and `transformers` both load."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.checkpoint(), out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    end, pad = (tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>"))
    config = CONFIG | {
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token_id": end,
        "pad_token_id": pad,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    about = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": end}) + "\n")
    (out / "chat_template.jinja").write_text(TEMPLATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=BOX / "model")
    parser.add_argument("--seconds", type=float, default=1200, help="CPU seconds to train for")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    tokenizer = build_tokenizer(rng)
    model = Model(tokenizer.get_vocab_size())
    count = sum(p.numel() for p in model.parameters())
    print(f"{tokenizer.get_vocab_size()} tokens, {count:,} parameters")
    train(model, tokenizer, rng, options.seconds)
    save(model, tokenizer, options.out)
    print(f"saved to {options.out}")


if __name__ == "__main__":
    main()

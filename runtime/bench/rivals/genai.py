"""OpenVINO GenAI as a library, no HTTP: the engine-only rows.

    python genai.py FOLDER THREADS DTYPE KV_TOKENS SEED ROWS

Needs openvino-genai, not drawloom. FOLDER is the model as optimum-intel exported it, ROWS the
numbers of the rows as JSON. Prints a JSON line for each row.
"""

import importlib
import json
import random
import statistics
import sys
import time
from typing import Any

import numpy as np

_BLOCK = 32  # tokens of one of its blocks


class Library:
    """Run OpenVINO GenAI with prefix caching, at the same sizes as the servers."""

    def __init__(self, folder: str, threads: int, dtype: str, kv_tokens: int) -> None:
        self._genai = importlib.import_module("openvino_genai")
        self._tensor = importlib.import_module("openvino").Tensor
        scheduler = self._genai.SchedulerConfig()
        scheduler.num_kv_blocks = kv_tokens // _BLOCK
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = 512
        hint = "bf16" if dtype == "bfloat16" else "f32"
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": hint,
            "KV_CACHE_PRECISION": hint,
        }
        made = self._genai.ContinuousBatchingPipeline
        self._pipeline = made(folder, scheduler, "CPU", properties, {})
        self._count = 0

    def add(self, prompt: list[int], output: int) -> Any:
        """Submit a prompt that is answered by exactly `output` tokens. Return its handle."""
        options = self._genai.GenerationConfig()
        options.max_new_tokens, options.ignore_eos = output, True
        options.do_sample = options.apply_chat_template = False
        self._count += 1
        tokens = self._tensor(np.array([prompt], dtype=np.int64))
        return self._pipeline.add_request(self._count, tokens, options)

    def run(self, seconds: float = 1e9) -> None:
        """Compute until all is answered, or for so long."""
        until = time.perf_counter() + seconds
        while self._pipeline.has_non_finished_requests() and time.perf_counter() < until:
            self._pipeline.step()

    def all(self, prompts: list[list[int]], output: int) -> float:
        """Answer prompts together. Return the seconds."""
        began = time.perf_counter()
        handles = [self.add(prompt, output) for prompt in prompts]
        self.run()
        took = time.perf_counter() - began
        made = {len(one.generated_ids) for handle in handles for one in handle.read_all()}
        if made != {output}:
            raise RuntimeError(f"{output} tokens were asked for, {made} came")
        return took


def main(folder: str, threads: int, dtype: str, kv_tokens: int, seed: int, rows: str) -> None:
    """Measure and print all rows; see `speed.Speed`, which does the same over HTTP."""
    asked, rng = json.loads(rows), random.Random(seed)
    library = Library(folder, threads, dtype, kv_tokens)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(300, asked["vocabulary"]) for _ in range(count)]

    def say(row: str, value: float) -> None:
        print(json.dumps({"row": row, "value": value}), flush=True)

    context, output, times = asked["context"], asked["output"], asked["times"]
    library.all([tokens(64)], 4)
    for row, count in (("prefill 1k", context), ("prefill 4k", asked["long"])):
        say(row, count / statistics.median(library.all([tokens(count)], 1) for _ in range(times)))
    for count in (1, 8, 16):
        prompts = [tokens(context) for _ in range(count)]
        library.all(prompts, 1)
        found = []
        for _ in range(times):
            one = library.all(prompts, 1)
            found.append(library.all(prompts, 1 + output) - one)
        say(f"decode {count} x 1k", count * output / statistics.median(found))
    prompts = [tokens(context) for _ in range(7)]
    library.all(prompts, 1)
    found = []
    for _ in range(2):
        began = time.perf_counter()
        handles = [library.add(prompt, 64) for prompt in prompts]
        library.run(0.2)
        handles.append(library.add(tokens(context), 1))
        library.run()
        found.append(time.perf_counter() - began)
    say("prefill 1k among 7 decodes", statistics.median(found))
    prompt = tokens(4000)
    library.all([prompt], 1)
    found = []
    for _ in range(times + 1):
        prompt = prompt + tokens(asked["back"])
        found.append(library.all([prompt], 1))
    say("36 new tokens behind 4k", 1e3 * statistics.median(found[1:]))


if __name__ == "__main__":
    main(
        sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
    )

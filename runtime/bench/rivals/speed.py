"""Engine-only rows over HTTP: prefill, decode, a prefill among decodes, and an agent's return."""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator

import httpx

_CONTEXT, _LONG, _BACK = 1024, 4096, 36  # tokens
_OUTPUT = 32
_TIMES = 3
KV_TOKENS = 24_576  # what these rows need: 16 contexts of 1k with their answers, and one of 4k

UNITS = {
    "prefill 1k": "tokens/s",
    "prefill 4k": "tokens/s",
    "decode 1 x 1k": "tokens/s",
    "decode 8 x 1k": "tokens/s",
    "decode 16 x 1k": "tokens/s",
    "prefill 1k among 7 decodes": "s",
    "36 new tokens behind 4k": "ms",
}


def asked(vocabulary: int) -> dict[str, int]:
    """Return the numbers of the rows, for what measures them without HTTP."""
    return {
        "vocabulary": vocabulary,
        "context": _CONTEXT,
        "long": _LONG,
        "back": _BACK,
        "output": _OUTPUT,
        "times": _TIMES,
    }


class Speed:
    """Measures one server by token ids, so that all compute the same.

    Args:
        url: the server, without a path.
        vocabulary: ids below it are ordinary tokens.
        seed: prompts of different seeds have nothing in common.
    """

    def __init__(self, url: str, vocabulary: int, seed: int) -> None:
        limits = httpx.Limits(keepalive_expiry=2.0)  # servers close theirs after five
        self._http = httpx.AsyncClient(base_url=url, timeout=600.0, limits=limits)
        self._rng, self._vocabulary = random.Random(seed), vocabulary

    def tokens(self, count: int) -> list[int]:
        """Return so many random token ids."""
        return [self._rng.randrange(300, self._vocabulary) for _ in range(count)]

    async def call(self, prompt: list[int], output: int) -> float:
        """Complete one prompt by exactly `output` tokens. Return the seconds."""
        body = {
            "model": "m",
            "prompt": prompt,
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": True,
        }
        began = time.perf_counter()
        answer = await self._http.post("/v1/completions", json=body)
        took = time.perf_counter() - began
        answer.raise_for_status()
        made = answer.json()["usage"]["completion_tokens"]
        if made != output:
            raise ValueError(f"{output} tokens were asked for, {made} came")
        return took

    async def rows(self) -> AsyncIterator[tuple[str, float]]:
        """Measure all rows: name and figure, in the units of `UNITS`."""
        async with self._http:
            await self.call(self.tokens(64), 4)
            yield "prefill 1k", await self._prefill(_CONTEXT)
            yield "prefill 4k", await self._prefill(_LONG)
            for count in (1, 8, 16):
                yield f"decode {count} x 1k", await self._decode(count)
            yield "prefill 1k among 7 decodes", await self._mixed()
            yield "36 new tokens behind 4k", 1e3 * await self._return()

    async def _prefill(self, count: int) -> float:
        took = [await self.call(self.tokens(count), 1) for _ in range(_TIMES)]
        return count / statistics.median(took)

    async def _all(self, prompts: list[list[int]], output: int) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(self.call(prompt, output) for prompt in prompts))
        return time.perf_counter() - began

    async def _decode(self, count: int) -> float:
        """Return the tokens a second of decoding behind cached prompts."""
        prompts = [self.tokens(_CONTEXT) for _ in range(count)]
        await self._all(prompts, 1)
        found = []
        for _ in range(_TIMES):
            one = await self._all(prompts, 1)
            found.append(await self._all(prompts, 1 + _OUTPUT) - one)
        return count * _OUTPUT / statistics.median(found)

    async def _mixed(self) -> float:
        """Return the seconds until seven decodes and a prompt of 1k that arrives among them end."""
        prompts = [self.tokens(_CONTEXT) for _ in range(7)]
        await self._all(prompts, 1)
        found = []
        for _ in range(2):
            began = time.perf_counter()
            decodes = [asyncio.create_task(self.call(prompt, 64)) for prompt in prompts]
            await asyncio.sleep(0.2)
            await self.call(self.tokens(_CONTEXT), 1)
            await asyncio.gather(*decodes)
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    async def _return(self) -> float:
        """Return the seconds of an agent's return: 36 new tokens behind a cached context."""
        prompt = self.tokens(4000)
        await self.call(prompt, 1)
        found = []
        for _ in range(_TIMES + 1):
            prompt = prompt + self.tokens(_BACK)
            found.append(await self.call(prompt, 1))
        return statistics.median(found[1:])


__all__ = ["KV_TOKENS", "UNITS", "Speed", "asked"]

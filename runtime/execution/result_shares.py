"""Tool results cut to what the model's context has room for."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from drawloom.engine.api.engine import EngineInfo
from drawloom.runtime.execution.offload import offload
from drawloom.tools.results import cut_tokens
from drawloom.tools.tool_call import ToolResult

_SHARE = 4  # the results of one turn take at most a quarter of the context,
_SMALL = 1024  # or so many tokens of a small one
_LEAST = 64
CHARS_PER_TOKEN = 4  # of usual text: what is longer will probably be cut
_NOTE = 32  # tokens of the note about a cut, and of the template around a result


def room(info: EngineInfo, used: int, answer: int) -> int:
    """Return how many tokens the tool results of one turn may have.

    That is a quarter of the context (1,024 tokens of a small one), and at most two thirds of the
    tokens that are left of it.

    Args:
        info: the engine, for its context and KV memory.
        used: tokens of the conversation so far.
        answer: tokens that the next answer may have.
    """
    context = min(info.max_context, info.kv_tokens) if info.kv_tokens else info.max_context
    return max(_LEAST, min(max(context // _SHARE, _SMALL), (context - used - answer) * 2 // 3))


async def cut_results(
    results: Sequence[ToolResult], total: int, count: Callable[[str], int]
) -> list[ToolResult]:
    """Return the results, cut to `total` tokens together.

    Short ones stay whole, and what they leave is divided among the long ones. The same results are
    always cut to the same text.
    """
    texts = [result.content for result in results]
    if sum(len(text.encode()) + _NOTE for text in texts) <= total:
        return list(results)
    cut = await offload(lambda: _cut(texts, total, count), sum(map(len, texts)))
    return [replace(result, content=text) for result, text in zip(results, cut, strict=True)]


def _cut(texts: list[str], total: int, count: Callable[[str], int]) -> list[str]:
    sizes = [_size(text, total, count) for text in texts]
    cut = list(texts)
    left = total
    order = sorted(range(len(texts)), key=sizes.__getitem__)
    for place, index in enumerate(order):
        share = left // (len(order) - place)
        if sizes[index] > share:
            cut[index] = cut_tokens(texts[index], max(0, share - _NOTE), count)
        left -= min(sizes[index], share)
    return cut


def _size(text: str, most: int, count: Callable[[str], int]) -> int:
    """Return the tokens of a text and the template around it; above `most` if very long."""
    if len(text) > most * 8:
        return most + _NOTE
    return count(text) + _NOTE


__all__ = ["CHARS_PER_TOKEN", "cut_results", "room"]

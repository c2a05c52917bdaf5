"""Encoding of answers as OpenAI's JSON: pure functions, for chat and text completions.

`openai_answers` has the same shapes as pydantic models; a test compares the two.
"""

from collections.abc import Sequence
from typing import Any

from drawloom.engine.api.engine import RequestUsage
from drawloom.engine.sequence import FinishReason
from drawloom.runtime.server.answer import (
    Answer,
    Call,
    ContentPart,
    Part,
    ReasoningPart,
    TokenScore,
    Update,
)

JsonObject = dict[str, Any]


# --- chat completions ---------------------------------------------------------------------


def message(answer: Answer) -> JsonObject:
    """Return an answer as the message of an assistant."""
    made: JsonObject = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        made["reasoning_content"] = answer.reasoning
    if answer.calls:
        made["tool_calls"] = [_call(call) for call in answer.calls.values()]
    return made


def chat_choice(answer: Answer) -> JsonObject:
    """Return an answer as a choice of a whole chat completion."""
    return {
        "index": answer.index,
        "message": message(answer),
        "logprobs": _scores(answer.scores) if answer.scored else None,
        "finish_reason": answer.finish_reason,
    }


def chat_chunk_choices(index: int, update: Update) -> list[JsonObject]:
    """Return an update of an answer as choices of chat completion chunks.

    Args:
        index: position of the answer among the choices of the request.
        update: what was added to it. A message without content has null content from its start.
    """
    deltas = [_delta(part) for part in update.parts]
    if update.first and deltas:
        content = "" if "content" in deltas[0] else None
        deltas.insert(0, {"role": "assistant", "content": content})
    choices: list[JsonObject] = [
        {"index": index, "delta": delta, "finish_reason": None} for delta in deltas
    ]
    if update.finish is not None:
        choices.append({"index": index, "delta": {}, "finish_reason": update.finish})
    if update.scores is not None:
        for at, choice in enumerate(choices):
            choice["logprobs"] = _scores(() if at else update.scores)
    return choices


def _call(call: Call) -> JsonObject:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _delta(part: Part) -> JsonObject:
    if isinstance(part, ContentPart):
        return {"content": part.text}
    if isinstance(part, ReasoningPart):
        return {"reasoning_content": part.text}
    if not part.id:
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.arguments}}]}
    call = _call(Call(part.id, part.name, part.arguments))
    return {"tool_calls": [{"index": part.index} | call]}


def _scores(scores: Sequence[TokenScore]) -> JsonObject:
    return {
        "content": [
            _score(one.text, one.logprob) | {"top_logprobs": [_score(*pair) for pair in one.top]}
            for one in scores
        ]
    }


def _score(text: str, logprob: float) -> JsonObject:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


# --- text completions ---------------------------------------------------------------------


def text_choice(index: int, text: str, finish: FinishReason | None) -> JsonObject:
    """Return a choice of a text completion, whole or streamed."""
    return {"index": index, "text": text, "finish_reason": finish_reason(finish)}


def text_scores(
    words: Sequence[str],
    logprobs: Sequence[float | None],
    tops: Sequence[dict[str, float] | None] | None,
    hidden: int,
) -> JsonObject:
    """Return the ``logprobs`` of a text completion.

    Args:
        words: text of each token.
        logprobs: log-probability of each token; None for the first of a prompt.
        tops: log-probabilities of the most likely tokens in each place; None if not asked for.
        hidden: characters of tokens that the template put before the text of the request.
    """
    offsets = [max(0, sum(map(len, words[:at])) - hidden) for at in range(len(words))]
    return {
        "tokens": list(words),
        "token_logprobs": list(logprobs),
        "top_logprobs": None if tops is None else list(tops),
        "text_offset": offsets,
    }


def finish_reason(finish: FinishReason | None) -> str | None:
    """Return the finish reason of a text completion in OpenAI's words."""
    if finish is None:
        return None
    return "length" if finish is FinishReason.LENGTH else "stop"


# --- both ---------------------------------------------------------------------------------


def usage(found: Sequence[RequestUsage], prompt_tokens: int | None = None) -> JsonObject:
    """Return OpenAI's usage object, with drawloom's own fields under ``drawloom``.

    Args:
        found: the usage of each choice.
        prompt_tokens: tokens of all prompts; by default those of the first choice.
    """
    first = found[0] if found else None
    prompt = first.prompt_tokens if first and prompt_tokens is None else prompt_tokens or 0
    output = sum(one.output_tokens for one in found)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens if first else 0},
        "drawloom": {
            "restored_tokens": first.restored_tokens if first else 0,
            "queue_ms": round(1e3 * (first.started - first.submitted), 3) if first else 0.0,
            "preemptions": sum(one.preemptions for one in found),
        },
    }


__all__ = [
    "JsonObject",
    "chat_choice",
    "chat_chunk_choices",
    "finish_reason",
    "message",
    "text_choice",
    "text_scores",
    "usage",
]

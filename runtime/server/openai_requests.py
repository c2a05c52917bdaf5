"""Pydantic models of requests. Unknown fields are ignored, as clients expect."""

import json
import secrets
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import from_json

from drawloom.engine.api.engine import Grammar
from drawloom.engine.sequence import SamplingParams
from drawloom.errors import ConfigError
from drawloom.runtime.server import bounds
from drawloom.runtime.server.bounds import Flag
from drawloom.runtime.server.errors import HttpError
from drawloom.runtime.server.names import Name
from drawloom.runtime.server.toolspecs import AnyToolChoice, RequestPart, ToolChoice, ToolSpec
from drawloom.tools.closed_schemas import close_objects

_TEXTS = {"text": "text", "input_text": "text", "refusal": "refusal"}
_LEAST_TOP_P = 1e-6
_BAN = -100.0


def _plain(value: Any) -> Any:
    """Return content as text: parts are joined."""
    if not isinstance(value, list):
        return value
    texts = []
    for place, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if not (isinstance(kind, str) and kind in _TEXTS):
            raise ValueError(f"Part {place} is {kind!r:.40}: only text is understood")
        text = part.get(_TEXTS[kind])
        if not isinstance(text, str):
            raise ValueError(f"Part {place} should have a text")
        texts.append(text)
    return "".join(texts)


def _part(kind: str, field: str) -> dict[str, Any]:
    properties = {"type": {"const": kind}, field: {"type": "string"}}
    return {"type": "object", "properties": properties, "required": ["type", field]}


Content = Annotated[
    str | None,
    BeforeValidator(_plain),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"anyOf": [_part(*both) for both in _TEXTS.items()]}},
                {"type": "null"},
            ]
        }
    ),
]


class FunctionCall(RequestPart):
    name: str
    arguments: str | dict[str, Any] | None = "{}"


class MessageCall(RequestPart):
    id: str | None = ""
    function: FunctionCall


class Message(RequestPart):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[MessageCall] | None = None
    reasoning_content: str | None = Field(
        default=None, validation_alias=AliasChoices("reasoning_content", "reasoning")
    )

    def rendered(self) -> dict[str, Any]:
        """Return the message for chat templates.

        Arguments of calls are objects, and the role `developer` is `system`.
        """
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        out: dict[str, Any] = {"role": role, "content": self.content or ""}
        if self.name is not None:
            out["name"] = self.name
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            out["tool_calls"] = [_rendered_call(call) for call in self.tool_calls]
        if self.reasoning_content and role == "assistant":
            out["reasoning_content"] = self.reasoning_content
        return out


def _rendered_call(call: MessageCall) -> dict[str, Any]:
    arguments: Any = call.function.arguments or "{}"
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments, strict=False)
        from_json(json.dumps(arguments))  # raises if it cannot be written into a prompt
    except (ValueError, RecursionError):  # malformed arguments go back to the model unchanged
        arguments = {"": str(call.function.arguments)}
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id or "", "type": "function", "function": function}


class SchemaSpec(RequestPart):
    name: str | None = ""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: Flag | None = None


class ResponseFormat(RequestPart):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: SchemaSpec | None = None

    def grammar(self) -> Grammar | None:
        """Return the grammar that enforces the format; None for text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar("json_schema", '{"type": "object"}')
        if self.json_schema is None:
            raise HttpError(400, "json_schema is missing", param="response_format")
        schema = close_objects(self.json_schema.schema_ or {})
        if not self.json_schema.strict:  # ignore constraints that grammars cannot enforce
            schema = {**schema, "x-guidance": {"lenient": True}}
        return Grammar("json_schema", json.dumps(schema))


class StreamOptions(RequestPart):
    include_usage: Flag | None = False


class Sampling(RequestPart):
    """Read the fields that chat and text completions share: sampling and program."""

    model: str | None = None
    stream: Flag | None = False
    stream_options: StreamOptions | None = None
    max_tokens: bounds.Length | None = None
    temperature: bounds.Temperature | None = None
    top_p: bounds.TopP | None = None
    top_k: bounds.TopK | None = 0
    n: bounds.Choices | None = 1
    seed: bounds.Seed | None = None
    stop: bounds.Stop | None = None
    stop_token_ids: list[bounds.TokenId] | None = Field(
        default=None, max_length=bounds.MOST_STOP_IDS
    )
    presence_penalty: bounds.Penalty | None = None
    frequency_penalty: bounds.Penalty | None = None
    repetition_penalty: bounds.Repetition | None = None
    logit_bias: bounds.LogitBias | None = None
    ignore_eos: Flag | None = False
    user: Name | None = None
    prompt_cache_key: Name | None = None
    program_id: Name | None = None
    session_id: Name | None = None
    metadata: dict[str, Any] | None = None
    priority: bounds.Priority | None = 0

    @model_validator(mode="after")
    def _consistent(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise HttpError(
                400, "stream_options is only allowed when stream is true", param="stream_options"
            )
        return self

    @property
    def choices(self) -> int:
        """Return the number of choices."""
        return self.n or 1

    def params(
        self, room: int, vocabulary: int, banned: tuple[int, ...] = (), **more: Any
    ) -> SamplingParams:
        """Return the options as the engine takes them.

        Args:
            room: tokens left in the context.
            vocabulary: number of token ids.
            banned: token ids that the answer must not contain.
            more: further options of `SamplingParams`.

        Raises:
            HttpError: a token id is outside the vocabulary.
        """
        bias = self.logit_bias or {}
        check_ids(bias, vocabulary, "logit_bias")
        check_ids(self.stop_token_ids or (), vocabulary, "stop_token_ids")
        wanted = self.max_tokens
        try:
            return SamplingParams(
                max_tokens=max(1, room) if wanted is None else wanted,
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else max(self.top_p, _LEAST_TOP_P),
                top_k=max(self.top_k or 0, 0),
                seed=secrets.randbits(63) if self.seed is None else self.seed,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0,
                logit_bias=(*bias.items(), *((id, _BAN) for id in banned)),
                stop=tuple(s for s in self.stop or () if s),
                stop_ids=tuple(self.stop_token_ids or ()),
                ignore_eos=bool(self.ignore_eos),
                **more,
            )
        except ConfigError as error:
            raise HttpError(400, str(error)) from None


def check_ids(ids: Iterable[int], vocabulary: int, field: str) -> None:
    """Raise `HttpError` if a token id is outside the vocabulary."""
    wrong = next((id for id in ids if not 0 <= id < vocabulary), None)
    if wrong is not None:
        raise HttpError(
            400,
            f"{field}: token id {wrong} is outside the vocabulary, 0 to {vocabulary - 1}",
            param=field,
        )


class ChatRequest(Sampling):
    messages: list[Message] = Field(min_length=1, max_length=bounds.MOST_MESSAGES)
    max_completion_tokens: bounds.Length | None = None
    tools: list[ToolSpec] | None = Field(default=None, max_length=bounds.MOST_TOOLS)
    tool_choice: AnyToolChoice | None = None
    parallel_tool_calls: Flag | None = None
    response_format: ResponseFormat | None = None
    logprobs: Flag | None = False
    top_logprobs: bounds.Tops | None = None
    functions: None = Field(default=None, description="Not supported: use tools.")

    @model_validator(mode="after")
    def _logprobs_asked_for(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise HttpError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        return self


class CompletionRequest(Sampling):
    prompt: bounds.Prompt
    max_tokens: bounds.LengthOrNone | None = 16
    logprobs: bounds.Tops | None = None
    echo: Flag | None = False
    best_of: bounds.Choices | None = None
    suffix: Literal[""] | None = Field(default=None, description="Not supported.")

    @model_validator(mode="after")
    def _supported(self) -> "CompletionRequest":
        if self.echo and self.stream:
            raise HttpError(400, "echo cannot be streamed", param="echo")
        if self.best_of is not None and self.best_of != self.choices:
            raise HttpError(400, "best_of: only the value of n is supported", param="best_of")
        return self


class ReleaseRequest(RequestPart):
    program_id: Name


__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "HttpError",
    "Message",
    "ReleaseRequest",
    "Sampling",
    "ToolChoice",
    "check_ids",
]

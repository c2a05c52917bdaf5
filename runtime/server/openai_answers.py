"""Pydantic models of the server's answers, for the OpenAPI document.

`openai_encoding` builds answers as plain dictionaries, token by token; a test compares the two.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CachedTokens(_Answer):
    cached_tokens: int


class DrawloomUsage(_Answer):
    restored_tokens: int = Field(description="Of the cached tokens, those from host memory.")
    queue_ms: float
    preemptions: int


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    drawloom: DrawloomUsage


class TopLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    content: list[TokenLogprob]


class CalledFunction(_Answer):
    name: str
    arguments: str = Field(description="JSON, as the model wrote it.")


class ToolCall(_Answer):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(_Answer):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(_Answer):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatCompletion(_Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    program_id: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(_Answer):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(_Answer):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class MessageDelta(_Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(_Answer):
    index: int
    delta: MessageDelta
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | None = None


class ChatCompletionChunk(_Answer):
    """Describe an event of a stream; the last one has the usage, if the request asks for it."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    program_id: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(_Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(_Answer):
    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: CompletionLogprobs | None = None


class Completion(_Answer):
    """Describe a text completion, or one event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Model(_Answer):
    id: str
    object: Literal["model"]
    owned_by: str
    created: int
    max_model_len: int


class ModelList(_Answer):
    object: Literal["list"]
    data: list[Model]


class Program(_Answer):
    program_id: str
    tenant: str
    named: bool
    status: Literal["running", "idle"]
    requests: int
    conversations: int
    tokens: int
    idle_s: float


class ProgramList(_Answer):
    object: Literal["list"]
    data: list[Program]


class Released(_Answer):
    program_id: str
    released: bool


class Health(BaseModel):
    model_config = ConfigDict(extra="allow")
    status: str


class ErrorBody(_Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(_Answer):
    error: ErrorBody


__all__ = [
    "ChatCompletion",
    "ChatCompletionChunk",
    "Completion",
    "Error",
    "Health",
    "Model",
    "ModelList",
    "Program",
    "ProgramList",
    "Released",
]

"""What arrives over HTTP, as pydantic models. Unknown fields are ignored, as clients expect."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from drawloom.engine.base import Grammar
from drawloom.engine.sequence import SamplingParams
from drawloom.errors import ConfigError, DrawloomError

_MOST_CHOICES = 16


class HttpError(DrawloomError):
    """A request that is refused, in the words and the shape that OpenAI's clients know."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore")


def _plain(value: Any) -> Any:
    """Content given as parts is their text."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") not in ("text", "input_text"):
            raise ValueError("only parts of type text are understood")
        texts.append(str(part.get("text", "")))
    return "".join(texts)


Content = Annotated[str | None, BeforeValidator(_plain)]


class FunctionCall(_Model):
    name: str
    arguments: str | dict[str, Any] = "{}"


class MessageCall(_Model):
    id: str = ""
    function: FunctionCall


class Message(_Model):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[MessageCall] | None = None
    reasoning_content: str | None = None

    def rendered(self) -> dict[str, Any]:
        """As chat templates want it: arguments are objects, developers are the system."""
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        out: dict[str, Any] = {"role": role, "content": self.content or ""}
        if self.name is not None:
            out["name"] = self.name
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            out["tool_calls"] = [_rendered_call(call) for call in self.tool_calls]
        return out


def _rendered_call(call: MessageCall) -> dict[str, Any]:
    arguments: Any = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:  # what a model wrote badly goes back to it as it was
            arguments = {"": arguments}
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


class FunctionSpec(_Model):
    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


class ToolSpec(_Model):
    type: Literal["function"] = "function"
    function: FunctionSpec

    def schema_for_model(self) -> dict[str, Any]:
        return {"type": "function", "function": self.function.model_dump()}


class NamedFunction(_Model):
    name: str


class ToolChoice(_Model):
    type: Literal["function"] = "function"
    function: NamedFunction


class SchemaSpec(_Model):
    name: str = ""
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(_Model):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: SchemaSpec | None = None

    def grammar(self) -> Grammar | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar("json_schema", '{"type": "object"}')
        if self.json_schema is None:
            raise HttpError(400, "json_schema is missing", param="response_format")
        return Grammar("json_schema", json.dumps(self.json_schema.schema_))


class StreamOptions(_Model):
    include_usage: bool = False


class Sampling(_Model):
    """What both kinds of completion may say about sampling and about their program."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    n: int | None = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] = Field(default_factory=list)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool = False
    user: str | None = None
    prompt_cache_key: str | None = None
    program_id: str | None = None
    session_id: str | None = None
    metadata: dict[str, Any] | None = None
    priority: int = 0

    @property
    def choices(self) -> int:
        count = 1 if self.n is None else self.n
        if not 1 <= count <= _MOST_CHOICES:
            raise HttpError(400, f"n is between 1 and {_MOST_CHOICES}", param="n")
        return count

    def params(self, room: int, **more: Any) -> SamplingParams:
        """As the engine takes them; `room` is what the context has left. Raises `HttpError`."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        wanted = self.max_tokens
        try:
            return SamplingParams(
                max_tokens=max(1, room) if wanted is None else wanted,
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                top_k=self.top_k,
                seed=self.seed or 0,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0,
                logit_bias=tuple((self.logit_bias or {}).items()),
                stop=tuple(s for s in stop if s),
                stop_ids=tuple(self.stop_token_ids),
                ignore_eos=self.ignore_eos,
                **more,
            )
        except ConfigError as error:
            raise HttpError(400, str(error)) from None


class ChatRequest(Sampling):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None


class CompletionRequest(Sampling):
    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool = False


class ReleaseRequest(_Model):
    program_id: str


__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "HttpError",
    "Message",
    "ReleaseRequest",
    "Sampling",
    "ToolChoice",
]

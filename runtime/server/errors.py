"""Errors of the HTTP API, in the shape that OpenAI's clients know."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from drawloom.errors import (
    BudgetExceeded,
    ConfigError,
    ContextTooLong,
    DrawloomError,
    EngineClosed,
    EngineError,
)

M = TypeVar("M", bound=BaseModel)


class HttpError(DrawloomError):
    """Refuse a request, with OpenAI's status, code and parameter."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


class ProgramReleased(HttpError, EngineError):
    """Refuse a request whose program was released while it waited."""

    def __init__(self, program: str) -> None:
        super().__init__(409, f"program {program} was released", code="program_released")


def context_too_long(tokens: int | None, limit: int | None, param: str | None) -> HttpError:
    """Return the error of a prompt that does not fit.

    Clients recognise it by OpenAI's wording (litellm searches the message, and retries what it
    does not recognise), so the first sentence must stay as it is.

    Args:
        tokens: length of the prompt; None if it is not known.
        limit: most tokens of prompt and answer together; None if it is not known.
        param: the field of the request that holds the prompt.
    """
    kind = param or "prompt"
    found = f"resulted in {tokens} tokens" if tokens is not None else "resulted in more"
    most = f"{limit} tokens" if limit is not None else "shorter than this prompt"
    return HttpError(
        400,
        f"This model's maximum context length is {most}. However, your {kind} {found}, and the "
        f"answer needs one more. Please shorten the {kind}.",
        param=param,
        code="context_length_exceeded",
    )


def wire_error(error: DrawloomError) -> HttpError:
    """Return the HTTP error for an error of the runtime."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, ContextTooLong):
        return context_too_long(error.tokens, error.limit, None)
    if isinstance(error, BudgetExceeded):
        return HttpError(429, str(error), code="insufficient_quota")
    if isinstance(error, EngineClosed):
        return HttpError(503, str(error))
    return HttpError(400 if isinstance(error, ConfigError) else 500, str(error))


def parse(kind: type[M], body: bytes) -> M:
    """Return a request's body as a model.

    Raises:
        HttpError: the body is not JSON, or a field of it is wrong; `param` names the field.
    """
    try:
        # refuses NaN, lone surrogates, invalid UTF-8 and deep nesting, which later code cannot
        # encode
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HttpError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _invalid(error, data) from None


def _invalid(error: ValidationError, data: Any) -> HttpError:
    """Return an error that names the wrong field, of several the deepest in the body.

    All alternatives of a union fail, and the intended one fails at the deepest field.
    """
    found: dict[str, list[str]] = {}
    depths: dict[str, int] = {}
    for detail in error.errors(include_url=False, include_input=False):
        field, depth = _field(detail, data)
        words = detail["msg"].removeprefix("Value error, ")
        if words not in found.setdefault(field, []):
            found[field].append(words)
        depths[field] = depth
    field = max(depths, key=lambda name: depths[name])  # the first of the deepest
    message = f"{field or 'body'}: {' or '.join(found[field])}"
    return HttpError(400, message, param=field or None)


def _field(detail: ErrorDetails, data: Any) -> tuple[str, int]:
    """Return the path of a wrong field, as ``messages.0.content``, and its depth.

    Parts of pydantic's location that are not in the body name an alternative of a union.
    """
    name, depth, value = "", 0, data
    missing = detail["loc"][-1] if detail["type"] == "missing" else None
    for part in detail["loc"]:
        if isinstance(part, int) and isinstance(value, list) and part < len(value):
            value = value[part]
        elif isinstance(value, dict) and (part in value or part == missing):
            value = value.get(part)
        else:
            continue
        name = f"{name}.{part}" if name else str(part)
        depth += 1
    return name, depth


__all__ = ["HttpError", "ProgramReleased", "context_too_long", "parse", "wire_error"]

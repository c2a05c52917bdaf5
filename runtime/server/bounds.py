"""Types of request fields with their bounds: OpenAI's where it has some.

For every optional field `None` means its default, since many clients send unset fields as null.
"""

import contextlib
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    StrictBool,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

MOST_CHOICES = 16
MOST_STOPS = 16
LONGEST_STOP = 1024
MOST_STOP_IDS = 1024
MOST_MESSAGES = 10_000
MOST_TOOLS = 1024
MOST_TOP = 20
MOST_PROMPTS = 64
_INT32, _INT64 = 1 << 31, 1 << 63


@dataclass(frozen=True, slots=True)
class Between:
    """Bound a number, as an annotation; the error for a value outside names both bounds."""

    low: float
    high: float

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        noun = "an integer" if source is int else "a number"

        def check(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
            if not isinstance(value, bool | str):  # pydantic would convert them
                with contextlib.suppress(ValidationError):
                    return inner(value)
            raise ValueError(f"Input should be {noun} between {self.low} and {self.high}")

        bounded = Field(ge=self.low, le=self.high, allow_inf_nan=None if source is int else False)
        schema = handler.generate_schema(Annotated[source, bounded])
        return core_schema.no_info_wrap_validator_function(check, schema)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _token_id(key: Any) -> Any:
    if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 9):
        raise ValueError("Input should be a token id")
    return int(key)


Choices = Annotated[int, Between(1, MOST_CHOICES)]
Seed = Annotated[int, Between(-_INT64, _INT64 - 1)]
Length = Annotated[int, Between(1, _INT32 - 1)]
LengthOrNone = Annotated[int, Between(0, _INT32 - 1)]
TopK = Annotated[int, Between(-1, _INT32 - 1)]
Priority = Annotated[int, Between(-_INT32, _INT32 - 1)]
Tops = Annotated[int, Between(0, MOST_TOP)]
Temperature = Annotated[float, Between(0, 2)]
TopP = Annotated[float, Between(0, 1)]
Penalty = Annotated[float, Between(-2, 2)]
Repetition = Annotated[float, Between(0.01, 100)]
Bias = Annotated[float, Between(-100, 100)]
TokenId = Annotated[int, Field(strict=True, ge=0, le=_INT32 - 1)]
Flag = StrictBool
Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = (
    Text
    | TokenIds
    | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]
)

Stop = Annotated[
    list[Annotated[str, Field(max_length=LONGEST_STOP)]],
    BeforeValidator(_listed),
    Field(max_length=MOST_STOPS),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": LONGEST_STOP},
                {
                    "type": "array",
                    "maxItems": MOST_STOPS,
                    "items": {"type": "string", "maxLength": LONGEST_STOP},
                },
            ]
        }
    ),
]
LogitBias = Annotated[
    dict[Annotated[int, BeforeValidator(_token_id)], Bias],
    Field(json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
]

__all__ = [
    "MOST_MESSAGES",
    "MOST_PROMPTS",
    "MOST_STOP_IDS",
    "MOST_TOOLS",
    "Choices",
    "Flag",
    "Length",
    "LengthOrNone",
    "LogitBias",
    "Penalty",
    "Priority",
    "Prompt",
    "Repetition",
    "Seed",
    "Stop",
    "Temperature",
    "TokenId",
    "TopK",
    "TopP",
    "Tops",
]

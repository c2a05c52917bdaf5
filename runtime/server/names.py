"""Names of programs and tenants in bodies, headers and paths.

A name is any Unicode text of at most 256 characters without control characters. Headers carry only
ASCII, so names are percent-encoded there, in requests and in answers.
"""

import contextlib
import unicodedata
from typing import Annotated, Any
from urllib.parse import quote, unquote

from pydantic import AfterValidator, Field
from starlette.requests import Request

from drawloom.runtime.server.errors import HttpError

LONGEST = 256
_READABLE = "!#$&'()*+,-./:;<=>?@[]^_`{|}~"  # printable ASCII, but for % and what ends a header
_PROBLEM = f"Input should be at most {LONGEST} characters, none a control character"


def is_name(text: str) -> bool:
    """Tell whether a text is a valid name of a program or a tenant."""
    return len(text) <= LONGEST and not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def _checked(text: str) -> str:
    if not is_name(text):
        raise ValueError(_PROBLEM)
    return text


Name = Annotated[
    str,
    AfterValidator(_checked),
    Field(json_schema_extra={"maxLength": LONGEST, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"}),
]


def program_name(value: Any, field: str) -> str | None:
    """Return the program's name in a field; None if the field is empty.

    Args:
        value: the field's value.
        field: the field's name, for the error.

    Raises:
        HttpError: the value is not a valid name.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not is_name(value):
        raise HttpError(400, f"{field}: {_PROBLEM}", param=field)
    return value


def header_name(request: Request, header: str) -> str | None:
    """Return the name in a header, percent-encoded or not; None if there is none.

    Raises:
        HttpError: the value is not a valid name.
    """
    raw = request.headers.get(header)
    if raw is None:
        return None
    sent = raw.encode("latin-1")  # as it was on the wire
    try:
        text = sent.decode()
    except UnicodeDecodeError:
        text = raw
    with contextlib.suppress(UnicodeDecodeError):
        text = unquote(text, errors="strict")
    return program_name(text, header)


def header_value(name: str) -> str:
    """Return a name as a header's value, percent-encoded except for printable ASCII."""
    return quote(name, safe=_READABLE)


__all__ = ["LONGEST", "Name", "header_name", "header_value", "is_name", "program_name"]

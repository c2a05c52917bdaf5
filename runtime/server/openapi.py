"""OpenAPI document of the server, generated from its pydantic models, and its HTML page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import version

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from drawloom.runtime.server import openai_answers as answers
from drawloom.runtime.server.openai_encoding import JsonObject
from drawloom.runtime.server.openai_requests import ChatRequest, CompletionRequest, ReleaseRequest

_REF = "#/components/schemas/{model}"
_TEXTS = {
    400: "A field of the request is wrong; `param` names it.",
    403: "The Host, the Origin or the socket may not do this.",
    404: "There is no such model, program or page.",
    408: "The body did not arrive in time.",
    409: "The program was released meanwhile.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "The program spent its budget.",
    500: "The engine failed.",
    503: "The server is shutting down, or its engine is gone.",
}
_NAME = {"type": "string", "maxLength": 256, "pattern": "^[!-~]*$"}
_TENANT = {
    "name": "x-tenant",
    "in": "header",
    "required": False,
    "schema": _NAME,
    "description": "The program's tenant, percent-encoded. By default `user`, else `default`.",
}
_PROGRAM = {
    "name": "x-program-id",
    "in": "header",
    "required": False,
    "schema": _NAME,
    "description": "The request's program, percent-encoded; the field `program_id` has precedence.",
}

_OF_TENANT = {
    "name": "tenant",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "Only the programs of this tenant.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """Describe one method of one path.

    Attributes:
        answer: the model of the answer with status 200, or its media type if it has no model.
        request: the model of the body.
        events: the model of each event, if the answer may be streamed.
        parameters: parameters in path, query and headers.
        statuses: models of the answers with other statuses.
    """

    path: str
    method: str
    summary: str
    answer: type[BaseModel] | str
    request: type[BaseModel] | None = None
    events: type[BaseModel] | None = None
    parameters: tuple[JsonObject, ...] = ()
    statuses: Mapping[int, type[BaseModel]] = field(default_factory=dict)


def _path(name: str, description: str) -> JsonObject:
    schema = {"type": "string", "minLength": 1}
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": schema,
        "description": description,
    }


_BODY: dict[int, type[BaseModel]] = dict.fromkeys((400, 408, 413, 415), answers.Error)
_RUN: dict[int, type[BaseModel]] = dict.fromkeys((404, 409, 429, 500, 503), answers.Error)
OPERATIONS = (
    Operation(
        "/v1/chat/completions",
        "post",
        "Answer a conversation.",
        answers.ChatCompletion,
        request=ChatRequest,
        events=answers.ChatCompletionChunk,
        parameters=(_TENANT, _PROGRAM),
        statuses=_BODY | _RUN,
    ),
    Operation(
        "/v1/completions",
        "post",
        "Continue a text or token ids.",
        answers.Completion,
        request=CompletionRequest,
        events=answers.Completion,
        parameters=(_TENANT, _PROGRAM),
        statuses=_BODY | _RUN,
    ),
    Operation("/v1/models", "get", "List the served model.", answers.ModelList),
    Operation(
        "/v1/models/{id}",
        "get",
        "Describe the served model.",
        answers.Model,
        parameters=(_path("id", "The model's name."),),
        statuses={404: answers.Error},
    ),
    Operation(
        "/programs/release",
        "post",
        "End a program and free its memory.",
        answers.Released,
        request=ReleaseRequest,
        parameters=(_TENANT,),
        statuses={**_BODY, 404: answers.Released},
    ),
    Operation(
        "/v1/programs",
        "get",
        "List the programs of the server.",
        answers.ProgramList,
        parameters=(_OF_TENANT,),
    ),
    Operation(
        "/v1/programs/{id}",
        "delete",
        "End a program and free its memory.",
        answers.Released,
        parameters=(_path("id", "The program's name."), _TENANT),
        statuses={400: answers.Error, 404: answers.Released},
    ),
    Operation(
        "/health",
        "get",
        "Tell whether the server works.",
        answers.Health,
        statuses={503: answers.Health},
    ),
    Operation("/metrics", "get", "Show metrics for Prometheus.", "text/plain"),
    Operation("/openapi.json", "get", "Show this document.", "application/json"),
    Operation("/docs", "get", "Show this document as a page.", "text/html"),
)


def document(operations: tuple[Operation, ...] = OPERATIONS) -> JsonObject:
    """Return the OpenAPI 3.1 document of these operations."""
    used: set[type[BaseModel]] = {answers.Error}
    paths: JsonObject = {}
    for operation in operations:
        entry = _entry(operation, used)
        paths.setdefault(operation.path, {})[operation.method] = entry
    requests = {op.request for op in operations}
    modes = [
        (model, "validation" if model in requests else "serialization")
        for model in sorted(used, key=lambda model: model.__name__)
    ]
    _, schemas = models_json_schema(modes, ref_template=_REF)  # type: ignore[arg-type]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "drawloom",
            "version": version("drawloom"),
            "description": "Agent programs on a model, over the wire that OpenAI's clients speak. "
            "Where the server was started with a key, requests need `Authorization: Bearer KEY`.",
        },
        "paths": paths,
        "components": {"schemas": schemas.get("$defs", {})},
    }


def _entry(operation: Operation, used: set[type[BaseModel]]) -> JsonObject:
    def body(model: type[BaseModel]) -> JsonObject:
        used.add(model)
        return {"schema": {"$ref": _REF.format(model=model.__name__)}}

    answer = operation.answer
    content: JsonObject = (
        {answer: {}} if isinstance(answer, str) else {"application/json": body(answer)}
    )
    if operation.events is not None:
        events = {"anyOf": [body(model)["schema"] for model in (operation.events, answers.Error)]}
        text = {"type": "string", "contentMediaType": "application/json", "contentSchema": events}
        data = {"anyOf": [{"const": "[DONE]"}, text]}
        content["text/event-stream"] = {
            "schema": {
                "description": "One event; the data of the last one is `[DONE]`.",
                "type": "object",
                "properties": {"data": data},
                "required": ["data"],
            }
        }
    responses = {"200": {"description": "The answer.", "content": content}}
    statuses: dict[int, type[BaseModel]] = {**operation.statuses, 403: answers.Error}
    for status, model in sorted(statuses.items()):
        error = {"application/json": body(model)}
        responses[str(status)] = {"description": _TEXTS[status], "content": error}
    entry: JsonObject = {
        "summary": operation.summary,
        "operationId": f"{operation.method}_{operation.path.strip('/')}",
        "responses": responses,
    }
    if operation.parameters:
        entry["parameters"] = list(operation.parameters)
    if operation.request is not None:
        content = {"application/json": body(operation.request)}
        entry["requestBody"] = {"required": True, "content": content}
    return entry


def page(operations: tuple[Operation, ...] = OPERATIONS) -> str:
    """Return the operations as a self-contained HTML page."""
    rows = "".join(
        f"<tr><td>{op.method.upper()}<td><code>{escape(op.path)}</code><td>{escape(op.summary)}"
        for op in operations
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>drawloom</title>'
        "<style>body{font-family:sans-serif;margin:2em}td{padding:.2em 1em .2em 0}</style>"
        f"<h1>drawloom {escape(version('drawloom'))}</h1><table>{rows}</table>"
        '<p>Every field is described in <a href="openapi.json">openapi.json</a>.</p></html>'
    )


def routes() -> list[Route]:
    """Return the routes of the document and the page."""

    async def show_document(request: Request) -> Response:
        return JSONResponse(document())

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page())

    return [Route("/openapi.json", show_document), Route("/docs", show_page)]


__all__ = ["OPERATIONS", "Operation", "document", "page", "routes"]

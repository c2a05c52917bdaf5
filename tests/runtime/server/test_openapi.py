"""The OpenAPI document: complete, and true of the server that it describes."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.routing import Route

from drawloom.runtime.server import openai_answers, openapi
from drawloom.runtime.server.app import Server
from drawloom.runtime.server.serve import bind

# whether a model's chat template takes a conversation, and which token ids there are, is the
# model's affair: such a 400 is no fault of the document
_EXCLUDED = "positive_data_acceptance"
_EXAMPLES = 12


def _routes(app: Any) -> list[Route]:
    while not hasattr(app, "routes"):  # below its middleware
        app = next(v for v in vars(app).values() if callable(v))
    return [route for route in app.routes if isinstance(route, Route)]


async def test_every_route_is_described(open_runtime: Any) -> None:
    server = Server(await open_runtime(lambda prompt: "yes"))
    found = {
        (route.path.replace(":path", ""), method.lower())
        for route in _routes(server.app)
        for method in (route.methods or ())
        if method != "HEAD"
    }
    paths = openapi.document()["paths"]
    assert {(path, method) for path, entry in paths.items() for method in entry} == found
    page = openapi.page()
    assert all(f"<code>{path}</code>" in page for path in paths)
    assert "<script" not in page and "http" not in page
    await server.close()


def test_every_reference_leads_somewhere() -> None:
    document = openapi.document()
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}

    def references(value: Any) -> Any:
        if isinstance(value, dict):
            yield from (v for k, v in value.items() if k == "$ref" and isinstance(v, str))
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from references(item)

    assert set(references(document)) <= known
    for operation in openapi.OPERATIONS:
        responses = document["paths"][operation.path][operation.method]["responses"]
        assert {"200", "403"} <= set(responses)
        for status in set(responses) - {"200"}:
            assert responses[status]["content"]["application/json"]["schema"]["$ref"] in known


def test_an_answer_with_a_field_that_the_document_lacks_is_noticed() -> None:
    with pytest.raises(ValueError, match="more"):
        openai_answers.Error.model_validate(
            {"error": {"message": "", "type": "", "param": None, "code": None, "more": 1}}
        )


async def test_schemathesis_finds_no_fault(open_runtime: Any, tmp_path: Path) -> None:
    server = Server(await open_runtime(lambda prompt: "yes"), name="m")
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    web = uvicorn.Server(uvicorn.Config(server.app, log_level="error", lifespan="off"))
    serving = asyncio.create_task(web.serve(sockets=[listener]))
    try:
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/docs")).status_code == 200
        words = f"run {url}/openapi.json --checks all --exclude-checks {_EXCLUDED} --seed 1"
        words += f" --no-color --max-examples {_EXAMPLES} --suppress-health-check all"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", *words.split()),
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode()
    finally:
        web.should_exit = True
        await serving
        listener.close()
        await server.close()
    assert process.returncode == 0, said
    assert "No issues found" in said, said

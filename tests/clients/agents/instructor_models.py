"""instructor: nested models by forced tools and by JSON schema, whole and partial."""

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from task import ANSWER


class Point(BaseModel):
    x: int = Field(ge=0, le=9)
    y: int = Field(ge=0, le=9)


class Shape(BaseModel):
    kind: Literal["box", "disc"]
    color: Literal["red", "blue"]  # an Enum fails in instructor's own check of partials
    corner: Point
    inner: Point | None


class Drawing(BaseModel):
    shapes: list[Shape] = Field(min_length=1, max_length=2)


stream = sys.argv[1] == "stream"
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(), mode=mode)
    options = {
        "model": "tinyagent",
        "messages": [{"role": "user", "content": "Draw something."}],
        "temperature": 0,
        "max_tokens": 400,
        "max_retries": 0,
    }
    if stream:
        *_, drawing = client.chat.completions.create_partial(response_model=Drawing, **options)
    else:
        drawing = client.chat.completions.create(response_model=Drawing, **options)
    Drawing.model_validate(drawing.model_dump())
print(ANSWER)

"""Objects of schemas are closed where that loses nothing that the schema's author listed."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawloom.tools.closed_schemas import close_objects

A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
B = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}
DEFS = {"$defs": {"A": A, "B": B}}
REF_A, REF_B = {"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}
CASES: list[tuple[str, dict[str, Any], list[Any], list[Any]]] = [
    ("plain", A, [{"a": 1}], [{"a": 1, "x": 1}]),
    ("reference", {**REF_A, **DEFS}, [{"a": 1}], [{"a": 1, "x": 1}]),
    (
        "nested",
        {"type": "object", "properties": {"n": {"anyOf": [REF_A, {"type": "null"}]}}, **DEFS},
        [{"n": {"a": 1}}, {"n": None}, {}],
        [{"n": {"a": 1, "x": 1}}, {"x": 1}],
    ),
    ("items", {"type": "array", "items": A}, [[{"a": 1}]], [[{"a": 1, "x": 1}]]),
    ("allOf of one", {"allOf": [REF_A], **DEFS}, [{"a": 1}], [{"a": 1, "x": 1}]),
    ("allOf of two", {"allOf": [REF_A, REF_B], **DEFS}, [{"a": 1, "b": 1}], []),
    (
        "properties beside a reference",
        {"properties": {"b": True}, **REF_A, **DEFS},
        [{"a": 1, "b": 1}],
        [],
    ),
    (
        "a combined reference used elsewhere",
        {"type": "object", "properties": {"n": {"allOf": [REF_A, REF_B]}, "m": REF_A}, **DEFS},
        [{"n": {"a": 1, "b": 1}, "m": {"a": 1}}],
        [{"x": 1}],
    ),
    (
        "a reference of a combined reference",
        {"allOf": [{"$ref": "#/$defs/C"}, REF_B], "$defs": {**DEFS["$defs"], "C": REF_A}},
        [{"a": 1, "b": 1}],
        [],
    ),
    (
        "a reference to a place that is no definition",
        {"type": "object", "properties": {"n": {"allOf": [{"$ref": "#/properties/m"}, B]}, "m": A}},
        [{"n": {"a": 1, "b": 1}}],
        [],
    ),
    (
        "choices of what is required",
        {**A, "required": [], "anyOf": [{"required": ["a"]}, {}]},
        [{"a": 1}, {}],
        [],
    ),
    ("open on purpose", {**A, "additionalProperties": True}, [{"a": 1, "x": 1}], []),
    ("typed others", {**A, "additionalProperties": {"type": "string"}}, [{"a": 1, "x": "y"}], []),
    ("nothing listed", {"type": "object"}, [{}, {"x": 1}], []),
    (
        "itself",
        {"type": "object", "properties": {"n": {"$ref": "#"}}},
        [{"n": {"n": {}}}],
        [{"n": {"x": 1}}],
    ),
    (
        "properties with names of keywords",
        {
            "type": "object",
            "properties": {"properties": A, "$ref": {"type": "string"}, "allOf": {"type": "array"}},
        },
        [{"properties": {"a": 1}, "$ref": "x", "allOf": []}],
        [{"properties": {"a": 1, "x": 1}}],
    ),
    ("a value that looks like a schema", {"const": {"properties": {}}}, [{"properties": {}}], []),
]


@pytest.mark.parametrize(("name", "schema", "good", "bad"), CASES, ids=[c[0] for c in CASES])
def test_an_object_has_what_its_schema_lists(
    name: str, schema: dict[str, Any], good: list[Any], bad: list[Any]
) -> None:
    before = json.dumps(schema)
    valid = jsonschema.Draft202012Validator(close_objects(schema)).is_valid
    for value in good:
        assert valid(value), value
    for value in bad:
        assert jsonschema.Draft202012Validator(schema).is_valid(value)
        assert not valid(value), value
    assert json.dumps(schema) == before


LEAVES = st.sampled_from([A, B, REF_A, REF_B, {"type": "integer"}, {"type": "object"}, True])
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.one_of(
            st.builds(
                lambda a, b: {"type": "object", "properties": {"a": a, "c": b}}, inner, inner
            ),
            st.builds(
                lambda key, a, b: {key: [a, b]}, st.sampled_from(["allOf", "anyOf"]), inner, inner
            ),
            st.builds(lambda a, b: {"properties": {"a": a}, "anyOf": [b]}, inner, inner),
            st.builds(lambda a: {"properties": {"b": a}, **REF_A}, inner),
            st.builds(lambda a, b: {"if": a, "then": b}, inner, inner),
        )
        | st.builds(lambda a: {"type": "object", "not": a}, inner)
        | st.builds(lambda a: {"type": "array", "items": a}, inner)
    ),
    max_leaves=6,
)
LISTED = st.recursive(
    st.integers(0, 2),
    lambda inner: st.dictionaries(st.sampled_from("abcx"), inner) | st.lists(inner, max_size=2),
    max_leaves=6,
)


@given(SCHEMAS, LISTED)
def test_what_is_accepted_was_accepted_before(schema: Any, value: Any) -> None:
    whole = {**schema, **DEFS} if isinstance(schema, dict) else DEFS
    before = jsonschema.Draft202012Validator(whole).is_valid(value)
    after = jsonschema.Draft202012Validator(close_objects(whole)).is_valid(value)
    assert before or not after

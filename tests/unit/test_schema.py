"""The JSON Schema: what an editor accepts is what the parser accepts."""

import json
from typing import Any

import pytest
from jsonschema import Draft7Validator  # type: ignore[import-untyped]  # it ships no types

from reconciler.core import schema
from reconciler.core.parse import ParsedFile, parse_model
from reconciler.core.schema import json_schema

SOURCE = {"repo": "Qwen/Qwen3-0.6B"}
VALIDATOR = Draft7Validator(json_schema())

GOOD: list[dict[str, Any]] = [
    {},
    {"name": "org/model-1.5"},
    {"source": {"repo": "a/b", "revision": "main", "track": True}},
    {"source": {"path": "/srv/model"}},
    {"source": {"path": "./model", "track": False, "tokenizer": "a/b"}},
    {"source": {"repo": "a/b", "path": None}},
    {"task": "embed"},
    {"engine": {"max_model_len": 8192, "gpu_memory_utilization": 0.5, "max_num_seqs": "auto"}},
    {"engine": {"gpu_memory_utilization": 1, "kv_cache_memory_gib": 1.5}},
    {"engine": {"args": {"seed": 1, "enable_prefix_caching": True, "hf_overrides": {"a": [None]}}}},
    {"resources": {"tensor_parallel": 2, "pipeline_parallel": "auto", "replicas": {"min": 1, "max": 2}}},
    {"resources": {"accelerator": "A100-40G", "max_queued_requests": -1}},
    {"lifecycle": {"policy": "pinned", "idle_timeout": "1h30m", "min_stay": "0.5s", "heal": "off"}},
    {"lifecycle": {"schedule": [{"start": "0 8 * * 1-5", "end": "0 18 * * 1-5", "timezone": "Europe/Berlin"}]}},
    {"aliases": ["a", "b"], "description": "x", "labels": {"team/name": "search"}},
]

BAD: list[dict[str, Any]] = [
    {"nam": "x"},
    {"name": "-x"},
    {"name": "a:b"},
    {"name": 5},
    {"name": "x" * 97},
    {"source": None},
    {"source": {}},
    {"source": {"repo": None}},
    {"source": {"repo": "a/b", "path": "/x"}},
    {"source": {"repo": "a/b", "path": "/x", "revision": "main"}},
    {"source": {"path": "/x", "revision": "main"}},
    {"source": {"path": "/x", "track": True}},
    {"source": {"repo": "no-owner"}},
    {"task": "generat"},
    {"task": None},
    {"engine": None},
    {"engine": []},
    {"engine": {"max_model_len": "8192"}},
    {"engine": {"max_model_len": True}},
    {"engine": {"max_model_len": 0}},
    {"engine": {"max_model_len": 1.5}},
    {"engine": {"max_model_len": "Auto"}},
    {"engine": {"max_model_len": None}},
    {"engine": {"gpu_memory_utilization": 0}},
    {"engine": {"gpu_memory_utilization": 1.01}},
    {"engine": {"args": {"trust_remote_code": True}}},
    {"engine": {"args": {"dtype": "auto"}}},
    {"engine": {"foo": 1}},
    {"resources": {"tensor_parallel": 0}},
    {"resources": {"replicas": {"min": 0}}},
    {"resources": {"replicas": 2}},
    {"resources": {"max_queued_requests": -2}},
    {"lifecycle": {"policy": "always"}},
    {"lifecycle": {"idle_timeout": "15 m"}},
    {"lifecycle": {"idle_timeout": "15"}},
    {"lifecycle": {"idle_timeout": 15}},
    {"lifecycle": {"drain_timeout": "m"}},
    {"lifecycle": {"priority": 101}},
    {"lifecycle": {"heal": True}},
    {"lifecycle": {"schedule": {"start": "0 8 * * *", "end": "0 9 * * *"}}},
    {"lifecycle": {"schedule": [{"start": "0 8 * * *"}]}},
    {"lifecycle": {"schedule": [{"start": "0 8 * * * *", "end": "0 9 * * *"}]}},
    {"aliases": "a"},
    {"aliases": ["a", "b c"]},
    {"labels": {"a b": "x"}},
    {"labels": {"a": 1}},
    {"labels": {"x" * 64: "x"}},
    {"description": "x" * 2001},
]


@pytest.mark.parametrize("part", GOOD, ids=str)
def test_the_schema_accepts_what_the_parser_accepts(part: dict[str, Any]) -> None:
    document = {"source": SOURCE, **part}
    assert isinstance(parse_model("model.yaml", json.dumps(document).encode()), ParsedFile)
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []


@pytest.mark.parametrize("part", BAD, ids=lambda part: str(part)[:60])
def test_the_schema_refuses_what_the_parser_refuses(part: dict[str, Any]) -> None:
    document = {"source": SOURCE, **part}
    assert not isinstance(parse_model("model.yaml", json.dumps(document).encode()), ParsedFile)
    assert not VALIDATOR.is_valid(document)


def test_the_schema_is_itself_valid_and_plain_json() -> None:
    Draft7Validator.check_schema(json_schema())
    assert json.loads(json.dumps(json_schema())) == json_schema()


def test_the_schema_of_the_examples_holds_for_them() -> None:
    for example in json_schema()["examples"]:
        assert VALIDATOR.is_valid(example)


def test_the_schema_says_what_editors_show() -> None:
    found = json_schema()
    assert found["title"] == "Model file"
    assert found["$schema"].startswith("http")
    assert found["required"] == ["source"]
    assert found["additionalProperties"] is False
    assert all(
        section["additionalProperties"] is False for section in found["$defs"].values() if "properties" in section
    )
    assert "Context length" in found["$defs"]["Engine"]["properties"]["max_model_len"]["description"]
    assert "enable_prefix_caching" in found["$defs"]["Engine"]["properties"]["args"]["propertyNames"]["enum"]
    assert found["$defs"]["Lifecycle"]["properties"]["idle_timeout"]["examples"]


def test_every_call_gives_a_schema_of_its_own() -> None:
    json_schema()["properties"].clear()
    assert json_schema()["properties"]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 9}, "a whole number from 1 to 9"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "a number above 0 and at most 1"),
        ({"type": "number"}, "a number"),
        ({"oneOf": [{"type": "integer"}, {"const": "auto"}]}, "a whole number, or auto"),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "true or false"),
        ({"type": "string", "enum": ["a", "b"]}, "a, b"),
        ({"type": "string"}, "text"),
        ({"type": "string", "maxLength": 5}, "text of at most 5 characters"),
        ({"type": "string", "examples": ["15m"], "pattern": "x"}, "text such as 15m"),
        ({"type": "string", "pattern": "^[a-z0-9_-]+$"}, "small letters, digits and _ -"),
        ({"type": "object"}, "a mapping"),
        ({"type": "array"}, "a list"),
        ({}, "something else"),
    ],
)
def test_a_schema_is_described_in_words(part: dict[str, Any], words: str) -> None:
    assert schema.describe(part) == words

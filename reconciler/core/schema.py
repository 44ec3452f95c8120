"""The JSON Schema of a model file: what editors complete and check by, and what the parser explains by.

It is generated from the classes that the parser validates with, so the two cannot drift apart. Draft 7 is what
yaml-language-server knows best; nothing here needs a later one. What the classes check in code, and JSON Schema
can say, is added by hand in `_RULES`.
"""

import copy
import functools
import re
from typing import Any, Final, TypeAlias

from pydantic import BaseModel

from reconciler.core.spec import ALLOWED_ENGINE_ARGS, DURATION_PATTERN, NAME_PATTERN, ModelSpec

Schema: TypeAlias = dict[str, Any]

DIALECT: Final = "http://json-schema.org/draft-07/schema#"

_TEXT: Final[Schema] = {"type": "string"}
_ABSENT: Final[Schema] = {"type": "null"}
_CRON: Final[Schema] = {"pattern": r"^\s*\S+(?:\s+\S+){4}\s*$", "examples": ["0 8 * * 1-5"]}

_CLASSES: Final = (
    ("A-Za-z0-9_", "letters, digits, _"),
    ("A-Za-z0-9", "letters, digits"),
    ("a-z0-9", "small letters, digits"),
    (r"\w", "letters, digits, _"),
)

# Class -> what its validators demand. `properties` is merged key by key, the rest is put beside it.
_RULES: Final[dict[str, Schema]] = {
    "ModelSpec": {
        "examples": [
            {
                "name": "qwen3-0.6b",
                "source": {"repo": "Qwen/Qwen3-0.6B", "revision": "main"},
                "engine": {"max_model_len": 8192},
                "lifecycle": {"policy": "on_demand", "idle_timeout": "15m"},
            }
        ],
    },
    "Source": {
        "oneOf": [
            {"required": ["repo"], "properties": {"repo": _TEXT, "path": _ABSENT}},
            # A folder has neither a revision nor a branch to follow.
            {
                "required": ["path"],
                "properties": {
                    "path": _TEXT,
                    "repo": _ABSENT,
                    "revision": _ABSENT,
                    "track": {"const": False},
                },
            },
        ],
        "properties": {
            "repo": {"examples": ["Qwen/Qwen3-0.6B"]},
            "path": {"examples": ["/srv/models/my-model"]},
        },
    },
    "Engine": {"properties": {"args": {"propertyNames": {"enum": sorted(ALLOWED_ENGINE_ARGS)}}}},
    "Lifecycle": {
        "properties": {
            name: {"pattern": DURATION_PATTERN}
            for name in ("idle_timeout", "min_stay", "load_timeout", "drain_timeout", "wait_timeout")
        }
    },
    "Schedule": {"properties": {"start": _CRON, "end": _CRON}},
}


def json_schema(spec_class: type[BaseModel] = ModelSpec) -> Schema:
    """The JSON Schema of a model file.

    Args:
        spec_class: The class a file is validated with.

    Returns:
        A schema of one's own to change and to print.
    """
    return copy.deepcopy(cached_schema(spec_class))


@functools.cache
def cached_schema(spec_class: type[BaseModel]) -> Schema:
    """The same schema, shared: for reading only."""
    generated = spec_class.model_json_schema()
    for section in (generated, *generated.get("$defs", {}).values()):
        _tidy(section)
    title = spec_class.__name__
    _merge(generated, _RULES.get(title, {}))
    for name, section in generated.get("$defs", {}).items():
        _merge(section, _RULES.get(name, {}))
    # The parser fills the name in from the file's.
    required = [name for name in generated.get("required", ()) if name != "name"]
    return {"$schema": DIALECT, **generated, "title": "Model file", "required": required}


def _tidy(section: Schema) -> None:
    """Take out what only repeats the key, and close mappings whose keys have a pattern."""
    section.pop("title", None)
    for child in section.get("properties", {}).values():
        child.pop("title", None)
        if "patternProperties" in child:
            child["additionalProperties"] = False


def _merge(section: Schema, rules: Schema) -> None:
    for key, rule in rules.items():
        if key != "properties":
            section[key] = rule
            continue
        for name, extra in rule.items():
            if name in section.get("properties", {}):
                section["properties"][name].update(extra)


def resolve(schema: Schema, root: Schema) -> Schema:
    """The schema that a `$ref` leads to, or the one given; a description beside the reference wins."""
    target = schema.get("$ref")
    if target is None:
        return schema
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    return {**root["$defs"][target.rpartition("/")[2]], **beside}


def child(schema: Schema, key: str | int, root: Schema) -> Schema:
    """The schema of what stands at `key` in a mapping or list of this schema; empty where nothing is said."""
    schema = resolve(schema, root)
    if isinstance(key, int):
        found = schema.get("items", {})
    elif key in schema.get("properties", {}):
        found = schema["properties"][key]
    else:
        patterned = list(schema.get("patternProperties", {}).values())
        other = schema.get("additionalProperties")
        found = patterned[0] if patterned else other if isinstance(other, dict) else {}
    return resolve(found, root)


def keys(schema: Schema) -> list[str]:
    """The keys that a mapping of this (resolved) schema may have, where they are listed."""
    return [*schema.get("properties", {}), *schema.get("propertyNames", {}).get("enum", ())]


@functools.cache
def places(spec_class: type[BaseModel]) -> dict[str, list[tuple[str, ...]]]:
    """Where each key is allowed: the sections, outer ones first, in which the schema lists it."""
    root = cached_schema(spec_class)
    found: dict[str, list[tuple[str, ...]]] = {}
    pending: list[tuple[tuple[str, ...], Schema]] = [((), root)]
    while pending:
        path, schema = pending.pop(0)
        for key in keys(schema):
            found.setdefault(key, []).append(path)
            below = child(schema, key, root)
            pending.append(((*path, key), child(below, 0, root) if "items" in below else below))
    return found


def describe(schema: Schema) -> str:
    """What a (resolved) schema allows, in words: `a whole number from 1 to 1024, or auto`."""
    branches = [each for each in schema.get("oneOf") or schema.get("anyOf") or () if each.get("type") != "null"]
    if branches and "type" not in schema:
        # Examples stand beside the choice, and belong to its text.
        beside = {key: schema[key] for key in ("examples",) if key in schema}
        return ", or ".join(describe({**beside, **each}) for each in branches)
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return ", ".join(str(each) for each in schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return _describe_number(schema)
    if kind == "string":
        return _describe_text(schema)
    return {"boolean": "true or false", "array": "a list", "object": "a mapping"}.get(str(kind), "something else")


def _describe_number(schema: Schema) -> str:
    noun = "a whole number" if schema["type"] == "integer" else "a number"
    lower = schema.get("minimum")
    upper = schema.get("maximum")
    if lower is not None and upper is not None:
        return f"{noun} from {lower} to {upper}"
    bounds = [
        f"{words} {schema[key]}"
        for key, words in (
            ("exclusiveMinimum", "above"),
            ("minimum", "at least"),
            ("exclusiveMaximum", "below"),
            ("maximum", "at most"),
        )
        if key in schema
    ]
    return " ".join([noun, " and ".join(bounds)]).strip()


def _describe_text(schema: Schema) -> str:
    if examples := schema.get("examples"):
        return f"text such as {' or '.join(str(each) for each in examples)}"
    if words := pattern_words(schema.get("pattern", "")):
        return words
    longest = schema.get("maxLength")
    return f"text of at most {longest} characters" if longest else "text"


def pattern_words(pattern: str) -> str:
    """What a pattern demands, in words; empty for one that is neither a name's nor of the form `^[a][b]*$`."""
    if pattern == NAME_PATTERN:
        return "letters, digits and . _ - /, with a letter or digit at both ends and around each /"
    form = re.fullmatch(r"\^(\[[^]]+\])?\[([^]]+)\][*+]\$", pattern)
    if form is None or "^" in form[2]:
        return ""
    rest = form[2]
    parts = []
    for characters, words in _CLASSES:
        if characters in rest:
            rest = rest.replace(characters, "")
            parts.append(words)
    listed = ", ".join(parts) + (f" and {' '.join(rest)}" if rest else "")
    return f"{listed}, beginning with a letter or digit" if form[1] else listed

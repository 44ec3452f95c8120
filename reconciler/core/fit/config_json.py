"""Reading values of an untrusted config.json: several spellings, nested text configs, wrong types. Pure."""

from collections.abc import Mapping

from reconciler.core.state import Json

LARGEST = 2**48
"""No number in a config.json of a real model comes near; more would only make arithmetic slow."""
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "language_model_config")


class ArchitectureError(Exception):
    """A config.json that is not understood; the text says what is missing or wrong."""


def text_config(config: Json) -> Json:
    """The language model's part of a config, with what stands only above it filled in.

    Multimodal models nest it (`get_hf_text_config` of vLLM); omni models twice (`thinker_config.text_config`).
    """
    inner: object = config
    thinker = config.get("thinker_config")
    if isinstance(thinker, dict):
        inner = thinker
    assert isinstance(inner, dict)
    for name in _TEXT_CONFIGS:
        found = inner.get(name)
        if isinstance(found, dict) and found:
            return {**{key: value for key, value in config.items() if key not in _TEXT_CONFIGS}, **found}
    return config


def maybe_int(config: Json, *names: str) -> int | None:
    """The first of these that is a whole number; None where none is there or it is null.

    Raises:
        ArchitectureError: It is there and no sensible number.
    """
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
            raise ArchitectureError(f"config.json: {name} is {value!r:.60}, not a whole number of at least 0")
        return value
    return None


def an_int(config: Json, *names: str) -> int:
    """As `maybe_int`, of at least 1.

    Raises:
        ArchitectureError: It is absent, or no such number.
    """
    value = maybe_int(config, *names)
    if not value:
        raise ArchitectureError(f"config.json: {' or '.join(names)} is missing or 0")
    return value


def a_str(config: Json, *names: str) -> str:
    """The first of these that is a text; empty where none is."""
    return next((value for name in names if isinstance(value := config.get(name), str)), "")


def a_dict(config: Json, name: str) -> Json:
    """A nested mapping; empty where there is none."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def strings(config: Json, name: str, length: int) -> list[str] | None:
    """A list of at least so many texts, cut to that length; None where there is no list.

    Raises:
        ArchitectureError: It is shorter, or holds something else.
    """
    value = config.get(name)
    if not isinstance(value, list) or not value:
        return None
    if len(value) < length or not all(isinstance(item, str) for item in value):
        raise ArchitectureError(f"config.json: {name} is not a list of a text for each of {length} layers")
    return value[:length]


def indexes(config: Mapping[str, object], name: str) -> list[int] | None:
    """A list of whole numbers; None where there is none.

    Raises:
        ArchitectureError: It holds something else.
    """
    value = config.get(name)
    if not isinstance(value, list):
        return None
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        raise ArchitectureError(f"config.json: {name} is not a list of whole numbers")
    return value

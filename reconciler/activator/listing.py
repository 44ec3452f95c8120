"""`/v1/models` in OpenAI's shape: every declared model, alias and adapter, up or not, and its state. Pure."""

import json
from typing import Any

from reconciler.activator.directory import Directory, Entry, ModelState

_OWNER = "llm-reconciler"


def models_json(directory: Directory) -> bytes:
    """The list of all models, each followed by its aliases and its adapters."""
    data = []
    for entry in directory.entries:
        data.append(_card(entry, entry.name))
        others = (*entry.aliases, *entry.adapters)
        data.extend(_card(entry, other) for other in others if directory.find(other) is entry)
    return json.dumps({"object": "list", "data": data}).encode()


def model_json(entry: Entry, asked: str) -> bytes:
    """One model, under the name that was asked for."""
    return json.dumps(_card(entry, asked)).encode()


def _card(entry: Entry, name: str) -> dict[str, Any]:
    card: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": entry.created,
        "owned_by": _OWNER,
        "status": _status(entry),
        "task": entry.task,
    }
    if name in entry.adapters:
        card["parent"] = entry.name  # As vLLM's own listing has it.
    elif name != entry.name:
        card["alias_of"] = entry.name
    if entry.description:
        card["description"] = entry.description
    if entry.max_model_len is not None:
        card["max_model_len"] = entry.max_model_len
    return card


def _status(entry: Entry) -> dict[str, Any]:
    status: dict[str, Any] = {"value": entry.state.value, "reason": entry.reason}
    if entry.state is ModelState.FAILED:
        status["failed"] = True  # As llama.cpp's router marks it.
    return status

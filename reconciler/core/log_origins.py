"""What a log file is, by its name and its head: how it is written, and whose it is. Pure; for `core.log_lines`.

The names are those of Ray 2.60 (`get_component_file_name` in ray.serve, `:actor_name:` in ray._private).
"""

import re
from dataclasses import dataclass
from enum import StrEnum


class Form(StrEnum):
    """How a file is written."""

    RECONCILER = "reconciler"
    EDGE = "edge"
    SERVE = "serve"
    PRINTED = "printed"
    """What a process of Ray's printed: vLLM's lines, and whatever else."""


@dataclass(frozen=True, slots=True)
class Of:
    """What the name and the head of a file say of it.

    Attributes:
        form: How it is written.
        origin: What its lines count as.
        application: The one that it belongs to, where it belongs to one.
    """

    form: Form
    origin: str
    application: str | None = None


_REPLICA = re.compile(
    r"replica_([a-z0-9][a-z0-9-]{0,100}-[0-9a-f]{8})_(.{1,200})_([a-z0-9]{1,32})\.log(?:\.\d{1,4})?"
)
_BUILD = re.compile(r"controller_build_([a-z0-9][a-z0-9-]{0,100}-[0-9a-f]{8})_\d{1,10}\.log(?:\.\d{1,4})?")
_CONTROLLER = re.compile(r"controller_\d{1,10}\.log(?:\.\d{1,4})?")
_PROXY = re.compile(r"proxy_[0-9A-Fa-f.:_-]{1,64}\.log(?:\.\d{1,4})?")
_ACTOR = re.compile(r"^:actor_name:ServeReplica:([a-z0-9][a-z0-9-]{0,100}-[0-9a-f]{8}):(.{1,200})$", re.MULTILINE)


def of_serve_file(name: str) -> Of | None:
    """What a file in Serve's folder of logs is, by its name; None where it is nothing of a model's."""
    if found := _REPLICA.fullmatch(name) or _BUILD.fullmatch(name):
        return Of(Form.SERVE, "serve", found[1])
    if _CONTROLLER.fullmatch(name) or _PROXY.fullmatch(name):
        return Of(Form.SERVE, "serve")
    return None


def of_printed(head: str) -> Of | None:
    """Whose a file is that a process of Ray's prints to, by its head; None where it is no replica of a model."""
    found = None
    for found in _ACTOR.finditer(head):  # noqa: B007 -- the last: before, it may have been something else
        pass
    if found is None:
        return None
    return Of(Form.PRINTED, "vllm" if found[2].startswith("LLMServer") else "serve", found[1])

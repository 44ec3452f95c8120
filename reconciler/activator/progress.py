"""What a client that waits for a stream is told meanwhile, and how an error looks in a stream. Pure."""

import json
import math
from collections.abc import Mapping
from typing import Any

from reconciler.activator.directory import Entry

STREAM_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
"""Where `"stream": true` in the body makes the answer a stream of server-sent events."""

_ANTHROPIC_PATH = "/v1/messages"
_OK = 200
_LONGEST_COMMENT = 300
_LONGEST_MESSAGE = 2000
_IN_SECONDS_BELOW = 120
# Anthropic's own names; what is not among them is an `api_error`.
_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def words(entry: Entry | None, position: int, count: int) -> str:
    """How things stand for a held request: the model's state, its reason, the time left, the place in the queue.

    Args:
        entry: The model; None while the reconciler has not looked yet.
        position: Its place among the requests that wait for this model, from 1.
        count: How many wait.
    """
    if entry is None:
        return "starting: the server has just started"
    parts = [f"{entry.state.value}: {entry.reason.rstrip('.')}" if entry.reason else entry.state.value]
    if entry.expected_wait is not None:
        parts.append(f"it answers in about {_about(entry.expected_wait)}")
    if count > 1:
        parts.append(f"request {position} of {count}")
    return "; ".join(parts)


def comment(text: str) -> bytes:
    """A comment of an event stream, which every reader skips. One line, whatever the text."""
    return f": {_one_line(text, _LONGEST_COMMENT)}\n\n".encode()


def error_event(path: str, status: int, error: Mapping[str, Any]) -> bytes:
    """An error in the middle of a stream, in the form that the clients of that path raise on.

    Args:
        path: OpenAI's clients and Anthropic's read different events.
        status: The HTTP status that it would have had.
        error: The error of OpenAI's envelope.
    """
    if path == _ANTHROPIC_PATH:
        kind = _ANTHROPIC_KINDS.get(status, "api_error")
        data = {"type": "error", "error": {"type": kind, "message": error["message"]}}
        return f"event: error\ndata: {json.dumps(data)}\n\n".encode()
    return f"data: {json.dumps({'error': dict(error)})}\n\ndata: [DONE]\n\n".encode()


def error_in(body: bytes, status: int) -> dict[str, Any]:
    """The error in a model's own answer, as OpenAI's envelope has it.

    Args:
        body: The answer, which may be anything, or the beginning of one.
        status: Its HTTP status.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    error = document.get("error", document) if isinstance(document, dict) else None
    told: dict[str, Any] = {"message": "", "type": "server_error", "param": None, "code": status}
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return told | {key: error[key] for key in told if isinstance(error.get(key), str | int)}
    said = _one_line(body[: 4 * _LONGEST_MESSAGE].decode("utf-8", "replace"), _LONGEST_MESSAGE)
    what = "with something else than a stream" if status == _OK else f"with status {status}"
    return told | {"message": f"The model answered {what}: {said}" if said else f"The model answered {what}."}


def _about(seconds: float) -> str:
    # In steps, so that a countdown is not a new comment each time.
    if seconds < _IN_SECONDS_BELOW:
        return f"{max(5, math.ceil(seconds / 5) * 5)} s"
    return f"{math.ceil(seconds / 60)} min"


def _one_line(text: str, longest: int) -> str:
    """Without line ends and other characters that do not print, which includes what UTF-8 cannot encode."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * longest]).split())
    return line if len(line) <= longest else f"{line[:longest]}…"

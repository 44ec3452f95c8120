"""The replies that HAProxy makes itself, in OpenAI's error envelope, as its `errorfile` wants them. Pure."""

import json
from dataclasses import dataclass

RETRY_AFTER_SECONDS = 5
"""What a client is told to wait where something that is down is expected back."""


@dataclass(frozen=True)
class _Reply:
    status: str
    kind: str
    message: str
    retry: bool = False
    header: str = ""


_REPLIES = {
    "bad_request": _Reply("400 Bad Request", "invalid_request_error", "The request is not valid HTTP."),
    "invalid_api_key": _Reply(
        "401 Unauthorized",
        "invalid_request_error",
        "This needs a valid key, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`.",
        header="WWW-Authenticate: Bearer",
    ),
    "rate_limit_exceeded": _Reply(
        "429 Too Many Requests",
        "rate_limit_error",
        "This key has as many requests, at a time or in a minute, as it may have. Try again.",
        retry=True,
    ),
    "request_timeout": _Reply(
        "408 Request Timeout", "invalid_request_error", "The request did not arrive within 60 seconds."
    ),
    "internal_error": _Reply(
        "500 Internal Server Error", "server_error", "The front door failed on this request."
    ),
    "queue_full": _Reply(
        "503 Service Unavailable",
        "server_error",
        "Too many requests wait for models, or are sent on by the reconciler. Try again.",
        retry=True,
    ),
    "model_unavailable": _Reply(
        "503 Service Unavailable",
        "server_error",
        "The model did not answer. It may be restarting; try again.",
        retry=True,
    ),
    "control_plane_unavailable": _Reply(
        "503 Service Unavailable",
        "server_error",
        "The control plane is not running. Models that are loaded answer; this request needs it. Try again.",
        retry=True,
    ),
}


def reply_files() -> dict[str, str]:
    """File name in errors/ to content: a whole HTTP response each. The name is the error's `code`."""
    return {f"{code}.http": _render(code, reply) for code, reply in _REPLIES.items()}


def _render(code: str, reply: _Reply) -> str:
    error = {"message": reply.message, "type": reply.kind, "param": None, "code": code}
    body = json.dumps({"error": error})
    head = [
        f"HTTP/1.1 {reply.status}",
        "Content-Type: application/json",
        f"Content-Length: {len(body.encode())}",
        "Cache-Control: no-store",
    ]
    if reply.header:
        head.append(reply.header)
    if reply.retry:
        head.append(f"Retry-After: {RETRY_AFTER_SECONDS}")
    return "\r\n".join([*head, "", body])

"""Refusals: each one an exception that knows its status, its headers and its OpenAI error envelope."""

import json
import math
from collections.abc import Mapping

from reconciler.activator.directory import Entry

_LONGEST_NAME_SHOWN = 200
_UPSTREAM_RETRY_AFTER = 2.0
_STARTING_RETRY_AFTER = 2.0
_KEYS_RETRY_AFTER = 5.0
_INTERNAL, _UNAVAILABLE = 500, 503

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


class Refusal(Exception):  # noqa: N818 -- an answer of ours, not a fault of the program
    """A request that is answered by the activator itself, with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self._error = {"message": message, "type": kind, "param": param, "code": code}

    def body(self) -> bytes:
        """The envelope that OpenAI's clients read the error from."""
        return json.dumps({"error": self._error}).encode()


def unknown_model(name: str, near: tuple[str, ...]) -> Refusal:
    """No model and no alias has that name."""
    message = f"The model '{_shown(name)}' does not exist."
    if near:
        message += f" Did you mean: {', '.join(repr(other) for other in near)}?"
    return Refusal(404, message, code="model_not_found", param="model")


def invalid_key(*, given: bool) -> Refusal:
    """The request needs a key, and has none that is valid."""
    message = (
        "The API key is not valid: it is unknown, revoked or expired."
        if given
        else "An API key is needed, one: in `Authorization: Bearer KEY` or in `X-Api-Key: KEY`."
    )
    return Refusal(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def insufficient_scope(scope: str) -> Refusal:
    """The key is valid, and not for this."""
    return Refusal(403, f"This needs a key of the scope {scope}.", code="insufficient_scope")


def of_a_page() -> Refusal:
    """A page in a browser sends what only a program of this machine may."""
    message = "A page may not do this without a key; `reconcile keys add` makes one."
    return Refusal(403, message, code="of_a_page")


def keys_unavailable() -> Refusal:
    """It cannot be told who may come in; the log says why."""
    return _unavailable(
        "The server cannot check keys at the moment.", code="keys_unavailable", seconds=_KEYS_RETRY_AFTER
    )


def not_up(entry: Entry, asked: str) -> Refusal:
    """The model is declared and no application of it takes requests."""
    message = f"The model '{_shown(asked)}' is {entry.state.value}"
    message += f": {entry.reason.rstrip('.')}." if entry.reason else "."
    code = f"model_{entry.state.value}"
    return _unavailable(message, code=code, seconds=entry.retry_after, param="model")


def starting() -> Refusal:
    """The reconciler has not finished its first look, so it cannot tell an unknown model from one not yet seen."""
    return _unavailable(
        "The server is starting; try again shortly.", code="starting", seconds=_STARTING_RETRY_AFTER
    )


def queue_full(entry: Entry, asked: str) -> Refusal:
    """As many requests wait for the model as may."""
    message = (
        f"{entry.max_waiting} requests wait for the model '{_shown(asked)}' already, as many as may{_why(entry)}."
    )
    return _unavailable(message, code="queue_full", seconds=retry_after(entry), param="model")


def bodies_full(entry: Entry | None) -> Refusal:
    """The bodies of all requests that wait take as much memory as they may."""
    message = "Too many large requests wait for models; try again later."
    return _unavailable(message, code="queue_full", seconds=retry_after(entry))


def wait_timeout(entry: Entry, asked: str, waited: float) -> Refusal:
    """The model did not come up for as long as the request could wait."""
    message = f"The model '{_shown(asked)}' did not come up in the {waited:.0f} s that the request waited"
    return _unavailable(
        f"{message}{_why(entry)}.", code="model_wait_timeout", seconds=retry_after(entry), param="model"
    )


def patience_too_short(entry: Entry, asked: str, patience: float) -> Refusal:
    """The client will not wait for as long as the model is expected to take."""
    expected = "" if entry.expected_wait is None else f", it is expected in {math.ceil(entry.expected_wait)} s"
    waits = f"and the client waits {patience:.0f} s at most"
    message = f"The model '{_shown(asked)}' is not up{expected}, {waits}{_why(entry)}."
    return _unavailable(message, code="patience_too_short", seconds=retry_after(entry), param="model")


def stopping() -> Refusal:
    """The reconciler ends, and the client has had comments, so that nobody can send its request again for it."""
    return _unavailable(
        "The server is being restarted; try again shortly.", code="stopping", seconds=_STARTING_RETRY_AFTER
    )


def command_refused(reason: str, status: int = 400) -> Refusal:
    """A model cannot be loaded or unloaded by hand; a status from 500 on says that the request is not to blame."""
    if status == _UNAVAILABLE:
        return _unavailable(reason, code="starting", seconds=_STARTING_RETRY_AFTER)
    if status >= _INTERNAL:
        return Refusal(status, reason, code="internal_error", kind=SERVER_ERROR)
    return Refusal(400, reason, code="command_refused", param="model")


def retry_after(entry: Entry | None) -> float:
    """Seconds after which a request that could not wait should be sent again."""
    if entry is None:
        return _STARTING_RETRY_AFTER
    return entry.retry_after if entry.expected_wait is None else entry.expected_wait


def upstream_unreachable(name: str) -> Refusal:
    """The model's application could not be reached, or went away before it answered."""
    message = f"The model '{_shown(name)}' did not answer; try again shortly."
    return _unavailable(message, code="upstream_unreachable", seconds=_UPSTREAM_RETRY_AFTER)


def bad_request(problem: str) -> Refusal:
    """What came is not HTTP, or contradicts itself."""
    return Refusal(400, problem, code="bad_request")


def unknown_path(path: str) -> Refusal:
    """Not a path of the closed list."""
    return Refusal(404, f"There is nothing at '{_shown(path)}'.", code="unknown_path")


def wrong_method(method: str, allowed: str) -> Refusal:
    """A known path, asked with a method that it does not have."""
    message = f"The method {_shown(method)} is not allowed here; use {allowed}."
    return Refusal(405, message, code="method_not_allowed", headers={"allow": allowed})


def too_large(limit: int) -> Refusal:
    """The body exceeds the limit."""
    return Refusal(413, f"The request body is larger than {limit} bytes.", code="request_too_large")


def invalid_json(problem: str) -> Refusal:
    """The body is not a JSON object."""
    return Refusal(400, f"The request body is not valid JSON: {problem}.", code="invalid_json")


def invalid_form(problem: str) -> Refusal:
    """The body is not multipart/form-data."""
    return Refusal(400, f"The request body is not valid multipart/form-data: {problem}.", code="invalid_form")


def invalid_model(problem: str) -> Refusal:
    """`model` is missing, given twice, or not a string."""
    return Refusal(400, problem, code="invalid_model", param="model")


def internal() -> Refusal:
    """A fault of ours; the log has the particulars."""
    return Refusal(500, "The server had an internal error.", code="internal_error", kind=SERVER_ERROR)


def _unavailable(message: str, *, code: str, seconds: float, param: str | None = None) -> Refusal:
    # Whole seconds are the only form of Retry-After that every client reads, and 0 invites a hammering.
    headers = {"retry-after": str(max(1, math.ceil(seconds)))}
    return Refusal(503, message, code=code, kind=SERVER_ERROR, param=param, headers=headers)


def _why(entry: Entry) -> str:
    return f" ({entry.state.value}: {entry.reason.rstrip('.')})" if entry.reason else f" ({entry.state.value})"


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME_SHOWN else f"{text[:_LONGEST_NAME_SHOWN]}…"

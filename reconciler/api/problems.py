"""How the API says no: every refusal and failure is a `Problem`, with one of the documented statuses."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from reconciler.api.schemas import Problem
from reconciler.core.edit import ConflictError, EditError, FileNameError, NoFileError
from reconciler.core.keys import KeyRefusedError
from reconciler.host.errors import UserError
from reconciler.host.log import get_logger
from reconciler.loop.applying import StaleError
from reconciler.loop.by_hand import CommandRefusedError
from reconciler.ray_serve.client import ServeRefusedError, ServeUnreachableError

log = get_logger()

_MEANINGS: Final = {
    400: "What was asked for is malformed, or the name that we were called by is not allowed",
    401: "The key is missing, unknown, revoked or expired",
    403: "The key's scope is not enough, or the request comes from another site",
    404: "There is no such thing",
    409: "It makes no sense as things are",
    412: "The file is not the one that was seen",
    413: "The body is too large",
    422: "A field is not what it has to be",
    429: "Too many wrong keys came from there",
    500: "A fault of the reconciler, or of its disk",
    503: "Not now: the reconciler has not looked yet, may not write, or Ray does not answer",
}
_ALWAYS: Final = (400, 401, 403, 404, 413, 422, 429, 500, 503)
_LONGEST_TEXT: Final = 500


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals that a route may answer, besides those that each may: for `responses`."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in (*_ALWAYS, *statuses)}


def documented_stream() -> dict[int | str, dict[str, Any]]:
    """The same for a route that answers with events: its refusals are JSON all the same."""
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    fields = {name: {"type": "string"} for name in ("id", "event", "data")}
    event = {"type": "object", "properties": fields, "required": ["data"]}
    events = {"text/event-stream": {"schema": event}}
    return {
        200: {"description": "Server-sent events, until one side leaves", "content": events},
        **{status: {"content": refusal, "description": _MEANINGS[status]} for status in _ALWAYS},
    }


def problem(
    status: int, error: str, near: tuple[str, ...] = (), headers: dict[str, str] | None = None
) -> JSONResponse:
    """A refusal as an answer."""
    # A part may be a name from outside that no text can hold.
    body = Problem(error=error.encode(errors="replace").decode(), near=near)
    return JSONResponse(body.model_dump(mode="json"), status_code=status, headers=headers)


def add_handlers(app: FastAPI) -> None:
    """Have everything that may be raised answered as a `Problem`."""

    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, CommandRefusedError)
        return problem(error.status, str(error), error.near)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        mistake = error.errors()[0]
        where = ".".join(str(part) for part in mistake["loc"])
        return problem(422, f"{where}: {mistake['msg']}"[:_LONGEST_TEXT])

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers) if error.headers else None
        return problem(error.status_code, error.detail, headers=headers)

    async def crashed(request: Request, error: Exception) -> JSONResponse:
        # Starlette calls it while it handles the error.
        log.exception("request.crashed", path=request.url.path[:_LONGEST_TEXT], reason=repr(error))  # noqa: LOG004
        return problem(500, "a fault of the reconciler; its log says more")

    def answer(status: int) -> Any:  # noqa: ANN401 -- an exception handler, as Starlette wants one
        async def said(_: Request, error: Exception) -> JSONResponse:
            return problem(status, str(error))

        return said

    for kind, handler in {
        CommandRefusedError: refused,
        RequestValidationError: invalid,
        HTTPException: http,
        StaleError: answer(409),
        KeyRefusedError: answer(409),
        UserError: answer(503),
        ServeUnreachableError: answer(503),
        ServeRefusedError: answer(503),
        FileNameError: answer(400),
        NoFileError: answer(404),
        ConflictError: answer(412),
        EditError: answer(409),
        Exception: crashed,
    }.items():
        app.add_exception_handler(kind, handler)

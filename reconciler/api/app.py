"""The management API as an ASGI application, with the page beside it: both behind one gate.

request -> names and keys (`auth.Gate`) -> size -> `/api/v1`, `/metrics` here, all else to the page
"""

from fastapi import FastAPI, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reconciler.api.answers import Answers
from reconciler.api.auth import API, CSRF_HEADER, METRICS, Gate
from reconciler.api.context import Context
from reconciler.api.problems import add_handlers, problem
from reconciler.api.routes_files import files_router, keys_router
from reconciler.api.routes_models import models_router
from reconciler.api.routes_whole import metrics_router, whole_router
from reconciler.api.sessions import COOKIE
from reconciler.api.streams import Listeners

PREFIX = "/api/v1"
_LARGEST_BODY, _LARGEST_PLAN = 4 * 2**20, 64 * 2**20
_TEXT = """Operates one reconciler. Every request carries an admin key, `Authorization: Bearer rk-…`; `/metrics`
takes one with the scope `metrics` too. Sizes are in bytes, times in seconds since the epoch. Within v1, fields are
only added."""


def api_app(context: Context, page: ASGIApp | None = None) -> FastAPI:
    """The application that listens at `api_host`:`api_port`.

    Args:
        context: Everything that it needs.
        page: Answers whatever is not the API's; it too is behind the gate, but for `auth.is_public`.
    """
    app = FastAPI(
        title="reconcile",
        version="1",
        description=_TEXT,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_own_name,
        # They only say how: the gate has looked by then.
        dependencies=[
            Security(HTTPBearer(auto_error=False)),
            Security(APIKeyCookie(name=COOKIE, auto_error=False)),
        ],
    )
    answers = Answers(context)
    for router in (
        models_router(answers, context),
        whole_router(answers, context, Listeners()),
        files_router(context),
        keys_router(context),
    ):
        app.include_router(router, prefix=PREFIX)
    app.include_router(metrics_router(context))
    add_handlers(app)
    # The one that is added last is the first to see a request.
    app.add_middleware(_Beside, page=page)
    app.add_middleware(_Limited)
    app.add_middleware(Gate, keys=context.keys, sessions=context.sessions, access=context.access)
    if context.access.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=context.access.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["authorization", "content-type", "if-match", "last-event-id", CSRF_HEADER],
        )
    return app


class _Beside:
    """Passes on to the page what is not the API's."""

    def __init__(self, app: ASGIApp, page: ASGIApp | None) -> None:
        self._app, self._page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(API) or scope["path"] == METRICS:
            await self._app(scope, receive, send)
        elif self._page is not None:
            await self._page(scope, receive, send)
        else:
            await problem(404, "Not Found")(scope, receive, send)


class _Limited:
    """Takes no body that is larger than any of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        largest = _LARGEST_PLAN if scope["path"] == f"{PREFIX}/apply" else _LARGEST_BODY
        length, seen = Headers(scope=scope).get("content-length", "0"), 0
        if not length.isdecimal() or int(length) > largest:
            await problem(413, f"a body may have {largest} bytes here")(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            # As if the client had left in the middle of it.
            return {"type": "http.disconnect"} if seen > largest else message

        await self._app(scope, counted, send)


def _own_name(route: APIRoute) -> str:
    return route.name

"""The page as an ASGI application, to be mounted at `/` beside the API: its routes, logging in and out, errors."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from reconciler.api.sessions import COOKIE, LASTS_SECONDS, Sessions
from reconciler.host.log import get_logger
from reconciler.loop.by_hand import CommandRefusedError
from reconciler.page.backend import Backend
from reconciler.page.commands import Commands
from reconciler.page.guard import Guard, Handler, SecurityHeaders, check_origin, local_path, read_form
from reconciler.page.looking import Looking
from reconciler.page.show import STATIC, Shown
from reconciler.page.streams import Streams
from reconciler.page.told import Told

log = get_logger()


def page_app(backend: Backend, sessions: Sessions, *, secure: bool = False) -> ASGIApp:
    """The page.

    Args:
        backend: What it shows, and what its buttons do.
        sessions: Who is logged in; the same as the API's.
        secure: Browsers send the cookie over TLS only; so they do where the request itself came over TLS, or to a
            proxy that ends it.
    """
    shown, told, guard = Shown(), Told(), Guard(sessions)
    looking = Looking(backend, shown, told)
    commands = Commands(backend, looking, told)
    streams = Streams(backend, guard, looking)
    door = _Door(sessions, shown, guard, secure=secure)

    def route(path: str, handler: Handler, method: str = "GET") -> Route:
        return Route(path, guard.page(handler), methods=[method])

    app = Starlette(
        routes=[
            Route("/login", door.form, methods=["GET"]),
            Route("/login", door.log_in, methods=["POST"]),
            Route("/logout", door.log_out, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
            route("/", looking.overview),
            route("/gpus", looking.gpus),
            route("/plan", looking.plan),
            route("/history", looking.history),
            route("/activity", looking.activity),
            route("/catalogue", looking.catalogue),
            route("/add", commands.add_form),
            route("/models/{name:path}", looking.model),
            route("/parts/overview", looking.overview_part),
            route("/parts/row", looking.row_part),
            route("/parts/gpus", looking.gpus_part),
            route("/parts/model", looking.model_part),
            route("/parts/metrics", looking.metrics_part),
            route("/live", streams.live),
            route("/do/{action}", commands.do, "POST"),
            route("/sync", commands.sync, "POST"),
            route("/plan/apply", commands.apply, "POST"),
            route("/add", commands.add, "POST"),
            route("/file/edit", commands.edit, "POST"),
            route("/file/remove", commands.remove, "POST"),
            route("/chat", streams.chat, "POST"),
        ],
        exception_handlers={
            HTTPException: _on_error(guard, shown),
            CommandRefusedError: _on_error(guard, shown),
            Exception: _on_error(guard, shown),
        },
    )
    # Outside of all, so that what Starlette answers where a handler fails has them too.
    return SecurityHeaders(app)


class _Door:
    """Logging in with an admin key, and out."""

    def __init__(self, sessions: Sessions, shown: Shown, guard: Guard, *, secure: bool) -> None:
        self._sessions = sessions
        self._shown = shown
        self._guard = guard
        self._secure = secure

    async def form(self, request: Request) -> Response:
        there = local_path(request.query_params.get("next", "/"))
        if self._guard.session(request) is not None:
            return RedirectResponse(there, status_code=303)
        return self._shown.page("login.html", session=None, told=None, here="/login", there=there, why="")

    async def log_in(self, request: Request) -> Response:
        check_origin(request)
        form = await read_form(request)
        there = local_path(form.get("next", "/"))
        made = self._sessions.create(form.get("key", "").strip())
        if made is None:
            why = (
                "This is no valid admin key. An inference key does not open the page; keys expire and are revoked."
            )
            return self._shown.page(
                "login.html", 403, session=None, told=None, here="/login", there=there, why=why
            )
        answer = RedirectResponse(there, status_code=303)
        answer.set_cookie(
            COOKIE,
            made[0],
            max_age=int(LASTS_SECONDS),
            path="/",
            # What the browser sees; `check_origin` has looked at it.
            secure=self._secure or request.headers["origin"].lower().startswith("https://"),
            httponly=True,
            samesite="lax",
        )
        return answer

    async def log_out(self, request: Request) -> Response:
        endpoint = self._guard.page(lambda _: self._end(request))
        return await endpoint(request)

    async def _end(self, request: Request) -> Response:
        self._sessions.end(request.cookies[COOKIE])
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(COOKIE, path="/")
        return answer


def _on_error(guard: Guard, shown: Shown) -> Callable[[Request, Exception], Awaitable[Response]]:
    """What is answered where a handler fails: a page for people, a line of JSON for scripts."""

    async def answer(request: Request, error: Exception) -> Response:
        status, why = 500, "Something failed here. The log of the reconciler says what."
        headers: dict[str, str] = {}
        if isinstance(error, CommandRefusedError):
            status, why = error.status, str(error)
        elif isinstance(error, HTTPException):
            status, why, headers = error.status_code, error.detail, dict(error.headers or {})
        else:
            log.error("page.failed", path=request.url.path, error=repr(error)[:500])
        if request.headers.get("hx-request") == "true" or "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"error": why}, status, headers)
        session = guard.session(request)
        page = shown.page("error.html", status, session=session, told=None, here="", status=status, why=why)
        page.headers.update(headers)
        return page

    return answer

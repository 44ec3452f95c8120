"""Who may see the page and press its buttons: the door in front of every handler, and the headers behind it."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reconciler.api.auth import is_same_origin
from reconciler.api.sessions import COOKIE, Session, Sessions
from reconciler.host.errors import UserError

MAX_FORM_BYTES = 2 * 1024 * 1024
"""A model file of the largest size, percent-encoded, still goes through."""
_MAX_FIELDS = 64
_FORM_SECONDS = 30.0
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of somebody who is logged in."""

    request: Request
    session: Session
    form: dict[str, str] = field(default_factory=dict)
    """What was posted; its CSRF token was checked."""

    @property
    def by_htmx(self) -> bool:
        """Only a part of the page is to be answered."""
        return self.request.headers.get("hx-request") == "true"

    def wanted(self, name: str) -> str:
        """A field of the form that has to be there.

        Raises:
            HTTPException: It is not.
        """
        value = self.form.get(name, "").strip()
        if not value:
            raise HTTPException(400, f"the field {name!r} is missing")
        return value


Handler = Callable[[Visit], Awaitable[Response]]


class Guard:
    """Lets through who is logged in; what is posted has to come from the page itself."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def session(self, request: Request) -> Session | None:
        """Whose request it is."""
        cookie = request.cookies.get(COOKIE)
        return self._sessions.find(cookie) if cookie else None

    def goes_on(self, request: Request) -> bool:
        """Whether who asked is still logged in, for an answer that lasts; no where that cannot be told."""
        try:
            return self.session(request) is not None
        except UserError:
            return False

    def page(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint for those who are logged in; others are sent to the log-in form."""

        async def endpoint(request: Request) -> Response:
            session = self.session(request)
            if session is None:
                return _to_login(request)
            if request.method in ("GET", "HEAD"):
                return await handler(Visit(request, session))
            check_origin(request)
            form = await read_form(request)
            if not hmac.compare_digest(form.get("csrf", "").encode(), session.csrf.encode()):
                raise HTTPException(403, "the form is from another session; load the page again and retry")
            return await handler(Visit(request, session, form))

        return endpoint


def check_origin(request: Request) -> None:
    """Refuse what another site had the browser send.

    Raises:
        HTTPException: It comes from elsewhere.
    """
    if not is_same_origin(request.headers):
        raise HTTPException(403, "this was sent from another site; behind a proxy, let it pass on the Host header")


def _to_login(request: Request) -> Response:
    if request.headers.get("hx-request") == "true":
        return Response(status_code=204, headers={"HX-Redirect": "/login"})
    if request.method != "GET" or "text/html" not in request.headers.get("accept", "text/html"):
        raise HTTPException(401, "not logged in, or not any more")
    there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(there, safe='')}", status_code=303)


async def read_form(request: Request) -> dict[str, str]:
    """What was posted, url-encoded; the last of several fields with one name.

    Raises:
        HTTPException: It is too large, too slow, or no form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "only url-encoded forms are read")
    body = bytearray()
    try:
        async with asyncio.timeout(_FORM_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_FORM_BYTES:
                    raise HTTPException(413, "what was sent is too large")
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except TimeoutError as error:
        raise HTTPException(408, f"it took longer than {_FORM_SECONDS:.0f} s to come") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "it broke off") from error
    except ValueError as error:
        raise HTTPException(400, "this is no form in UTF-8") from error


def local_path(path: str) -> str:
    """Where to go next: a path of ours, whatever was asked for."""
    sound = path.startswith("/") and not path.startswith("//") and path.isprintable() and "\\" not in path
    return path if sound and not path.startswith("/login") else "/"


class SecurityHeaders:
    """ASGI middleware: what every answer tells the browser not to do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the headers to its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                # The static files are asked for again, and answered with 304 while they are the same.
                headers["cache-control"] = "no-cache" if "/static/" in scope["path"] else "no-store"
            await send(message)

        await self._app(scope, receive, marked)

"""The gate in front of everything that the API and the page answer: who asks, from where, and by which name.

It lies around the whole application, so that a route that somebody adds is closed: only what `is_public` names
is open.
"""

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Asked

from reconciler.api.context import Access
from reconciler.api.problems import problem
from reconciler.api.sessions import COOKIE, Session, Sessions
from reconciler.core.keys import Key, Scope
from reconciler.host.errors import UserError
from reconciler.host.key_file import KeyFile
from reconciler.host.log import get_logger

log = get_logger()

API, METRICS = "/api/", "/metrics"
CSRF_HEADER = "x-csrf-token"
_LOGIN, _STATIC = "/login", "/static/"
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")
_LONGEST_TEXT: Final = 200
_FAILURES, _WINDOW_SECONDS = 10, 60.0
_ADDRESSES = 1000
_SLOW_SECONDS, _SLOW_AT_ONCE, _SLOT_SECONDS = 1.0, 16, 5.0
_BEARER: Final = "bearer "
_ELSEWHERE: Final = "this was sent from another site; behind a proxy, let it pass on the Host header"


@dataclass(frozen=True, slots=True)
class Who:
    """Who asks, as `request.state.who`.

    Attributes:
        key: The key, or that of the session.
        session: Where a cookie said who it is.
    """

    key: Key
    session: Session | None = None


def is_public(method: str, path: str) -> bool:
    """What is open to everybody: the log-in form, and the page's static files."""
    if path == _LOGIN:
        return method in ("GET", "HEAD", "POST")
    return path.startswith(_STATIC) and ".." not in path and method in ("GET", "HEAD")


class Gate:
    """ASGI middleware: lets through who may."""

    def __init__(self, app: ASGIApp, *, keys: KeyFile, sessions: Sessions, access: Access) -> None:
        """Open nothing yet.

        Args:
            app: What is behind it.
            keys: Who may ask.
            sessions: Who is logged in on the page.
            access: By which names, and from where.
        """
        self._app, self._keys, self._sessions = app, keys, sessions
        host = f"[{access.host}]" if ":" in access.host else access.host
        self._hosts = tuple(name.lower() for name in access.allowed_hosts or (*_LOOPBACK, host))
        self._failures = Failures()
        self._slow = asyncio.Semaphore(_SLOW_AT_ONCE)

    async def __call__(self, scope: Asked, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on with `state.who`."""
        if scope["type"] != "http":
            return  # Nothing of ours speaks anything else.
        headers, path, method = Headers(scope=scope), str(scope["path"]), str(scope["method"])
        host = headers.get("host", "")
        if not self._is_ours(host):
            refusal = problem(
                400, f"{host[:_LONGEST_TEXT]!r} is no name of this server; api_allowed_hosts has them"
            )
            await refusal(scope, receive, send)
            return
        peer = scope["client"][0] if scope.get("client") else ""
        public = is_public(method, path)
        try:
            self._keys.ring()
            found = None if public else self._who(method, path, headers, peer)
        except UserError as error:  # It cannot be told which keys there are.
            found = problem(503, str(error))
        if isinstance(found, Response):
            await found(scope, receive, send)
        elif public and method == "POST":
            await self._log_in(peer, headers, scope, receive, send)
        else:
            if found is not None:
                scope.setdefault("state", {})["who"] = found
                if method not in _SAFE:
                    log.info(
                        "command.asked", by=found.key.name, key=found.key.fingerprint, method=method, path=path
                    )
            await self._app(scope, receive, send)

    def _who(self, method: str, path: str, headers: Headers, peer: str) -> Who | Response:
        wanted = Scope.METRICS if path == METRICS else Scope.ADMIN
        given = headers.get("authorization", "")
        # A browser sends along what a proxy before us asked it for, which says nothing to us.
        if given[: len(_BEARER)].lower() == _BEARER:
            return self._with_key(given[len(_BEARER) :].strip(), wanted, peer)
        cookie = cookie_of(headers)
        session = self._sessions.find(cookie) if cookie else None
        if session is None:
            return self._nobody(method, path, headers)
        if method not in _SAFE:
            if not is_same_origin(headers):
                return problem(403, _ELSEWHERE)
            # The page's own forms carry the token in a field, which it checks.
            token = headers.get(CSRF_HEADER, "")
            if path.startswith(API) and not hmac.compare_digest(token.encode(), session.csrf.encode()):
                return problem(403, f"with a session, the header {CSRF_HEADER} has to carry its token")
        return Who(session.key, session)

    def _with_key(self, secret: str, wanted: Scope, peer: str) -> Who | Response:
        key = self._keys.ring().find(secret, time.time())
        if key is None:
            return self._unknown(peer)
        return Who(key) if key.opens(wanted) else problem(403, f"this takes a key with the scope {wanted}")

    def _unknown(self, peer: str) -> Response:
        if self._failures.too_many(peer):
            return problem(429, "too many wrong keys came from there", headers={"Retry-After": "60"})
        self._failures.note(peer)
        log.warning("key.refused", peer=peer)
        return _unauthorized("the key is unknown, revoked or expired")

    @staticmethod
    def _nobody(method: str, path: str, headers: Headers) -> Response:
        if path.startswith(API) or path == METRICS:
            return _unauthorized("this takes a key: Authorization: Bearer rk-…")
        if headers.get("hx-request") == "true":
            return Response(status_code=204, headers={"HX-Redirect": _LOGIN})
        if method == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse(f"{_LOGIN}?next={quote(path, safe='')}", status_code=303)
        return _unauthorized("not logged in, or not any more")

    async def _log_in(self, peer: str, headers: Headers, scope: Asked, receive: Receive, send: Send) -> None:
        """Pass a log-in on, slower where others from there failed: whoever shares an address is not locked out."""
        if not is_same_origin(headers):
            # It counts for nothing: any page that somebody has open could send such ones.
            await problem(403, _ELSEWHERE)(scope, receive, send)
            return
        if self._failures.too_many(peer) and not await self._slowed():
            await problem(429, "too many log-ins failed", headers={"Retry-After": "60"})(scope, receive, send)
            return

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:  # noqa: PLR2004
                self._failures.note(peer)
                log.warning("login.refused", peer=peer)
            await send(message)

        await self._app(scope, receive, watched)

    async def _slowed(self) -> bool:
        """Wait a moment, as few others may at a time; False where there was no room for that."""
        try:
            async with asyncio.timeout(_SLOT_SECONDS):
                await self._slow.acquire()
        except TimeoutError:
            return False
        try:
            await asyncio.sleep(_SLOW_SECONDS)
        finally:
            self._slow.release()
        return True

    def _is_ours(self, host: str) -> bool:
        name = _without_port(host.lower())
        return any(
            name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:])) for allowed in self._hosts
        )


class Failures:
    """Wrong keys by address, over a minute. How many addresses there are costs nothing more."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def note(self, peer: str) -> None:
        """One more."""
        began, count = self._of(peer)
        self._counts[peer] = (began, count + 1)
        self._counts.move_to_end(peer)
        while len(self._counts) > _ADDRESSES:
            self._counts.popitem(last=False)

    def too_many(self, peer: str) -> bool:
        """Further ones are not looked at for a while."""
        return self._of(peer)[1] >= _FAILURES

    def _of(self, peer: str) -> tuple[float, int]:
        now = self._clock()
        began, count = self._counts.get(peer, (now, 0))
        return (began, count) if now - began < _WINDOW_SECONDS else (now, 0)


def cookie_of(headers: Headers) -> str:
    """The session's cookie; empty where there is none."""
    found = ""
    # As tolerant as the page's own parser, and the last one wins as there: other programs of the host, whatever
    # their port, leave cookies of theirs.
    for each in headers.getlist("cookie"):
        found = cookie_parser(each).get(COOKIE, found)
    return found


def still_may(asked: HTTPConnection, keys: KeyFile, sessions: Sessions) -> bool:
    """Whether the one whose request went through the gate may still operate: for answers that last.

    False as well where it cannot be told which keys there are.
    """
    who: Who = asked.state.who
    try:
        if who.session is not None:
            return sessions.find(cookie_of(asked.headers)) is not None
        now = time.time()
        return any(
            key.digest == who.key.digest and key.is_valid(now) and key.opens(Scope.ADMIN)
            for key in keys.ring().keys
        )
    except UserError:
        return False


def is_same_origin(headers: Headers) -> bool:
    """The browser says that a page of ours sent it.

    The scheme is left out: behind a proxy that ends TLS it is not the one that the browser sees.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    try:
        return (
            origin is not None
            and site == "same-origin"
            and urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
        )
    except ValueError:
        return False


def _unauthorized(reason: str) -> Response:
    return problem(401, reason, headers={"WWW-Authenticate": "Bearer"})


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]

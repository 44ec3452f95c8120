"""The webhook of the source: `POST /hooks/source` on the front door. A push that is announced has the source look.

A delivery only wakes a look. What is taken over is what the repository then has, whatever a delivery says; so one
that is sent again, or held back for a day, does no harm. Its signature keeps others from making us look.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from reconciler.activator.errors import Refusal
from reconciler.activator.inbound import ClientGoneError, Inbound
from reconciler.core.webhook import DeliveryError, about, verify
from reconciler.host.log import get_logger
from reconciler.host.secret_file import SecretFileError, read_secrets

HOOK_PATH = "/hooks/source"
MOST_BYTES = 1 << 20
_BODY_SECONDS = 10.0
_MOST_AT_ONCE = 16
_MOST_A_MINUTE = 60
_MINUTE = 60.0
_QUIET_SECONDS = 60.0

log = get_logger()


def hook_app(
    rest: ASGIApp,
    secret_path: Path,
    follows: str,
    look_soon: Callable[[], None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> ASGIApp:
    """`rest`, with the webhook in front of it.

    Args:
        rest: Answers every other path.
        secret_path: The secrets, one a line; read at each delivery. Where it is absent, so is the webhook.
        follows: The branch or tag that the source follows.
        look_soon: `Polling.look_soon`.
        clock: Monotonic seconds.
    """
    hook = _Hook(secret_path, follows, look_soon, clock)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != HOOK_PATH:
            await rest(scope, receive, send)
            return
        response = await hook.answer(scope, receive)
        if response is not None:
            await response(scope, receive, send)

    return answer


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


class _Hook:
    def __init__(
        self, secret_path: Path, follows: str, look_soon: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._secret_path = secret_path
        self._follows = follows
        self._look_soon = look_soon
        self._clock = clock
        self._reading = 0
        self._accepted: deque[float] = deque(maxlen=_MOST_A_MINUTE)
        self._refusals: dict[str, tuple[float, int]] = {}
        """By reason: when it was last logged, and how many came since."""

    async def answer(self, scope: Scope, receive: Receive) -> Response | None:
        """The answer to one delivery; None where nobody is left to answer."""
        try:
            secrets = read_secrets(self._secret_path)
        except FileNotFoundError:
            return _error(404, f"there is nothing at {HOOK_PATH}")
        except SecretFileError as error:
            self._note(str(error))
            return _error(503, "the secret of this webhook cannot be used; the reconciler's log says why")
        if scope["method"] != "POST":
            return _error(405, "only POST", {"Allow": "POST"})
        try:
            return await self._deliver(scope, receive, secrets)
        except _RefusedError as refused:
            self._note(str(refused))
            return _error(refused.status, str(refused), refused.headers)
        except ClientGoneError:
            return None

    async def _deliver(self, scope: Scope, receive: Receive, secrets: tuple[str, ...]) -> Response:
        headers = list(scope["headers"])
        body = await self._read(Inbound(receive, headers, MOST_BYTES))
        try:
            form = verify(headers, body, secrets)
        except DeliveryError as error:
            raise _RefusedError(401, str(error)) from error
        self._count()
        try:
            meaning = about(headers, body, self._follows)
        except DeliveryError as error:
            raise _RefusedError(400, str(error)) from error
        log.info("hook.received", form=form.value, looks=meaning.look, reason=meaning.reason)
        if meaning.look:
            self._look_soon()
        return JSONResponse({"status": "looking" if meaning.look else "ignored", "reason": meaning.reason}, 202)

    async def _read(self, inbound: Inbound) -> bytes:
        if self._reading >= _MOST_AT_ONCE:
            # Nothing is read of it: what bodies take together stays bounded.
            raise _RefusedError(429, f"more than {_MOST_AT_ONCE} deliveries at a time", retry_after=1)
        self._reading += 1
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                try:
                    return b"".join([chunk async for chunk in inbound.chunks()])
                except Refusal as error:
                    await inbound.discard()
                    raise _RefusedError(413, f"the body is larger than {MOST_BYTES} bytes") from error
        except TimeoutError as error:
            raise _RefusedError(408, f"the body did not arrive within {_BODY_SECONDS:.0f} s") from error
        finally:
            self._reading -= 1

    def _count(self) -> None:
        """Take in one more delivery, or refuse it where there were too many."""
        now = self._clock()
        if len(self._accepted) == _MOST_A_MINUTE and now - self._accepted[0] < _MINUTE:
            wait = int(_MINUTE - (now - self._accepted[0])) + 1
            raise _RefusedError(429, f"more than {_MOST_A_MINUTE} deliveries in a minute", retry_after=wait)
        self._accepted.append(now)

    def _note(self, reason: str) -> None:
        """Log a refusal, at most one a minute for each reason."""
        now = self._clock()
        logged_at, more = self._refusals.get(reason, (-math.inf, 0))
        if now - logged_at < _QUIET_SECONDS:
            self._refusals[reason] = (logged_at, more + 1)
            return
        log.warning("hook.refused", reason=reason, more=more)
        self._refusals[reason] = (now, 0)


def _error(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    # What is left of the body is not read.
    return JSONResponse({"error": reason}, status, headers={"Connection": "close", **(headers or {})})

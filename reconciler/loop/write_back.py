"""What became of a revision, told to those who pushed it: as a commit status, as a webhook call, or both.

Everything happens beside the loop. Each target is sent one outcome at a time, for each revision the newest; what
cannot be sent within its time is one event, and is forgotten.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiohttp

from reconciler.core.desired import Desired
from reconciler.core.forge import Call, Forge, is_commit
from reconciler.core.outcome import Outcome, outcome_of, to_tell
from reconciler.core.plan import Plan
from reconciler.core.webhook import sign
from reconciler.host.log import get_logger
from reconciler.host.secret_file import SecretFileError, read_secrets

TOKEN_VARIABLE = "RECONCILE_STATUS_TOKEN"  # noqa: S105 -- its name, not its value
_AGENT = "llm-reconciler"
_HINTS = {
    401: "the token is not accepted",
    403: "the token may not do this",
    404: "no such address, repository or commit, or the token may not see it",
}
_TOKEN = re.compile(r"[!-~]+")
_TRY_SECONDS = 10.0
_GIVE_UP_SECONDS = 600.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_MOST_WAITING = 16
_MOST_MODELS = 100
_MOST_BYTES = 64 * 1024
_BUSY = frozenset({408, 425, 429})
_OK, _REDIRECT, _BAD_REQUEST, _FAULT = 200, 300, 400, 500

log = get_logger()


class UnsendableError(RuntimeError):
    """An outcome cannot be sent, and trying again does not help. The message holds no secret."""


class Target(Protocol):
    """Where outcomes go."""

    @property
    def name(self) -> str:
        """What events call it; without what is secret in its address."""

    def call(self, outcome: Outcome) -> Call | None:
        """The call that tells an outcome; None where it has nothing to do with it.

        Raises:
            UnsendableError: A secret that it needs is not there.
        """


@dataclass(frozen=True, slots=True)
class CommitStatus:
    """The status of a commit on its forge.

    Attributes:
        forge: The repository there.
        context: What the status is called beside those of others: `reconcile/<name>`.
        token_path: File with the token; without, it is in the environment variable `RECONCILE_STATUS_TOKEN`.
    """

    forge: Forge
    context: str
    token_path: Path | None = None

    @property
    def name(self) -> str:
        """The kind of the forge."""
        return self.forge.kind

    def call(self, outcome: Outcome) -> Call | None:
        """The call that sets the status; None for a revision that is no commit.

        Raises:
            UnsendableError: There is no token, or its file cannot be used.
        """
        if not is_commit(outcome.revision):
            return None
        return self.forge.status(outcome, self.context, _token(self.token_path))


@dataclass(frozen=True, slots=True)
class Notify:
    """An address of the operator's that is told of every outcome.

    Attributes:
        url: Where it is.
        source: What is told of the source: `reconciler`, `repository` and `ref`.
        secret_path: File whose first line signs the call, as GitHub does: `X-Hub-Signature-256`.
    """

    url: str
    source: Mapping[str, str]
    secret_path: Path | None = None

    @property
    def name(self) -> str:
        """`notify`: its address may itself be secret."""
        return "notify"

    def call(self, outcome: Outcome) -> Call:
        """The call that tells the outcome.

        Raises:
            UnsendableError: The secret's file cannot be used.
        """
        models = [
            {"model": each.model, "kind": each.kind, "reason": each.reason, "file": each.file}
            for each in outcome.models[:_MOST_MODELS]
        ]
        told = {
            **self.source,
            "revision": outcome.revision,
            "state": outcome.state.value,
            "text": outcome.text,
            "models": models,
            "more_models": len(outcome.models) - len(models),
            "at": time.time(),
        }
        body = json.dumps(told).encode()
        headers = {"X-Reconcile-Event": "revision"}
        if self.secret_path is not None:
            headers["X-Hub-Signature-256"] = sign(_secret(self.secret_path), body)
        return Call(self.url, headers, body)


class WriteBack:
    """Tells outcomes to all targets, in the background."""

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        try_seconds: float = _TRY_SECONDS,
        give_up_seconds: float = _GIVE_UP_SECONDS,
        first_pause: float = _FIRST_PAUSE_SECONDS,
    ) -> None:
        """Tell nothing yet.

        Args:
            targets: Who is told.
            try_seconds: How long one call may take.
            give_up_seconds: For how long one outcome is tried.
            first_pause: Seconds until the second try; doubled with each, up to a minute.
        """
        self._senders = [_Sender(target, try_seconds, give_up_seconds, first_pause) for target in targets]
        self._told: Outcome | None = None

    def see(self, desired: Desired, plan: Plan) -> None:
        """Tell what is new with this turn. Never raises, never waits."""
        seen = outcome_of(desired, plan)
        if seen is None:
            return
        for outcome in to_tell(self._told, seen):
            self._told = outcome
            for sender in self._senders:
                sender.send(outcome)

    async def close(self) -> None:
        """Give up what is not sent yet."""
        await asyncio.gather(*(sender.close() for sender in self._senders))


class _Sender:
    def __init__(self, target: Target, try_seconds: float, give_up_seconds: float, first_pause: float) -> None:
        self._target = target
        self._try_seconds = try_seconds
        self._give_up_seconds = give_up_seconds
        self._first_pause = first_pause
        self._waiting: dict[str, Outcome] = {}
        """By revision, the one that waits for longest first."""
        self._task: asyncio.Task[None] | None = None

    def send(self, outcome: Outcome) -> None:
        self._waiting[outcome.revision] = outcome
        while len(self._waiting) > _MOST_WAITING:
            self._fail(self._waiting.pop(next(iter(self._waiting))), "too many others wait", 0)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send_all())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _send_all(self) -> None:
        # No cookies, no proxies of the environment, no connection kept: calls are rare.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._try_seconds),
            # An answer that unpacks to more than it is has no way in.
            auto_decompress=False,
        ) as session:
            while self._waiting:
                outcome = self._waiting.pop(next(iter(self._waiting)))
                try:
                    await self._send_one(session, outcome)
                except Exception as error:  # a fault of ours must not end the telling
                    log.exception("write_back.crashed", target=self._target.name, reason=type(error).__name__)

    async def _send_one(self, session: aiohttp.ClientSession, outcome: Outcome) -> None:
        give_up_at = time.monotonic() + self._give_up_seconds
        pause, tries = self._first_pause, 0
        while True:
            tries += 1
            try:
                call = self._target.call(outcome)
                if call is None:
                    return
                problem, wait = await _post(session, call)
            except UnsendableError as error:
                self._fail(outcome, str(error), tries)
                return
            if not problem:
                log.info(
                    "write_back.sent",
                    target=self._target.name,
                    revision=outcome.revision,
                    state=outcome.state.value,
                )
                return
            wait = min(max(pause, wait), _LONGEST_PAUSE_SECONDS)
            if time.monotonic() + wait > give_up_at:
                self._fail(outcome, problem, tries)
                return
            await asyncio.sleep(wait)
            pause *= 2
            # What is newer of the same revision takes its place, in the time that is left.
            outcome = self._waiting.pop(outcome.revision, outcome)

    def _fail(self, outcome: Outcome, reason: str, tries: int) -> None:
        log.warning(
            "write_back.failed",
            target=self._target.name,
            revision=outcome.revision,
            state=outcome.state.value,
            reason=reason,
            attempts=tries,
        )


async def _post(session: aiohttp.ClientSession, call: Call) -> tuple[str, float]:
    """What was wrong, empty where nothing was, and how many seconds the other side asks us to wait.

    Raises:
        UnsendableError: It is refused for good.
    """
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": _AGENT}
    try:
        # A redirect could take the token to another host.
        async with session.post(
            call.url, data=call.body, headers={**headers, **call.headers}, allow_redirects=False
        ) as answer:
            status = answer.status
            said = b""
            if status == _BAD_REQUEST:
                said = await answer.content.read(_MOST_BYTES)
            wait = answer.headers.get("Retry-After", "")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return _in_words(error), 0.0
    # GitLab refuses a status that the commit has already.
    if _OK <= status < _REDIRECT or b"Cannot transition status" in said:
        return "", 0.0
    hint = _HINTS.get(status, "it redirects, which is not followed" if status < _BAD_REQUEST else "")
    problem = f"HTTP {status}: {hint}" if hint else f"HTTP {status}"
    if status in _BUSY or status >= _FAULT:
        return problem, float(wait) if wait.isascii() and wait.isdigit() and len(wait) <= 6 else 0.0  # noqa: PLR2004
    raise UnsendableError(problem)


def _in_words(error: Exception) -> str:
    """What went wrong with a connection, without the address, which may be secret."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    strerror = cause.strerror if isinstance(cause, OSError) else None
    return f"{type(error).__name__}: {strerror}" if strerror else type(error).__name__


def _token(path: Path | None) -> str:
    token = _secret(path) if path is not None else os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise UnsendableError(f"there is no token: set {TOKEN_VARIABLE}, or the setting status_token_path")
    if _TOKEN.fullmatch(token) is None:
        raise UnsendableError("the token has characters that no token has")
    return token


def _secret(path: Path) -> str:
    try:
        return read_secrets(path)[0]
    except FileNotFoundError as error:
        raise UnsendableError(f"there is no {path}") from error
    except SecretFileError as error:
        raise UnsendableError(str(error)) from error

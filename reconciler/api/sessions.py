"""Who is logged in on the page: a cookie in the place of a key that was shown once, in the log-in form.

A session ends after 12 hours, with the reconciler, or with its key, whichever is first. Only the hash of its
cookie is kept here.
"""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from reconciler.core.keys import Key, KeyRing, Scope

COOKIE = "reconcile_session"
LASTS_SECONDS = 12 * 3600.0
_MOST = 1000
"""Sessions at a time; the oldest make room."""
_RANDOM_BYTES = 32
_LONGEST_COOKIE = 200


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who logged in.

    Attributes:
        key: The admin key that they logged in with, as it is now.
        csrf: What each form and unsafe request of this session carries, and nobody else knows.
    """

    key: Key
    csrf: str

    @property
    def name(self) -> str:
        """The name of the key."""
        return self.key.name


@dataclass(frozen=True, slots=True)
class _Kept:
    digest: str
    """Of the key."""
    ends: float


class Sessions:
    """The sessions of one process."""

    def __init__(self, keys: Callable[[], KeyRing], *, wall_clock: Callable[[], float] = time.time) -> None:
        """Nobody is logged in yet.

        Args:
            keys: All keys as they are now.
            wall_clock: Seconds since the epoch.
        """
        self._keys, self._wall_clock = keys, wall_clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        # Nothing that is kept is enough to make a token of.
        self._pepper = secrets.token_bytes(_RANDOM_BYTES)

    def create(self, secret: str) -> tuple[str, str] | None:
        """Log in.

        Args:
            secret: An admin key.

        Returns:
            The cookie and the CSRF token; None where that is no valid admin key.
        """
        now = self._wall_clock()
        key = self._keys().find(secret, now)
        if key is None or not key.opens(Scope.ADMIN):
            return None
        cookie = secrets.token_urlsafe(_RANDOM_BYTES)
        self._kept[_hash(cookie)] = _Kept(key.digest, now + LASTS_SECONDS)
        while len(self._kept) > _MOST:
            self._kept.popitem(last=False)
        return cookie, self._csrf(cookie)

    def find(self, cookie: str) -> Session | None:
        """The session, if it is one, has not ended, and its key is still valid."""
        kept = self._kept.get(_hash(cookie))
        if kept is None:
            return None
        now = self._wall_clock()
        key = next((key for key in self._keys().keys if key.digest == kept.digest), None)
        if now >= kept.ends or key is None or not key.is_valid(now) or not key.opens(Scope.ADMIN):
            self.end(cookie)
            return None
        return Session(key, self._csrf(cookie))

    def end(self, cookie: str) -> None:
        """Log out; nothing where there is no such session."""
        self._kept.pop(_hash(cookie), None)

    def _csrf(self, cookie: str) -> str:
        return hmac.new(self._pepper, cookie.encode(errors="replace"), "sha256").hexdigest()


def _hash(cookie: str) -> str:
    # A table of hashes: how long the look-up takes says nothing of what would be one.
    return hashlib.sha256(cookie[:_LONGEST_COOKIE].encode(errors="replace")).hexdigest()

"""Keys: who may infer, and who may operate. Only hashes are known here. Pure.

A key is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess, and nothing to slow down.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

PREFIX = "rk-"
_SECRET = re.compile(r"rk-[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_FINGERPRINT_DIGITS = 12


class KeyRefusedError(ValueError):
    """A key that cannot be made or changed so; the message says why, and no secret."""


class Scope(StrEnum):
    """What a key opens."""

    INFERENCE = "inference"
    """The models, through the front door."""
    METRICS = "metrics"
    """Measures alone: what a Prometheus needs."""
    ADMIN = "admin"
    """The management API and the page, measures included."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        name: Unique among those that are not revoked.
        digest: SHA-256 of the key, 64 hexadecimal digits.
        models: The models that it may use, by their own names; None for all. Aliases and adapters go with them.
        created: Seconds since the epoch, as `expires` and `revoked`.
        requests_per_minute: Over any 60 seconds.
        concurrent: Requests at a time.
    """

    name: str
    digest: str
    scopes: frozenset[Scope]
    created: float
    models: frozenset[str] | None = None
    expires: float | None = None
    revoked: float | None = None
    requests_per_minute: int | None = None
    concurrent: int | None = None

    @property
    def fingerprint(self) -> str:
        """What it is called in logs, measures and lists: the first digits of its digest."""
        return self.digest[:_FINGERPRINT_DIGITS]

    def is_valid(self, now: float) -> bool:
        """It is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def opens(self, scope: Scope) -> bool:
        """Its scope is enough. Who may operate may also look."""
        return scope in self.scopes or (scope is Scope.METRICS and Scope.ADMIN in self.scopes)

    def may_use(self, model: str) -> bool:
        """It may infer with the model of that own name."""
        return self.opens(Scope.INFERENCE) and (self.models is None or model in self.models)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys there are, revoked ones included."""

    keys: tuple[Key, ...] = ()

    @property
    def inference_is_open(self) -> bool:
        """No inference key was ever made: whoever reaches the front door may use it.

        One that is revoked still counts, so that revoking the last one closes the door and does not open it.
        """
        return not any(Scope.INFERENCE in key.scopes for key in self.keys)

    def find(self, secret: str, now: float) -> Key | None:
        """The valid key that this is; in the same time whichever it is, and whether it is one at all."""
        digest, found = digest_of(secret), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest) and key.is_valid(now):
                found = key
        return found

    def add(self, key: Key) -> "KeyRing":
        """With one more.

        Raises:
            KeyRefusedError: Its name or a limit is not allowed, or the name is taken.
        """
        if not _NAME.fullmatch(key.name):
            raise KeyRefusedError(
                "a name has up to 64 letters, digits and ._@-, and starts with a letter or digit"
            )
        if any(other.name == key.name and other.revoked is None for other in self.keys):
            raise KeyRefusedError(f"there is a key {key.name!r} already; revoke it first, or take another name")
        if not key.scopes:
            raise KeyRefusedError("a key without a scope opens nothing")
        if any(limit is not None and limit < 1 for limit in (key.requests_per_minute, key.concurrent)):
            raise KeyRefusedError("a limit is at least 1")
        if key.models is not None and not key.models:
            raise KeyRefusedError("a key for no model opens nothing")
        if key.expires is not None and key.expires <= key.created:
            raise KeyRefusedError("it would have expired already")
        return KeyRing((*self.keys, key))

    def revoke(self, which: str, now: float) -> tuple["KeyRing", Key]:
        """Without a key, by its name or fingerprint.

        Raises:
            KeyRefusedError: There is no such key that is not revoked yet.
        """
        for index, key in enumerate(self.keys):
            if key.revoked is None and which in (key.name, key.fingerprint):
                gone = replace(key, revoked=now)
                return KeyRing((*self.keys[:index], gone, *self.keys[index + 1 :])), gone
        raise KeyRefusedError(f"there is no key {which[:64]!r} that could be revoked")


def digest_of(secret: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def secret_from(random_text: str) -> str:
    """A key from 43 random characters (`secrets.token_urlsafe(32)`).

    Raises:
        KeyRefusedError: There are not that many.
    """
    if not _SECRET.fullmatch(secret := PREFIX + random_text):
        raise KeyRefusedError("a key is made of 43 random characters")
    return secret


def names_of(models: Iterable[str]) -> frozenset[str] | None:
    """A list of models as a key has it: none means all."""
    return frozenset(models) or None

"""Keys: who may infer, and who may operate. Only hashes are known here. Pure.

A key is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess, and nothing to slow down.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from reconciler.core.spec import NAME_PATTERN

PREFIX = "rk-"
MOST_KEYS = 1000
"""How many there may be, revoked and expired ones included, of which the oldest make room."""
MOST_MODELS = 1000
"""How many models one key may list."""
LARGEST_LIMIT = 1_000_000
LONGEST_SECONDS = 100 * 366 * 86400.0
_LONGEST_MODEL = 96
_MODEL = re.compile(NAME_PATTERN)
_SECRET = re.compile(r"rk-[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_FINGERPRINT_DIGITS = 12
_FINGERPRINT = re.compile(rf"[0-9a-f]{{{_FINGERPRINT_DIGITS}}}")


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
        name: Unique among those that are valid, but for one that still holds beside the one in its place.
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
    must_be_asked: bool = False
    """Strangers reach the front door, so that it is never open."""

    @property
    def inference_is_open(self) -> bool:
        """No inference key was ever made: whoever reaches the front door may use it.

        One that is revoked still counts, so that revoking the last one closes the door and does not open it.
        """
        return not self.must_be_asked and not any(Scope.INFERENCE in key.scopes for key in self.keys)

    def beside(self, key: Key) -> "KeyRing":
        """With a key of our own that is written nowhere, where keys are asked for."""
        return self if self.inference_is_open else replace(self, keys=(*self.keys, key))

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
            KeyRefusedError: Its name, a model or a limit is not allowed, the name is taken, or there are too many.
        """
        _check(key)
        if any(other.name == key.name and other.is_valid(key.created) for other in self.keys):
            raise KeyRefusedError(f"there is a key {key.name!r} already; revoke it first, or take another name")
        return _with(self, key)

    def revoke(self, which: str, now: float) -> tuple["KeyRing", Key]:
        """Without a key, by its name or fingerprint; by name also without those whose place it took.

        Returns:
            What is left, and what was revoked, the newest where there are several.

        Raises:
            KeyRefusedError: There is no such key that is not revoked yet.
        """
        gone = [
            replace(key, revoked=now)
            for key in self.keys
            if key.revoked is None and which in (key.name, key.fingerprint)
        ]
        if not gone:
            raise KeyRefusedError(f"there is no key {which[:64]!r} that could be revoked")
        changed = {key.digest: key for key in gone}
        return replace(self, keys=tuple(changed.get(key.digest, key) for key in self.keys)), gone[-1]

    def rotate(
        self, name: str, digest: str, now: float, *, grace: float = 0.0, expires: float | None = None
    ) -> tuple["KeyRing", Key, Key]:
        """With another key in the place of one, under the same settings.

        Args:
            name: Of both.
            digest: Of the new one.
            now: Seconds since the epoch.
            grace: Seconds for which the old one still holds, if it does not expire before.
            expires: When the new one does; None for when the old one would have.

        Returns:
            What there is then, the new key, and the old one as it is now.

        Raises:
            KeyRefusedError: There is no such key, it has expired and `expires` is None, or a time is not allowed.
        """
        old = next((key for key in reversed(self.keys) if key.name == name and key.revoked is None), None)
        if old is None:
            raise KeyRefusedError(f"there is no key {name[:64]!r} that could be replaced")
        if expires is None and not old.is_valid(now):
            raise KeyRefusedError("it has expired; say when the new one does")
        if not 0.0 <= grace <= LONGEST_SECONDS:
            raise KeyRefusedError("the old key holds for 100 years at most")
        new = replace(old, digest=digest, created=now, expires=old.expires if expires is None else expires)
        _check(new)
        ended = {
            key.digest: _ended(key, now, grace) for key in self.keys if key.name == name and key.revoked is None
        }
        ring = replace(self, keys=tuple(ended.get(key.digest, key) for key in self.keys))
        return _with(ring, new), new, ended[old.digest]


def _check(key: Key) -> None:
    if not _NAME.fullmatch(key.name):
        raise KeyRefusedError("a name has up to 64 letters, digits and ._@-, and starts with a letter or digit")
    if _FINGERPRINT.fullmatch(key.name):
        raise KeyRefusedError("a name that looks like a fingerprint would be taken for one")
    if not key.scopes:
        raise KeyRefusedError("a key without a scope opens nothing")
    limits = (key.requests_per_minute, key.concurrent)
    if any(limit is not None and not 1 <= limit <= LARGEST_LIMIT for limit in limits):
        raise KeyRefusedError(f"a limit is from 1 to {LARGEST_LIMIT}")
    if Scope.INFERENCE not in key.scopes and (key.models is not None or limits != (None, None)):
        raise KeyRefusedError("models and limits go with the scope inference, which this key does not have")
    if key.models is not None:
        _check_models(key.models)
    if key.expires is not None and key.expires <= key.created:
        raise KeyRefusedError("it would have expired already")
    # Also what is no number is none of these.
    if key.expires is not None and not key.expires <= key.created + LONGEST_SECONDS:
        raise KeyRefusedError("a key holds for 100 years at most")


def _check_models(models: frozenset[str]) -> None:
    if not models:
        raise KeyRefusedError("a key for no model opens nothing")
    if len(models) > MOST_MODELS:
        raise KeyRefusedError(f"a key lists {MOST_MODELS} models at most")
    for model in models:
        if len(model) > _LONGEST_MODEL or not _MODEL.fullmatch(model):
            raise KeyRefusedError(f"{model[:_LONGEST_MODEL]!r} is no name of a model")


def _ended(key: Key, now: float, grace: float) -> Key:
    if grace <= 0:
        return replace(key, revoked=now)
    return replace(key, expires=now + grace if key.expires is None else min(key.expires, now + grace))


def _with(ring: KeyRing, key: Key) -> KeyRing:
    if len(ring.keys) < MOST_KEYS:
        return replace(ring, keys=(*ring.keys, key))
    inference = sum(Scope.INFERENCE in other.scopes for other in ring.keys)
    for index, other in enumerate(ring.keys):
        # The last one that says that the door is not open stays.
        if not other.is_valid(key.created) and (Scope.INFERENCE not in other.scopes or inference > 1):
            return replace(ring, keys=(*ring.keys[:index], *ring.keys[index + 1 :], key))
    raise KeyRefusedError(f"there are {MOST_KEYS} keys already; revoke one first")


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

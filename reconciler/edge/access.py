"""Who may infer, as the edge is told: the keys that are valid now, and the entries of its maps for them. Pure.

HAProxy looks a key up by its digest, so neither a map nor its configuration ever holds a key.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, Field

from reconciler.core.keys import KeyRing, Scope

LOCKED: Final = {"mode": "required"}
"""The entries of keys.map where a key is required and none is valid."""

_NEVER: Final = 253402300799
"""The last second of the year 9999, where a key does not expire."""
_NO_LIMIT: Final = 2**32 - 1
"""More than HAProxy can count."""
_FINGERPRINT_DIGITS: Final = 12
_Limit = Annotated[int, Field(ge=1)]


class AllowedKey(BaseModel, frozen=True):
    """One key.

    Attributes:
        digest: SHA-256 of the key, 64 hexadecimal digits.
        expires: The first second since the epoch in which it is no longer valid; None if it stays so.
        requests_per_minute: None for no limit.
        concurrent: Requests at a time; None for no limit.
        models: Own names of those that it may use; None for all.
    """

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    expires: Annotated[int, Field(ge=0)] | None = None
    requests_per_minute: _Limit | None = None
    concurrent: _Limit | None = None
    models: tuple[str, ...] | None = None

    @property
    def fingerprint(self) -> str:
        """As `Key.fingerprint`."""
        return self.digest[:_FINGERPRINT_DIGITS]

    @property
    def entry(self) -> str:
        """What keys.map says of it: fingerprint, expiry, requests a minute, requests at a time, which models."""
        numbers = (
            min(_NEVER if self.expires is None else self.expires, _NEVER),
            min(self.requests_per_minute or _NO_LIMIT, _NO_LIMIT),
            min(self.concurrent or _NO_LIMIT, _NO_LIMIT),
        )
        return ":".join([self.fingerprint, *map(str, numbers), "all" if self.models is None else "listed"])


class Access(BaseModel, frozen=True):
    """Whom the edge lets infer.

    Attributes:
        required: A key is needed; else whoever reaches the edge may use it.
        keys: Those that are valid, by digest.
    """

    required: bool
    keys: tuple[AllowedKey, ...]

    @classmethod
    def of(cls, ring: KeyRing, now: float) -> "Access":
        """What follows from the keys that there are.

        Args:
            ring: All keys.
            now: Seconds since the epoch.

        Raises:
            ValueError: A key has no SHA-256 as its digest, or a limit below 1.
        """
        keys = [
            AllowedKey(
                digest=key.digest,
                expires=None if key.expires is None or key.expires > _NEVER else math.floor(key.expires),
                requests_per_minute=key.requests_per_minute,
                concurrent=key.concurrent,
                models=None if key.models is None else tuple(sorted(key.models)),
            )
            for key in ring.keys
            if key.is_valid(now) and key.opens(Scope.INFERENCE)
        ]
        return cls(required=not ring.inference_is_open, keys=tuple(sorted(keys, key=lambda key: key.digest)))

    def key_entries(self) -> dict[str, str]:
        """The entries of keys.map. HAProxy writes a digest in capitals."""
        if not self.required:
            return {}
        return {key.digest.upper(): key.entry for key in self.keys} | LOCKED

    def model_entries(self, routes: Mapping[str, str]) -> dict[str, str]:
        """The entries of key_models.map: a model's application stands for its aliases and adapters too.

        Args:
            routes: Model name to application.
        """
        return {
            f"{key.fingerprint}/{routes[model]}": "1"
            for key in self.keys
            for model in key.models or ()
            if self.required and model in routes
        }

"""Who may ask for what at the front door: first of all for every request, and again when one has waited."""

import time
from collections.abc import Callable, Iterable

from reconciler.activator import errors
from reconciler.activator.directory import Directory
from reconciler.core.keys import Key, KeyRing, Scope
from reconciler.host.errors import UserError
from reconciler.host.log import get_logger

_BEARER = "bearer"


class Guard:
    """The keys as they are at each moment.

    Attributes:
        keys: Gives them, or raises a `UserError` where that cannot be told; then nobody comes in.
    """

    def __init__(self, keys: Callable[[], KeyRing]) -> None:
        self.keys = keys
        self._problem = ""

    def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> "Caller":
        """Who sends a request for a model, or for the list of them.

        Raises:
            Refusal: It needs a key, and has none that is valid.
        """
        caller = Caller(self, _secret(headers))
        caller.check()
        return caller

    def check_operator(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let through who may load and unload: any program as long as there never was a key, else an admin.

        Raises:
            Refusal: The request has no valid key, or one that is not enough; or there is none, and it comes from a
                page that somebody looks at: any page on the web can send one to this machine.
        """
        ring = self.ring()
        if not ring.keys and not ring.must_be_asked:
            if _of_a_page(headers):
                raise errors.of_a_page()
            return
        secret = _secret(headers)
        key = ring.find(secret, time.time())
        if key is None:
            raise errors.invalid_key(given=bool(secret))
        if not key.opens(Scope.ADMIN):
            raise errors.insufficient_scope(Scope.ADMIN)

    def ring(self) -> KeyRing:
        """All keys.

        Raises:
            Refusal: It cannot be told which there are.
        """
        try:
            ring = self.keys()
        except UserError as error:
            # Once for each reason, not for each request.
            if (problem := str(error)) != self._problem:
                self._problem = problem
                get_logger().error("activator.keys_unavailable", error=problem)
            raise errors.keys_unavailable() from None
        self._problem = ""
        return ring


def _of_a_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """A browser sent it for a page; programs name neither."""
    found = {name.lower(): value for name, value in headers}
    return b"origin" in found or found.get(b"sec-fetch-site", b"none") != b"none"


class Caller:
    """Who sent one request, by the key in it."""

    __slots__ = ("_guard", "_key", "_ring", "_secret")

    def __init__(self, guard: Guard, secret: str) -> None:
        self._guard = guard
        self._secret = secret
        self._ring: KeyRing | None = None
        self._key: Key | None = None

    @property
    def fingerprint(self) -> str:
        """Of its key, for the log; empty where none was asked for."""
        return "" if self._key is None else self._key.fingerprint

    def check(self) -> None:
        """Look whether it may still infer: meanwhile its key may be revoked or expired, or the first one made.

        Raises:
            Refusal: It may not.
        """
        ring, now = self._guard.ring(), time.time()
        if ring is not self._ring:
            self._ring = ring
            self._key = None if ring.inference_is_open else ring.find(self._secret, now)
        if ring.inference_is_open:
            return
        if self._key is None or not self._key.is_valid(now) or not self._key.opens(Scope.INFERENCE):
            raise errors.invalid_key(given=bool(self._secret))

    def may_use(self, model: str) -> bool:
        """It may use, and know of, the model of that own name; as of the last `check`."""
        return self._key is None or self._key.may_use(model)

    def visible(self, directory: Directory) -> Directory:
        """What it may know about models; as of the last `check`."""
        return directory if self._key is None or self._key.models is None else directory.only(self.may_use)


def _secret(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The key of a request, as OpenAI's clients send it or as Anthropic's do; empty where it has none, or two."""
    # As the edge reads it: a bearer counts before the other header, and one that is there twice holds no key.
    authorizations, others, bearer = [], [], False
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.decode("latin-1").strip().partition(" ")
            bearer = bearer or scheme.lower() == _BEARER
            authorizations.append(rest.strip())
        elif name == b"x-api-key":
            others.append(value.decode("latin-1").strip())
    found = authorizations if bearer else others
    return found[0] if len(found) == 1 else ""

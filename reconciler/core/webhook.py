"""What a delivery to the webhook is: whose signature it bears, and whether it concerns what is followed.

`loop/hooks.py` reads it and asks. Three forms are known, each signed in its own way:

- GitHub: `X-Hub-Signature-256: sha256=<hex>`, HMAC-SHA256 of the body. Gitea and Forgejo send it too.
- Gitea and Forgejo: `X-Gitea-Signature: <hex>`, the same HMAC.
- GitLab: `webhook-signature: v1,<base64>` where the hook has a signing token (`whsec_…`): HMAC-SHA256 of
  `<webhook-id>.<webhook-timestamp>.<body>`, as https://www.standardwebhooks.com describes it. Else
  `X-Gitlab-Token`, the secret itself.

A delivery that is sent again makes the reconciler look again, and nothing else. So no time stamp is checked, and
no delivery remembered.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qs

Headers = Iterable[tuple[bytes, bytes]]
"""Names are lower case, as ASGI has them."""

_MOST_SIGNATURES = 8
_LONGEST_REF = 1024
_MOST_FIELDS = 16
_SIGNED = "whsec_"
_BRANCH, _TAG = "refs/heads/", "refs/tags/"
_FORM_TYPE = b"application/x-www-form-urlencoded"
_PUSHES = frozenset({"push", "Push Hook", "Tag Push Hook"})
_EVENT_HEADERS = (b"x-github-event", b"x-gitea-event", b"x-forgejo-event", b"x-gitlab-event")


class DeliveryError(ValueError):
    """A delivery that is refused. The message holds nothing of it."""


class Form(StrEnum):
    """Whose way of signing it is."""

    GITHUB = "github"
    GITEA = "gitea"
    GITLAB = "gitlab"


@dataclass(frozen=True, slots=True)
class About:
    """What a delivery means.

    Attributes:
        look: There may be something new to take over.
        reason: Why, or why not.
    """

    look: bool
    reason: str


def verify(headers: Headers, body: bytes, secrets: Sequence[str]) -> Form:
    """Whose delivery it is, once its signature is found to be made with one of the secrets.

    Where it bears several signatures the first of the list above counts: a wrong one is not made good by another.

    Raises:
        DeliveryError: It is not signed, or not with one of these.
    """
    given = list(headers)
    signature = _one(given, b"x-hub-signature-256")
    if signature is not None:
        return _checked(Form.GITHUB, signature, [f"sha256={_hex(secret, body)}" for secret in secrets])
    for name in (b"x-gitea-signature", b"x-forgejo-signature"):
        signature = _one(given, name)
        if signature is not None:
            return _checked(Form.GITEA, signature, [_hex(secret, body) for secret in secrets])
    signature = _one(given, b"webhook-signature")
    if signature is not None:
        signed = b".".join(((_one(given, b"webhook-id") or b""), (_one(given, b"webhook-timestamp") or b""), body))
        expected = [f"v1,{_base64(key, signed)}" for key in map(_signing_key, secrets) if key is not None]
        # One for each signing token, while one is being replaced.
        return _checked(Form.GITLAB, signature, expected, several=True)
    token = _one(given, b"x-gitlab-token")
    if token is not None:
        return _checked(Form.GITLAB, token, secrets)
    raise DeliveryError("it is not signed")


def about(headers: Headers, body: bytes, follows: str) -> About:
    """What a delivery with a good signature means. Of its body the ref is read, and nothing else.

    Args:
        headers: Of the delivery.
        body: As it arrived.
        follows: The branch or tag that is followed, in short or in full; empty for the repository's own choice.

    Raises:
        DeliveryError: It is said to be a push, and its body names no ref.
    """
    given = list(headers)
    event = next((value for name in _EVENT_HEADERS if (value := _text(given, name))), "")
    if event not in _PUSHES:
        return About(look=False, reason=f"events of the kind {_shown(event)} are ignored")
    ref = _ref(given, body)
    if _concerns(ref, follows):
        return About(look=True, reason=f"{_shown(ref)} was pushed")
    return About(look=False, reason=f"{_shown(ref)} is not what is followed here")


def sign(secret: str, body: bytes) -> str:
    """The value of `X-Hub-Signature-256` for a body, for calls of our own."""
    return f"sha256={_hex(secret, body)}"


def _checked(form: Form, given: bytes, expected: Sequence[str], *, several: bool = False) -> Form:
    offered = given.split(b" ")[:_MOST_SIGNATURES] if several else [given]
    # All of them, whichever fits: how long it takes says nothing.
    found = [hmac.compare_digest(one, wanted.encode()) for one in offered for wanted in expected]
    if not any(found):
        raise DeliveryError("its signature is not made with a secret that is known here")
    return form


def _one(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    values = [value for name, value in headers if name == wanted]
    if len(values) > 1:
        raise DeliveryError("it bears the same signature header twice")
    return values[0].strip() if values else None


def _text(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> str:
    return next((value.decode("latin-1").strip() for name, value in headers if name == wanted), "")


def _hex(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _base64(key: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _signing_key(secret: str) -> bytes | None:
    """The key of a signing token; None for a secret of another kind."""
    if not secret.startswith(_SIGNED):
        return None
    try:
        return base64.b64decode(secret.removeprefix(_SIGNED), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def _ref(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> str:
    try:
        text = body.decode()
        if _text(headers, b"content-type").encode("latin-1").lower().startswith(_FORM_TYPE):
            text = parse_qs(text, max_num_fields=_MOST_FIELDS, errors="strict").get("payload", [""])[0]
        payload = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DeliveryError("its body is not JSON") from error
    ref = payload.get("ref") if isinstance(payload, dict) else None
    # What cannot be printed is no ref of Git's, and could not be told back either.
    if not isinstance(ref, str) or not 0 < len(ref) <= _LONGEST_REF or not ref.isprintable():
        raise DeliveryError("its body names no ref")
    return ref


def _concerns(ref: str, follows: str) -> bool:
    if follows in ("", "HEAD"):
        return ref.startswith(_BRANCH)
    return ref in (follows, _BRANCH + follows, _TAG + follows)


def _shown(text: str) -> str:
    if not text:
        return "(none)"
    short = text if len(text) <= 100 else f"{text[:100]}…"  # noqa: PLR2004 -- enough to know it by
    return "".join(char if char.isprintable() else "?" for char in short)

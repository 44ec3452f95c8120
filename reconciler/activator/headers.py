"""Which headers cross the proxy, in both directions. Pure."""

import uuid
from collections.abc import Iterable

Raw = Iterable[tuple[bytes, bytes]]

# RFC 9110, 7.6.1: these speak of one connection and not of the message.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Set anew for the upstream (host, length, id), spent here (expect), or keys of ours, which no engine may see:
# `x-api-key` is where Anthropic's clients put theirs.
_NOT_UPSTREAM = _HOP_BY_HOP | {
    b"authorization",
    b"content-length",
    b"expect",
    b"host",
    b"x-api-key",
    b"x-request-id",
}
# Our own server sends its own date; the id is ours.
_NOT_BACK = _HOP_BY_HOP | {b"date", b"server", b"x-request-id"}

_LONGEST_REQUEST_ID = 256


def request_headers(raw: Raw, *, length: int, request_id: str) -> list[tuple[str, str]]:
    """The client's headers as the upstream gets them."""
    headers = [
        (name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in _kept(raw, _NOT_UPSTREAM)
    ]
    return [*headers, ("content-length", str(length)), ("x-request-id", request_id)]


def response_headers(raw: Raw) -> list[tuple[bytes, bytes]]:
    """The upstream's headers as the client gets them, but for the request's id."""
    return _kept(raw, _NOT_BACK)


def request_id(raw: Raw) -> str:
    """The id that the edge gave the request, or a new one."""
    given = find(raw, b"x-request-id")
    return given if given and len(given) <= _LONGEST_REQUEST_ID else str(uuid.uuid4())


def uncoded(raw: Raw) -> list[tuple[bytes, bytes]]:
    """The headers of a request whose answer must come without a content coding."""
    return [(name, value) for name, value in raw if name != b"accept-encoding"]


def find(raw: Raw, wanted: bytes) -> str:
    """The first value of a header; empty when there is none. Names are lower case, as ASGI has them."""
    for name, value in raw:
        if name == wanted:
            return value.decode("latin-1")
    return ""


def _kept(raw: Raw, dropped: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    lowered = [(name.lower(), value) for name, value in raw]
    # `Connection` names further headers that are meant for one hop only.
    named = {
        token.strip().lower() for name, value in lowered if name == b"connection" for token in value.split(b",")
    }
    return [(name, value) for name, value in lowered if name not in dropped and name not in named]

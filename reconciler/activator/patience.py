"""How long a client says that it will wait: the activator holds no request for longer than that. Pure."""

import re

from reconciler.activator.headers import Raw, find

# Longer than any model takes: whoever states more states no bound.
_LONGEST = 24 * 3600.0
# RFC 7240, 4.3: `wait` takes whole seconds, unquoted. Other preferences may stand around it.
_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*([^\s,;]*)", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,20})?")
# The same in seconds, of the clients in Python and of those in TypeScript, which send it where a timeout was set.
_READ_TIMEOUTS = (b"x-stainless-read-timeout", b"x-stainless-timeout")
# An answer that comes as the client hangs up is none: this much of a read timeout is left for the way.
_MARGIN_SECONDS, _MARGIN_SHARE = 1.0, 0.1


def stated(raw: Raw, *, streams: bool) -> float | None:
    """Seconds that the client waits for an answer; None where it does not say.

    `Prefer: wait=N` (RFC 7240) says it, and for a request that is not streamed also what OpenAI's and Anthropic's
    clients send: `x-stainless-read-timeout`, the read timeout of their connection (600 s unless set), from Python;
    `X-Stainless-Timeout`, whole seconds until the answer begins, from TypeScript. A held stream never runs into
    one, because comments come at once and keep coming. What is no sensible number is not heard.
    """
    bounds = [_preferred(raw)]
    if not streams:
        bounds += [_read_timeout(raw, name) for name in _READ_TIMEOUTS]
    return min((bound for bound in bounds if bound is not None), default=None)


def _preferred(raw: Raw) -> float | None:
    # Several headers are one list, and of a preference that is given twice the first one counts.
    preferences = ",".join(value.decode("latin-1") for name, value in raw if name == b"prefer")
    match = _WAIT.search(preferences)
    if match is None or not match[1].isascii() or not match[1].isdigit():
        return None
    return _sensible(match[1])


def _read_timeout(raw: Raw, name: bytes) -> float | None:
    seconds = _sensible(find(raw, name).strip())
    return seconds - min(_MARGIN_SECONDS, seconds * _MARGIN_SHARE) if seconds else None


def _sensible(text: str) -> float | None:
    if _SECONDS.fullmatch(text) is None:
        return None
    seconds = float(text)
    return seconds if seconds <= _LONGEST else None

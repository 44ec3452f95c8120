"""One chat request and the moment of its first token."""

import contextlib
import http.client
import json
import time
from collections.abc import Callable

from bench.machine import BenchError

POLL_SECONDS = 0.1
_OK = 200


def chat_body(model: str, tokens: int, *, stream: bool) -> str:
    """A chat request whose answer has exactly `tokens` tokens, the same ones each time."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body)


def completed(tokens: int) -> str:
    """What a whole answer of `tokens` tokens has near its end."""
    return f'"completion_tokens":{tokens}'


def wait_first_token(port: int, path: str, model: str, *, seconds: float, check: Callable[[], None]) -> float:
    """Ask again and again until a first token comes; gives the moment, in seconds since the epoch.

    Args:
        port: Where to ask, on loopback.
        path: The endpoint.
        model: The `model` of the request.
        seconds: How long to go on.
        check: Called between two tries; raises where there is no use in going on.

    Raises:
        BenchError: None came.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            moment = _first_token(port, path, model)
            if moment is not None:
                return moment
        check()
        time.sleep(POLL_SECONDS)
    raise BenchError(f"no token from port {port} within {seconds:.0f} s")


def _first_token(port: int, path: str, model: str) -> float | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, chat_body(model, 4, stream=True), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != _OK or not answer.readline().startswith(b"data:"):
            return None
        moment = time.time()
        answer.read()
        return moment
    finally:
        connection.close()

"""One chat request and the moment of its first token."""

import http.client
import json
import time
from collections.abc import Callable

from bench.machine import BenchError

POLL_SECONDS = 0.1
_OK = 200
_DATA = b"data:"
_MOST_OF_AN_ERROR = 2000


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


def first_token(port: int, path: str, model: str, *, seconds: float) -> float:
    """Ask once, wait as long as it takes, and give the moment of the first token, in seconds since the epoch.

    Comments, which a client that waits for a model gets meanwhile, are no token.

    Args:
        port: Where to ask, on loopback.
        path: The endpoint.
        model: The `model` of the request.
        seconds: For how long nothing at all may come.

    Raises:
        BenchError: The answer is an error.
        OSError: Nothing answers, or nothing came for so long.
        http.client.HTTPException: The answer broke off.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("POST", path, chat_body(model, 4, stream=True), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != _OK:
            raise BenchError(f"status {answer.status}: {answer.read(_MOST_OF_AN_ERROR).decode(errors='replace')}")
        while line := answer.readline():
            if line.startswith(_DATA):
                moment = time.time()
                if b'"error"' in line:
                    raise BenchError(f"an error in the stream: {line.decode(errors='replace')}")
                answer.read()
                return moment
        raise BenchError("the stream ended without a token")
    finally:
        connection.close()


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
    last = ""
    while time.monotonic() < deadline:
        try:
            return first_token(port, path, model, seconds=seconds)
        except (BenchError, OSError, http.client.HTTPException) as error:
            last = str(error)
        check()
        time.sleep(POLL_SECONDS)
    raise BenchError(f"no token from port {port} within {seconds:.0f} s: {last}")

"""Requests as clients send them, and what became of each: one, a herd, a round robin."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import openai

ANSWER_SECONDS = 1200.0
"""How long an answer may take before the client gives up, which is a failure: a test's machine may be busy."""


@dataclass
class Answer:
    """One request, and what has become of it so far.

    Attributes:
        model: What was asked for.
        wanted: Tokens that were asked for, no more and no fewer.
        began: When it was sent, in seconds of a clock that nothing sets.
        ended: When its last byte came; 0.0 before.
        status: The HTTP status; 0 before there is one.
        chunks: Pieces of text that came.
        tokens: Tokens that the answer says it has.
        finish: Why the model stopped.
        complete: A stream had its `[DONE]`, a body its end.
        comments: The comments of its stream, in order.
        error: What the server said, or what broke.
    """

    model: str
    wanted: int
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    status: int = 0
    chunks: int = 0
    tokens: int = 0
    finish: str | None = None
    complete: bool = False
    comments: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def is_full(self) -> bool:
        """Every token came, and the end."""
        return (
            self.status == 200
            and self.complete
            and not self.error
            and (self.finish, self.tokens) == ("length", self.wanted)
        )

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    def __str__(self) -> str:
        words = f"{self.model}: status {self.status}, {self.tokens} of {self.wanted} tokens, finish {self.finish}"
        return f"{words}, complete {self.complete}, {self.seconds:.1f} s, {self.error or 'no error'}"


def body(model: str, tokens: int, *, stream: bool) -> dict[str, Any]:
    """A chat request whose answer has exactly `tokens` tokens."""
    asked: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    return asked | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})


async def ask(
    session: aiohttp.ClientSession, url: str, answer: Answer, *, stream: bool, wait: float | None = None
) -> Answer:
    """Send one request and read its answer to the end; nothing is raised, `answer` says it all, meanwhile too.

    Args:
        session: The client.
        url: The front door.
        answer: What to ask for.
        stream: Ask for a stream.
        wait: How long the client says that it waits.
    """
    answer.began = time.monotonic()
    try:
        async with session.post(
            f"{url}/chat/completions",
            json=body(answer.model, answer.wanted, stream=stream),
            headers={} if wait is None else {"Prefer": f"wait={wait:.0f}"},
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
        ) as response:
            answer.status = response.status
            if stream and response.content_type == "text/event-stream":
                async for line in response.content:
                    _read_line(answer, line.decode().strip())
            else:
                _read_body(answer, await response.json(content_type=None))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        answer.error = answer.error or repr(error)
    answer.ended = time.monotonic()
    return answer


async def ask_all(url: str, answers: Sequence[Answer], *, streams: int) -> None:
    """Send all requests at once, the first `streams` of them as streams, and wait for every answer."""
    async with herd_session() as session:
        await asyncio.gather(
            *(ask(session, url, answer, stream=number < streams) for number, answer in enumerate(answers))
        )


def herd_session() -> aiohttp.ClientSession:
    """A client with as many connections as requests."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def card(url: str, model: str) -> dict[str, Any]:
    """The model's line of `/v1/models`."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/models") as response:
        listed = await response.json()
    found: dict[str, Any] = next(each for each in listed["data"] if each["id"] == model)
    return found


def _read_line(answer: Answer, line: str) -> None:
    if line.startswith(":"):
        answer.comments.append(line[1:].strip())
    elif line == "data: [DONE]":
        answer.complete = True
    elif line.startswith("data: "):
        _read_body(answer, json.loads(line.removeprefix("data: ")), chunk=True)


def _read_body(answer: Answer, document: dict[str, Any], *, chunk: bool = False) -> None:
    if "error" in document:
        error = document["error"]
        answer.error = f"{error.get('code')}: {error.get('message')}"
        return
    for choice in document["choices"]:
        answer.chunks += 1
        answer.finish = choice["finish_reason"] or answer.finish
    answer.tokens = (document.get("usage") or {}).get("completion_tokens", answer.tokens)
    answer.complete = answer.complete or not chunk


class RoundRobin:
    """Clients of the `openai` package, each of which streams from its models in turn, without a pause.

    Args:
        urls: Front doors; each client goes from one to the next.
        clients: The models of each client.
        tokens: Length of one answer.
    """

    def __init__(self, urls: Sequence[str], clients: Sequence[Sequence[str]], *, tokens: int) -> None:
        self.answers: list[Answer] = []
        self._urls = urls
        self._clients = clients
        self._tokens = tokens
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._ask_on(number)) for number in range(len(self._clients))]

    async def stop(self) -> None:
        """Send no further request, and wait until every one that was sent is answered."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _ask_on(self, number: int) -> None:
        models = self._clients[number]
        async with contextlib_all(self._urls) as doors:
            for turn in itertools.count(number):
                answer = Answer(models[turn % len(models)], self._tokens)
                self.answers.append(answer)
                await _stream(doors[turn % len(doors)], answer)
                # Two cores also load models meanwhile: constant traffic, not saturation.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 1)
                    return

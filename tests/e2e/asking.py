"""Requests as clients send them, and what became of each of them: one, a herd at once, a round robin."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import openai

ANSWER_SECONDS = 1200.0
"""How long an answer may take before the client gives up, which is a failure: the machine may be a busy one."""
PAUSE_SECONDS = 1.0
"""Between two requests of a round robin: two cores load models meanwhile. Constant traffic, not saturation."""


@dataclass
class Answer:
    """One request, and what has become of it so far.

    Attributes:
        model: What is asked for.
        wanted: Tokens that are asked for, no more and no fewer.
        began: When it was sent, by a clock that nothing sets; 0.0 before.
        ended: When its last byte came; 0.0 before.
        status: The HTTP status; 0 before there is one.
        chunks: Pieces of text that came.
        tokens: Tokens that the answer says it has.
        finish: Why the model stopped.
        complete: The answer came to its end: a stream to its `[DONE]`.
        comments: The comments of its stream, in order.
        error: What the server said, or what broke.
    """

    model: str
    wanted: int
    began: float = 0.0
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
        whole = self.complete and self.finish == "length" and self.tokens == self.wanted
        return self.status == 200 and whole and not self.error

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


def failures(answers: Sequence[Answer]) -> list[str]:
    """Those that were not answered in full, in words."""
    return [str(answer) for answer in answers if not answer.is_full]


async def ask(url: str, answer: Answer, *, stream: bool, session: aiohttp.ClientSession | None = None) -> Answer:
    """Send one request, and read what comes into `answer` as it comes; nothing is raised.

    Args:
        url: The front door.
        answer: What to ask for.
        stream: Ask for a stream.
        session: The client; None for one of its own.
    """
    async with contextlib.AsyncExitStack() as stack:
        if session is None:
            session = await stack.enter_async_context(aiohttp.ClientSession())
        answer.began = time.monotonic()
        try:
            await _read(session, f"{url}/chat/completions", answer, stream=stream)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            answer.error = answer.error or repr(error)
        answer.ended = time.monotonic()
    return answer


async def ask_all(url: str, answers: Sequence[Answer], *, streams: int) -> None:
    """Send all at once, each on a connection of its own, `streams` of them as streams; wait for every answer."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(
            *(ask(url, answer, stream=number < streams, session=session) for number, answer in enumerate(answers))
        )


async def status_of(url: str, model: str) -> tuple[str, str]:
    """What `/v1/models` says of a model: its state, and the reason."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/models/{model}") as response:
        status = (await response.json())["status"]
    return status["value"], status["reason"]


async def order(url: str, verb: str, model: str) -> Any:
    """`POST /models/load` or `unload`, as Open WebUI sends it; gives the answer."""
    door = f"{url.removesuffix('/v1')}/models/{verb}"
    async with aiohttp.ClientSession() as session, session.post(door, json={"model": model}) as response:
        return await response.json()


async def _read(client: aiohttp.ClientSession, url: str, answer: Answer, *, stream: bool) -> None:
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with client.post(url, json=_body(answer, stream=stream), timeout=timeout) as response:
        answer.status = response.status
        if response.content_type != "text/event-stream":
            _take(answer, await response.json(content_type=None))
            answer.complete = not stream
            return
        async for raw in response.content:
            line = raw.decode().strip()
            if line.startswith(":"):
                answer.comments.append(line[1:].strip())
            elif line == "data: [DONE]":
                answer.complete = True
            elif line:
                _take(answer, json.loads(line.removeprefix("data: ")))


def _body(answer: Answer, *, stream: bool) -> dict[str, Any]:
    asked = {
        "model": answer.model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": answer.wanted,
        "ignore_eos": True,
    }
    return asked | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})


def _take(answer: Answer, document: dict[str, Any]) -> None:
    if (error := document.get("error")) is not None:
        answer.error = f"{error['code']}: {error['message']}"
        return
    for choice in document["choices"]:
        answer.chunks += 1
        answer.finish = choice["finish_reason"] or answer.finish
    if (usage := document.get("usage")) is not None:
        answer.tokens = usage["completion_tokens"]


class RoundRobin:
    """Clients of the `openai` package, each of which streams from its models in turn, without an end.

    Args:
        urls: Front doors; each client goes from one to the next.
        clients: The models of each client.
        tokens: Length of one answer.
    """

    def __init__(self, urls: Sequence[str], clients: Sequence[Sequence[str]], *, tokens: int) -> None:
        self.answers: list[Answer] = []
        self._urls = urls
        self._tokens = tokens
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._ask_on(models)) for models in clients]

    async def stop(self) -> None:
        """Send no further request, and wait until every one that was sent is answered."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _ask_on(self, models: Sequence[str]) -> None:
        doors = [openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) for url in self._urls]
        for door, model in zip(itertools.cycle(doors), itertools.cycle(models), strict=False):
            answer = Answer(model, self._tokens)
            self.answers.append(answer)
            await _stream(door.with_options(timeout=ANSWER_SECONDS), answer)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), PAUSE_SECONDS)
                break
        await asyncio.gather(*(door.close() for door in doors))


async def _stream(client: openai.AsyncOpenAI, answer: Answer) -> None:
    answer.began = time.monotonic()
    try:
        stream = await client.chat.completions.create(
            model=answer.model,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=answer.wanted,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        answer.status = stream.response.status_code
        async for chunk in stream:
            for choice in chunk.choices:
                answer.chunks += 1
                answer.finish = choice.finish_reason or answer.finish
            if chunk.usage is not None:
                answer.tokens = chunk.usage.completion_tokens
        answer.complete = True
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is what the test is about
        answer.error = repr(error)
    answer.ended = time.monotonic()

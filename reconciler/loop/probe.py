"""Ask a version that came up one real request, straight at its application, before it gets any traffic.

The request is what clients will send (a chat, an embedding), so it also pays for what a first request costs.
"""

import asyncio
import time
from typing import Any

import aiohttp

from reconciler.core.spec import Task

_PAUSE_SECONDS = 0.5
_WARM_UP_SECONDS, _WARM_UP_AFTER_SECONDS = 60.0, 10.0
_OK = 200
_NOT_UP_YET = (404, 500, 502, 503, 504)
_TEXT = "Hello"


class ProbeError(Exception):
    """The version does not answer; the text says what it said instead."""


async def probe(base_url: str, model: str, task: str, *, patience: float) -> None:
    """Return once the application answered.

    Args:
        base_url: The application's own route at Serve's HTTP proxy.
        model: The model's name.
        task: What the model does, a `Task` value.
        patience: Seconds to go on trying.

    Raises:
        ProbeError: It refused the request, or did not answer in time.
    """
    deadline = time.monotonic() + patience
    last = "no answer"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=patience)) as session:
        while True:
            for path, body in _requests(model, task):
                status, last = await _ask(session, base_url + path, body)
                if status == _OK:
                    return
                if status in _NOT_UP_YET:
                    break
            else:
                raise ProbeError(last)
            if time.monotonic() + _PAUSE_SECONDS > deadline:
                raise ProbeError(f"{last} (for {patience:.0f} s)")
            await asyncio.sleep(_PAUSE_SECONDS)


async def warm_up(base_url: str, model: str, task: str) -> None:
    """Ask for a sampled token, which costs an engine seconds the first time. Whether it answers matters to nobody.

    Args:
        base_url: The application's own route at Serve's HTTP proxy.
        model: The model's name.
        task: What the model does, a `Task` value.
    """
    if task == Task.GENERATE:
        # Whoever waited for the model comes first.
        await asyncio.sleep(_WARM_UP_AFTER_SECONDS)
        body = {"model": model, "prompt": _TEXT, "max_tokens": 1, "temperature": 1}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_WARM_UP_SECONDS)) as session:
            await _ask(session, f"{base_url}/v1/completions", body)


def _requests(model: str, task: str) -> list[tuple[str, dict[str, Any] | None]]:
    """Requests by falling preference; the first that is answered will do."""
    match task:
        case Task.GENERATE:
            # Greedy: a sampled answer costs seconds more the first time, which nobody has to wait for (`warm_up`).
            short = {"max_tokens": 1, "temperature": 0}
            chat = {"model": model, "messages": [{"role": "user", "content": _TEXT}], **short}
            # A base model has no chat template.
            return [
                ("/v1/chat/completions", chat),
                ("/v1/completions", {"model": model, "prompt": _TEXT, **short}),
            ]
        case Task.EMBED:
            return [("/v1/embeddings", {"model": model, "input": _TEXT})]
        case Task.SCORE | Task.RERANK:
            return [("/v1/score", {"model": model, "text_1": _TEXT, "text_2": _TEXT})]
        case Task.CLASSIFY:
            return [("/classify", {"model": model, "input": _TEXT})]
        case Task.REWARD:
            return [("/pooling", {"model": model, "input": _TEXT})]
    # Speech needs a recording; that the engine answers at all has to do.
    return [("/health", None)]


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any] | None) -> tuple[int, str]:
    try:
        method = "GET" if body is None else "POST"
        async with session.request(method, url, json=body) as answer:
            text = await answer.text(errors="replace")
            return answer.status, f"HTTP {answer.status}: {' '.join(text.split())[:300]}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return 503, str(error) or type(error).__name__

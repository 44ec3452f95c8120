"""What comes by itself: events and log lines as server-sent events, and the answer of the small chat."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from reconciler.api.streams import Listeners
from reconciler.host.log import get_logger
from reconciler.loop.by_hand import CommandRefusedError
from reconciler.page.backend import Backend
from reconciler.page.guard import Guard, Visit
from reconciler.page.looking import Looking
from reconciler.page.show import visible

log = get_logger()

_AHEAD = 64
_LONGEST_CHAT, _MOST_MESSAGES, _MOST_TOKENS, _USUAL_TOKENS = 100_000, 100, 4096, 512
_NOT_FIELDS = frozenset({"event", "level", "timestamp", "model"})


class Streams:
    """Handlers that do not end by themselves."""

    def __init__(self, backend: Backend, guard: Guard, looking: Looking) -> None:
        self._backend = backend
        self._guard = guard
        self._looking = looking
        self._listeners = Listeners()

    async def live(self, visit: Visit) -> Response:
        """`GET /live`: events; with `logs` also log lines, of `model` where it is named.

        Both go over one connection, because a browser opens only six to a host.
        """
        query, request = visit.request.query_params, visit.request
        last_id = request.headers.get("last-event-id") or query.get("after") or None
        sources = [self._events(last_id)]
        if "logs" in query:
            sources.append(self._lines(query.get("model") or None))
        return self._listeners.stream(merged(sources), lambda: self._guard.goes_on(request), sse("ended", {}))

    async def _events(self, last_id: str | None) -> AsyncGenerator[bytes, None]:
        async for each in self._backend.follow_events(last_id):
            fields = each.event
            rest = " ".join(f"{key}={value}" for key, value in fields.items() if key not in _NOT_FIELDS)
            said = {
                "at": str(fields.get("timestamp", "")),
                "level": str(fields.get("level", "info")),
                "event": str(fields.get("event", "")),
                "model": str(fields.get("model") or ""),
                "text": visible(rest)[:2000],
            }
            yield sse("happened", said, each.id)

    async def _lines(self, model: str | None) -> AsyncGenerator[bytes, None]:
        async for line in self._backend.follow_logs(model):
            yield sse("line", {**line.model_dump(mode="json"), "text": visible(line.text)})

    async def chat(self, visit: Visit) -> Response:
        """`POST /chat`: the answer line by line as JSON; for a browser without scripts, in the model's page."""
        model = visit.wanted("model")
        messages = _messages(visit)
        tokens = visit.form.get("max_tokens", "")
        limit = min(_MOST_TOKENS, max(1, int(tokens))) if tokens.isascii() and tokens.isdigit() else _USUAL_TOKENS
        answer = self._backend.chat(model, messages, limit)
        if "application/x-ndjson" in visit.request.headers.get("accept", ""):
            return StreamingResponse(_as_lines(answer), media_type="application/x-ndjson")
        try:
            text = "".join([piece async for piece in answer])
        except CommandRefusedError as error:
            text = f"No answer: {error}"
        return await self._looking.edited(visit, model, asked=messages[-1]["content"], answer=text)


def sse(kind: str, data: dict[str, Any], event_id: str | None = None) -> bytes:
    """A server-sent event. JSON has no line ends, so that nothing in the data can end the event."""
    mark = "" if event_id is None else f"id: {event_id.translate({10: None, 13: None, 0: None})}\n"
    return f"{mark}event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


async def merged(sources: list[AsyncGenerator[bytes, None]]) -> AsyncGenerator[bytes, None]:
    """What comes from any of the sources, until all end. One that fails ends, and the others go on."""
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)
    pumps = [asyncio.create_task(_pump(source, queue)) for source in sources]
    left = len(pumps)
    try:
        while left:
            event = await queue.get()
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: AsyncGenerator[bytes, None], queue: asyncio.Queue[bytes | None]) -> None:
    """Put what comes into the queue, and None at the end."""
    try:
        async with contextlib.aclosing(source):
            async for event in source:
                await queue.put(event)
    except CommandRefusedError as error:
        await queue.put(sse("refused", {"text": str(error)}))
    except Exception:
        log.exception("page.stream_failed")
    await queue.put(None)


async def _as_lines(answer: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for piece in answer:
            yield json.dumps({"piece": piece}) + "\n"
        yield json.dumps({"done": True}) + "\n"
    except CommandRefusedError as error:
        yield json.dumps({"error": str(error)}) + "\n"
    except Exception:
        log.exception("page.chat_failed")
        yield json.dumps({"error": "the answer broke off; the log of the model may say why"}) + "\n"


def _messages(visit: Visit) -> list[dict[str, str]]:
    """What was said before, and what is said now.

    Raises:
        HTTPException: It is no conversation.
    """
    said = visit.wanted("message")
    try:
        before = json.loads(visit.form.get("before") or "[]")
        messages = [{"role": str(each["role"]), "content": str(each["content"])} for each in before]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise HTTPException(400, "what was said before is no list of messages") from error
    messages.append({"role": "user", "content": said})
    roles = {message["role"] for message in messages}
    if not roles <= {"user", "assistant"} or len(messages) > _MOST_MESSAGES:
        raise HTTPException(400, "a conversation has up to 100 messages, of user and assistant")
    if sum(len(message["content"]) for message in messages) > _LONGEST_CHAT:
        raise HTTPException(413, "the conversation is too long; start a new one")
    return messages

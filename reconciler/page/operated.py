"""What the page's buttons do beyond what the API answers: a model that is added, and a chat to try one."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from reconciler.api.answers import Answers, as_refusal
from reconciler.api.context import Context
from reconciler.api.schemas import EditView
from reconciler.api.views import edit_view
from reconciler.loop.by_hand import BAD_REQUEST, CONFLICT, UNAVAILABLE, CommandRefusedError
from reconciler.loop.new_models import NewModel, NewModelError

_LINE_BYTES = 1 << 20
_SILENT_SECONDS = 600.0
"""A model that is not up takes its time before its first word."""


@dataclass(frozen=True, slots=True)
class ChatDoor:
    """Where the page's chat goes.

    Attributes:
        url: Of the front door's part in this process.
        key: A key of this process's own, which is written nowhere.
    """

    url: str
    key: str = field(repr=False)


class Operated(Answers):
    """The page's backend."""

    def __init__(
        self, context: Context, new_model: Callable[[str, str | None, str | None], NewModel], door: ChatDoor
    ) -> None:
        """Do nothing yet.

        Args:
            context: The API's.
            new_model: Makes a file for a repository, a name and a revision; waits for the hub.
            door: Where the chat goes.
        """
        super().__init__(context)
        self._new_model, self._door = new_model, door

    async def add_preview(self, repo: str, name: str | None, revision: str | None) -> EditView:
        """The file that `add` would write, as a difference from nothing."""
        new = await self._new(repo, name, revision)
        with as_refusal():
            return edit_view(await self._context.edits.preview(new.file, new.text, None))

    async def add(self, repo: str, name: str | None, revision: str | None, *, author: str) -> EditView:
        """Write a new model file, or propose it where the files come from git."""
        new = await self._new(repo, name, revision)
        message = f"Add {new.name}"
        with as_refusal():
            return edit_view(
                await self._context.edits.apply(new.file, new.text, None, message=message, author=author)
            )

    async def chat(self, model: str, messages: Sequence[Mapping[str, str]], max_tokens: int) -> AsyncIterator[str]:
        """The answer, piece by piece: a request like any other, which loads a model that is at rest."""
        asked = {"model": model, "messages": list(messages), "max_tokens": max_tokens, "stream": True}
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=None, sock_read=_SILENT_SECONDS), read_bufsize=_LINE_BYTES
                ) as session,
                session.post(
                    f"{self._door.url}/v1/chat/completions",
                    json=asked,
                    headers={"Authorization": f"Bearer {self._door.key}"},
                ) as answer,
            ):
                if answer.status != 200:  # noqa: PLR2004 -- OK
                    raise CommandRefusedError(answer.status, _reason(await answer.content.read(_LINE_BYTES)))
                async for line in answer.content:
                    for piece in _pieces(line):
                        yield piece
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise CommandRefusedError(UNAVAILABLE, f"the answer broke off: {error}") from error

    async def _new(self, repo: str, name: str | None, revision: str | None) -> NewModel:
        try:
            new = await asyncio.to_thread(self._new_model, repo, name, revision)
        except NewModelError as error:
            raise CommandRefusedError(BAD_REQUEST, str(error)) from error
        if new.refusal:
            raise CommandRefusedError(CONFLICT, new.refusal)
        return new


def _pieces(line: bytes) -> list[str]:
    """The text in one line of a stream of server-sent events.

    Raises:
        CommandRefusedError: It says that no more will come, and why.
    """
    data = line.removeprefix(b"data:").strip()
    if not line.startswith(b"data:") or data == b"[DONE]":
        return []
    event = json.loads(data)
    if isinstance(event, dict) and "error" in event:
        raise CommandRefusedError(UNAVAILABLE, _reason(data))
    choices = event.get("choices") or [] if isinstance(event, dict) else []
    return [text for choice in choices if (text := (choice.get("delta") or {}).get("content"))]


def _reason(body: bytes) -> str:
    """What an answer in OpenAI's envelope says."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:500].decode(errors="replace") or "it was not answered"

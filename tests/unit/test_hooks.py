"""The webhook over HTTP, on the server that serves the front door."""

import asyncio
import hashlib
import hmac
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.responses import PlainTextResponse
from structlog.testing import capture_logs

from reconciler.activator.server import listen_tcp, serve_on
from reconciler.host.secret_file import SecretFileError, read_secrets
from reconciler.loop import hooks
from reconciler.loop.hooks import HOOK_PATH, MOST_BYTES, hook_app

SECRET, OTHER = "planted-secret-0123456789", "another-secret-0123456789"
PUSH = json.dumps({"ref": "refs/heads/main"}).encode()


class Door:
    """A front door with the webhook, and a client."""

    def __init__(self, folder: Path) -> None:
        self.secret = folder / "hook-secret"
        self.write(SECRET)
        self.now = 0.0
        self.looks = 0
        listener = listen_tcp("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        app = hook_app(PlainTextResponse("the rest"), self.secret, "main", self.look, clock=lambda: self.now)
        self.server = asyncio.create_task(serve_on(app, listener, grace_seconds=1))
        self.client = aiohttp.ClientSession()
        self.url = f"http://127.0.0.1:{self.port}"

    def write(self, *secrets: str, mode: int = 0o600) -> None:
        self.secret.write_text("\n".join(secrets))
        self.secret.chmod(mode)

    def look(self) -> None:
        self.looks += 1

    async def deliver(
        self,
        body: bytes = PUSH,
        *,
        secret: str = SECRET,
        event: str = "push",
        path: str = HOOK_PATH,
        **headers: str,
    ) -> tuple[int, Any, Any]:
        """Status, body and headers of the answer."""
        signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        signed = {"X-GitHub-Event": event, "X-Hub-Signature-256": f"sha256={signature}", **headers}
        async with self.client.post(self.url + path, data=body, headers=signed) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith("{") else text, answer.headers

    async def close(self) -> None:
        await self.client.close()
        self.server.cancel()
        await asyncio.gather(self.server, return_exceptions=True)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    found = Door(tmp_path)
    yield found
    await found.close()


async def test_a_signed_push_has_the_source_look(door: Door) -> None:
    with capture_logs() as events:
        status, answer, _ = await door.deliver()
    assert (status, answer) == (202, {"status": "looking", "reason": "refs/heads/main was pushed"})
    assert door.looks == 1
    assert events == [
        {
            "event": "hook.received",
            "log_level": "info",
            "form": "github",
            "looks": True,
            "reason": "refs/heads/main was pushed",
        }
    ]


async def test_one_that_is_sent_again_only_looks_again(door: Door) -> None:
    assert {(await door.deliver())[0] for _ in range(3)} == {202}
    assert door.looks == 3


async def test_a_push_elsewhere_and_other_events_are_ignored(door: Door) -> None:
    status, answer, _ = await door.deliver(json.dumps({"ref": "refs/heads/other"}).encode())
    assert (status, answer["status"]) == (202, "ignored")
    assert "refs/heads/other" in answer["reason"]
    assert (await door.deliver(b"{}", event="ping"))[0] == 202
    assert door.looks == 0


async def test_gitlab_and_gitea(door: Door) -> None:
    for headers in (
        {"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": SECRET},
        {
            "X-Gitea-Event": "push",
            "X-Gitea-Signature": hmac.new(SECRET.encode(), PUSH, hashlib.sha256).hexdigest(),
        },
    ):
        async with door.client.post(door.url + HOOK_PATH, data=PUSH, headers=headers) as answer:
            assert answer.status == 202
    assert door.looks == 2


async def test_a_wrong_signature_is_refused_and_logged_once_a_minute(door: Door) -> None:
    with capture_logs() as events:
        for _ in range(5):
            status, answer, _ = await door.deliver(secret=OTHER)
            assert status == 401
        door.now = 61.0
        await door.deliver(secret=OTHER)
        async with door.client.post(door.url + HOOK_PATH, data=PUSH) as unsigned:
            assert unsigned.status == 401
    assert door.looks == 0
    assert [(event["event"], event["more"]) for event in events] == [
        ("hook.refused", 0),
        ("hook.refused", 4),
        ("hook.refused", 0),
    ]
    assert SECRET not in repr(events) + repr(answer)
    assert OTHER not in repr(events) + repr(answer)


async def test_a_secret_can_be_replaced_while_it_runs(door: Door) -> None:
    assert (await door.deliver(secret=OTHER))[0] == 401
    door.write(OTHER, "", SECRET)
    assert (await door.deliver(secret=OTHER))[0] == 202
    assert (await door.deliver(secret=SECRET))[0] == 202
    door.write(OTHER)
    assert (await door.deliver(secret=SECRET))[0] == 401


async def test_without_a_secret_there_is_no_webhook(door: Door) -> None:
    door.secret.unlink()
    assert (await door.deliver())[0] == 404
    assert door.looks == 0


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o666])
async def test_a_secret_that_others_may_read_or_change_is_not_used(door: Door, mode: int) -> None:
    door.write(SECRET, mode=mode)
    with capture_logs() as events:
        status, answer, _ = await door.deliver()
    assert status == 503
    assert str(door.secret) not in json.dumps(answer)
    assert [event["event"] for event in events] == ["hook.refused"]
    assert "chmod 600" in events[0]["reason"]
    assert door.looks == 0


async def test_too_large_a_body_is_refused(door: Door) -> None:
    assert (await door.deliver(b" " * (MOST_BYTES - len(PUSH)) + PUSH))[0] == 202
    assert (await door.deliver(b" " * MOST_BYTES + PUSH))[0] == 413

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    async with door.client.post(door.url + HOOK_PATH, data=endless()) as answer:
        assert answer.status == 413
    assert door.looks == 1


async def test_a_signed_body_that_is_no_push_is_refused(door: Door) -> None:
    for body in (b"[" * 100_000, b"\xff", b"{}"):
        assert (await door.deliver(body))[0] == 400
    assert door.looks == 0


async def test_slow_bodies_take_neither_long_nor_all_memory(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_BODY_SECONDS", 1.0)
    head = f"POST {HOOK_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode()
    slow = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(16)]
    began = time.monotonic()
    for _, writer in slow:
        writer.write(head)
        await writer.drain()
    await asyncio.sleep(0.3)
    status, _, headers = await door.deliver()
    assert (status, headers["Retry-After"]) == (429, "1")
    for reader, writer in slow:
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()
    assert time.monotonic() - began < 5
    assert (await door.deliver())[0] == 202


async def test_a_client_that_leaves_gives_its_place_back(door: Door) -> None:
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(f"POST {HOOK_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        await writer.drain()
        writer.close()
    await asyncio.sleep(0.3)
    assert (await door.deliver())[0] == 202


async def test_more_than_sixty_a_minute_are_sent_away(door: Door) -> None:
    for number in range(60):
        door.now = number * 0.5
        assert (await door.deliver())[0] == 202
    status, _, headers = await door.deliver()
    assert (status, headers["Retry-After"]) == (429, "31")
    assert door.looks == 60
    # What bears no signature takes no place of those that do.
    assert (await door.deliver(secret=OTHER))[0] == 401
    door.now = 60.1
    assert (await door.deliver())[0] == 202
    assert (await door.deliver())[0] == 429


async def test_the_path_is_exactly_this_one_and_the_method_too(door: Door) -> None:
    for path in ("/hooks/source/", "/hooks/sourcex", "/hooks", "//hooks/source", "/hooks/SOURCE", "/v1/models"):
        status, answer, _ = await door.deliver(path=path)
        assert (status, answer) == (200, "the rest")
    async with door.client.get(door.url + HOOK_PATH) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert door.looks == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has 0 secrets"),
        (b"\n \n", "has 0 secrets"),
        (b"short\n" + SECRET.encode(), "fewer than 16 characters"),
        (b"\n".join([SECRET.encode()] * 9), "has 9 secrets"),
        (b"\xff" * 20, "is not text"),
        (b"x" * 5000, "larger than 4096 bytes"),
    ],
)
def test_a_file_that_holds_no_secrets(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SecretFileError, match=why) as refused:
        read_secrets(path)
    assert SECRET not in str(refused.value)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(SecretFileError):
            read_secrets(path)
    with pytest.raises(FileNotFoundError):
        read_secrets(tmp_path / "absent")

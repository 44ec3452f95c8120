"""The page behind the real gate on a loopback port, a backend in memory behind it, a real browser before it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import browser
import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page

from reconciler.api.auth import Gate
from reconciler.api.context import Access
from reconciler.api.sessions import COOKIE, Sessions
from reconciler.host.key_file import KeyFile
from reconciler.page.app import page_app

from .page_backend import KEY, RING, FakeBackend


@dataclass
class Site:
    url: str
    backend: FakeBackend
    sessions: Sessions


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    backend, sessions = FakeBackend(), Sessions(lambda: RING)
    listening = socket.create_server(("127.0.0.1", 0))
    app = Gate(page_app(backend, sessions), keys=KeyFile(tmp_path), sessions=sessions, access=Access())
    config = uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}", backend, sessions)
    server.should_exit = True
    thread.join(10)
    listening.close()


# Not for the session; see `browser.chromium`.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.chromium() as opened:
        yield opened


@dataclass
class Watched:
    """A browser's page, and what it complained about."""

    page: Page
    complaints: list[str]


Opener = Callable[..., Watched]


@pytest.fixture
def browse(chromium: Browser, site: Site) -> Iterator[Opener]:
    """Opens a logged-in page; fails at the end if a script got in or the browser complained."""
    contexts: list[BrowserContext] = []
    all_complaints: list[str] = []

    def opened(path: str = "/", **options: Any) -> Watched:
        context = chromium.new_context(**options)
        contexts.append(context)
        made = site.sessions.create(KEY)
        assert made is not None
        context.add_cookies([{"name": COOKIE, "value": made[0], "url": site.url}])
        page = context.new_page()
        page.set_default_timeout(10_000)

        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                all_complaints.append(message.text)

        def on_dialog(dialog: Dialog) -> None:
            all_complaints.append(f"a dialog: {dialog.message}")
            dialog.dismiss()

        page.on("console", on_console)
        page.on("pageerror", lambda error: all_complaints.append(str(error)))
        page.on("dialog", on_dialog)
        page.goto(site.url + path)
        return Watched(page, all_complaints)

    yield opened
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.injected") is None
        with contextlib.suppress(Exception):
            context.close()
    assert all_complaints == []

"""The real browser of the tests: Debian's headless Chromium."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. While it is there an event loop runs in this thread, so not for longer than a module."""
    program = os.environ.get("RECONCILE_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.fail("no chromium here (Debian's package chromium); RECONCILE_CHROMIUM names another one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()

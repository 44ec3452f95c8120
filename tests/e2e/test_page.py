"""A person's walk over the page in real Chromium on the real stack: add, download, load, chat, unload, remove."""

import os
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from stack import LOAD_SECONDS, Stack

pytestmark = pytest.mark.e2e

NAME, REPO = "walked", "test/walked"


@pytest.fixture
def page(stack: Stack) -> Iterator[Page]:
    """A page that is logged in; `stack.page_url` and `stack.admin_key` come with the stack."""
    program = os.environ.get("RECONCILE_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium here; RECONCILE_CHROMIUM names one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(stack.page_url)
        page.get_by_label("Admin key").fill(stack.admin_key)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Models", level=1)).to_be_visible()
        yield page
        browser.close()


def test_a_model_comes_answers_and_goes_by_the_page_alone(page: Page) -> None:
    """The hub of the stack has REPO, slow enough that its bar is seen to move."""
    page.get_by_role("link", name="Add a model").click()
    page.get_by_label("Repository of the hub, or a name of the catalogue").fill(REPO)
    page.get_by_label("Name for clients").fill(NAME)
    page.get_by_role("button", name="Preview the file").click()
    expect(page.get_by_role("region", name="Difference")).to_contain_text(f"repo: {REPO}")
    page.get_by_role("button", name="Add the model").click()

    row = page.get_by_role("article", name=NAME, exact=True)
    bar = row.get_by_role("progressbar")
    expect(bar).to_be_visible(timeout=60_000)
    seen: set[str] = set()
    for _ in range(600):
        if not bar.count():
            break
        if value := bar.first.get_attribute("value", timeout=1000):
            seen.add(value)
        page.wait_for_timeout(100)
    assert len(seen) >= 3

    row.get_by_role("button", name="Load").click()
    expect(row).to_contain_text("loading", timeout=60_000)
    expect(row.locator(".badge")).to_have_text(re.compile("(?<!un)loaded$"), timeout=LOAD_SECONDS * 1000)

    row.get_by_role("link", name=NAME).click()
    page.get_by_role("spinbutton", name="At most").fill("8")
    page.get_by_label("Message").fill("Hello")
    page.get_by_role("button", name="Send").click()
    answer = page.get_by_role("log", name="Conversation").locator(".assistant p")
    expect(answer).not_to_have_text("…", timeout=120_000)
    expect(page.locator(".failed")).to_have_count(0)

    page.get_by_role("button", name=f"Unload {NAME}").click()
    expect(page.get_by_role("button", name=f"Load {NAME}")).to_be_visible(timeout=120_000)

    page.get_by_text("Remove this model…").click()
    page.get_by_role("button", name=f"Remove {NAME}").click()
    expect(page.get_by_role("heading", name="Models", level=1)).to_be_visible()
    expect(page.get_by_role("article", name=NAME, exact=True)).to_have_count(0, timeout=120_000)

"""The page, the API and keys on the real stack: a person's walk in real Chromium, and programs beside it.

The tests of this file stand in an order: each starts from where the one before left the system.
"""

import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import openai
import pytest
from axe_playwright_python.sync_playwright import Axe
from hub_server import Hub, Slow
from playwright.sync_api import Browser, Page, expect
from stack import LOAD_SECONDS, Stack, running_stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

NAME, REPO = "walked", "org/walked"
SCREENSHOTS = os.environ.get("RECONCILE_SCREENSHOTS", "")
"""A folder for pictures of what the walk sees; docs/pictures is made so."""
NOTICED_SECONDS = 20.0
VIEWS = {"models": "/", "gpus": "/gpus", "plan": "/plan", "history": "/history", "activity": "/activity"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Stack]:
    """Nothing is loaded but the demo's chat model."""

    def prepare(stack: Stack) -> None:
        stack.models.mkdir(parents=True)
        text = "source: {repo: unused/unused}\nlifecycle: {policy: manual}\n"
        (stack.models / "all-minilm-l6-v2.yaml").write_text(text)

    with running_stack(tmp_path_factory.mktemp("stack"), hub_url=hub.url, prepare=prepare) as running:
        yield running


@pytest.fixture(scope="module")
def admin_key(stack: Stack) -> str:
    return made_key(stack, "ann", "--scope", "admin")


def made_key(stack: Stack, name: str, *options: str) -> str:
    made = stack.reconcile("keys", "add", name, *options)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.chromium() as opened:
        yield opened


@pytest.fixture
def page(stack: Stack, chromium: Browser, admin_key: str) -> Iterator[Page]:
    """Somebody who is logged in; nothing may go wrong in their console."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(stack.page_url)
    page.get_by_label("Admin key").fill(admin_key)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Models", level=1)).to_be_visible()
    yield page
    context.close()
    assert not wrong


def picture(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png")


def api(stack: Stack, key: str, path: str) -> Any:
    request = urllib.request.Request(stack.page_url + path, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        body = answer.read()
    return json.loads(body) if answer.headers.get_content_type() == "application/json" else body


def test_a_model_comes_answers_and_goes_by_the_page_alone(stack: Stack, hub: Hub, page: Page) -> None:
    weights = stack.state / "demo" / "weights" / "tiny-chat"
    stack.wait_for((weights / "config.json").exists, "the demo's weights", 60)
    hub.repo(REPO, {file.name: file.read_bytes() for file in weights.iterdir()}, pipeline_tag="text-generation")

    page.get_by_role("link", name="Add a model").click()
    page.get_by_label("Repository of the hub, or a name of the catalogue").fill(REPO)
    page.get_by_label("Name for clients").fill(NAME)
    page.get_by_role("button", name="Preview the file").click()
    expect(page.get_by_role("region", name="Difference")).to_contain_text(f"repo: {REPO}")
    picture(page, "add")
    # Slow enough that the bar is seen to move.
    hub.fault(Slow(100_000), path="model.safetensors", times=None)
    page.get_by_role("button", name="Add the model").click()
    row = page.get_by_role("article", name=NAME, exact=True)
    expect(row).to_be_visible(timeout=60_000)
    page.get_by_role("button", name=f"Pull {NAME}").click()
    bar = row.get_by_role("progressbar")
    expect(bar).to_be_visible(timeout=60_000)
    picture(page, "download")
    seen: list[float] = []
    # In one step: the row is exchanged all the time, and its bar goes away when it is full.
    while (value := row.evaluate("row => row.querySelector('progress')?.value ?? null")) is not None:
        seen.append(value)
        page.wait_for_timeout(100)
    hub.clear_faults()
    assert len(set(seen)) >= 3, f"the bar was at {seen}"
    assert seen == sorted(seen), f"the bar went back: {seen}"

    page.get_by_role("button", name=f"Load {NAME}").click()
    expect(row.locator(".badge")).to_have_text(re.compile("(?<!un)loaded$"), timeout=LOAD_SECONDS * 1000)
    picture(page, "models")

    row.get_by_role("link", name=NAME, exact=True).click()
    page.get_by_role("spinbutton", name="At most").fill("8")
    page.get_by_label("Message").fill("Hello")
    page.get_by_role("button", name="Send").click()
    answer = page.get_by_role("log", name="Conversation").locator(".assistant p")
    expect(answer).not_to_have_text("…", timeout=120_000)
    expect(page.locator(".failed")).to_have_count(0)


def test_what_it_does_is_measured(stack: Stack, admin_key: str, page: Page) -> None:
    def requests() -> float:
        found = api(stack, admin_key, f"api/v1/models/{NAME}/metrics")
        points = next(each["points"] for each in found["series"] if each["name"] == "requests")
        return max((point for point in points if point is not None), default=0.0)

    stack.wait_for(lambda: requests() > 0, "the chat is among the last hour's requests", 90)
    page.goto(f"{stack.page_url}models/{NAME}")
    expect(page.get_by_role("heading", name="Last hour")).to_be_visible()
    picture(page, "model")
    text = api(stack, admin_key, "metrics")
    assert f'reconcile_model_state{{model="{NAME}",state="loaded"}} 1.0'.encode() in text
    promtool = shutil.which("promtool")
    assert promtool is not None, "no promtool here (Debian's package prometheus)"
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr.decode()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(stack: Stack, page: Page, theme: Any) -> None:
    page.emulate_media(color_scheme=theme)
    for name, path in {**VIEWS, "model": f"/models/{NAME}"}.items():
        page.goto(stack.page_url.rstrip("/") + path)
        page.wait_for_load_state("load")
        found = Axe().run(page)
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
        if theme == "dark" and name == "activity":
            picture(page, "activity-dark")
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(stack.page_url)
    if theme == "dark":
        picture(page, "phone-dark")


def test_logs_tell_of_all_parts_by_time(stack: Stack) -> None:
    told = stack.reconcile("logs", NAME, "-n", "500", "--output", "json")
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert {"reconciler", "serve", "vllm"} <= {line["origin"] for line in lines}
    times = [line["at"] for line in lines if line["at"] is not None]
    assert times == sorted(times)


def test_keys_at_the_real_front_door(stack: Stack) -> None:
    def ask(key: str, model: str = NAME) -> str:
        with openai.OpenAI(base_url=stack.url, api_key=key, max_retries=0, timeout=120) as client:
            told = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=4
            )
            return told.choices[0].finish_reason

    def listed(key: str) -> set[str]:
        with openai.OpenAI(base_url=stack.url, api_key=key, max_retries=0) as client:
            return {model.id for model in client.models.list()}

    assert ask("none") == "length", "as long as there is no inference key, everybody on this machine may ask"
    key = made_key(stack, "program")
    one = made_key(stack, "one", "--model", "tiny-chat")

    def refused(key: str, model: str = NAME) -> str:
        """Why; empty where it is not."""
        try:
            ask(key, model)
        except openai.APIStatusError as error:
            return str(error.code)
        return ""

    # The edge hears of a key within about a second.
    stack.wait_for(lambda: refused("none") == "invalid_api_key", "the door is closed", NOTICED_SECONDS)
    stack.wait_for(lambda: not refused(key), "the key opens it", NOTICED_SECONDS)
    assert NAME in listed(key)
    with pytest.raises(openai.AuthenticationError):
        listed("none")
    assert listed(one) == {"tiny-chat", "chat"}
    stack.wait_for(lambda: not refused(one, "tiny-chat"), "the other key opens its model", NOTICED_SECONDS)
    assert refused(one) == "model_not_found"
    stack.reconcile("keys", "revoke", "program")
    stack.wait_for(lambda: refused(key) == "invalid_api_key", "a revoked key opens nothing", NOTICED_SECONDS)
    with pytest.raises(openai.AuthenticationError):
        listed(key)


def test_the_chat_of_the_page_needs_no_key_of_its_own(stack: Stack, page: Page) -> None:
    page.goto(f"{stack.page_url}models/{NAME}")
    page.get_by_role("spinbutton", name="At most").fill("4")
    page.get_by_label("Message").fill("Hello again")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("log", name="Conversation").locator(".assistant p")).not_to_have_text(
        "…", timeout=60_000
    )
    expect(page.locator(".failed")).to_have_count(0)


def test_it_is_unloaded_and_removed_by_the_page(stack: Stack, page: Page) -> None:
    page.goto(f"{stack.page_url}models/{NAME}")
    page.get_by_role("button", name=f"Unload {NAME}").click()
    expect(page.get_by_role("button", name=f"Load {NAME}")).to_be_visible(timeout=120_000)
    page.get_by_text("Remove this model…").click()
    page.get_by_role("button", name=f"Remove {NAME}").click()
    expect(page.get_by_role("heading", name="Models", level=1)).to_be_visible()
    expect(page.get_by_role("article", name=NAME, exact=True)).to_have_count(0, timeout=120_000)
    assert not (stack.models / f"{NAME}.yaml").exists()
    backups = list((stack.state / "backups").glob(f"{NAME}.*"))
    assert len(backups) == 1
    assert REPO in backups[0].read_text()
    picture(page, "removed")


def test_nothing_of_it_is_in_a_log(stack: Stack, admin_key: str, tmp_path: Path) -> None:
    kept = [stack.log, *(stack.state / "logs").iterdir(), *(stack.state / "edge").iterdir()]
    for file in kept:
        if file.is_file():
            assert admin_key.encode() not in file.read_bytes(), file

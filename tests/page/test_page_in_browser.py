"""The page in real Chromium, with a backend in memory whose every text tries to break out."""

import re
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from .conftest import Opener, Site
from .page_backend import EVIL, EVIL_NAME, KEY, LONG

VIEWS = {
    "models": "/",
    "gpus": "/gpus",
    "plan": "/plan",
    "history": "/history",
    "activity": "/activity",
    "model": "/models/qwen3-0.6b",
    "evil": f"/models/{quote(EVIL_NAME, safe='')}",
    "catalogue": "/catalogue",
    "add": "/add?repo=Qwen/Qwen3-0.6B",
}
AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
EMPTY = ["/", "/gpus", "/plan", "/history?model=nobody", "/catalogue?q=nothing"]


def violations(page: Page) -> list[str]:
    page.evaluate(AXE)
    found = page.evaluate("axe.run()")["violations"]
    return [f"{each['id']}: {[node['html'][:160] for node in each['nodes']]}" for each in found]


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


def eventually(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_accessible_and_nothing_gets_out_of_its_text(browse: Opener, view: str, theme: Any) -> None:
    page = browse(VIEWS[view], color_scheme=theme, viewport={"width": 1280, "height": 900}).page
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.get_by_text("● live")).to_be_visible()
    for summary in page.locator("summary").all():
        summary.click()
    assert violations(page) == []
    assert page.locator("[style], [onerror], [onload]").count() == 0
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"


@pytest.mark.parametrize("path", EMPTY)
def test_an_empty_view_says_what_to_do(browse: Opener, site: Site, path: str) -> None:
    site.backend.of.clear()
    site.backend.pending = False
    site.backend.nodes = False
    page = browse(path).page
    expect(page.locator(".empty")).to_be_visible()
    assert violations(page) == []


def test_the_page_says_that_the_reconciler_still_starts(browse: Opener, site: Site) -> None:
    site.backend.starting = True
    page = browse().page
    expect(page.get_by_text("has not finished its first look yet")).to_be_visible()
    site.backend.starting = False
    expect(row(page, "qwen3-0.6b")).to_be_visible()


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_needs_no_sideways_scrolling(browse: Opener, view: str) -> None:
    page = browse(VIEWS[view], viewport={"width": 360, "height": 740}, has_touch=True).page
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert violations(page) == []


def test_log_in_with_a_key_and_out_again(chromium: Browser, site: Site) -> None:
    page = chromium.new_context().new_page()
    page.goto(f"{site.url}/plan")
    assert violations(page) == []
    page.get_by_label("Admin key").fill("rk-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("no valid admin key")
    page.get_by_label("Admin key").fill(KEY)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Pending plan")).to_be_visible()
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    page.goto(f"{site.url}/plan")
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    page.context.close()


def test_both_states_and_the_reason_are_in_the_row(browse: Opener) -> None:
    page = browse().page
    waiting = row(page, "qwen3-8b")
    expect(waiting).to_contain_text("on_demand")
    expect(waiting).to_contain_text("unloaded")
    expect(waiting).to_contain_text("its weights are being downloaded")
    assert waiting.get_by_role("progressbar").get_attribute("value") == "25.0"
    expect(row(page, "org/broken")).to_contain_text("CUDA out of memory")
    expect(page.get_by_role("region", name="Mistakes in files")).to_contain_text("models.d/evil.yaml:2:9:")


def test_what_is_hostile_is_shown_as_what_it_is(browse: Opener) -> None:
    page = browse().page
    shown = EVIL.replace("\u202e", "\\u202e").replace("\u202c", "\\u202c")
    expect(page.get_by_text(shown).first).to_be_visible()
    assert "\u202e" not in page.inner_text("body")
    page.get_by_role("link", name="<img src=x").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("<img src=x onerror=window.injected=1>")
    # In the field it is exact, so that saving it changes nothing else.
    assert page.get_by_label("The file").input_value() == f"# {EVIL}\nsource: [\n"


def test_one_click_changes_the_row_in_place_and_an_event_moves_it_on(browse: Opener, site: Site) -> None:
    page = browse().page
    expect(page.get_by_text("● live")).to_be_visible()
    page.evaluate("window.same = true")
    row(page, "qwen3-8b").get_by_role("button", name="Load").click()
    expect(row(page, "qwen3-8b")).to_contain_text("loading")
    expect(page.get_by_role("status").filter(has_text="load of qwen3-8b is asked for")).to_be_visible()
    started = time.monotonic()
    site.backend.set_state("qwen3-8b", "loaded")
    expect(row(page, "qwen3-8b").get_by_role("button", name="Unload")).to_be_visible()
    assert time.monotonic() - started < 3
    for name, action in (("embed", "Unpin"), ("qwen3-8b", "Pull"), (LONG, "Suspend"), ("org/broken", "Resume")):
        row(page, name).get_by_role("button", name=action).click()
        told = page.locator("#notice")
        expect(told).to_contain_text("is suspended" if name == "org/broken" else f"{action.lower()} of {name}")
    assert [(action, name) for action, name, _ in site.backend.done] == [
        ("load", "qwen3-8b"), ("unpin", "embed"), ("pull", "qwen3-8b"), ("suspend", LONG),
    ]  # fmt: skip
    assert page.evaluate("window.same")


def test_a_download_moves_by_itself(browse: Opener, site: Site) -> None:
    page = browse().page
    bar = row(page, "qwen3-8b").get_by_role("progressbar")
    expect(bar).to_have_attribute("value", "25.0")
    old = site.backend.of["qwen3-8b"]
    more = old.weights[0].model_copy(update={"done": 8 * 1024**3})
    site.backend.of["qwen3-8b"] = old.model_copy(update={"weights": (more,)})
    expect(bar).to_have_attribute("value", "50.0")


def test_focus_stays_where_it_was_when_a_row_is_renewed(browse: Opener, site: Site) -> None:
    page = browse().page
    button = row(page, "mixtral").get_by_role("button", name="Pin")
    button.focus()
    site.backend.of["mixtral"] = site.backend.of["mixtral"].model_copy(update={"reason": "3 requests wait for it"})
    site.backend.happen("model.state_changed", model="mixtral")
    expect(row(page, "mixtral")).to_contain_text("3 requests")
    expect(button).to_be_focused()


def test_events_that_were_missed_come_after_the_connection_is_back(browse: Opener, site: Site) -> None:
    page = browse("/activity").page
    expect(page.get_by_text("● live")).to_be_visible()
    site.backend.happen("model.ready", model=EVIL_NAME, note=EVIL)
    events = page.get_by_role("log", name="Events")
    expect(events.locator("> div")).to_have_count(1)
    expect(events).to_contain_text("model.ready")
    page.context.set_offline(True)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    eventually(lambda: site.backend.listeners >= 1)
    site.backend.happen("model.failed", model="mixtral")
    page.context.set_offline(False)
    expect(events.locator("> div")).to_have_count(2)
    expect(page.get_by_role("log", name="Log lines")).to_contain_text("live line")
    page.goto("about:blank")
    eventually(lambda: site.backend.listeners == 0)


def test_the_keyboard_alone_loads_a_model(browse: Opener, site: Site) -> None:
    page = browse().page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    wanted = row(page, LONG).get_by_role("button", name="Load")
    for _ in range(60):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", page.evaluate("document.activeElement.outerHTML")
        if wanted.evaluate("it => it === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(row(page, LONG)).to_contain_text("loading")
    assert site.backend.done[0][:2] == ("load", LONG)


def test_the_theme_is_chosen_and_kept(browse: Opener) -> None:
    page = browse(color_scheme="dark").page
    button = page.get_by_role("button", name="Theme")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button.click()
    expect(button).to_have_text("Theme: light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light


def test_the_plan_is_applied_after_it_was_confirmed(browse: Opener, site: Site) -> None:
    page = browse("/plan").page
    expect(page.get_by_text("engine.max_model_len")).to_be_visible()
    expect(page.get_by_role("button", name="Apply now")).to_be_hidden()
    page.get_by_text("Apply this plan…").click()
    page.get_by_role("button", name="Apply now").click()
    expect(page.get_by_text("2 changes are applied")).to_be_visible()
    expect(page.get_by_role("heading", name="Nothing is pending")).to_be_visible()
    assert not site.backend.pending


def test_the_plan_renews_itself_but_not_while_it_is_being_confirmed(browse: Opener, site: Site) -> None:
    page = browse("/plan").page
    expect(page.get_by_text("● live")).to_be_visible()
    expect(page.get_by_text("reconcile --dangerous-allow-removals", exact=True)).to_be_visible()
    page.get_by_text("The plan as text").click()
    page.evaluate("document.getElementById('plan').old = true")
    site.backend.happen("source.changed")
    eventually(lambda: not page.evaluate("document.getElementById('plan').old"))
    expect(page.get_by_role("region", name="The plan as text")).to_be_visible()
    page.get_by_text("Apply this plan…").click()
    site.backend.pending = False
    with page.expect_response("**/plan"):
        site.backend.happen("source.changed")
    page.wait_for_timeout(200)
    expect(page.get_by_role("button", name="Apply now")).to_be_visible()
    page.get_by_text("Apply this plan…").click()
    site.backend.happen("source.changed")
    expect(page.get_by_role("heading", name="Nothing is pending")).to_be_visible()


def test_what_can_be_done_by_hand_renews_itself_but_not_while_it_is_filled_in(browse: Opener, site: Site) -> None:
    page = browse("/models/embed").page
    expect(page.get_by_text("● live")).to_be_visible()
    expect(page.get_by_role("button", name="End rollback")).to_have_count(0)
    why = page.get_by_label("Why")
    why.fill("a demonstration")
    page.evaluate("document.activeElement.blur()")
    old = site.backend.of["embed"]
    site.backend.of["embed"] = old.model_copy(update={"rolled_back": f"it was rolled back {EVIL}"})
    with page.expect_response("**/models/embed"):
        site.backend.happen("rollback.given", model="embed")
    page.wait_for_timeout(200)
    expect(why).to_have_value("a demonstration")
    why.fill("")
    page.evaluate("document.activeElement.blur()")
    site.backend.happen("rollback.given", model="embed")
    page.get_by_role("button", name="End rollback").click()
    expect(page.get_by_role("status").filter(has_text="rollback of embed")).to_be_visible()
    assert site.backend.done == [("rollback", "embed", {"end": True})]
    assert violations(page) == []


def test_all_are_suspended_and_resumed(browse: Opener) -> None:
    page = browse().page
    page.get_by_role("button", name="Suspend all").click()
    expect(page.locator("#overview .notice").filter(has_text="all models are suspended")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Resume all").click()
    expect(page.get_by_text("1 suspensions have ended")).to_be_visible()
    expect(page.get_by_role("button", name="Suspend all")).to_be_visible()


def test_a_file_is_changed_after_a_look_at_the_difference(browse: Opener, site: Site) -> None:
    page = browse("/models/qwen3-0.6b").page
    field = page.get_by_label("models.d/qwen3-0.6b.yaml")
    field.fill("nonsense: true\n")
    page.get_by_role("button", name="Preview the change").click()
    expect(page.get_by_role("region", name="Not written")).to_contain_text("source is missing")
    expect(page.get_by_role("button", name="Save")).to_have_count(0)
    page.get_by_label("models.d/qwen3-0.6b.yaml").fill("source:\n  repo: Qwen/Qwen3-8B\n")
    page.get_by_role("button", name="Preview the change").click()
    expect(page.get_by_role("region", name="Difference")).to_contain_text("+  repo: Qwen/Qwen3-8B")
    assert violations(page) == []
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("is kept as backups/it.yaml")).to_be_visible()
    assert site.backend.of["qwen3-0.6b"].text == "source:\n  repo: Qwen/Qwen3-8B\n"


def test_a_file_that_changed_meanwhile_is_not_overwritten(browse: Opener, site: Site) -> None:
    page = browse("/models/qwen3-0.6b").page
    old = site.backend.of["qwen3-0.6b"]
    site.backend.of["qwen3-0.6b"] = old.model_copy(update={"text": "source:\n  repo: other/one\n"})
    page.get_by_role("button", name="Preview the change").click()
    expect(page.get_by_role("region", name="Not written")).to_contain_text("changed by somebody else")


def test_a_model_is_added_from_the_catalogue_and_removed(browse: Opener, site: Site) -> None:
    del site.backend.of["qwen3-0.6b"]
    page = browse("/catalogue").page
    page.get_by_label("Search").fill("qwen3")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="Add qwen3-0.6b").click()
    page.get_by_role("button", name="Preview the file").click()
    expect(page.get_by_role("region", name="Difference")).to_contain_text("repo: Qwen/Qwen3-0.6B")
    page.get_by_role("button", name="Add the model").click()
    expect(page.get_by_text("models.d/qwen3-0.6b.yaml is written")).to_be_visible()
    row(page, "qwen3-0.6b").get_by_role("link", name="qwen3-0.6b").click()
    page.get_by_text("Remove this model…").click()
    page.get_by_role("button", name="Remove qwen3-0.6b").click()
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    expect(row(page, "qwen3-0.6b")).to_have_count(0)


def test_in_git_a_removal_is_a_patch(browse: Opener, site: Site) -> None:
    page = browse("/models/embed").page
    page.get_by_text("Remove this model…").click()
    page.get_by_role("button", name="Remove embed").click()
    expect(page.get_by_role("region", name="Patch")).to_contain_text("Subject: remove <script>")
    assert "embed" in site.backend.of


def test_the_chat_streams_its_answer_and_goes_on(browse: Opener) -> None:
    page = browse("/models/qwen3-0.6b").page
    talk = page.get_by_role("log", name="Conversation")
    page.get_by_label("Message").fill("Hello <b>there</b>")
    page.keyboard.press("Enter")
    expect(talk).to_contain_text("(1 messages, 512 tokens)")
    expect(talk).to_contain_text("<script>window.injected=1</script>")
    page.get_by_role("spinbutton", name="At most").fill("7")
    page.get_by_label("Message").fill("And now?")
    page.get_by_role("button", name="Send").click()
    expect(talk).to_contain_text("(3 messages, 7 tokens)")
    page.get_by_label("Message").fill("fail")
    page.get_by_role("button", name="Send").click()
    expect(talk).to_contain_text("it does not come up")
    page.get_by_role("button", name="Start over").click()
    expect(talk).to_be_hidden()
    assert violations(page) == []


def test_without_javascript_the_buttons_and_forms_work(browse: Opener, site: Site) -> None:
    context: dict[str, Any] = {"java_script_enabled": False}
    page = browse(**context).page
    row(page, "qwen3-8b").get_by_role("button", name="Load").click()
    expect(page.get_by_role("status")).to_contain_text("load of qwen3-8b is asked for")
    expect(row(page, "qwen3-8b")).to_contain_text("loading")
    row(page, "org/broken").get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status")).to_contain_text("org/broken is suspended")
    page.get_by_role("button", name="Sync now").click()
    expect(page.get_by_role("status")).to_contain_text("nothing new")
    page.get_by_role("link", name="qwen3-0.6b").first.click()
    page.get_by_label("Why").fill("a demonstration")
    page.get_by_label("Leave it as it is").select_option("for 8 hours")
    page.get_by_role("button", name="Suspend", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("suspend of qwen3-0.6b")
    assert site.backend.done[-1] == ("suspend", "qwen3-0.6b", {"seconds": 28800.0, "reason": "a demonstration"})
    page.get_by_label("Message").fill("Hello")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("log", name="Conversation")).to_contain_text("(1 messages, 512 tokens)")
    page.get_by_role("link", name="Plan").click()
    page.get_by_text("Apply this plan…").click()
    page.get_by_role("button", name="Apply now").click()
    expect(page.get_by_role("status")).to_contain_text("2 changes are applied")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Admin key")).to_be_visible()


def test_gpu_bars_say_their_numbers_in_words_too(browse: Opener) -> None:
    page = browse("/gpus").page
    now = page.get_by_role("img", name=re.compile("^Now: 54.0 GiB of 80.0 GiB, qwen3-0.6b 21.0 GiB"))
    expect(now).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^After the plan: 64.0 GiB of 80.0 GiB"))).to_be_visible()
    widths = now.locator("rect:not(.free)").evaluate_all("all => all.map(it => it.getBoundingClientRect().width)")
    whole = now.evaluate("it => it.getBoundingClientRect().width")
    assert [round(80 * width / whole) for width in widths] == [3, 21, 30]
    expect(page.get_by_text("This node has no GPU.")).to_be_visible()


def test_a_session_that_ended_leads_back_to_the_form(browse: Opener, site: Site) -> None:
    page = browse().page
    # Else a connection that is only being made is refused, and the browser complains of it.
    expect(page.get_by_text("● live")).to_be_visible()
    cookie = page.context.cookies()[0]
    site.sessions.end(cookie["value"])
    row(page, "qwen3-8b").get_by_role("button", name="Load").click()
    expect(page.get_by_label("Admin key")).to_be_visible()
    assert site.backend.done == []

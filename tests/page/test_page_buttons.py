"""The page over the real operations: it offers what would be carried out, and changes files by their bytes."""

import hashlib
import html
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from api.reconciler_here import Here
from structlog.testing import capture_logs

from reconciler.api.sessions import COOKIE
from reconciler.cli.main import cli
from reconciler.core.safety import ALLOW_FLAG
from reconciler.core.windows import Window
from reconciler.loop.new_models import NewModel
from reconciler.page.app import page_app
from reconciler.page.operated import ChatDoor, Operated
from reconciler.page.show import STATIC

_BUTTON = re.compile(r'(?:formaction|action)="/do/([a-z-]+)"')


def _no_new_model(repo: str, name: str | None, revision: str | None) -> NewModel:
    raise AssertionError((repo, name, revision))


class Person:
    """Somebody who is logged in."""

    def __init__(self, here: Here) -> None:
        self.here = here
        app = page_app(
            Operated(here.context, _no_new_model, ChatDoor("http://127.0.0.1:9", "")), here.context.sessions
        )
        made = here.context.sessions.create(here.admin)
        assert made is not None
        cookie, self._csrf = made
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://127.0.0.1:4002",
            cookies={COOKIE: cookie},
            headers={"origin": "http://127.0.0.1:4002", "sec-fetch-site": "same-origin", "accept": "text/html"},
        )

    async def see(self, path: str, *, part: bool = False) -> str:
        answer = await self._client.get(path, headers={"hx-request": "true"} if part else {})
        assert answer.status_code == 200, answer.text
        return answer.text

    async def post(self, path: str, **fields: str) -> str:
        """What the page says after it."""
        answer = await self._client.post(path, data={"csrf": self._csrf, **fields})
        if answer.status_code == 200:
            return answer.text
        assert answer.status_code == 303, answer.text
        return await self.see(answer.headers["location"])

    async def press(self, action: str, **fields: str) -> str | None:
        """Why a button was in vain; None where it was not."""
        found = re.search(r'<p class="notice bad">(.*?)</p>', await self.post(f"/do/{action}", **fields))
        return found and found.group(1)


Situation = Callable[[Here, Person], Awaitable[Any]]


async def _as_it_is(here: Here, person: Person) -> None:
    pass


def _pressed(*actions: str, **fields: str) -> Situation:
    async def press(here: Here, person: Person) -> None:
        for action in actions:
            assert await person.press(action, **fields) is None
        await here.loop.turn()

    return press


async def _window(here: Here, person: Person) -> None:
    here.loop.world.windows["qwen"] = Window(True, None, 600.0, "open for another 10 min")
    await here.loop.reconcile_now(here.loop.options)


async def _loaded(here: Here, person: Person) -> None:
    assert await person.press("load", model="qwen") is None
    await here.loop.reconcile_now(here.loop.options)


async def _invalid(here: Here, person: Person) -> None:
    (here.models / "qwen.yaml").write_text("source: {repo: o/m}\nengine: {max_model_len: many}\n")
    await here.loop.turn()


async def _suspended_both(here: Here, person: Person) -> None:
    await _pressed("suspend", "suspend-all", model="base")(here, person)


async def _rolled_back(here: Here, person: Person) -> None:
    file = here.models / "base.yaml"
    file.write_text(file.read_text().replace("1024", "2048"))
    await here.loop.reconcile_now(here.loop.options)
    await _pressed("rollback", model="base")(here, person)


SITUATIONS: dict[str, tuple[Situation, str, set[str], set[str]]] = {
    # What led to it, the model, its buttons of one click, and those of the form on its page.
    "pinned by its file": (_as_it_is, "base", {"unpin", "suspend"}, {"unload", "suspend", "rollback"}),
    "that, unpinned": (
        _pressed("unpin", model="base"),
        "base",
        {"pin", "suspend"},
        {"unload", "suspend", "rollback"},
    ),
    "that, kept away": (
        _pressed("unload", model="base", seconds="3600"),
        "base",
        {"load", "pin", "unpin", "suspend"},
        {"unload", "suspend", "rollback"},
    ),
    "at rest": (_as_it_is, "qwen", {"load", "pin", "suspend"}, {"pin", "unload", "suspend", "rollback"}),
    "loaded": (_loaded, "qwen", {"unload", "pin", "suspend"}, {"pin", "unload", "suspend", "rollback"}),
    "pinned by hand": (
        _pressed("pin", model="qwen"),
        "qwen",
        {"unload", "unpin", "suspend"},
        {"pin", "unload", "suspend", "rollback"},
    ),
    "in its window": (_window, "qwen", {"pin", "unpin", "suspend"}, {"pin", "unload", "suspend", "rollback"}),
    "suspended": (_pressed("suspend", model="qwen"), "qwen", {"pin", "resume"}, {"pin", "suspend", "rollback"}),
    "all suspended": (_pressed("suspend-all", model="qwen"), "qwen", {"pin"}, {"pin", "suspend", "rollback"}),
    "suspended twice": (_suspended_both, "base", {"unpin", "resume"}, {"suspend", "rollback"}),
    "with mistakes": (_invalid, "qwen", set(), set()),
    "rolled back": (_rolled_back, "base", {"unpin", "suspend"}, {"unload", "suspend", "rollback"}),
}


async def _come_to(folder: Path, situation: Situation) -> Person:
    folder.mkdir()  # noqa: ASYNC240 -- nothing else waits
    here = Here(folder)
    await here.loop.reconcile_now(here.loop.options)
    person = Person(here)
    await situation(here, person)
    return person


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    with capture_logs():
        made = Here(tmp_path)
        await made.loop.reconcile_now(made.loop.options)
        yield made


@pytest.mark.parametrize("name", SITUATIONS)
async def test_the_buttons_are_those_that_are_not_in_vain(tmp_path: Path, name: str) -> None:
    situation, model, of_a_click, of_the_form = SITUATIONS[name]
    with capture_logs():
        person = await _come_to(tmp_path / "first", situation)
        overview = await person.see("/")
        row = await person.see(f"/parts/row?name={model}", part=True)
        state = await person.see(f"/parts/model?name={model}", part=True)
        form = await person.see(f"/models/{model}", part=True)
        assert _offered(row) == _offered(state) == of_a_click
        assert _offered(form) == of_the_form
        for action, fields in [
            *((each, {}) for each in of_a_click),
            *((each, {"seconds": "3600"}) for each in of_the_form - {"rollback"}),
        ]:
            other = await _come_to(tmp_path / f"{action}-{len(fields)}", situation)
            assert await other.press(action, model=model, **fields) is None, (action, fields)
        of_all = "resume-all" if "/do/resume-all" in overview else "suspend-all"
        assert f"/do/{of_all}" in overview
        assert (of_all == "resume-all") is ("all suspended" in name or "twice" in name)
        assert await person.press(of_all) is None
        assert bool(person.here.loop.suspensions.active()) is (of_all == "suspend-all")


def _offered(text: str) -> set[str]:
    return set(_BUTTON.findall(text))


async def test_what_was_asked_for_by_hand_is_ended_where_the_file_pins(here: Here) -> None:
    person = Person(here)
    assert await person.press("unpin", model="base") is None
    await here.loop.turn()
    assert "End what holds by hand" in await person.see("/parts/row?name=base", part=True)
    assert await person.press("pin", model="base") is None
    assert here.loop.overrides.active() == {}


async def test_a_reason_is_asked_for_where_it_goes_somewhere(here: Here) -> None:
    person = Person(here)
    form = await person.see("/models/base", part=True)
    actions = {tuple(sorted(_offered(each))): 'name="reason"' in each for each in form.split("</form>")[:-1]}
    assert actions == {("unload",): False, ("suspend",): True, ("rollback",): False}
    assert await person.press("suspend", model="base", seconds="", reason="why not") is None
    assert [each.reason for each in here.loop.suspensions.active()] == ["why not"]


async def test_a_rollback_is_ended_on_the_page(tmp_path: Path) -> None:
    with capture_logs():
        person = await _come_to(tmp_path / "it", _rolled_back)
        form = await person.see("/models/base", part=True)
        assert "End rollback" in form
        assert "it was rolled back by hand" in form
        assert await person.press("rollback", model="base", end="1") is None
        assert person.here.loop.rollbacks.active() == ()
        assert "End rollback" not in await person.see("/models/base", part=True)


async def test_a_file_that_is_no_text_is_mended_and_removed(here: Here) -> None:
    person, file = Person(here), here.models / "base.yaml"
    whole = file.read_bytes()
    for action in ("edit", "remove"):
        file.write_bytes(whole + b"# \xff\n")
        page = await person.see("/models/base")
        digest = page.partition('name="digest" value="')[2][:64]
        assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
        done = await person.post(f"/file/{action}", model="base", digest=digest, text=whole.decode(), step="write")
        assert "base.yaml is written" in done
        assert not file.exists() if action == "remove" else file.read_bytes() == whole


@pytest.mark.parametrize(
    ("before", "after"),
    [("\r\n", "\r\n"), ("\n", "\n"), ("mixed", "\n")],
)
async def test_line_ends_stay_as_they_were(here: Here, before: str, after: str) -> None:
    person, file = Person(here), here.models / "base.yaml"
    lines = file.read_text().splitlines()
    ends = ["\r\n", *["\n"] * (len(lines) - 1)] if before == "mixed" else [before] * len(lines)
    file.write_bytes("".join(line + end for line, end in zip(lines, ends, strict=True)).encode())
    await here.loop.turn()
    page = await person.see("/models/base")
    digest = page.partition('name="digest" value="')[2][:64]
    typed = "".join(f"{line}\r\n" for line in [*lines, "# more"])
    fields = {"model": "base", "digest": digest, "text": typed}
    if before != "mixed":
        preview = await person.post("/file/edit", **fields, step="preview")
        changed = re.findall(r'<span class="(?:plus|minus)">(.*)', preview)
        assert [html.unescape(line).strip() for line in changed] == ["+# more"]
    await person.post("/file/edit", **fields, step="write")
    assert file.read_bytes() == "".join(f"{line}{after}" for line in [*lines, "# more"]).encode()


def _commands() -> list[tuple[str, str]]:
    found = []
    for template in sorted((STATIC.parent / "templates").iterdir()):
        text = template.read_text(encoding="utf-8")
        found += [(template.name, words) for words in re.findall(r"<code>reconcile([^<]*)</code>", text)]
    return found


@pytest.mark.parametrize(("template", "words"), _commands())
def test_commands_that_the_page_names_exist(template: str, words: str) -> None:
    command: click.Command = cli
    for word in words.replace("{{ each.flag }}", ALLOW_FLAG).split():
        if word.startswith("-"):
            assert word in {each for option in command.params for each in option.opts}, f"{template}: {words}"
        elif isinstance(command, click.Group):
            assert word in command.commands, f"{template}: {words}"
            command = command.commands[word]


def test_the_templates_name_commands() -> None:
    assert {template for template, _ in _commands()} >= {"part_plan.html", "model.html", "part_by_hand.html"}

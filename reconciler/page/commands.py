"""What the page's buttons do: commands about models, the plan and the source; and the change of files."""

import json
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from reconciler.api.schemas import EditView
from reconciler.loop.by_hand import CommandRefusedError
from reconciler.page.backend import Backend
from reconciler.page.guard import Visit, local_path
from reconciler.page.looking import Looking
from reconciler.page.show import visible
from reconciler.page.told import Told

ACTIONS = ("load", "unload", "pin", "unpin", "suspend", "resume", "pull", "rollback")
OF_ALL = ("suspend-all", "resume-all")
_TIMED = frozenset({"load", "unload", "pin", "suspend", "rollback"})
_LONGEST_SECONDS = 366 * 86400.0
_LONGEST_TEXT = 500


class Commands:
    """Handlers of what is posted. Each answers with a redirect, or with a part where htmx asked."""

    def __init__(self, backend: Backend, looking: Looking, told: Told) -> None:
        self._backend = backend
        self._looking = looking
        self._told = told

    async def do(self, visit: Visit) -> Response:
        """`POST /do/ACTION`: a command about one model, or about all."""
        action = visit.request.path_params["action"]
        if action in OF_ALL:
            return self._of_all(visit, action)
        if action not in ACTIONS:
            raise HTTPException(404, "there is no such command")
        model = visit.wanted("model")
        try:
            text, bad = (await self._backend.do(action, model, **_options(action, visit.form))).text, False
        except CommandRefusedError as error:
            text, bad = _refused(error), True
        if visit.by_htmx and visit.form.get("part") == "row":
            answer = self._looking.row(visit.session, await self._backend.model(model))
            # For the script of the page, which tells it.
            answer.headers["HX-Trigger"] = json.dumps({"told": {"text": visible(text), "bad": bad}})
            return answer
        return self._back(visit, text, bad=bad)

    async def sync(self, visit: Visit) -> Response:
        """`POST /sync`: look at the source now."""
        return await self._say(visit, self._backend.sync())

    async def apply(self, visit: Visit) -> Response:
        """`POST /plan/apply`: the plan that was read, and no other."""
        desired, observed = visit.form.get("desired", ""), visit.form.get("observed", "")
        return await self._say(visit, self._backend.apply_plan(desired, observed))

    async def add_form(self, visit: Visit) -> Response:
        """`GET /add`: a model to come."""
        query = visit.request.query_params
        fields = {name: query.get(name, "")[:_LONGEST_TEXT] for name in ("repo", "name", "revision")}
        return self._looking.page(visit, "add.html", fields=fields, edit=None, why="")

    async def add(self, visit: Visit) -> Response:
        """`POST /add`: show the file that would be written, or write it."""
        fields = {name: visit.form.get(name, "").strip()[:_LONGEST_TEXT] for name in ("repo", "name", "revision")}
        asked = (visit.wanted("repo")[:_LONGEST_TEXT], fields["name"] or None, fields["revision"] or None)
        writes = visit.form.get("step") == "write"
        try:
            if writes:
                edit = await self._backend.add(*asked, author=visit.session.name)
            else:
                edit = await self._backend.add_preview(*asked)
        except CommandRefusedError as error:
            return self._looking.page(
                visit, "add.html", error.status, fields=fields, edit=None, why=_refused(error)
            )
        if writes and not edit.problems:
            return self._written(visit, edit, "/")
        return self._looking.page(visit, "add.html", fields=fields, edit=edit, why="")

    async def edit(self, visit: Visit) -> Response:
        """`POST /file/edit`: show what a change of a model's file would be, or make it."""
        model, digest = visit.wanted("model"), visit.wanted("digest")
        text = _as_before(visit.form.get("text", ""), (await self._backend.model(model)).text or "")
        writes = visit.form.get("step") == "write"
        try:
            if writes:
                edit = await self._backend.edit(model, text, digest, author=visit.session.name)
            else:
                edit = await self._backend.edit_preview(model, text, digest)
        except CommandRefusedError as error:
            edit = EditView(path="", diff="", problems=(_refused(error),))
        if writes and not edit.problems:
            return self._written(visit, edit, f"/models/{quote(model, safe='')}")
        return await self._looking.edited(visit, model, edit=edit, draft=text, digest=digest)

    async def remove(self, visit: Visit) -> Response:
        """`POST /file/remove`: remove a model's file."""
        model, digest = visit.wanted("model"), visit.wanted("digest")
        try:
            edit = await self._backend.remove(model, digest, author=visit.session.name)
        except CommandRefusedError as error:
            edit = EditView(path="", diff="", problems=(_refused(error),))
        if edit.problems:
            self._told.tell(visit.session.csrf, "; ".join(edit.problems), bad=True)
            return RedirectResponse(f"/models/{quote(model, safe='')}", status_code=303)
        return self._written(visit, edit, "/")

    def _of_all(self, visit: Visit, action: str) -> Response:
        try:
            resumes = action == "resume-all"
            done = self._backend.resume(None) if resumes else self._backend.suspend(None, None, "")
        except CommandRefusedError as error:
            return self._back(visit, _refused(error), bad=True)
        return self._back(visit, done.text)

    def _written(self, visit: Visit, edit: EditView, back: str) -> Response:
        if edit.patch is not None:
            return self._looking.page(visit, "patch.html", edit=edit, back=back)
        if edit.commit is not None:
            text = f"Committed {edit.path} as {edit.commit[:12]}"
            text += f" on the branch {edit.branch}: it takes effect once it is merged." if edit.branch else "."
        else:
            text = f"{edit.path} is written" if edit.written else f"{edit.path} is the same as before"
            text += f"; the file as it was is kept as {edit.backup}." if edit.backup else "."
        self._told.tell(visit.session.csrf, text)
        return RedirectResponse(back, status_code=303)

    async def _say(self, visit: Visit, work: Any) -> Response:  # noqa: ANN401 -- a coroutine that gives Done
        try:
            return self._back(visit, (await work).text)
        except CommandRefusedError as error:
            return self._back(visit, _refused(error), bad=True)

    def _back(self, visit: Visit, text: str, *, bad: bool = False) -> Response:
        self._told.tell(visit.session.csrf, text, bad=bad)
        return RedirectResponse(local_path(visit.form.get("back", "/")), status_code=303)


def _options(action: str, form: dict[str, str]) -> dict[str, Any]:
    """The options of an action that the form names."""
    if action == "rollback" and form.get("end"):
        return {"end": True}
    options: dict[str, Any] = {}
    if action in _TIMED and (seconds := form.get("seconds", "").strip()):
        options["seconds"] = _seconds(seconds)
    if action in ("suspend", "rollback") and (reason := form.get("reason", "").strip()):
        options["reason"] = reason[:_LONGEST_TEXT]
    if action == "rollback" and (revision := form.get("to", "").strip()):
        options["to"] = revision[:_LONGEST_TEXT]
    return options


def _as_before(text: str, before: str) -> str:
    """A text with the line ends of the file that it changes: a browser sends all of a text area as CR LF.

    Args:
        text: As the browser sends it.
        before: The file as it is; where its line ends are of both kinds, they become LF.
    """
    text = text.replace("\r\n", "\n")
    crlf = before.count("\r\n")
    return text.replace("\n", "\r\n") if crlf and crlf == before.count("\n") else text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= _LONGEST_SECONDS:
        raise HTTPException(400, "the time is no number of seconds from 1 to a year")
    return seconds


def _refused(error: CommandRefusedError) -> str:
    near = f" Did you mean {', '.join(error.near)}?" if error.near else ""
    return f"{error}{near}"

"""What the API and the page answer with: each question as a method, without HTTP. Behind it are the operations.

Every method raises `CommandRefusedError` where it cannot be answered or is not carried out.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from reconciler.api.asked import Rollback
from reconciler.api.context import Context
from reconciler.api.history import History
from reconciler.api.schemas import (
    CatalogueRow,
    ClusterView,
    Done,
    EditView,
    HistoryView,
    LogLine,
    LogView,
    ModelDetail,
    ModelList,
    ModelMetrics,
    PlanView,
    SourceView,
    WeightsView,
)
from reconciler.api.serve_status import log_files
from reconciler.api.views import (
    cluster_view,
    edit_view,
    file_of,
    model_detail,
    model_list,
    plan_view,
    source_view,
    weights_view,
)
from reconciler.core.catalogue import CATALOGUE, Entry, search
from reconciler.core.edit import EditError, File, NoFileError
from reconciler.core.log_lines import LogLine as Line
from reconciler.core.overrides import Kind
from reconciler.core.rollback import Rollback as Holding
from reconciler.core.weights import Copy, CopyState, Phase, in_words
from reconciler.host.event_feed import FeedEvent
from reconciler.loop.by_hand import BAD_REQUEST, CONFLICT, NOT_FOUND, CommandRefusedError
from reconciler.loop.rollbacks import RollbackAsked, RollbackStore, RollbacksUnreadableError
from reconciler.ray_serve.client import ServeRefusedError, ServeUnreachableError

_LONGEST_QUERY = 200
_BY_HAND = frozenset(kind.value for kind in Kind)


class Answers:
    """The questions that can be asked of one reconciler."""

    def __init__(self, context: Context) -> None:
        """Ask nothing yet."""
        self._context = context
        self._operations = context.operations
        self._history = History(context.state_dir)

    # --- looking ------------------------------------------------------------------------------------------

    async def models(self) -> ModelList:
        """All models."""
        return model_list(self._operations.last(), await self._history.newest())

    async def model(self, name: str) -> ModelDetail:
        """One of them, by its name, an alias or an adapter; refused with 404 where there is none."""
        look, model = self._operations.last(), self._operations.named(name)
        found = model_detail(
            look,
            model,
            await self._history.newest(),
            file=await self._read(file_of(look, model)),
            logs=await self._logs_of(look.observed.routes.get(model)),
            rollback=await asyncio.to_thread(self._rollback_of, model),
        )
        if found is None:
            raise CommandRefusedError(NOT_FOUND, f"there is no model {model!r}")
        return found

    async def plan(self, *, fresh: bool = False) -> PlanView:
        """The plan of the last turn, or of a look now."""
        return plan_view(await self._operations.fresh() if fresh else self._operations.last())

    async def cluster(self) -> ClusterView:
        """Nodes and GPUs."""
        return cluster_view(self._operations.last())

    async def history(self, model: str | None, limit: int) -> list[HistoryView]:
        """The newest lines of the journal, the newest first."""
        return await self._history.about(model, limit)

    async def downloads(self) -> list[WeightsView]:
        """What is being fetched, and what could not be."""
        return [weights_view(row) for row in self._operations.downloads()["copies"]]

    async def source(self) -> SourceView:
        """Where the files come from."""
        return source_view(self._operations.last(), self._context.source)

    async def catalogue(self, words: str) -> list[CatalogueRow]:
        """Well-known models that match, or are near; all of them for no word."""
        return [_row(entry) for entry in (search(words[:_LONGEST_QUERY]) if words.strip() else CATALOGUE)]

    async def model_metrics(self, name: str) -> ModelMetrics | None:
        """Measures of the last hour; None where nothing is measured."""
        return self._context.model_metrics(self._operations.named(name))

    async def logs(self, model: str | None, lines: int) -> LogView:
        """The last lines, oldest first; of everything where no model is named."""
        name = None if model is None else self._operations.named(model)
        return LogView(lines=tuple(map(line_of, await self._context.logs.tail(name, lines))))

    # --- doing --------------------------------------------------------------------------------------------

    async def do(self, action: str, model: str, **options: Any) -> Done:  # noqa: ANN401 -- as the action has them
        """Carry out `load`, `unload`, `pin`, `unpin`, `suspend`, `resume`, `pull` or `rollback`.

        Args:
            action: One of these.
            model: Its name, or an alias or adapter of it.
            options: `seconds` for all but `resume` and `pull`, `reason` for `suspend` and `rollback`, `to` and
                `end` for `rollback`.
        """
        if action in _BY_HAND:
            given = self._operations.give(Kind(action), model, options.get("seconds"))
            return Done(model=given.model, text=given.text, until=given.until)
        if action == "suspend":
            return self.suspend(model, options.get("seconds"), options.get("reason", ""))
        if action == "resume":
            return self.resume(model)
        if action == "pull":
            return Done(model=self._operations.named(model), text=_pulled(await self._operations.pull(model)))
        if action == "rollback":
            return await self.rollback(model, Rollback(**options))
        raise CommandRefusedError(BAD_REQUEST, "there is no such action")

    def suspend(self, model: str | None, seconds: float | None, reason: str) -> Done:
        """Leave a model, or with None all of them, as they are."""
        given = self._operations.suspend(model, seconds, reason)
        return Done(model=None if model is None else given.model, text=given.text, until=given.until)

    def resume(self, model: str | None) -> Done:
        """End a model's suspension, or with None every one."""
        resumed = self._operations.resume(model).models
        if model is None:
            return Done(text=f"{len(resumed)} suspensions have ended" if resumed else "nothing was suspended")
        return Done(model=resumed[0], text="it is no longer suspended")

    async def rollback(self, model: str, asked: Rollback) -> Done:
        """Take a model back, or end that."""
        try:
            command = RollbackAsked(model=model, **asked.model_dump())
        except ValidationError as error:
            mistake = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, mistake["loc"]))
            raise CommandRefusedError(BAD_REQUEST, f"{where}: {mistake['msg']}") from error
        given = await self._operations.rollback(command)
        return Done(model=given.about, text=given.text, until=given.until)

    async def apply_plan(self, desired: str, observed: str) -> Done:
        """Have the pending plan carried out now, if it is still the one with these two digests of its base."""
        plan = (await self._operations.fresh()).plan
        if (plan.desired_digest, plan.observed_digest) != (desired, observed):
            raise CommandRefusedError(CONFLICT, "the plan is another one by now; look at it again")
        self._operations.soon()
        return Done(text="it is being carried out")

    async def sync(self) -> Done:
        """Look at the source now."""
        found = await self._operations.sync()
        if found.get("problem"):
            return Done(text=str(found["problem"]))
        if found["source"] == "folder":
            return Done(text="the folder is watched, so there is nothing to fetch")
        what = "a new revision was taken over" if found["new"] else "there is nothing new"
        return Done(text=f"{what}: {str(found['commit'])[:12]} {found['subject']}".strip())

    # --- files --------------------------------------------------------------------------------------------

    async def edit_preview(self, model: str, text: str, digest: str) -> EditView:
        """What a change of the model's file would be."""
        path = self._file(model)
        with as_refusal():
            return edit_view(await self._context.edits.preview(path, text, digest))

    async def edit(self, model: str, text: str, digest: str, *, author: str) -> EditView:
        """Change it; refused with 409 where the file is not the one with that sha256 any more."""
        path = self._file(model)
        with as_refusal():
            return edit_view(await self._context.edits.apply(path, text, digest, message="", author=author))

    async def remove(self, model: str, digest: str, *, author: str) -> EditView:
        """Remove the model's file; refused as `edit`."""
        path = self._file(model)
        with as_refusal():
            return edit_view(await self._context.edits.apply(path, None, digest, message="", author=author))

    # --- following ----------------------------------------------------------------------------------------

    def follow_events(self, last_id: str | None) -> AsyncIterator[FeedEvent]:
        """Events as they come, those that were missed since `last_id` first."""
        return self._context.feed.follow(last_id or self._context.feed.last_id)

    async def follow_logs(self, model: str | None) -> AsyncIterator[LogLine]:
        """Lines as they come; refused where too many follow the logs already."""
        own = None if model is None else self._operations.named(model)
        with self._context.log_followers.one_more():
            async for line in self._context.logs.follow(own):
                yield line_of(line)

    # --- parts --------------------------------------------------------------------------------------------

    def _file(self, name: str) -> str:
        file = file_of(self._operations.last(), model := self._operations.named(name))
        if file is None:
            raise CommandRefusedError(NOT_FOUND, f"no file declares {model}")
        return file

    async def _read(self, file: str | None) -> File | None:
        if file is None:
            return None
        try:
            return await self._context.edits.read(file)
        except EditError:
            return None

    def _rollback_of(self, model: str) -> Holding | None:
        """What holds for a model instead of what the source says: its own rollback, or that of all."""
        try:
            kept = RollbackStore(self._context.state_dir, read_only=True).active()
        except RollbacksUnreadableError:
            return None
        now = time.time()
        holding = {each.model: each for each in kept if each.until is None or each.until > now}
        return holding.get(model) or holding.get(None)

    async def _logs_of(self, application: str | None) -> Mapping[str, str]:
        if application is None:
            return {}
        try:
            return log_files(await self._context.serve(), application)
        except (ServeUnreachableError, ServeRefusedError):
            return {}


@contextlib.contextmanager
def as_refusal() -> Iterator[None]:
    """Turn what a change of a file meets into what a caller is told."""
    try:
        yield
    except EditError as error:
        raise CommandRefusedError(NOT_FOUND if isinstance(error, NoFileError) else CONFLICT, str(error)) from error


def line_of(line: Line) -> LogLine:
    """A line of a log."""
    return LogLine(at=line.at, origin=line.origin, model=line.model, level=line.level, text=line.text)


def _pulled(states: Mapping[Copy, CopyState]) -> str:
    missing = [state for state in states.values() if state.phase is not Phase.READY]
    if not missing:
        return "its weights are on disk" if states else "it is read from a folder; there is nothing to fetch"
    failed = next((state.reason for state in missing if state.phase is Phase.FAILED), "")
    if failed:
        return f"its weights cannot be fetched: {failed}"
    total = sum(state.missing or 0 for state in missing)
    return "its weights are being fetched" + (f": {in_words(total)}" if total else "")


def _row(entry: Entry) -> CatalogueRow:
    gated = "; its terms have to be accepted first" if entry.gated else ""
    return CatalogueRow(
        name=entry.name,
        repo=entry.repo,
        task=entry.task.value,
        parameters=f"{entry.parameters:g} B",
        license=entry.licence,
        description=entry.description,
        needs=f"{entry.size_gib:g} GiB of weights{gated}",
    )

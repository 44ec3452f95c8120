"""The API's routes about the whole: plan and apply, the source, the cluster, history, logs and events."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from reconciler import __version__
from reconciler.api.answers import Answers, line_of
from reconciler.api.asked import Apply, Reconcile
from reconciler.api.auth import still_may
from reconciler.api.context import Context
from reconciler.api.problems import documented, documented_stream
from reconciler.api.routes_models import Lines
from reconciler.api.schemas import (
    CatalogueList,
    ClusterView,
    Done,
    DownloadList,
    HistoryList,
    LogView,
    PlanView,
    RevisionProblem,
    ServeView,
    SourceView,
)
from reconciler.api.serve_status import shown
from reconciler.api.streams import Listeners, Stream, as_event
from reconciler.api.views import plan_view
from reconciler.core.saved_plan import SavedPlan, saved_to_text
from reconciler.core.turn import Wishes
from reconciler.loop.by_hand import BAD_REQUEST, CommandRefusedError
from reconciler.loop.control import while_asked

_LONGEST_ID = 100
_LONGEST_NAME = 500


def whole_router(answers: Answers, context: Context, listeners: Listeners) -> APIRouter:  # noqa: C901 -- a list of routes
    """Everything that is not about one model."""
    router, operations = APIRouter(tags=["whole"]), context.operations

    @router.get("/plan", responses=documented())
    async def plan(
        fresh: Annotated[bool, Query(description="Look now, which takes a moment; else the last turn's")] = False,
    ) -> PlanView:
        """What is pending, and why."""
        return await answers.plan(fresh=fresh)

    @router.post("/reconcile", responses=documented())
    async def reconcile(request: Request, asked: Reconcile = Reconcile()) -> PlanView:  # noqa: B008 -- frozen
        """Look at the source and take turns until all is settled; what is allowed holds while the client waits."""
        wishes = Wishes(**asked.model_dump())
        return plan_view(await while_asked(request, operations.reconcile(wishes)))

    @router.post("/apply", responses=documented(409))
    async def apply(request: Request, asked: Apply) -> PlanView:
        """Carry out a plan that was read earlier; 409 says what differs where it is another one now."""
        return plan_view(await while_asked(request, operations.apply(_saved(asked))))

    @router.post("/sync", responses=documented())
    async def sync() -> Done:
        """Look at the source now."""
        return await answers.sync()

    @router.get("/source", responses=documented())
    async def source() -> SourceView:
        """Where the model files come from, and how fresh they are."""
        return await answers.source()

    @router.get("/downloads", responses=documented())
    async def downloads() -> DownloadList:
        """What is being fetched, and what could not be."""
        problems = (RevisionProblem.model_validate(row) for row in operations.downloads()["revisions"])
        return DownloadList(copies=tuple(await answers.downloads()), revisions=tuple(problems))

    @router.get("/history", responses=documented())
    async def history(
        model: Annotated[str | None, Query(max_length=_LONGEST_NAME)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 50,
    ) -> HistoryList:
        """The journal, the newest line first."""
        return HistoryList(entries=tuple(await answers.history(model, limit)))

    @router.get("/cluster", responses=documented())
    async def cluster() -> ClusterView:
        """Nodes and GPUs, with what is on each now and after the pending plan."""
        return await answers.cluster()

    @router.get("/serve", responses=documented())
    async def serve() -> ServeView:
        """Ray Serve's own applications and deployments."""
        return ServeView(instance=shown(await context.serve()))

    @router.get("/catalogue", responses=documented())
    async def catalogue(query: Annotated[str, Query(max_length=200)] = "") -> CatalogueList:
        """Well-known models, or those that match."""
        return CatalogueList(models=tuple(await answers.catalogue(query)))

    @router.get("/logs", responses=documented())
    async def logs(lines: Lines = 200) -> LogView:
        """The last lines of all logs, in order."""
        return await answers.logs(None, lines)

    @router.get("/logs/follow", response_class=Stream, status_code=200, responses=documented_stream())
    async def follow_logs(request: Request) -> Stream:
        """Lines as they come; each event is a LogLine."""
        lines = (as_event(line_of(line).model_dump()) async for line in context.logs.follow(None))
        return context.log_followers.stream(lines, partial(still_may, request, context.keys, context.sessions))

    @router.get("/events", response_class=Stream, status_code=200, responses=documented_stream())
    async def events(
        request: Request,
        last_event_id: Annotated[str | None, Header(max_length=_LONGEST_ID)] = None,
        after: Annotated[
            str | None, Query(max_length=_LONGEST_ID, description="As Last-Event-ID; `all`: what is kept")
        ] = None,
    ) -> Stream:
        """The events of the log from now on, or after the one seen last; each event's data is its fields."""
        since = last_event_id or after or context.feed.last_id
        feed = context.feed.follow(None if since == "all" else since)
        coming = (as_event(each.event, id=each.id) async for each in feed)
        return listeners.stream(coming, partial(still_may, request, context.keys, context.sessions))

    return router


def metrics_router(context: Context) -> APIRouter:
    """What Prometheus reads."""
    router = APIRouter(tags=["metrics"])
    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {}}, "description": "In Prometheus' text format"}
    }

    @router.get("/metrics", response_class=Response, responses=documented() | text)
    async def metrics() -> Response:
        """All measures. A key with the scope `metrics` is enough."""
        # Not in a thread, as a plain function would be: the measures belong to the event loop.
        return Response(context.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _saved(asked: Apply) -> str:
    """The plan as a saved one, which is checked like any other."""
    try:
        return saved_to_text(SavedPlan(0.0, __version__, "", asked.plan))
    except (KeyError, ValueError, RecursionError) as error:
        raise CommandRefusedError(BAD_REQUEST, f"it is no plan: {str(error)[:200]}") from error

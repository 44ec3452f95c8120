"""What there is to see: the page's views, and the parts of them that are fetched again when something changed."""

from collections import Counter
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from reconciler.api.schemas import HistoryView, ModelDetail, ModelView
from reconciler.api.sessions import Session
from reconciler.core.weights import Phase
from reconciler.loop.by_hand import NOT_FOUND, CommandRefusedError
from reconciler.page import charts, show
from reconciler.page.backend import Backend
from reconciler.page.guard import Visit
from reconciler.page.told import Told

_HISTORY, _MODEL_HISTORY, _LOG_LINES = 200, 12, 200
_MOST_LINES = 2000


class Looking:
    """Views of what the reconciler knows."""

    def __init__(self, backend: Backend, shown: show.Shown, told: Told) -> None:
        self._backend = backend
        self._shown = shown
        self._told = told

    def page(self, visit: Visit, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:  # noqa: ANN401 -- values for a template
        """A whole page for somebody who is logged in, with what is left to be told."""
        told = self._told.take(visit.session.csrf)
        path = visit.request.url.path
        return self._shown.page(template, status, session=visit.session, told=told, here=path, **values)

    async def overview(self, visit: Visit) -> Response:
        """`/`: all models."""
        return self.page(visit, "overview.html", **await self._overview())

    async def overview_part(self, visit: Visit) -> Response:
        """The same without what stands around it."""
        return self._shown.page("part_overview.html", session=visit.session, **await self._overview())

    async def row_part(self, visit: Visit) -> Response:
        """One model's row; none in the place of one that is gone."""
        try:
            model = await self._backend.model(visit.request.query_params.get("name", ""))
        except CommandRefusedError as error:
            if error.status != NOT_FOUND:
                raise
            return HTMLResponse("")
        return self.row(visit.session, model)

    def row(self, session: Session, model: ModelView) -> HTMLResponse:
        """One model's row, as an answer."""
        return self._shown.page("part_row.html", session=session, model=model)

    async def _overview(self) -> dict[str, Any]:
        try:
            listing = await self._backend.models()
        except CommandRefusedError as error:
            return {"listing": None, "why": str(error), "source": None, "counts": {}, "others": ()}
        wanted = {(copy.repo, copy.commit) for model in listing.models for copy in model.weights}
        others = [
            copy
            for copy in await self._backend.downloads()
            if copy.phase not in (Phase.READY, Phase.ABSENT) and (copy.repo, copy.commit) not in wanted
        ]
        counts = Counter(model.actual.state for model in listing.models)
        source = await self._backend.source()
        return {"listing": listing, "why": "", "source": source, "counts": dict(counts), "others": others}

    async def gpus(self, visit: Visit) -> Response:
        """`/gpus`: memory by model, now and after the pending plan."""
        return self.page(visit, "gpus.html", **await self._gpus())

    async def gpus_part(self, _: Visit) -> Response:
        """The same without what stands around it."""
        return self._shown.page("part_gpus.html", **await self._gpus())

    async def _gpus(self) -> dict[str, Any]:
        cluster = await self._backend.cluster()
        return {"cluster": cluster, "colours": charts.colours_of(cluster), "bar_of": charts.bar_of}

    async def plan(self, visit: Visit) -> Response:
        """`/plan`: what is pending; for htmx without what stands around it."""
        plan = await self._backend.plan()
        if visit.by_htmx:
            return self._shown.page("part_plan.html", session=visit.session, plan=plan)
        return self.page(visit, "plan.html", plan=plan)

    async def history(self, visit: Visit) -> Response:
        """`/history`: the journal."""
        model = visit.request.query_params.get("model", "").strip()
        entries = await self._backend.history(model or None, _HISTORY)
        return self.page(visit, "history.html", entries=entries, model=model, limit=_HISTORY)

    async def activity(self, visit: Visit) -> Response:
        """`/activity`: events and log lines as they come."""
        model = visit.request.query_params.get("model", "").strip()
        lines = _number(visit.request, "lines", _LOG_LINES)
        log = await self._backend.logs(model or None, lines)
        names = [each.name for each in (await self._backend.models()).models]
        return self.page(visit, "activity.html", log=log, model=model, lines=lines, names=names)

    async def model(self, visit: Visit) -> Response:
        """`/models/NAME`: everything about one model; for htmx what can be done by hand."""
        name = visit.request.path_params["name"]
        if visit.by_htmx:
            detail = await self._backend.model(name)
            return self._shown.page("part_by_hand.html", session=visit.session, model=detail)
        try:
            detail = await self._backend.model(name)
        except CommandRefusedError as error:
            if error.status != NOT_FOUND:
                raise
            near = [each for each in error.near if each != name]
            return self.page(visit, "no_model.html", 404, name=name, why=str(error), near=near)
        return self.page(visit, "model.html", **await self._model(detail))

    async def edited(self, visit: Visit, name: str, **values: Any) -> Response:  # noqa: ANN401 -- values for a template
        """The same with a change of its file that was looked at, or an answer of its chat."""
        detail = await self._backend.model(name)
        return self.page(visit, "model.html", **{**await self._model(detail), **values})

    async def model_part(self, visit: Visit) -> Response:
        """What of a model's page moves by itself."""
        detail = await self._backend.model(visit.request.query_params.get("name", ""))
        return self._shown.page("part_model.html", session=visit.session, model=detail)

    async def metrics_part(self, visit: Visit) -> Response:
        """The charts of a model's page."""
        name = visit.request.query_params.get("name", "")
        return self._shown.page("part_metrics.html", name=name, charts=await self._charts(name))

    async def _model(self, detail: ModelDetail) -> dict[str, Any]:
        log = await self._backend.logs(detail.name, _LOG_LINES)
        history: list[HistoryView] = await self._backend.history(detail.name, _MODEL_HISTORY)
        return {
            "model": detail,
            "name": detail.name,
            "charts": await self._charts(detail.name),
            "log": log,
            "history": history,
            "digest": detail.digest or "",
            "draft": detail.text or "",
            "edit": None,
            "asked": "",
            "answer": "",
        }

    async def _charts(self, name: str) -> list[charts.Chart]:
        metrics = await self._backend.model_metrics(name)
        return [] if metrics is None else [charts.chart_of(series) for series in metrics.series]

    async def catalogue(self, visit: Visit) -> Response:
        """`/catalogue`: well-known models to add."""
        words = visit.request.query_params.get("q", "")[:200]
        rows = await self._backend.catalogue(words)
        return self.page(visit, "catalogue.html", rows=rows, words=words)


def _number(request: Request, name: str, usual: int) -> int:
    text = request.query_params.get(name, "")
    return min(_MOST_LINES, max(1, int(text))) if text.isascii() and text.isdigit() and len(text) < 6 else usual  # noqa: PLR2004

"""The management API and the page of this process, put together."""

from dataclasses import asdict
from pathlib import Path

from starlette.types import ASGIApp

from reconciler.api.app import api_app
from reconciler.api.context import Access, Context, Place
from reconciler.api.schemas import ModelMetrics, SeriesView
from reconciler.api.sessions import Sessions
from reconciler.core.state import Json
from reconciler.daemon.measures import Measures
from reconciler.host.event_feed import EventFeed
from reconciler.host.settings import Settings
from reconciler.loop.assemble import Parts
from reconciler.loop.edits import make_edits
from reconciler.loop.logs import Logs
from reconciler.loop.new_models import NewModel, new_model
from reconciler.loop.operations import Operations
from reconciler.page.app import page_app
from reconciler.page.operated import ChatDoor, Operated
from reconciler.ray_serve.client import ServeClient


def management_app(
    parts: Parts, settings: Settings, operations: Operations, feed: EventFeed, measures: Measures
) -> ASGIApp:
    """What listens at `api_host`:`api_port`.

    Args:
        parts: The reconciler.
        settings: The operator's.
        operations: What can be asked of it.
        feed: The events of its log.
        measures: What is measured.

    Raises:
        SourceSettingsError: The branch that changes are pushed to is none.
    """
    sessions = Sessions(parts.keys.ring)

    async def serve_itself() -> Json:
        # A connection of its own: the loop's may be in the middle of a PUT.
        async with ServeClient(settings.ray_dashboard, settings.ray_token_path) as client:
            return await client.instance()

    def repos(model: str) -> list[str]:
        last = parts.loop.last
        target = last.desired.targets.get(model) if last is not None else None
        return [copy.repo for copy in target.copies] if target is not None else []

    def last_hour(model: str) -> ModelMetrics | None:
        series = tuple(SeriesView(**asdict(each)) for each in measures.last_hour.of(model))
        return ModelMetrics(model=model, series=series) if series else None

    def propose(repo: str, name: str | None, revision: str | None) -> NewModel:
        return new_model(settings, repo, name=name, revision=revision)

    context = Context(
        operations=operations,
        keys=parts.keys,
        sessions=sessions,
        state_dir=settings.state_dir,
        source=Place(settings.source, _place(settings)),
        feed=feed,
        logs=Logs(
            settings.state_dir, dashboard=settings.ray_dashboard, token_path=settings.ray_token_path, repos=repos
        ),
        edits=make_edits(settings, parts.source, parts.renderer),
        serve=serve_itself,
        metrics_text=measures.metrics.text,
        model_metrics=last_hour,
        key_usage=measures.key_usage.usage,
        access=Access(settings.api_host, settings.api_allowed_hosts, settings.api_cors_origins),
    )
    door = ChatDoor(f"http://127.0.0.1:{settings.activator_port}", parts.chat_key)
    backend = Operated(context, propose, door)
    return api_app(context, page_app(backend, sessions, secure=settings.tls_cert_path is not None))


def tls_of(settings: Settings) -> tuple[Path, Path] | None:
    """Certificate and key, where there are any."""
    if settings.tls_cert_path is None or settings.tls_key_path is None:
        return None
    return settings.tls_cert_path, settings.tls_key_path


def _place(settings: Settings) -> str:
    return settings.git_url if settings.source == "git" else str(settings.models_dir)

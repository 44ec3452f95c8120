"""What the page asks of the rest: the operations of the management API."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

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
from reconciler.host.event_feed import FeedEvent


class Backend(Protocol):
    """The operations of the management API.

    Each raises `loop.by_hand.CommandRefusedError` where it is not carried out, with the reason for a person, and
    nothing else that the page could explain.
    """

    async def models(self) -> ModelList:
        """All models."""
        ...

    async def model(self, name: str) -> ModelDetail:
        """One of them; refused with 404 where there is none."""
        ...

    async def plan(self) -> PlanView:
        """The pending plan."""
        ...

    async def cluster(self) -> ClusterView:
        """Nodes and GPUs."""
        ...

    async def history(self, model: str | None, limit: int) -> list[HistoryView]:
        """The newest lines of the journal, the newest first."""
        ...

    async def downloads(self) -> list[WeightsView]:
        """All copies of weights, wanted by a model or not."""
        ...

    async def source(self) -> SourceView:
        """Where the files come from."""
        ...

    async def catalogue(self, words: str) -> list[CatalogueRow]:
        """Well-known models that match; all of them for no word."""
        ...

    async def model_metrics(self, name: str) -> ModelMetrics | None:
        """Measures of the last hour; None where nothing is measured."""
        ...

    async def logs(self, model: str | None, lines: int) -> LogView:
        """The last lines, oldest first; of everything where no model is named."""
        ...

    async def do(self, action: str, model: str, **options: Any) -> Done:  # noqa: ANN401 -- as the action has them
        """Carry out `load`, `unload`, `pin`, `unpin`, `suspend`, `resume`, `pull` or `rollback`.

        Options: `seconds` (float) for all but `unpin`, `resume`, `pull`; `reason` (str) for `suspend` and
        `rollback`; `to` (str, a revision) and `end` (True) for `rollback`. What was not said is not passed.
        """
        ...

    def suspend(self, model: str | None, seconds: float | None, reason: str) -> Done:
        """Leave a model, or with None all of them, as they are."""
        ...

    def resume(self, model: str | None) -> Done:
        """End a model's suspension, or with None every one."""
        ...

    async def apply_plan(self, desired: str, observed: str) -> Done:
        """Apply the pending plan, if it is still the one with these two digests of its base; else refused, 409."""
        ...

    async def sync(self) -> Done:
        """Look at the source now."""
        ...

    async def add_preview(self, repo: str, name: str | None, revision: str | None) -> EditView:
        """The file that `add` would write, as a difference from nothing."""
        ...

    async def add(self, repo: str, name: str | None, revision: str | None, *, author: str) -> EditView:
        """Write a new model file, or propose it where the files come from git."""
        ...

    async def edit_preview(self, model: str, text: str, digest: str) -> EditView:
        """What a change of the model's file would be."""
        ...

    async def edit(self, model: str, text: str, digest: str, *, author: str) -> EditView:
        """Change it; refused with 409 where the file is not the one with that sha256 any more."""
        ...

    async def remove(self, model: str, digest: str, *, author: str) -> EditView:
        """Remove the model's file; refused as `edit`."""
        ...

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], max_tokens: int) -> AsyncIterator[str]:
        """The answer, piece by piece."""
        ...

    def follow_events(self, last_id: str | None) -> AsyncIterator[FeedEvent]:
        """Events as they come, those that were missed since `last_id` first."""
        ...

    def follow_logs(self, model: str | None) -> AsyncIterator[LogLine]:
        """Lines as they come."""
        ...

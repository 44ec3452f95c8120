"""The API's routes about models: each only translates to and from `api.answers`. Names may have slashes."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request

from reconciler.api.answers import Answers, line_of
from reconciler.api.asked import ForATime, Rollback, Suspend
from reconciler.api.auth import still_may
from reconciler.api.context import Context
from reconciler.api.problems import documented, documented_stream
from reconciler.api.schemas import Done, LogView, ModelDetail, ModelList, ModelMetrics
from reconciler.api.streams import Stream, as_event
from reconciler.loop.by_hand import NOT_FOUND, CommandRefusedError

Name = Annotated[str, Path(description="The model's name, or an alias or adapter of it", max_length=500)]
Lines = Annotated[int, Query(ge=0, le=10_000, description="How many at most")]


def models_router(answers: Answers, context: Context) -> APIRouter:  # noqa: C901 -- a list of routes
    """Everything below `/models`, and what is about all of them."""
    router = APIRouter(tags=["models"])

    @router.get("/models", responses=documented())
    async def models() -> ModelList:
        """All models: what their files want and what is up, apart from each other."""
        return await answers.models()

    def action(name: str) -> Callable[[str, ForATime], Coroutine[Any, Any, Done]]:
        async def act(model: Name, asked: ForATime = ForATime()) -> Done:  # noqa: B008 -- frozen
            return await answers.do(name, model, seconds=asked.seconds)

        return act

    for name, what in _FOR_A_TIME.items():
        router.post(f"/models/{{model:path}}/{name}", name=name, description=what, responses=documented(409))(
            action(name)
        )

    @router.post("/models/{model:path}/suspend", responses=documented(409))
    async def suspend(model: Name, asked: Suspend = Suspend()) -> Done:  # noqa: B008
        """Leave it exactly as it is until it is resumed, or for a time."""
        return answers.suspend(model, asked.seconds, asked.reason)

    @router.post("/models/{model:path}/resume", responses=documented(409))
    async def resume(model: Name) -> Done:
        """End its suspension."""
        return answers.resume(model)

    @router.post("/models/{model:path}/pull", responses=documented(409))
    async def pull(model: Name) -> Done:
        """Fetch its weights, whether or not it is to come up; `/downloads` says how far that is."""
        return await answers.do("pull", model)

    @router.post("/models/{model:path}/rollback", responses=documented(409))
    async def rollback(model: Name, asked: Rollback = Rollback()) -> Done:  # noqa: B008
        """Take it back to an earlier version, until its file changes, or end that."""
        return await answers.rollback(model, asked)

    @router.post("/suspend", responses=documented(409))
    async def suspend_all(asked: Suspend = Suspend()) -> Done:  # noqa: B008
        """Leave all models exactly as they are."""
        return answers.suspend(None, asked.seconds, asked.reason)

    @router.post("/resume", responses=documented(409))
    async def resume_all() -> Done:
        """End every suspension, those of single models too."""
        return answers.resume(None)

    @router.get("/models/{model:path}/logs", responses=documented())
    async def model_logs(model: Name, lines: Lines = 200) -> LogView:
        """The last lines of its logs: the reconciler's, the edge's, Serve's and vLLM's, in order."""
        return await answers.logs(model, lines)

    @router.get(
        "/models/{model:path}/logs/follow",
        response_class=Stream,
        status_code=200,
        responses=documented_stream(),
    )
    async def follow_model_logs(request: Request, model: Name) -> Stream:
        """Its lines as they come; each event is a LogLine."""
        own = context.operations.named(model)
        lines = (as_event(line_of(line).model_dump()) async for line in context.logs.follow(own))
        return context.log_followers.stream(lines, partial(still_may, request, context.keys, context.sessions))

    @router.get("/models/{model:path}/metrics", responses=documented())
    async def model_metrics(model: Name) -> ModelMetrics:
        """Its measures over the last hour."""
        found = await answers.model_metrics(model)
        if found is None:
            raise CommandRefusedError(NOT_FOUND, "nothing is measured of it")
        return found

    # The last one: a name may have slashes, so this path is the beginning of all others.
    @router.get("/models/{model:path}", responses=documented())
    async def model_detail(model: Name) -> ModelDetail:
        """One model with its spec, its file, its engine's settings and its replicas."""
        return await answers.model(model)

    return router


_FOR_A_TIME: Final = {
    "load": "Bring it up, and keep it up for a time, or as long as its policy says.",
    "unload": "Take it down, and keep it away for a time.",
    "pin": "Keep it up for a time, whatever its policy says.",
    "unpin": "End a pin.",
}

"""How other commands speak to the reconciler that runs: over a socket that only its owner can open."""

import time
from dataclasses import asdict, fields

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from reconciler.core.plan_json import plan_to_json
from reconciler.core.turn import Options, Wishes
from reconciler.core.weights_json import states_to_json
from reconciler.loop.loop import Loop
from reconciler.weights.store import WeightStore


def control_app(loop: Loop, weights: WeightStore) -> Starlette:
    """The ASGI application behind the control socket."""

    async def reconcile(request: Request) -> JSONResponse:
        wishes = await request.json()
        options = Options(
            **{field.name: wishes.get(field.name) is True for field in fields(Wishes)},
            asked_at=time.time(),
            max_loads=loop.options.max_loads,
        )
        look = await loop.reconcile_now(options)
        problems = [str(problem) for problem in look.desired.problems]
        return JSONResponse({"plan": plan_to_json(look.plan), "problems": problems})

    async def downloads(_: Request) -> JSONResponse:
        problems = [
            {"repo": repo, "revision": revision, **asdict(problem)}
            for (repo, revision), problem in weights.revisions.problems.items()
        ]
        return JSONResponse({"copies": states_to_json(weights.known()), "revisions": problems})

    return Starlette(
        routes=[
            Route("/reconcile", reconcile, methods=["POST"]),
            Route("/downloads", downloads, methods=["GET"]),
        ]
    )

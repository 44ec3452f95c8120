"""Somebody else's Serve application on the same cluster."""

from typing import Any

from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Greeter:
    def __init__(self, greeting: str) -> None:
        self._greeting = greeting

    async def __call__(self, request: Request) -> str:
        return f"{self._greeting}, {request.query_params.get('name', 'you')}"


def build(args: dict[str, Any]) -> Any:
    return Greeter.bind(args["greeting"])  # type: ignore[attr-defined]  # the decorator's type is not known

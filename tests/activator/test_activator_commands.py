"""Loading and unloading by hand, and the listing, in the form of llama.cpp's router and Open WebUI."""

from typing import Any

import pytest
from activator_stack import MODELS, Stack, stack

from reconciler.activator import errors
from reconciler.activator.directory import Directory


async def post(s: Stack, verb: str, body: Any) -> tuple[int, dict[str, Any]]:
    async with s.http.post(f"{s.url}/models/{verb}", json=body) as response:
        return response.status, await response.json()


async def test_load_and_unload() -> None:
    async with stack() as s:
        commands = []

        async def command(verb: str, model: str) -> None:
            commands.append((verb, model))
            if model == "broken":
                raise errors.command_refused("it failed a minute ago: out of memory")

        s.activator.command = command
        assert await post(s, "load", {"model": "org/cold-model"}) == (200, {"success": True})
        assert await post(s, "unload", {"model": "qwen", "extra": 1}) == (200, {"success": True})
        assert commands == [("load", "org/cold-model"), ("unload", "qwen3-0.6b")]
        status, body = await post(s, "load", {"model": "broken"})
        assert (status, body["error"]["code"]) == (400, "command_refused")
        assert body["error"]["message"] == "it failed a minute ago: out of memory"
        status, body = await post(s, "load", {"model": "qwem"})
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert "Did you mean: 'qwen'" in body["error"]["message"]
        assert (await post(s, "load", {}))[1]["error"]["code"] == "invalid_model"
        assert len(commands) == 3


@pytest.mark.parametrize(
    ("status", "code", "kind", "after"),
    [(503, "starting", "server_error", "2"), (500, "internal_error", "server_error", None)],
)
async def test_an_order_that_fails_through_no_fault_of_its_own_says_so(
    status: int, code: str, kind: str, after: str | None
) -> None:
    async with stack() as s:

        async def command(_verb: str, _model: str) -> None:
            raise errors.command_refused("not now", status)

        s.activator.command = command
        async with s.http.post(f"{s.url}/models/load", json={"model": "qwen"}) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, answer.headers.get("retry-after")) == (status, after)
        assert (error["code"], error["type"], error["message"]) == (code, kind, "not now")


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_without_a_loop_behind_it_nothing_can_be_ordered(verb: str) -> None:
    async with stack() as s:
        status, body = await post(s, verb, {"model": "qwen"})
        assert (status, body["error"]["message"]) == (400, f"{verb} is not available here")
        s.activator.directory = Directory(MODELS.entries, settled=False)
        assert (await post(s, verb, {"model": "nobody"}))[0] == 503


async def test_a_listing_by_the_other_name_and_a_failure_as_llama_cpp_marks_it() -> None:
    async with stack() as s:
        async with s.http.get(s.url + "/models") as response:
            other = await response.json()
        async with s.http.get(s.url + "/v1/models") as response:
            assert await response.json() == other
        status = {card["id"]: card["status"] for card in other["data"]}
        assert status["broken"] == {"value": "failed", "reason": "out of memory", "failed": True}
        assert status["cold"] == {"value": "unloaded", "reason": "idle since 09:00; it is loaded on demand."}
        async with s.http.head(s.url + "/models") as response:
            assert response.status == 200

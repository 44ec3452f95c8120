"""Whatever the API's document allows, and what it does not: no fault of ours, and no answer that is not in it."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from structlog.testing import capture_logs

from reconciler.core.log_lines import LogLine
from reconciler.host.event_feed import EventFeed, FeedEvent

from .reconciler_here import Here

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


class Short(EventFeed):
    """A feed that ends, so that a stream does."""

    async def follow(self, last_id: str | None) -> AsyncIterator[FeedEvent]:
        for event in self.after(last_id)[:5]:
            yield event


class ShortLogs:
    """Logs that end."""

    async def tail(self, model: str | None, lines: int) -> list[LogLine]:
        return [LogLine(1.0, "vllm", model, "info", "a line")][:lines]

    async def follow(self, model: str | None) -> AsyncIterator[LogLine]:
        yield LogLine(None, "serve", model, "info", "a line")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Here, str]]:
    """A reconciler in a thread of its own, over HTTP."""
    ready, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    found: list[tuple[Here, str]] = []

    async def run() -> None:
        feed = Short(keep=100)
        here = Here(tmp_path_factory.mktemp("api"), feed=feed, logs=ShortLogs())
        feed.append({"event": "turn.settled", "level": "info"})
        await here.loop.reconcile_now(here.loop.options)
        async with here.serving() as url:
            found.append((here, url))
            ready.set()
            await stop.wait()
        await here.weights.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    with capture_logs():
        thread.start()
        assert ready.wait(30)
        yield found[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
    loop.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_fault_and_no_undocumented_answer(served: tuple[Here, str], mode: GenerationMode) -> None:
    here, url = served
    headers = {"Authorization": f"Bearer {here.admin}"}
    schema = schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json", headers=headers)
    codes: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        codes[operation.label] = ask_much(operation, mode, url, headers)
    assert len(codes) > 30
    if mode is GenerationMode.POSITIVE:
        assert all(codes.values())
        fine = {label for label, found in codes.items() if found & {200, 201}}
        assert {"GET /api/v1/models", "GET /api/v1/events", "POST /api/v1/reconcile", "POST /api/v1/keys"} <= fine


def ask_much(operation: Any, mode: GenerationMode, url: str, headers: dict[str, str]) -> set[int]:
    """Ask one route with what its description allows, or does not; gives the statuses that were answered."""
    answers: set[int] = set()

    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(mode))
    def ask(case: Any) -> None:
        answer = case.call(base_url=url, headers=headers)
        answers.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # What has no parameters cannot be asked wrongly.
        ask()
    return answers

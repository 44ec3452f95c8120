"""A reconciler that has looked."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from .reconciler_here import Here


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    with capture_logs():
        made = Here(tmp_path)
        await made.loop.reconcile_now(made.loop.options)
        yield made
        await made.weights.close()


@pytest.fixture
async def api(here: Here) -> AsyncIterator[httpx.AsyncClient]:
    """Asks with the admin key."""
    async with here.client() as client:
        yield client

"""`pull` through the API's operations, from a real hub server to a real cache."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from hub_server import Hub
from simulation.world import TEMPLATE, renderer
from weights.repository import Kit, model_files

from reconciler.core.desired import Snapshot, compile_desired, wanted_in
from reconciler.core.parse import parse_all
from reconciler.core.plan import Plan
from reconciler.core.state import Observed
from reconciler.core.weights import Phase, Resolution
from reconciler.loop.by_hand import CommandRefusedError
from reconciler.loop.loop import Look
from reconciler.loop.operations import Operations

FILES = {"models.d/m.yaml": b"source: {repo: org/model}\naliases: [chat]\n"}


async def test_weights_are_fetched_once_it_is_known_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
    with Hub(small_buffers=True) as hub:
        kit = Kit(hub, tmp_path)
        kit.commit = hub.repo("org/model", model_files())
        store, other = kit.store(), Any
        wanted = wanted_in(parse_all(FILES))
        looks: Any = SimpleNamespace(last=None)
        operations = Operations(looks, store, other, rollback=other, sync=other, lease=other, journal=other)  # type: ignore[arg-type]

        def look(resolution: Resolution) -> None:
            known = dict.fromkeys(wanted, resolution)
            looks.last = Look(
                compile_desired(Snapshot("r", FILES, "/m"), renderer(TEMPLATE), known), Observed(), Plan()
            )

        look(Resolution(problem="the hub does not answer"))
        with pytest.raises(CommandRefusedError, match=r"not known which commit .* the hub does not answer"):
            await operations.pull("chat")
        look(Resolution(kit.commit))
        states = await operations.pull("chat")
        assert {copy.repo for copy in states} == {"org/model"}
        done = await store.finished(states)
        assert [state.phase for state in done.values()] == [Phase.READY]
        assert [state.phase for state in (await operations.pull("m")).values()] == [Phase.READY]
        await store.close()

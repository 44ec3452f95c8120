"""Worlds for tests, with a disk that is fast because it need not survive the machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.loop import memory

from .world import World


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")

    monkeypatch.setattr(memory, "write_atomic", write)


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Worlds in which nothing forbidden may have happened by the end of the test."""
    worlds: list[World] = []

    def make(**options: Any) -> World:
        folder = tmp_path / f"state{len(worlds)}"
        folder.mkdir()
        worlds.append(World(folder, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        assert not world.violations

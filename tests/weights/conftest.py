"""A hub of the tests' own, and a repository on it that looks like a model."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from hub_server import Hub

from .repository import Kit, model_files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub; no token of the machine's owner is sent to it."""
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
    with Hub(small_buffers=True, tokens=("hf_other12345",)) as hub:
        yield hub


@pytest.fixture
def kit(hub: Hub, tmp_path: Path) -> Kit:
    """A cache and a state directory in front of the hub, with `org/model` on it."""
    kit = Kit(hub, tmp_path)
    kit.commit = hub.repo("org/model", model_files())
    return kit


@pytest.fixture
def make_kit(hub: Hub, tmp_path: Path) -> Callable[[str], Kit]:
    """Further machines in front of the same hub."""
    return lambda name: Kit(hub, tmp_path / name)

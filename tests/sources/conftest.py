"""A git server, a repository on it, and a source that follows it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from reconciler.sources.git import GitSource
from reconciler.sources.git_options import GitOptions

from .git_server import GitServer, Repository

Make = Callable[..., GitSource]
MODEL = "name: a\nsource: {path: ./weights/a}\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    root = tmp_path / "server"
    root.mkdir()
    with GitServer(root) as server:
        yield server


@pytest.fixture
def repo(tmp_path: Path, server: GitServer) -> Repository:
    return Repository(tmp_path / "work", server.root / "models.git")


@pytest.fixture
def make(tmp_path: Path, server: GitServer) -> Make:
    """A source; of the same state folder each time, as after a restart."""

    def make(**options: Any) -> GitSource:
        settings: dict[str, Any] = {
            "url": f"{server.url}/models.git",
            "folder": tmp_path / "state" / "source",
            "timeout": 20.0,
        }
        return GitSource(GitOptions(**(settings | options)))

    return make


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """Events as they are logged."""
    with structlog.testing.capture_logs() as logs:
        yield logs

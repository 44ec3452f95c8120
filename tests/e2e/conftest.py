"""One real stack for all end-to-end tests of the session: it takes minutes to come up on two cores."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))
sys.path.insert(0, str(Path(__file__).parent))

from hub_server import Hub
from stack import REPOSITORY, Stack, running_stack


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    """A hub of the tests' own; empty."""
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Stack]:
    """`./start.sh --demo` in an empty folder."""
    if not (REPOSITORY / ".venv" / "bin" / "reconcile").exists():
        pytest.fail("the end-to-end tests run in the environment that ./start.sh --test makes")
    with running_stack(tmp_path_factory.mktemp("stack"), hub_url=hub.url) as running:
        yield running


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Stack]:
    """Ray with nothing on it."""
    bare = Stack(tmp_path)
    try:
        command = [str(REPOSITORY / "start.sh"), "--cpu", "--ray-only"]
        subprocess.run(command, env=bare.environment, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        yield bare
    finally:
        bare.stop()

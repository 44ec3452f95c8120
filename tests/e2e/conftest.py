"""One real stack for all end-to-end tests of the session: it takes minutes to come up on two cores."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stack import REPOSITORY, Stack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`./start.sh --demo` in an empty folder."""
    if not (REPOSITORY / ".venv" / "bin" / "reconcile").exists():
        pytest.fail("the end-to-end tests run in the environment that ./start.sh --test makes")
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running

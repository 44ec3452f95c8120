"""What holds for every test, whichever folder it is in."""

import logging
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

# The end-to-end tests run beside the others: how long one example takes says nothing.
hypothesis.settings.register_profile("beside", deadline=None)
hypothesis.settings.load_profile("beside")

_LIVE = frozenset({"edge", "setup"})
"""Folders of tests that have the clock in them: a real process, socket or browser has to answer in time.
`./start.sh --test` runs them when nothing else runs; the others compute, beside the end-to-end tests."""
_TESTS = Path(__file__).parent / "tests"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of those folders."""
    for item in items:
        if item.path.is_relative_to(_TESTS) and item.path.relative_to(_TESTS).parts[0] in _LIVE:
            item.add_marker(pytest.mark.live)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """End settings of the log with their test: commands that run within pytest make some, and later tests look."""
    before = logging.getLogger().handlers[:]
    yield
    structlog.reset_defaults()
    for handler in set(logging.getLogger().handlers) - set(before):
        if type(handler).__module__ == "reconciler.host.log":
            logging.getLogger().removeHandler(handler)

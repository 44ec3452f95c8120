"""What holds for every test, whichever folder it is in."""

import logging
from collections.abc import Iterator

import hypothesis
import pytest
import structlog

# The end-to-end tests run beside the others: how long one example takes says nothing.
hypothesis.settings.register_profile("beside", deadline=None)
hypothesis.settings.load_profile("beside")


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """End settings of the log with their test: commands that run within pytest make some, and later tests look."""
    before = logging.getLogger().handlers[:]
    yield
    structlog.reset_defaults()
    for handler in set(logging.getLogger().handlers) - set(before):
        if type(handler).__module__ == "reconciler.host.log":
            logging.getLogger().removeHandler(handler)

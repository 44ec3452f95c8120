"""What holds for every test, whichever folder it is in."""

from collections.abc import Iterator

import hypothesis
import pytest
import structlog

# The end-to-end tests run beside the others: how long one example takes says nothing.
hypothesis.settings.register_profile("beside", deadline=None)
hypothesis.settings.load_profile("beside")


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """End a log level with its test: commands that run within pytest set one, and later tests look at logs."""
    yield
    structlog.reset_defaults()

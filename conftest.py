"""What holds for every test, whichever folder it is in."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """End a log level with its test: commands that run within pytest set one, and later tests look at logs."""
    yield
    structlog.reset_defaults()

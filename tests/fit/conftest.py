"""What every test of fitting has. The benchmark is no part of the package; tests use its comparison with logs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

sys.path.append(str(Path(__file__).resolve().parents[2]))


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """End a log level with its test: commands that run within pytest set one, and later tests look at logs."""
    yield
    structlog.reset_defaults()

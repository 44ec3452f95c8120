"""Which tests have the clock in them: those of a real process, socket or browser that has to answer in time.

`./start.sh --test` runs them when nothing else runs; the others compute, beside the end-to-end tests.
"""

from pathlib import Path

import pytest

_LIVE = frozenset({"activator", "api", "edge", "page", "setup", "sources"})
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE) and item.path.relative_to(_HERE).parts[0] in _LIVE:
            item.add_marker(pytest.mark.live)

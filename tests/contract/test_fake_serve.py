"""The simulator's Serve keeps the contract."""

import pytest

from .conftest import FakeSubject
from .serve_contract import CONTRACT


@pytest.mark.parametrize("number", range(len(CONTRACT)), ids=[each.__name__ for each in CONTRACT])
async def test_the_fake(fake: FakeSubject, number: int) -> None:
    await CONTRACT[number](fake)


async def test_one_after_the_other(fake: FakeSubject) -> None:
    """As they are asked of Ray: on one Serve."""
    for promise in CONTRACT:
        await promise(fake)

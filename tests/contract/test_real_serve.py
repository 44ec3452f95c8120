"""Ray Serve keeps the contract that the simulator's Serve is made by."""

import pytest

from .conftest import RealSubject
from .serve_contract import CONTRACT

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("number", range(len(CONTRACT)), ids=[each.__name__ for each in CONTRACT])
async def test_ray(real: RealSubject, number: int) -> None:
    await CONTRACT[number](real)

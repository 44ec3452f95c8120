"""Routes are changed in a running edge, and nobody who asks notices."""

import asyncio

import pytest
from edge_harness import CHAT, house, post, raw

from reconciler.edge.maps import ROUTES


async def test_a_route_switches_under_load_without_one_failure() -> None:
    async with house({"m": "app-a"}) as home:
        answers: list[tuple[int, str]] = []
        done = asyncio.Event()

        async def client() -> None:
            while not done.is_set():
                status, _, body = await raw(home.options.listen_port, post(CHAT))
                answers.append((status, body.decode()))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        flips = 0
        while len(answers) < 2000:
            flips += 1
            # Beside the name that changes, others come and go.
            await home.edge.set_routes({"m": f"app-{'ab'[flips % 2]}", f"x{flips}": "app-x"})
            await asyncio.sleep(0.01)
        done.set()
        await asyncio.gather(*clients)
        assert flips > 10
        assert {status for status, _ in answers} == {200}
        assert {path.split("/")[1] for seen in home.serve.seen if (path := seen.target)} == {"app-a", "app-b"}
        assert home.activator.seen == []


async def test_what_is_set_is_what_runs_and_what_is_on_file() -> None:
    async with house({}) as home:
        for routes in ({"m": "a"}, {"m": "b", "org/n": "c"}, {f"model-{i}": f"app-{i}" for i in range(1000)}, {}):
            await home.edge.set_routes(routes)
            assert await home.edge.routes() == routes
            assert ROUTES.parse((home.options.folder / "routes.map").read_text()) == routes


async def test_an_edge_that_is_down_starts_with_the_routes_set_meanwhile() -> None:
    async with house({}, running=False) as home:
        await home.edge.set_routes({"m": "app-new"})
        assert await home.edge.routes() == {"m": "app-new"}
        assert not await home.edge.is_running()
        await home.edge.ensure_running()
        assert await home.ask() == ("serve", f"/app-new{CHAT}")


async def test_another_process_sees_and_changes_the_same_routes() -> None:
    async with house({"m": "app-m"}) as home:
        other = home.another()
        await other.set_routes({"m": "app-2"})
        assert await home.edge.routes() == {"m": "app-2"}


@pytest.mark.parametrize(
    "routes",
    [{"a b": "x"}, {"a\nb": "x"}, {"a;b": "x"}, {"": "x"}, {"#a": "x"}, {"a": "x/../y"}, {"a": ""}, {"a": "x y"}],
)
async def test_a_name_that_could_be_read_as_something_else_changes_nothing(routes: dict[str, str]) -> None:
    async with house({"m": "app-m"}, running=False) as home:
        with pytest.raises(ValueError, match="cannot be the name"):
            await home.edge.set_routes(routes)
        assert await home.edge.routes() == {"m": "app-m"}

"""Which commit a hot model comes from, said by the edge where that is asked for."""

import pytest
from edge_harness import CHAT, House, house

NAME = "X-Reconcile-Revision"


async def _revision(home: House, model: str = "m") -> str | None:
    async with home.client.post(CHAT, json={"model": model}) as answer:
        return answer.headers.get(NAME)


async def test_responses_of_hot_models_name_their_commit_where_that_is_on() -> None:
    async with house({"m": "app-m", "n": "app-n"}) as home:
        on = home.another(revision_header=True)
        await on.ensure_running()
        await on.set_revisions({"app-m": "a" * 40, "gone": "0123456789ab"})
        assert await _revision(home) == "a" * 40
        assert await _revision(home, "n") is None
        assert await _revision(home, "cold") is None
        pids = home.pids()
        await on.set_revisions({"app-n": "0123456789ab"})
        assert await _revision(home) is None
        assert await _revision(home, "n") == "0123456789ab"
        assert home.pids() == pids
        await on.stop(grace_seconds=0)
        await on.ensure_running()
        assert await _revision(home, "n") == "0123456789ab"


async def test_it_is_off_unless_it_is_on() -> None:
    async with house() as home:
        await home.edge.set_revisions({"app-m": "a" * 40})
        assert await _revision(home) is None


@pytest.mark.parametrize("revisions", [{"a b": "a" * 40}, {"a": "main"}, {"a": "a" * 41}, {"a": "a" * 12 + "\n"}])
async def test_what_is_no_commit_is_refused(revisions: dict[str, str]) -> None:
    async with house(running=False) as home:
        with pytest.raises(ValueError, match="cannot be"):
            await home.edge.set_revisions(revisions)

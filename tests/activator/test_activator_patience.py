"""What clients say about how long they wait, and what comes of it."""

import asyncio
import time

import openai
import pytest
from activator_stack import cold, eventually, hot, stack
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from reconciler.activator.directory import Directory
from reconciler.activator.patience import stated

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("headers", "patience"),
    [
        ([], None),
        ([("prefer", "wait=10")], 10.0),
        ([("prefer", "respond-async, WAIT = 10; x=y")], 10.0),
        ([("prefer", "respond-async"), ("prefer", "wait=3,wait=100")], 3.0),
        ([("prefer", "wait=0")], 0.0),
        ([("prefer", "await=10")], None),
        ([("prefer", "wait=-1")], None),
        ([("prefer", "wait=1.5")], None),
        ([("prefer", "wait=")], None),
        ([("prefer", "wait=99999999999999999999")], None),
        ([("prefer", "wait=²")], None),
        ([("x-stainless-read-timeout", "600")], 599.0),
        ([("x-stainless-read-timeout", "600.0")], 599.0),
        ([("x-stainless-read-timeout", "2.0")], 1.8),
        ([("x-stainless-read-timeout", "2.0"), ("prefer", "wait=1")], 1.0),
        *[
            ([("x-stainless-read-timeout", text)], None)
            for text in ("nan", "inf", "-5", "0", "1e3", "1_0", "", "x")
        ],
        ([("x-stainless-read-timeout", "1e999")], None),
        ([("x-stainless-timeout", "600")], 599.0),
        ([("x-stainless-timeout", "2"), ("x-stainless-read-timeout", "600")], 1.8),
        ([("x-stainless-timeout", "20"), ("prefer", "wait=3")], 3.0),
        ([("x-stainless-timeout", "0")], None),
        ([("x-stainless-timeout", "NaN")], None),
        ([("x-stainless-read-timeout", "100000000")], None),
    ],
)
def test_what_is_heard(headers: list[tuple[str, str]], patience: float | None) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    assert stated(raw, streams=False) == pytest.approx(patience) if patience is not None else True
    assert (stated(raw, streams=False) is None) == (patience is None)


def test_a_stream_does_not_run_into_a_read_timeout() -> None:
    raw = [(b"x-stainless-read-timeout", b"2"), (b"x-stainless-timeout", b"2"), (b"prefer", b"wait=9")]
    assert stated(raw, streams=True) == 9.0


@given(
    st.sampled_from(["prefer", "x-stainless-read-timeout", "x-stainless-timeout"]),
    st.binary(max_size=200),
    st.booleans(),
)
def test_whatever_is_sent_is_a_sensible_number_or_nothing(name: str, value: bytes, streams: bool) -> None:
    for raw in ([(name.encode(), value)], [(name.encode(), b"wait=" + value)]):
        patience = stated(raw, streams=streams)
        assert patience is None or 0 <= patience <= 24 * 3600


async def test_a_client_in_a_hurry_is_told_at_once_and_the_model_is_wanted_all_the_same() -> None:
    async with stack(directory=Directory([cold(expected_wait=71.2)])) as s:
        wakes: list[str] = []
        s.activator.wake = lambda: wakes.append("wake")
        began = time.monotonic()
        async with s.http.post(s.url + CHAT, json={"model": "m"}, headers={"Prefer": "wait=30"}) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (503, "patience_too_short")
            assert response.headers["retry-after"] == "72"
        assert time.monotonic() - began < 10
        assert error["message"] == (
            "The model 'm' is not up, it is expected in 72 s, and the client waits 30 s at most "
            "(loading: it is being started)."
        )
        assert s.activator.waiting()["m"].count == 1
        assert wakes == ["wake"]
        async with s.http.post(s.url + CHAT, json={"model": "m"}, headers={"Prefer": "wait=0"}) as response:
            assert response.status == 503
        s.activator.directory = Directory([hot()])
        assert s.activator.waiting() == {}
        async with s.http.post(s.url + CHAT, json={"model": "m"}, headers={"Prefer": "wait=0"}) as response:
            assert response.status == 200


async def test_patience_bounds_the_wait_where_nobody_knows_how_long_it_takes() -> None:
    async with stack(directory=Directory([cold()])) as s:
        began = time.monotonic()
        async with AsyncOpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(openai.APIStatusError, match="did not come up in the 1 s") as caught:
                await client.completions.create(model="m", prompt="x", timeout=1.0)
        # Its own timeout had not come by then, or it would have raised that.
        assert time.monotonic() - began >= 0.9
        assert caught.value.code == "model_wait_timeout"


async def test_the_openai_client_says_how_long_it_waits() -> None:
    async with (
        stack(directory=Directory([cold(expected_wait=50.0)])) as s,
        AsyncOpenAI(base_url=f"{s.url}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.APIStatusError, match="expected in 50 s, and the client waits 19 s"):
            await client.completions.create(model="m", prompt="x", timeout=20)
        # By default it waits for ten minutes.
        request = asyncio.create_task(client.embeddings.create(model="m", input="x", encoding_format="float"))
        # One request, and the client that was told to come back.
        await eventually(lambda: s.activator.waiting()["m"].count == 2)
        request.cancel()
        await eventually(lambda: s.activator.waiting()["m"].count == 1)

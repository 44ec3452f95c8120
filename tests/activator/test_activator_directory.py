"""The directory, the bodies and the counters: what needs no server."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from reconciler.activator import app, headers
from reconciler.activator.directory import Directory, Entry, ModelState
from reconciler.activator.errors import Refusal
from reconciler.activator.form_body import read_form
from reconciler.activator.json_body import read_json
from reconciler.activator.listing import models_json
from reconciler.activator.usage import Usage
from reconciler.core.endpoints import ROUTED_PATHS


def entry(name: str, *aliases: str) -> Entry:
    return Entry(name, ModelState.LOADED, "app", aliases=aliases)


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def test_finds_by_name_and_alias_and_a_name_wins() -> None:
    first, second = entry("a", "b", "c"), entry("b")
    directory = Directory([first, second])
    assert directory.find("a") is first
    assert directory.find("b") is second
    assert directory.find("c") is first
    assert directory.find("d") is None


def test_an_adapter_leads_to_its_model_and_keeps_its_own_name() -> None:
    """Unlike an alias, which the model's application does not know."""
    model = Entry("a", ModelState.LOADED, "app", aliases=("alias",), adapters=("lora",))
    directory = Directory([model])
    assert directory.find("lora") is model
    assert [model.served_as(asked) for asked in ("a", "alias", "lora")] == ["a", "a", "lora"]
    cards = {card["id"]: card for card in json.loads(models_json(directory))["data"]}
    assert set(cards) == {"a", "alias", "lora"}
    assert (cards["alias"]["alias_of"], cards["lora"]["parent"]) == ("a", "a")
    assert "alias_of" not in cards["lora"]
    assert directory.near("lorra") == ("lora",)


def test_near_names_are_near_and_few() -> None:
    directory = Directory([entry("qwen3-0.6b", "Qwen"), *(entry(f"llama-{i}") for i in range(6))])
    assert directory.near("qwen3-0.6B")[0] == "qwen3-0.6b"
    assert directory.near("QWEM") == ("Qwen",)
    assert len(directory.near("llama-x")) == 3
    assert directory.near("something else") == ()
    assert directory.near("") == ()
    assert directory.near("q" * 10_000_000) == ()


def test_the_list_of_paths_is_the_shared_one() -> None:
    assert app.INFERENCE_PATHS is ROUTED_PATHS
    assert len(ROUTED_PATHS) == 20


def test_usage_counts_and_remembers() -> None:
    now = [100.0]
    usage = Usage(clock=lambda: now[0])
    with usage.request("a"), usage.request("a"):
        assert usage.in_flight() == {"a": 2}
        assert usage.idle_seconds() == {"a": 0.0}
    now[0] = 103.0
    assert usage.in_flight() == {}
    assert usage.idle_seconds() == {"a": 3.0}
    with usage.request("a"):
        assert usage.idle_seconds() == {"a": 0.0}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
async def test_json_is_kept_byte_for_byte_around_the_model(size: int) -> None:
    before = '{"messages" : [{"model": "x", "content": "größer 😀 \\u00e9"}],\n "n": 1.0000000000000000001, '
    data = f'{before}"mod\\u0065l"\t:  "gr\\u00f6ßer" , "z":{{}}, "big": {"9" * 9000} }}'.encode()
    body = await read_json(pieces(data, size))
    assert body.model == "größer"
    same = body.naming("größer")
    assert b"".join([chunk async for chunk in same.chunks()]) == data
    other = body.naming('n"ew')
    sent = b"".join([chunk async for chunk in other.chunks()])
    assert sent == data.replace('"gr\\u00f6ßer"'.encode(), b'"n\\"ew"')
    assert other.length == len(sent)
    assert b"".join([chunk async for chunk in other.chunks()]) == sent, "a second try sends the same"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"model"', "invalid_json"),
        (b'{"model": "a"} x', "invalid_json"),
        (b'{"model": "a",}', "invalid_json"),
        (b'{"model": "a" "b": 1}', "invalid_json"),
        (b'{"model" "a"}', "invalid_json"),
        (b'{model: "a"}', "invalid_json"),
        (b'{"model": }', "invalid_json"),
        (b'{"model": "a", "t": NaN}', "invalid_json"),
        (b'{"model": "a", "t": "\xff"}', "invalid_json"),
        (b'\xef\xbb\xbf{"model": "a"}', "invalid_json"),
        (b'{"model": "a", "t": ' + b"[" * 100_000, "invalid_json"),
        (b"{}", "invalid_model"),
        (b'{"Model": "a"}', "invalid_model"),
        (b'{"model": ""}', "invalid_model"),
        (b'{"model": null}', "invalid_model"),
        (b'{"model": 3}', "invalid_model"),
        (b'{"model": ["a"]}', "invalid_model"),
        (b'{"model": "a", "model": "b"}', "invalid_model"),
    ],
)
async def test_json_that_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        await read_json(pieces(data, 1 << 20))
    error = json.loads(caught.value.body())["error"]
    assert (caught.value.status, error["code"]) == (400, code)
    assert error["type"] == "invalid_request_error"


FILE = bytes(range(256)) * 20 + b"\r\n--XX\r\r\n--X" + b"\r\n-" * 50


def form(*parts: tuple[str, bytes]) -> bytes:
    out = b"preamble is not allowed here"[:0]
    for disposition, content in parts:
        head = f"--XXY\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
        out += head.encode() + content + b"\r\n"
    return out + b"--XXY--\r\n"


@pytest.mark.parametrize("size", [1, 3, 64, 1 << 20])
@pytest.mark.parametrize("model_first", [True, False])
async def test_a_form_is_kept_byte_for_byte_around_the_model(size: int, *, model_first: bool) -> None:
    def parts(model: bytes) -> list[tuple[str, bytes]]:
        found = [('name="model"', model), ('name="file"; filename="a.wav"', FILE), ('name="language"', b"")]
        return found if model_first else found[::-1]

    body = await read_form(pieces(form(*parts(b"ears")), size), "multipart/form-data; boundary=XXY")
    assert body.model == "ears"
    for model in ("ears", "whisper"):
        rendition = body.naming(model)
        sent = b"".join([chunk async for chunk in rendition.chunks()])
        assert sent == form(*parts(model.encode()))
        assert rendition.length == len(sent)
    body.close()


@pytest.mark.parametrize(
    ("content_type", "data", "code"),
    [
        ("application/json", b"{}", "invalid_form"),
        ("", b"", "invalid_form"),
        ("multipart/form-data", b"", "invalid_form"),
        ("multipart/form-data; boundary=" + "x" * 1000, b"", "invalid_form"),
        ("multipart/form-data; boundary=XXY", b"", "invalid_form"),
        ("multipart/form-data; boundary=XXY", b"nonsense", "invalid_form"),
        ("multipart/form-data; boundary=XXY", form(('name="model"', b"a"))[:-6], "invalid_form"),
        ("multipart/form-data; boundary=XXY", form(('name="file"; filename="a"', b"a")), "invalid_model"),
        ("multipart/form-data; boundary=XXY", form(('name="model"', b"")), "invalid_model"),
        ("multipart/form-data; boundary=XXY", form(('name="model"', b"\xff")), "invalid_model"),
        ("multipart/form-data; boundary=XXY", form(('name="model"', b"a" * 5000)), "invalid_model"),
        ("multipart/form-data; boundary=XXY", form(*[('name="model"', b"a")] * 2), "invalid_model"),
    ],
)
async def test_a_form_that_is_refused(content_type: str, data: bytes, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        await read_form(pieces(data, 1 << 20), content_type)
    assert (caught.value.status, json.loads(caught.value.body())["error"]["code"]) == (400, code)


def test_headers_that_cross() -> None:
    raw = [
        (b"host", b"edge"),
        (b"authorization", b"Bearer sk-ours"),
        (b"x-api-key", b"sk-ours"),
        (b"connection", b"keep-alive, X-Private"),
        (b"x-private", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"accept", b"text/event-stream"),
        (b"x-request-id", b"given"),
    ]
    sent: Any = headers.request_headers(raw, length=5, request_id="given")
    assert sent == [("accept", "text/event-stream"), ("content-length", "5"), ("x-request-id", "given")]
    assert headers.request_id(raw) == "given"
    assert len(headers.request_id([])) == 36
    assert len(headers.request_id([(b"x-request-id", b"x" * 1000)])) == 36

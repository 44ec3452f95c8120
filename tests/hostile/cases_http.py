"""Hostile requests, byte for byte, and how each has to be answered."""

from typing import NamedTuple

CHAT = "/v1/chat/completions"
FORM = "/v1/audio/transcriptions"
HOT = b'{"model":"qwen"}'
LIMIT = 100_000
"""Bytes of a body that the server under test takes."""


class HttpCase(NamedTuple):
    """One request.

    Attributes:
        name: What it tries.
        data: What is sent, byte for byte.
        status: How it is answered.
        code: The `code` of the error envelope; empty where it is no error.
        passes: The bodies that reach the model, in order.
    """

    name: str
    data: bytes
    status: int
    code: str = ""
    passes: tuple[bytes, ...] = ()


def _get(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", *(headers or ("Host: x",)), "", ""]).encode("latin-1")


def _post(body: bytes, *headers: str, target: str = CHAT, length: str | None = "") -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: x", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length or len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _chunked(chunks: bytes, *headers: str) -> bytes:
    return _post(chunks, "Transfer-Encoding: chunked", *headers, length=None)


def _json(name: str, body: bytes, code: str = "invalid_json", status: int = 400) -> HttpCase:
    return HttpCase(name, _post(body), status, code)


def _form(
    name: str, body: bytes, code: str, kind: str = "multipart/form-data; boundary=B", status: int = 400
) -> HttpCase:
    return HttpCase(name, _post(body, f"Content-Type: {kind}", target=FORM), status, code)


def _part(name: str, value: str) -> str:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'


_MULTIPART = "Content-Type: multipart/form-data; boundary=B"
_GO = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
_SMUGGLED = b"POST /models/unload HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n" + HOT
_ONE_CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(HOT), HOT)

CASES = [
    # Where the request claims to go.
    HttpCase("a host that is a path", _get("/sleep", "Host: x/v1/models?"), 404, "unknown_path"),
    HttpCase("a host with a line end", _get("/v1/models", "Host: x\ny: z"), 200),
    HttpCase("no host", b"GET /v1/models HTTP/1.1\r\n\r\n", 400, "bad_request"),
    HttpCase("two hosts", _get("/v1/models", "Host: x", "Host: evil.example"), 400, "bad_request"),
    HttpCase(
        "a host that was forwarded",
        _get("/v1/models", "Host: x", "X-Forwarded-Host: evil", "X-Forwarded-Prefix: /admin"),
        200,
    ),
    HttpCase(
        "a path that was rewritten",
        _get("/sleep", "Host: x", "X-Original-URL: /v1/models", "X-Rewrite-URL: /v1/models"),
        404,
        "unknown_path",
    ),
    HttpCase("another server's address", _get("http://evil.example/v1/models"), 404, "unknown_path"),
    HttpCase(
        "another server's address to a model", _post(HOT, target=f"http://evil.example{CHAT}"), 404, "unknown_path"
    ),
    HttpCase("an address without a scheme", _get("//evil.example/v1/models"), 404, "unknown_path"),
    HttpCase(
        "a tunnel", b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", 404, "unknown_path"
    ),
    HttpCase("a star", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, "unknown_path"),
    HttpCase("double slashes", _get("//v1//models"), 404, "unknown_path"),
    HttpCase("a double slash to a model", _post(HOT, target="/v1//chat/completions"), 404, "unknown_path"),
    HttpCase("a way up", _get("/v1/../admin"), 404, "unknown_path"),
    HttpCase("a way up to a path that is there", _get("/v1/x/../models"), 404, "unknown_path"),
    HttpCase("an escaped way up", _get("/v1/models/%2e%2e/%2e%2e/admin"), 404, "model_not_found"),
    HttpCase("an escaped slash", _get("/v1%2fmodels/../x"), 404, "model_not_found"),
    HttpCase("a slash escaped twice", _get("/v1/models/org%252fcold-model"), 404, "model_not_found"),
    HttpCase("a parameter of a path", _get("/v1/models;x=y"), 404, "unknown_path"),
    HttpCase("a fragment", _get("/v1/models#x"), 404, "unknown_path"),
    HttpCase("backslashes", _get("/v1\\models"), 404, "unknown_path"),
    HttpCase("capitals", _get("/V1/MODELS"), 404, "unknown_path"),
    HttpCase("an escaped NUL", _get("/v1/models%00"), 404, "unknown_path"),
    HttpCase("a NUL in a model's address", _get("/v1/models/qwen%00"), 404, "model_not_found"),
    HttpCase(
        "line ends in a model's address",
        _get("/v1/models/x%0d%0aSet-Cookie:%20a=b%0d%0a%0d%0a"),
        404,
        "model_not_found",
    ),
    HttpCase("no UTF-8 in a model's address", _get("/v1/models/%ff%fe"), 404, "model_not_found"),
    HttpCase("a template in a model's address", _get("/v1/models/{{7*7}}"), 404, "model_not_found"),
    HttpCase("an empty model's address", _get("/v1/models/"), 404, "model_not_found"),
    HttpCase(
        "an endpoint of the engine's", _post(b"", target="/qwen-app-1/v1/load_lora_adapter"), 404, "unknown_path"
    ),
    HttpCase("an address with letters beyond ASCII", _get("/v1/models/gr\xf6\xdfer"), 400, "bad_request"),
    HttpCase("an address of 100,000 characters", _get("/" + "x" * 100_000), 404, "unknown_path"),
    HttpCase("a method in small letters", _post(HOT).replace(b"POST", b"post", 1), 405, "method_not_allowed"),
    HttpCase(
        "a method of one's own", _get("/v1/models").replace(b"GET", b"EVIL" * 100, 1), 405, "method_not_allowed"
    ),
    HttpCase("a trace", _get(CHAT).replace(b"GET", b"TRACE", 1), 405, "method_not_allowed"),
    # What is no HTTP.
    HttpCase("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, "unknown_path"),
    HttpCase("HTTP/0.9", b"GET /v1/models\r\n\r\n", 400, "bad_request"),
    HttpCase("HTTP/9.9", b"GET /sleep HTTP/9.9\r\nHost: x\r\n\r\n", 404, "unknown_path"),
    HttpCase(
        "TLS",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2 + b"\r\n\r\n",
        400,
        "bad_request",
    ),
    HttpCase("the SSH protocol", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 400, "bad_request"),
    HttpCase("nothing but line ends and then nonsense", b"\r\n\r\n\r\nnonsense\r\n\r\n", 400, "bad_request"),
    HttpCase("two spaces", b"GET  /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
    HttpCase("a header without a colon", _get("/v1/models", "Host: x", "nonsense"), 400, "bad_request"),
    HttpCase(
        "a space before a colon", _chunked(_ONE_CHUNK).replace(b"Encoding:", b"Encoding :"), 400, "bad_request"
    ),
    HttpCase("a header without a name", _get("/v1/models", "Host: x", ": y"), 400, "bad_request"),
    HttpCase("a NUL in a header", _get("/v1/models", "Host: x", "X-Y: a\0b"), 400, "bad_request"),
    HttpCase("a NUL in a header's name", _get("/v1/models", "Host: x", "X\0Y: a"), 400, "bad_request"),
    HttpCase(
        "a carriage return in a header",
        _get("/v1/models", "Host: x", "X-Request-Id: a\rSet-Cookie: b"),
        400,
        "bad_request",
    ),
    HttpCase(
        "a line end in a request's id",
        _get("/sleep", "Host: x", "X-Request-Id: a%0d%0aSet-Cookie: b"),
        404,
        "unknown_path",
    ),
    HttpCase(
        "a megabyte of headers",
        _get("/v1/models", "Host: x", *(f"X-{n}: {'y' * 1000}" for n in range(1000))),
        400,
        "bad_request",
    ),
    HttpCase("one header of a megabyte", _get("/v1/models", "Host: x", f"X: {'y' * 2**20}"), 400, "bad_request"),
    HttpCase(
        "an upgrade to a WebSocket",
        _get(
            CHAT,
            "Host: x",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: x",
        ),
        405,
        "method_not_allowed",
    ),
    HttpCase(
        "an upgrade to HTTP/2",
        _get(
            "/sleep", "Host: x", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"
        ),
        404,
        "unknown_path",
    ),
    # Where a body ends: what two readers see differently is a request smuggled past one of them.
    HttpCase("no length", _post(b"", length=None), 400, "invalid_json"),
    HttpCase("no length, and a body all the same", _post(HOT, length=None), 400, "invalid_json"),
    HttpCase("two lengths", _post(HOT, "Content-Length: 3"), 400, "bad_request"),
    HttpCase("two lengths in one", _post(HOT, length=f"{len(HOT)}, 3"), 400, "bad_request"),
    HttpCase("a negative length", _post(HOT, length="-1"), 400, "bad_request"),
    HttpCase("a length with a sign", _post(HOT, length=f"+{len(HOT)}"), 400, "bad_request"),
    HttpCase("a hexadecimal length", _post(HOT, length="0x10"), 400, "bad_request"),
    HttpCase("a length with an underscore", _post(HOT, length="1_6"), 400, "bad_request"),
    HttpCase("a length in other digits", _post(HOT, length="\xb2\xb9"), 400, "bad_request"),
    HttpCase("a length of 5,000 digits", _post(HOT, length="9" * 5000), 400, "bad_request"),
    HttpCase(
        "a length beyond the limit",
        _post(b"{}", "Expect: 100-continue", length="9" * 18),
        413,
        "request_too_large",
    ),
    HttpCase("a length and chunks", _chunked(_ONE_CHUNK, "Content-Length: 3"), 200, passes=(HOT,)),
    HttpCase("chunks twice", _chunked(_ONE_CHUNK, "Transfer-Encoding: chunked"), 400, "bad_request"),
    HttpCase(
        "chunks and another coding",
        _post(_ONE_CHUNK, "Transfer-Encoding: chunked, identity", length=None),
        400,
        "bad_request",
    ),
    HttpCase(
        "a coding before chunks",
        _post(_ONE_CHUNK, "Transfer-Encoding: gzip, chunked", length=None),
        400,
        "bad_request",
    ),
    HttpCase(
        "chunks with a vertical tab",
        _post(_ONE_CHUNK, "Transfer-Encoding: \x0bchunked", length=None),
        400,
        "bad_request",
    ),
    HttpCase(
        "chunks that are no word",
        _post(_ONE_CHUNK, "Transfer-Encoding: xchunked", length=None),
        400,
        "bad_request",
    ),
    HttpCase("a chunk's size that is none", _chunked(b"zz\r\n" + HOT), 400, "bad_request"),
    HttpCase("a chunk's negative size", _chunked(b"-1\r\n" + HOT), 400, "bad_request"),
    HttpCase("a chunk's size with a prefix", _chunked(b"0x10\r\n" + HOT + b"\r\n0\r\n\r\n"), 400, "bad_request"),
    HttpCase("a chunk's size of 5,000 digits", _chunked(b"1" * 5000 + b"\r\n"), 400, "bad_request"),
    HttpCase("a chunk longer than its size", _chunked(b"3\r\n" + HOT + b"\r\n0\r\n\r\n"), 400, "bad_request"),
    HttpCase(
        "a trailer that is a header",
        _chunked(b"%x\r\n%s\r\n0\r\nHost: evil\r\nContent-Length: 1\r\n\r\n" % (len(HOT), HOT)),
        200,
        passes=(HOT,),
    ),
    HttpCase(
        "chunks beyond the limit",
        _chunked(b"".join(b"8000\r\n" + b" " * 0x8000 + b"\r\n" for _ in range(4)) + b"0\r\n\r\n"),
        413,
        "request_too_large",
    ),
    # Bodies.
    HttpCase(
        "a body beyond the limit", _post(b'{"model":"qwen","x":"' + b"x" * LIMIT + b'"}'), 413, "request_too_large"
    ),
    _json("nothing", b""),
    _json("half of it", b'{"model": "qwen"'),
    _json("more than it", HOT + b"{}"),
    _json("a list", b"[]"),
    _json("no number", b'{"model": "qwen", "x": NaN}'),
    _json("infinity", b'{"model": "qwen", "x": -Infinity}'),
    _json("single quotes", b"{'model': 'qwen'}"),
    _json("a comment", b'{"model": "qwen" /* x */}'),
    _json("a comma too many", b'{"model": "qwen",}'),
    _json("an unescaped line end", b'{"model": "a\nb"}'),
    _json("an unescaped NUL", b'{"model": "a\0b"}'),
    _json("a byte order mark", b"\xef\xbb\xbf" + HOT),
    _json("UTF-16", HOT.decode().encode("utf-16")),
    _json("no UTF-8", b'{"model": "\xff"}'),
    _json("an overlong slash", b'{"model": "a\xc0\xafb"}'),
    _json("half a surrogate pair", b'{"model": "\xed\xa0\x80"}'),
    _json("a compressed body", b"\x1f\x8b\x08\0" + bytes(100)),
    _json("90,000 lists in each other", b'{"model": "qwen", "x": ' + b"[" * 90_000),
    _json("9,000 objects in each other", b'{"x": ' * 9_000),
    _json("no model", b"{}", "invalid_model"),
    _json("a model in capitals", b'{"MODEL": "qwen"}', "invalid_model"),
    _json("two models", b'{"model": "qwen", "model": "cold"}', "invalid_model"),
    _json("two models, one in escapes", b'{"model": "qwen", "\\u006dodel": "cold"}', "invalid_model"),
    _json("a model that is null", b'{"model": null}', "invalid_model"),
    _json("a model that is a number", b'{"model": 7}', "invalid_model"),
    _json("a model that is a list", b'{"model": ["qwen"]}', "invalid_model"),
    _json("a model that is an object", b'{"model": {"$ne": null}}', "invalid_model"),
    _json("an empty model", b'{"model": ""}', "invalid_model"),
    _json("a model with line ends", b'{"model": "x\\r\\nSet-Cookie: a=b\\r\\n\\r\\n"}', "model_not_found", 404),
    _json("a model with a NUL", b'{"model": "qwen\\u0000"}', "model_not_found", 404),
    _json("a model that is half a surrogate pair", b'{"model": "\\ud800"}', "model_not_found", 404),
    _json("a model that is a path", b'{"model": "../../qwen-app-1"}', "model_not_found", 404),
    _json("a model that is an application", b'{"model": "qwen-app-1"}', "model_not_found", 404),
    _json("a model that is a template", b'{"model": "{{7*7}}"}', "model_not_found", 404),
    _json("a model in other letters", b'{"model": "\xd1\x81old"}', "model_not_found", 404),
    _json("a model in another form of Unicode", '{"model": "gro\u0308ßer"}'.encode(), "model_not_found", 404),
    _json("a model with a zero-width space", '{"model": "qwen\u200b"}'.encode(), "model_not_found", 404),
    _json("a model with a space", b'{"model": "qwen "}', "model_not_found", 404),
    _json("a model of 90,000 characters", b'{"model": "' + b"q" * 90_000 + b'"}', "model_not_found", 404),
    _json("a model that is not up", b'{"model": "cold"}', "model_unloaded", 503),
    HttpCase(
        "a number of 50,000 digits",
        _post(b'{"model":"qwen","n":' + b"9" * 50_000 + b"}"),
        200,
        passes=(b'{"model":"qwen3-0.6b","n":' + b"9" * 50_000 + b"}",),
    ),
    HttpCase(
        "500 lists in each other",
        _post(b'{"x":' + b"[" * 500 + b"]" * 500 + b',"model":"qwen"}'),
        200,
        passes=(b'{"x":' + b"[" * 500 + b"]" * 500 + b',"model":"qwen3-0.6b"}',),
    ),
    # Forms.
    _form("a form that is none", HOT, "invalid_form"),
    _form("a form that says that it is JSON", HOT, "invalid_form", "application/json"),
    _form("a form without a boundary", _part("model", "ears").encode(), "invalid_form", "multipart/form-data"),
    _form(
        "a boundary with a line end",
        _part("model", "ears").encode(),
        "invalid_form",
        'multipart/form-data; boundary="B%0d%0a"',
    ),
    _form("a form that is cut off", _part("model", "ears").encode(), "invalid_form"),
    _form("a form without a model", (_part("x", "y") + "--B--\r\n").encode(), "invalid_model"),
    _form(
        "a form with two models",
        (_part("model", "ears") + _part("model", "qwen") + "--B--\r\n").encode(),
        "invalid_model",
    ),
    _form(
        "a form with another model", (_part("model", "../x") + "--B--\r\n").encode(), "model_not_found", status=404
    ),
    _form(
        "a form with a model that is no UTF-8",
        _part("model", "\xff").encode("latin-1") + b"--B--\r\n",
        "invalid_model",
    ),
    _form("a form of 2,000 parts", (_part("x", "") * 1500 + "--B--\r\n").encode(), "invalid_model"),
    # Several requests on one connection.
    HttpCase("a second request behind the first", _GO + _get("/sleep"), 200),
    HttpCase("a second request in a body", _post(_SMUGGLED), 400, "invalid_json"),
    HttpCase("nonsense behind a request", _GO + b"nonsense\r\n\r\n", 200),
]

# What is sent before the client goes away.
DISCONNECTS = [
    ("before anything", b""),
    ("in the request line", b"POST /v1/chat"),
    ("in a header", f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Le".encode()),
    ("before the headers end", f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n".encode()),
    ("before the body", _post(b"", length="16")),
    ("in the body", _post(HOT[:5], length="16")),
    ("in a long body", _post(b'{"model":"qwen","x":"' + b"x" * 50_000, length="99999")),
    ("in a chunk's size", _chunked(b"1")),
    ("in a chunk", _chunked(b"10\r\n" + HOT[:5])),
    ("between two chunks", _chunked(b"5\r\n" + HOT[:5] + b"\r\n")),
    ("before the last chunk", _chunked(b"10\r\n" + HOT + b"\r\n")),
    ("in a form", _post(_part("model", "ears").encode(), _MULTIPART, target=FORM, length="9999")),
    ("in a body that is too large", _post(b" " * (LIMIT + 5000), length="150000")),
]  # fmt: skip

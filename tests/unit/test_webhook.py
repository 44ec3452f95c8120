"""Which deliveries are believed, and what they mean."""

import base64
import contextlib
import hashlib
import hmac
import json
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.webhook import DeliveryError, Form, about, sign, verify

OLD, NEW = "an old secret, 23 chars", "It's a Secret to Everybody"
KEY = bytes(range(32))
SIGNING = f"whsec_{base64.b64encode(KEY).decode()}"
PUSH = json.dumps({"ref": "refs/heads/main", "after": "0" * 40}).encode()


def hexmac(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def github(secret: str, body: bytes, event: str = "push") -> list[tuple[bytes, bytes]]:
    return [
        (b"x-github-event", event.encode()),
        (b"content-type", b"application/json"),
        (b"x-hub-signature-256", f"sha256={hexmac(secret, body)}".encode()),
    ]


def gitlab_signed(key: bytes, body: bytes) -> list[tuple[bytes, bytes]]:
    signed = b"f5e5f430-f57b-4e6e-9fac-d9128cd7232f.1744060800." + body
    value = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    return [
        (b"x-gitlab-event", b"Push Hook"),
        (b"webhook-id", b"f5e5f430-f57b-4e6e-9fac-d9128cd7232f"),
        (b"webhook-timestamp", b"1744060800"),
        (b"webhook-signature", b"v1," + value),
    ]


def test_the_example_of_githubs_documentation() -> None:
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert sign("It's a Secret to Everybody", b"Hello, World!") == signature
    headers = [(b"x-hub-signature-256", signature.encode())]
    assert verify(headers, b"Hello, World!", [OLD, NEW]) is Form.GITHUB


def test_the_example_of_standard_webhooks() -> None:
    # From the specification's own test suite.
    headers = [
        (b"webhook-id", b"msg_p5jXN8AQM9LWM0D4loKWxJek"),
        (b"webhook-timestamp", b"1614265330"),
        (b"webhook-signature", b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
    ]
    body = b'{"test": 2432232314}'
    assert verify(headers, body, ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]) is Form.GITLAB


@pytest.mark.parametrize(
    ("headers", "form"),
    [
        (github(NEW, PUSH), Form.GITHUB),
        ([(b"x-gitea-signature", hexmac(NEW, PUSH).encode())], Form.GITEA),
        ([(b"x-forgejo-signature", hexmac(OLD, PUSH).encode())], Form.GITEA),
        ([(b"x-gitlab-token", NEW.encode())], Form.GITLAB),
        (gitlab_signed(KEY, PUSH), Form.GITLAB),
    ],
)
def test_each_form_is_believed_and_with_another_secret_or_body_it_is_not(
    headers: list[tuple[bytes, bytes]], form: Form
) -> None:
    assert verify(headers, PUSH, [OLD, NEW, SIGNING]) is form
    with pytest.raises(DeliveryError, match="not made with a secret"):
        verify(headers, PUSH, ["a secret of somebody else", f"whsec_{base64.b64encode(b'x' * 32).decode()}"])
    if headers[0][0] != b"x-gitlab-token":  # which signs nothing
        with pytest.raises(DeliveryError, match="not made with a secret"):
            verify(headers, PUSH + b" ", [OLD, NEW, SIGNING])


def test_a_signing_token_can_be_replaced() -> None:
    other = gitlab_signed(b"y" * 32, PUSH)[-1][1]
    headers = gitlab_signed(KEY, PUSH)
    headers[-1] = (headers[-1][0], other + b" " + headers[-1][1])
    assert verify(headers, PUSH, [SIGNING]) is Form.GITLAB


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-hub-signature", b"sha1=" + hmac.new(NEW.encode(), PUSH, hashlib.sha1).hexdigest().encode())],
        [(b"x-hub-signature-256", hexmac(NEW, PUSH).encode())],
        [(b"x-hub-signature-256", b"sha256=")],
        [(b"x-hub-signature-256", b"")],
        [(b"x-hub-signature-256", b"sha256=\xff\xfe")],
        [(b"x-gitlab-token", b"")],
        [(b"webhook-signature", b"v1,")],
        [(b"webhook-signature", b"")],
        [(b"authorization", NEW.encode())],
        # The first that counts is wrong; the second, right one does not help.
        [(b"x-hub-signature-256", b"sha256=0"), (b"x-gitlab-token", NEW.encode())],
        [*github(NEW, PUSH), *github(NEW, PUSH)],
    ],
)
def test_what_is_not_signed_as_it_should_be_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(DeliveryError) as refused:
        verify(headers, PUSH, [OLD, NEW, SIGNING])
    assert NEW not in str(refused.value)


@pytest.mark.parametrize("token", ["whsec_", "whsec_not base64!", "whsec_é"])
def test_a_signing_token_that_is_none_signs_nothing(token: str) -> None:
    with pytest.raises(DeliveryError):
        verify(gitlab_signed(b"", PUSH), PUSH, [token])


@pytest.mark.parametrize(
    ("ref", "follows", "looks"),
    [
        ("refs/heads/main", "main", True),
        ("refs/heads/main", "refs/heads/main", True),
        ("refs/tags/v1", "v1", True),
        ("refs/heads/main", "", True),
        ("refs/tags/v1", "", False),
        ("refs/heads/other", "main", False),
        ("refs/heads/x/main", "main", False),
        ("refs/heads/mainline", "main", False),
        ("main", "refs/heads/main", False),
    ],
)
def test_a_push_to_what_is_followed_has_us_look(ref: str, follows: str, looks: bool) -> None:
    body = json.dumps({"ref": ref}).encode()
    found = about(github(NEW, body), body, follows)
    assert found.look is looks
    assert ref in found.reason


@pytest.mark.parametrize(
    ("headers", "looks"),
    [
        ([(b"x-github-event", b"ping")], False),
        ([(b"x-github-event", b"pull_request")], False),
        ([(b"x-gitlab-event", b"Push Hook")], True),
        ([(b"x-gitlab-event", b"Tag Push Hook")], True),
        ([(b"x-gitlab-event", b"Merge Request Hook")], False),
        ([(b"x-gitea-event", b"push"), (b"x-gogs-event", b"push")], True),
        ([(b"x-forgejo-event", b"push")], True),
        ([], False),
        ([(b"x-github-event", b"\x1b[31m\xff")], False),
    ],
)
def test_only_pushes_count(headers: list[tuple[bytes, bytes]], looks: bool) -> None:
    found = about(headers, PUSH, "main")
    assert found.look is looks
    assert found.reason.isprintable()


def test_an_ignored_kind_is_not_parsed() -> None:
    assert not about([(b"x-github-event", b"ping")], b"\xff[[[", "main").look


def test_githubs_other_content_type() -> None:
    body = urllib.parse.urlencode({"payload": PUSH.decode()}).encode()
    headers = [
        (b"x-github-event", b"push"),
        (b"content-type", b"application/x-www-form-urlencoded; charset=utf-8"),
    ]
    assert about(headers, body, "main").look


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"refs/heads/main"',
        b"{}",
        b'{"ref": null}',
        b'{"ref": ["refs/heads/main"]}',
        b'{"ref": ""}',
        b'{"ref": "refs/heads/ma\\nin"}',
        b'{"ref": "refs/heads/\\ud800"}',
        b'{"ref": "refs/heads/' + b"x" * 2000 + b'"}',
        b"\xff\xfe",
        "{}".encode("utf-16"),
        b"[" * (1 << 20),
        b'{"a":' * 100_000,
        b'{"n": ' + b"9" * 5000 + b', "ref": "refs/heads/main"}',
    ],
)
def test_a_body_that_names_no_ref_is_refused(body: bytes) -> None:
    with pytest.raises(DeliveryError):
        about([(b"x-github-event", b"push")], body, "main")


def test_a_form_of_many_fields_is_refused() -> None:
    headers = [(b"x-github-event", b"push"), (b"content-type", b"application/x-www-form-urlencoded")]
    for body in (b"a=1&" * 200_000, b"payload=%FF", b"x=1", b""):
        with pytest.raises(DeliveryError):
            about(headers, body, "main")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"x-github-event",
                    b"x-hub-signature-256",
                    b"x-gitlab-token",
                    b"webhook-signature",
                    b"webhook-id",
                    b"content-type",
                ]
            ),
            st.one_of(st.binary(max_size=40), st.sampled_from([b"push", b"application/x-www-form-urlencoded"])),
        ),
        max_size=6,
    ),
    st.one_of(st.binary(max_size=100), st.from_type(dict).map(lambda found: repr(found).encode())),
)
def test_nothing_but_the_documented_error_is_ever_raised(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    with pytest.raises(DeliveryError):
        verify(headers, body, [OLD, NEW, SIGNING])
    with contextlib.suppress(DeliveryError):
        assert about(headers, body, "main").reason.isprintable()

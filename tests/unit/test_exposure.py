"""What may listen where, with the keys that there are."""

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.exposure import Listen, is_loopback, refusals
from reconciler.core.keys import Key, KeyRing, Scope, digest_of

NOW = 1000.0
DOOR = Listen("listen_host", "0.0.0.0", Scope.INFERENCE, "the front door")
API = Listen("api_host", "192.0.2.7", Scope.ADMIN, "the API")
KEY = Key("a", digest_of("s"), frozenset({Scope.INFERENCE}), 0.0)
ADMIN = replace(KEY, scopes=frozenset({Scope.ADMIN}))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.2", "127.255.255.255", "::1", "[::1]", "localhost", "LocalHost"]
)
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    assert refusals([replace(DOOR, host=host), replace(API, host=host)], KeyRing(), NOW) == ()


@pytest.mark.parametrize(
    "host",
    [
        "",
        "*",
        "0.0.0.0",
        "::",
        "128.0.0.1",
        "10.0.0.1",
        "fe80::1",
        "gpu1.example",
        "127.0.0.1.example",
        "127.evil.example",
        "localhost.example",
        "localhost.",
        "127.1",
        "127.0.0.1 ",
        "0x7f.0.0.1",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.1,0.0.0.0",
        "a" * 10_000,
        "\x00",
    ],
)
def test_everything_else_needs_one(host: str) -> None:
    assert not is_loopback(host)
    assert len(refusals([replace(DOOR, host=host)], KeyRing(), NOW)) == 1
    assert refusals([replace(DOOR, host=host)], KeyRing((KEY,)), NOW) == ()


@given(st.ip_addresses())
def test_addresses(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    loopback = address in ipaddress.ip_network("127.0.0.0/8") or address == ipaddress.ip_address("::1")
    assert is_loopback(str(address)) is loopback


def test_each_refusal_names_the_setting_why_and_the_command() -> None:
    door, api = refusals([DOOR, API], KeyRing(), NOW)
    assert door == (
        "listen_host = '0.0.0.0' lets other machines reach the front door, and there is no inference key: make "
        "one with `reconcile keys add NAME`, or listen on 127.0.0.1"
    )
    assert api.startswith("api_host = '192.0.2.7' lets other machines reach the API, and there is no admin key")
    assert "`reconcile keys add NAME --scope admin`" in api


def test_a_key_counts_for_what_it_opens() -> None:
    assert len(refusals([DOOR, API], KeyRing((KEY,)), NOW)) == 1
    assert len(refusals([DOOR, API], KeyRing((ADMIN,)), NOW)) == 1
    assert refusals([DOOR, API], KeyRing((KEY, ADMIN)), NOW) == ()
    metrics = replace(API, scope=Scope.METRICS)
    assert refusals([metrics], KeyRing((ADMIN,)), NOW) == ()


@pytest.mark.parametrize("gone", [{"revoked": 1.0}, {"expires": NOW}])
def test_a_key_that_is_over_does_not(gone: dict[str, float]) -> None:
    (refusal,) = refusals([DOOR], KeyRing((replace(KEY, **gone),)), NOW)  # type: ignore[arg-type]
    assert "every inference key is revoked or has expired" in refusal

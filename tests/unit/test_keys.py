"""Keys as the core sees them: who is found, what cannot be made, how use adds up, what is blanked in text."""

import secrets
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.journal_entry import cleaned, looks_secret
from reconciler.core.key_usage import KeyUse, add_up, kept
from reconciler.core.keys import (
    LONGEST_SECONDS,
    MOST_KEYS,
    MOST_MODELS,
    Key,
    KeyRefusedError,
    KeyRing,
    Scope,
    digest_of,
    names_of,
    secret_from,
)
from reconciler.core.secrets import without_secrets

NOW = 1000.0
INFERENCE = frozenset({Scope.INFERENCE})


def key(name: str = "a", secret: str = "s", **more: object) -> Key:
    return replace(Key(name, digest_of(secret), INFERENCE, NOW), **more)  # type: ignore[arg-type]


scopes = st.frozensets(st.sampled_from(Scope), min_size=1)
times = st.none() | st.floats(NOW + 1, NOW + 100)


@st.composite
def rings(draw: st.DrawFn) -> tuple[KeyRing, list[str]]:
    """A ring of up to six keys, some expired or revoked, and their secrets."""
    ring, made = KeyRing(), []
    for number in range(draw(st.integers(0, 6))):
        made.append(secret_from(secrets.token_urlsafe(32)))
        ring = ring.add(key(f"k{number}", made[-1], scopes=draw(scopes), expires=draw(times)))
        if draw(st.booleans()):
            ring, _ = ring.revoke(f"k{number}", NOW + draw(st.integers(0, 50)))
    return ring, made


@given(rings(), st.floats(NOW, NOW + 200))
def test_exactly_the_keys_that_are_valid_are_found(made: tuple[KeyRing, list[str]], now: float) -> None:
    ring, given_out = made
    for each, secret in zip(ring.keys, given_out, strict=True):
        open_ = each.revoked is None and (each.expires is None or now < each.expires)
        assert ring.find(secret, now) == (each if open_ else None)
        for other in (secret[:-1], secret + "a", secret.swapcase(), each.digest, each.fingerprint, each.name):
            assert ring.find(other, now) is None or other in given_out


@given(rings(), st.text())
def test_no_text_that_was_not_given_out_is_a_key(made: tuple[KeyRing, list[str]], text: str) -> None:
    assert text in made[1] or made[0].find(text, NOW) is None


@given(rings())
def test_revoking_never_opens_the_door(made: tuple[KeyRing, list[str]]) -> None:
    ring = made[0]
    for each in made[0].keys:
        if each.revoked is None:
            ring, gone = ring.revoke(each.fingerprint, NOW + 60)
            assert (gone.name, gone.revoked) == (each.name, NOW + 60)
    assert all(not each.is_valid(NOW + 60) for each in ring.keys)
    assert ring.inference_is_open is made[0].inference_is_open
    assert [each.digest for each in ring.keys] == [each.digest for each in made[0].keys]


@given(rings(), st.data())
def test_a_new_key_opens_what_the_old_one_did_and_the_old_one_ends_with_its_grace(
    made: tuple[KeyRing, list[str]], data: st.DataObject
) -> None:
    ring, given_out = made
    now, grace = NOW + 0.5, data.draw(st.sampled_from([0.0, 10.0, 1e6]))
    for old, secret in zip(ring.keys, given_out, strict=True):
        if old.revoked is not None:
            with pytest.raises(KeyRefusedError, match="no key"):
                ring.rotate(old.name, digest_of("new"), now)
            continue
        after, new, ended = ring.rotate(old.name, digest_of("new"), now, grace=grace)
        assert after.find("new", now) == new == replace(old, digest=digest_of("new"), created=now)
        ends = now + grace if old.expires is None else min(old.expires, now + grace)
        assert (after.find(secret, now) is not None) == (grace > 0)
        assert after.find(secret, ends) is None
        assert ended.digest == old.digest
        assert len(after.keys) == len(ring.keys) + 1
        gone, newest = after.revoke(old.name, now)
        assert gone.find("new", now) is gone.find(secret, now) is None, "by name all go"
        assert newest.digest == new.digest
        only, _ = after.revoke(new.fingerprint, now)
        assert (only.find(secret, now) is not None) == (grace > 0), "by fingerprint that one goes"


def test_rotating_twice_leaves_no_older_key_longer_than_the_last_grace() -> None:
    ring = KeyRing((key(secret="one"),))
    ring, _, _ = ring.rotate("a", digest_of("two"), NOW, grace=1000.0)
    ring, _, _ = ring.rotate("a", digest_of("three"), NOW, grace=10.0)
    found = [[ring.find(secret, NOW + t) is not None for secret in ("one", "two", "three")] for t in (9, 11)]
    assert found == [[True, True, True], [False, False, True]]


def test_an_expired_key_is_replaced_only_with_a_new_end_and_its_name_is_free() -> None:
    ring = KeyRing((key(expires=NOW + 1),))
    with pytest.raises(KeyRefusedError, match="expired"):
        ring.rotate("a", digest_of("new"), NOW + 2)
    after, new, _ = ring.rotate("a", digest_of("new"), NOW + 2, expires=NOW + 9)
    assert after.find("new", NOW + 8) == new
    assert ring.add(key(secret="other", created=NOW + 2)).find("other", NOW + 3) is not None
    with pytest.raises(KeyRefusedError, match="already"):
        ring.add(key(secret="other"))


@pytest.mark.parametrize("grace", [-1.0, float("nan"), float("inf"), 2 * LONGEST_SECONDS])
def test_a_grace_is_a_time(grace: float) -> None:
    with pytest.raises(KeyRefusedError, match="at most"):
        KeyRing((key(),)).rotate("a", digest_of("new"), NOW, grace=grace)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"name": ""}, "a name has"),
        ({"name": "-a"}, "a name has"),
        ({"name": "a b"}, "a name has"),
        ({"name": "a\n"}, "a name has"),
        ({"name": "ä"}, "a name has"),
        ({"name": "a" * 65}, "a name has"),
        ({"name": "0123456789ab"}, "fingerprint"),
        ({"scopes": frozenset()}, "scope"),
        ({"requests_per_minute": 0}, "limit"),
        ({"concurrent": -1}, "limit"),
        ({"concurrent": 10**9}, "limit"),
        ({"models": frozenset()}, "no model"),
        ({"models": frozenset({"a b"})}, "no name of a model"),
        ({"models": frozenset({"a\x1b[31m"})}, "no name of a model"),
        ({"models": frozenset({"a" * 97})}, "no name of a model"),
        ({"models": frozenset(f"m{n}" for n in range(MOST_MODELS + 1))}, "at most"),
        ({"models": frozenset({"m"}), "scopes": frozenset({Scope.ADMIN})}, "inference"),
        ({"concurrent": 1, "scopes": frozenset({Scope.ADMIN})}, "inference"),
        ({"expires": NOW}, "expired already"),
        ({"expires": float("nan")}, "at most"),
        ({"expires": float("inf")}, "at most"),
        ({"expires": NOW + 2 * LONGEST_SECONDS}, "at most"),
    ],
)
def test_what_makes_no_sense_is_refused(more: dict[str, object], why: str) -> None:
    with pytest.raises(KeyRefusedError, match=why):
        KeyRing().add(key(**more))  # type: ignore[arg-type]


def test_scopes() -> None:
    admin, measures = (key(scopes=frozenset({scope})) for scope in (Scope.ADMIN, Scope.METRICS))
    assert [admin.opens(scope) for scope in Scope] == [False, True, True]
    assert [measures.opens(scope) for scope in Scope] == [False, True, False]
    assert [key().opens(scope) for scope in Scope] == [True, False, False]
    assert not admin.may_use("m")
    assert key(models=frozenset({"m"})).may_use("m")
    assert not key(models=frozenset({"m"})).may_use("M")


def test_the_oldest_that_is_closed_makes_room_and_the_door_stays_shut() -> None:
    admin = frozenset({Scope.ADMIN})
    keys = [key("gone", "0", revoked=NOW), key("gone-too", "1", scopes=admin, revoked=NOW)]
    keys += [key(f"k{n}", f"k{n}", scopes=admin) for n in range(MOST_KEYS - 2)]
    ring = KeyRing(tuple(keys)).add(key("new", "new", scopes=admin))
    assert len(ring.keys) == MOST_KEYS
    assert [each.name for each in ring.keys[:2]] == ["gone", "k0"], "the only one for inference stays"
    assert not ring.inference_is_open
    with pytest.raises(KeyRefusedError, match=f"{MOST_KEYS} keys"):
        ring.add(key("newer", "newer", scopes=admin))
    closed = KeyRing(tuple(replace(each, scopes=INFERENCE) for each in keys)).add(key("new", "new"))
    assert [each.name for each in closed.keys[:2]] == ["gone-too", "k0"]


def test_a_secret_is_made_of_random_characters_and_no_list_of_models_means_all() -> None:
    assert secret_from(secrets.token_urlsafe(32)).startswith("rk-")
    for wrong in ("", "a" * 42, "a" * 44, "a" * 42 + "/", "a" * 42 + "\n"):
        with pytest.raises(KeyRefusedError):
            secret_from(wrong)
    assert names_of([]) is None
    assert names_of(["b", "a", "b"]) == frozenset({"a", "b"})


# --- use --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), max_size=20), st.sets(st.integers(0, 19)))
def test_requests_add_up_over_restarts_of_the_counter(steps: list[int], restarts: set[int]) -> None:
    """A counter that begins anew is noticed where it stands lower than before, which is all that can be known."""
    usage: dict[str, KeyUse] = {}
    counter = expected = 0
    last = None
    for number, more in enumerate(steps):
        if number in restarts and more < counter:
            counter = 0
        counter += more
        expected += more
        usage = add_up(usage, {"f": counter}, float(number))
        last = float(number) if more else last
    found = usage.get("f", KeyUse())
    assert (found.requests, found.last_used, found.seen) == (expected, last, counter)


def test_what_a_counter_does_not_say_changes_nothing() -> None:
    before = {"f": KeyUse(5, 1.0, 5), "g": KeyUse(1, 1.0, 1)}
    assert add_up(before, {}, 9.0) == before
    assert add_up(before, {"f": 5, "h": 0}, 9.0) == before
    assert add_up(before, {"f": -3}, 9.0)["f"] == KeyUse(5, 1.0, 0)
    assert kept(before, {"g", "x"}) == {"g": before["g"]}


# --- what looks like a key in a text ----------------------------------------------------------------------------

TOKENS = [
    "hf_abcdefghijklmnop",
    "ghp_" + "a" * 36,
    "xghp_" + "a" * 36,
    "github_pat_" + "a_" * 12,
    "glpat-" + "a-" * 10,
    "sk-" + "a-b_" * 5,
    "rk-" + "Ab-_" * 10 + "xyz",
]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("text", ["{}", "token: {}", "'{}',", "%20{}", "?key={}&x", "_{}", "a\n{}\tb"])
def test_tokens_are_blanked_and_recognized_everywhere(token: str, text: str) -> None:
    said = text.format(token)
    for told in (without_secrets(said), cleaned(said)):
        assert "***" in told
        assert token[-12:] not in told
    assert looks_secret(said)


@pytest.mark.parametrize("text", ["Bearer abc", "bearer  abc", "BEARER\tabc", 'Bearer "abc"', "https://u:abc@h/x"])
def test_keys_are_blanked_where_they_stand(text: str) -> None:
    assert "abc" not in without_secrets(text)
    assert looks_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "disk-usage-classifier-v2",
        "risk-assessment-of-everything",
        "benchmark-of-many-large-models",
        "network-intrusion-detection",
        "weight_quantization_method",
        "https://hub.example/org/model",
        "source: {repo: org/model}",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert without_secrets(text) == cleaned(text) == text
    assert not looks_secret(text)


@given(st.text(), st.text())
def test_every_key_of_ours_is_found_in_any_text(before: str, after: str) -> None:
    secret = secret_from(secrets.token_urlsafe(32))
    # Glued to a word it is none.
    assert secret not in without_secrets(f"{before} {secret}{after}")

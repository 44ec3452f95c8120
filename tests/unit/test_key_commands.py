"""`reconcile keys` as a person or a script uses it."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.keys_commands import keys
from reconciler.core.keys import Scope
from reconciler.host.key_file import FILE, KeyFile
from reconciler.loop import key_usage
from reconciler.loop.key_usage import KeyUsage

DAY = 86400.0


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


def run(state: Path, verb: str, *words: str) -> Result:
    shared = {"state_dir": None, "models_dir": None, "output": "text"}
    return CliRunner().invoke(keys, [verb, "--state-dir", str(state), *words], obj=shared)


def ok(state: Path, verb: str, *words: str) -> Result:
    result = run(state, verb, *words)
    assert result.exit_code == 0, result.output
    return result


def as_json(state: Path, verb: str, *words: str) -> Any:
    return json.loads(ok(state, verb, *words, "--output", "json").stdout)


def test_a_key_stands_alone_on_standard_output_and_opens_what_was_said(state: Path) -> None:
    result = ok(state, "add", "app")
    secret = result.stdout.strip()
    assert secret.startswith("rk-")
    assert secret not in result.stderr
    assert "shown this once" in result.stderr
    assert "first key for inference" in result.stderr
    key = KeyFile(state).ring().find(secret, time.time())
    assert key is not None
    assert (key.name, key.scopes, key.models, key.expires) == ("app", frozenset({Scope.INFERENCE}), None, None)
    assert "first key" not in ok(state, "add", "another").stderr
    assert not any(secret[3:] in path.read_text() for path in state.iterdir())


def test_every_option_counts(state: Path) -> None:
    words = ["--scope", "inference", "--scope", "admin", "--model", "m", "--model", "org/n", "--expires", "30d"]
    told = as_json(state, "add", "app", *words, "--requests-per-minute", "60", "--concurrent", "4")
    key = KeyFile(state).ring().find(told["secret"], time.time())
    assert key is not None
    assert key.scopes == {Scope.INFERENCE, Scope.ADMIN}
    assert key.models == frozenset({"m", "org/n"})
    assert key.expires == pytest.approx(time.time() + 30 * DAY, abs=60)
    assert (key.requests_per_minute, key.concurrent) == (60, 4)
    assert told["key"]["fingerprint"] == key.fingerprint
    assert told["key"]["scopes"] == ["admin", "inference"]
    assert "digest" not in told["key"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["a b"], "a name has"),
        (["app", "--expires", "soon"], "--expires: 'soon' is not a duration"),
        (["app", "--expires", "0s"], "expired already"),
        (["app", "--expires", "999999999d"], "100 years"),
        (["app", "--concurrent", "0"], "a limit is"),
        (["app", "--model", "no model!"], "no name of a model"),
        (["app", "--scope", "admin", "--model", "m"], "go with the scope inference"),
        (["taken"], "there is a key 'taken' already"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_no_key(state: Path, words: list[str], why: str) -> None:
    ok(state, "add", "taken")
    before = (state / FILE).read_bytes()
    result = run(state, "add", *words)
    assert result.exit_code == 1
    assert why in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert (state / FILE).read_bytes() == before


def test_the_list_shows_what_each_opens_and_how_it_is_used(state: Path) -> None:
    assert "asks nobody" in ok(state, "list").stderr
    told = as_json(state, "add", "app", "--model", "m", "--expires", "30d", "--requests-per-minute", "60")
    ok(state, "add", "operator", "--scope", "admin")
    ok(state, "add", "gone")
    ok(state, "revoke", "gone")
    KeyUsage(state, wall_clock=lambda: time.time() - 300).note({told["key"]["fingerprint"]: 41})
    assert (state / key_usage.FILE).exists()
    result = ok(state, "list")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:3] == ["NAME", "FINGERPRINT", "SCOPES"]
    assert [line[0] for line in lines[1:]] == ["app", "operator"]
    assert {told["key"]["fingerprint"], "inference", "m", "60", "41"} < set(lines[1])
    assert "5 min" in result.stdout
    assert "1 revoked or expired" in result.stderr
    assert [line.split()[0] for line in ok(state, "list", "--all").stdout.splitlines()[1:]] == [
        "app",
        "operator",
        "gone",
    ]
    rows = as_json(state, "list")["keys"]
    assert [(row["name"], row["requests"], row["revoked"] is None) for row in rows] == [
        ("app", 41, True),
        ("operator", 0, True),
        ("gone", 0, False),
    ]
    assert told["secret"] not in json.dumps(rows)


def test_revoking_by_name_and_by_fingerprint(state: Path) -> None:
    told = as_json(state, "add", "app")
    assert "revoked" in ok(state, "revoke", told["key"]["fingerprint"]).stdout
    assert KeyFile(state).ring().find(told["secret"], time.time()) is None
    result = run(state, "revoke", "app")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no key 'app'" in result.stderr
    ok(state, "add", "app")
    assert as_json(state, "revoke", "app")["key"]["revoked"] == pytest.approx(time.time(), abs=60)


def test_rotating_with_and_without_a_grace(state: Path) -> None:
    old = ok(state, "add", "app", "--model", "m", "--concurrent", "2").stdout.strip()
    result = ok(state, "rotate", "app", "--grace", "1h")
    new = result.stdout.strip()
    assert "holds until" in result.stderr
    ring, now = KeyFile(state).ring(), time.time()
    for secret in (old, new):
        key = ring.find(secret, now)
        assert key is not None
        assert (key.name, key.models, key.concurrent) == ("app", frozenset({"m"}), 2)
    assert ring.find(old, now + 3700) is None
    assert ring.find(new, now + 3700) is not None
    told = as_json(state, "rotate", "app", "--expires", "2d")
    assert told["key"]["expires"] == pytest.approx(now + 2 * DAY, abs=60)
    assert told["old"]["revoked"] is not None
    ring = KeyFile(state).ring()
    assert ring.find(old, now) is ring.find(new, now) is None
    assert ring.find(told["secret"], now) is not None
    for words, why in (("nobody",), "no key 'nobody'"), (("app", "--grace", "x"), "--grace"):
        result = run(state, "rotate", *words)
        assert result.exit_code == 1
        assert why in result.stderr


def test_a_damaged_file_is_said_and_not_written_over(state: Path) -> None:
    state.mkdir()
    (state / FILE).touch(mode=0o600)
    (state / FILE).write_text("{")
    for words in (("add", "a"), ("list",), ("revoke", "a"), ("rotate", "a")):
        result = run(state, *words)
        assert result.exit_code == 1
        assert "does not say which keys there are" in str(result.exception) + result.stderr
        assert result.stdout == ""
    assert (state / FILE).read_text() == "{"

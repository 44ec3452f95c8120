"""The texts of the services: what they hold together, and what cannot be written into them."""

import configparser
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.units import Installation, Role, UnitError, environment_text, supervisor_config, units

WHERE = Installation(
    repo="/opt/llm", state_dir="/srv/state", models_dir="/srv/models.d", hub_cache="/srv/hub", head="a:6379"
)
HERE = (Role.HEAD, Role.RECONCILER)


def read(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_roles_make_their_units() -> None:
    assert set(units(WHERE, HERE)) == {"llm-ray-head.service", "llm-edge.service", "llm-reconciler.service"}
    assert set(units(WHERE, (Role.WORKER,))) == {"llm-ray-worker.service"}
    assert set(units(WHERE, (Role.RECONCILER,))) == {"llm-edge.service", "llm-reconciler.service"}


@pytest.mark.parametrize("roles", [(), (Role.HEAD, Role.WORKER)])
def test_roles_that_do_not_go_together(roles: tuple[Role, ...]) -> None:
    with pytest.raises(UnitError):
        units(WHERE, roles)
    with pytest.raises(UnitError):
        supervisor_config(WHERE, roles)


def test_a_worker_without_a_head_is_refused() -> None:
    with pytest.raises(UnitError, match="--head"):
        units(replace(WHERE, head=""), (Role.WORKER,))


def test_the_end_of_the_reconciler_is_no_end_of_models() -> None:
    made = {name: read(text) for name, text in units(WHERE, HERE).items()}
    reconciler, edge, ray = (made[f"llm-{name}.service"] for name in ("reconciler", "edge", "ray-head"))
    assert reconciler["KillMode"] == ["process"]
    for other in (edge, ray):
        for dependency in ("PartOf", "BindsTo", "Requires", "Wants"):
            assert "llm-reconciler" not in " ".join(other.get(dependency, []))
    # Nor does Ray's end stop the reconciler, which brings back what was lost.
    assert not {"BindsTo", "Requires"} & set(reconciler)
    assert reconciler["Type"] == ["notify"]
    assert reconciler["WatchdogSec"] == ["60"]
    assert reconciler["NotifyAccess"] == ["main"]
    for each in (reconciler, ray):
        assert each["Restart"] == ["always"]
        assert each["StartLimitIntervalSec"] == ["0"]


def test_the_order_of_starts_is_ray_edge_reconciler() -> None:
    made = {name: read(text) for name, text in units(WHERE, HERE).items()}
    assert "llm-ray-head.service" in made["llm-edge.service"]["After"][0]
    assert {"llm-ray-head.service", "llm-edge.service"} <= set(made["llm-reconciler.service"]["After"][0].split())


def test_what_is_written_can_be_written() -> None:
    for text in {**units(WHERE, HERE), **units(WHERE, (Role.WORKER,))}.values():
        unit = read(text)
        assert unit["ReadWritePaths"] == ["/srv/state /var/lib/llm-ray /srv/models.d /srv/hub"]
        assert unit["ProtectSystem"] == ["strict"]
        assert unit["User"] == ["llm"]
        assert "RECONCILE_STATE_DIR=/srv/state" in unit["Environment"]


def test_a_home_can_be_read_only_where_something_of_ours_is_there() -> None:
    assert read(units(WHERE, HERE)["llm-edge.service"])["ProtectHome"] == ["yes"]
    at_home = replace(WHERE, repo="/home/me/llm")
    assert read(units(at_home, HERE)["llm-edge.service"])["ProtectHome"] == ["read-only"]


def test_gpus_are_let_in_only_where_there_are_any() -> None:
    cpu, cuda = (
        read(units(replace(WHERE, engine=engine), HERE)["llm-ray-head.service"]) for engine in ("cpu", "cuda")
    )
    assert cpu["PrivateDevices"] == ["yes"]
    assert "DeviceAllow" not in cpu
    assert cuda["DevicePolicy"] == ["closed"]
    assert "char-nvidia* rw" in cuda["DeviceAllow"]
    assert "PrivateDevices" not in cuda


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repo", "opt/llm"),
        ("repo", "/opt/a b"),
        ("repo", "/opt/%h"),
        ("repo", "/opt/$HOME"),
        ("repo", "/opt/a\nExecStart=/bin/sh"),
        ("repo", "/opt/../etc"),
        ("repo", "/"),
        ("state_dir", "/srv/'x"),
        ("state_dir", '/srv/"x'),
        ("hub_cache", ""),
        ("models_dir", "/srv/\\x"),
        ("run_dir", "/var/lib/a-name-that-is-too-long"),
        ("user", "me\nroot"),
        ("user", "Me"),
        ("group", ""),
        ("engine", "tpu"),
        ("head", "host"),
        ("head", "host:1 --block"),
        ("head", "-x:1;"),
        ("ray_dashboard", "http://a b"),
        ("ray_dashboard", "http://user:secret@host"),
        ("ray_token", "token"),
    ],
)
def test_what_a_supervisor_would_read_otherwise_is_refused(field: str, value: str) -> None:
    with pytest.raises(UnitError):
        replace(WHERE, **{field: value})


@given(st.text(max_size=40))
def test_no_path_gets_a_line_of_its_own_into_a_unit(text: str) -> None:
    try:
        where = replace(WHERE, state_dir="/" + text)
    except UnitError:
        return
    usual = units(WHERE, HERE)
    for name, unit in units(where, HERE).items():
        assert len(unit.splitlines()) == len(usual[name].splitlines())
        assert read(unit).keys() == read(usual[name]).keys()


def test_supervisord_gets_the_same_programs() -> None:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(supervisor_config(WHERE, HERE))
    assert parser.sections() == ["program:llm-ray-head", "program:llm-reconciler"]
    for section in parser.sections():
        words = shlex.split(parser[section]["command"])
        assert words[:2] == ["/bin/bash", "-c"]
        assert len(words) == 3
        assert parser[section]["autorestart"] == "true"
        assert parser[section]["stopasgroup"] == "false"
        assert 'RECONCILE_STATE_DIR="/srv/state"' in parser[section]["environment"]
    assert "reconciler.host.watchdog 60 -- /opt/llm/.venv/bin/reconcile --watch" in parser.get(
        "program:llm-reconciler", "command"
    )


def test_settings_are_read_alike_by_a_shell(tmp_path: Path) -> None:
    import subprocess

    settings = {"A": "plain", "B": '["org/*", "x y"]', "C": "$HOME `id` #x", "D": "%h;"}
    path = tmp_path / "environment"
    path.write_text(environment_text(settings))
    shown = subprocess.run(
        ["env", "-i", "bash", "-c", f'set -a; . {path}; printf "%s\\0" "$A" "$B" "$C" "$D"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split("\0")[:-1] == list(settings.values())


@pytest.mark.parametrize("value", ["it's", "a\nB=1", "a\\", "\0", "\x1b[31m"])
def test_a_value_that_would_be_read_otherwise_is_refused(value: str) -> None:
    with pytest.raises(UnitError):
        environment_text({"A": value})
    with pytest.raises(UnitError):
        environment_text({"A B": "x"})

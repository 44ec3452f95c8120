"""Where a setting comes from, and which source goes first."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from reconciler.host.lock import exclusive
from reconciler.host.settings import Settings, load


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and no setting of the machine's own."""
    import os

    monkeypatch.chdir(tmp_path)
    for key in list(os.environ):
        if key.startswith(("RECONCILE_", "RAY_")):
            monkeypatch.delenv(key)


def test_options_go_before_the_environment_and_that_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().serve_port == 8100
    Path("reconcile.toml").write_text("serve_port = 1\nlisten_port = 2\nactivator_port = 3\n")
    monkeypatch.setenv("RECONCILE_LISTEN_PORT", "20")
    monkeypatch.setenv("RECONCILE_ACTIVATOR_PORT", "30")
    settings = load(activator_port=300, models_dir=None)
    assert (settings.serve_port, settings.listen_port, settings.activator_port) == (1, 20, 300)
    assert settings.models_dir == Path("models.d")


def test_an_unknown_key_is_a_mistake() -> None:
    Path("reconcile.toml").write_text("serve_prot = 1\n")
    with pytest.raises(ValidationError, match="serve_prot"):
        load()


@pytest.mark.parametrize("value", ["0", "65536", "x"])
def test_a_value_out_of_bounds_is_a_mistake(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONCILE_SERVE_PORT", value)
    with pytest.raises(ValidationError):
        load()


def test_ray_s_own_variables_are_understood_and_ours_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://10.0.0.1:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/t")
    assert load().ray_dashboard == "http://10.0.0.1:8265"
    assert load().ray_token_path == Path("/t")
    monkeypatch.setenv("RECONCILE_RAY_DASHBOARD", "http://10.0.0.2:8265")
    assert load().ray_dashboard == "http://10.0.0.2:8265"


@pytest.mark.parametrize("url", ["http://user:secret@host", "ftp://host", "host:8265"])
def test_the_dashboard_is_a_plain_url_without_a_password(url: str) -> None:
    with pytest.raises(ValidationError):
        load(ray_dashboard=url)


def test_what_runs_is_the_default_of_other_commands_and_everything_else_goes_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(serve_port=1, listen_port=2, activator_port=3, ray_dashboard="http://h:1", log_level="debug").remember()
    monkeypatch.setenv("RECONCILE_LISTEN_PORT", "20")
    with exclusive(Path(".reconcile")):
        settings = load(activator_port=30)
    assert (settings.serve_port, settings.listen_port, settings.activator_port) == (1, 20, 30)
    assert settings.ray_dashboard == "http://h:1"
    assert settings.log_level == "info"


def test_what_runs_elsewhere_is_no_default() -> None:
    load(serve_port=1, state_dir=Path("there")).remember()
    with exclusive(Path("there")):
        assert load().serve_port == 8100
        assert load(state_dir=Path("there")).serve_port == 1
        assert load(state_dir=Path("there")).state_dir == Path("there")


def test_what_no_longer_runs_is_no_default() -> None:
    load(serve_port=1).remember()
    assert load().serve_port == 8100


def test_what_is_remembered_is_private_and_only_what_was_set() -> None:
    load(serve_port=1).remember()
    file = Path(".reconcile/running.json")
    remembered = json.loads(file.read_text())
    assert Path(remembered.pop("hub_cache")).is_absolute()
    assert remembered == {"serve_port": 1, "models_dir": str(Path("models.d").absolute())}
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_damaged_memory_of_settings_is_no_memory() -> None:
    Path(".reconcile").mkdir()
    Path(".reconcile/running.json").write_text("{")
    with exclusive(Path(".reconcile")):
        assert load().serve_port == 8100


def test_loads_at_once_are_at_least_one() -> None:
    assert Settings(max_loads=7).loads_at_once == 7
    assert Settings().loads_at_once >= 1
    assert Settings(engine="cuda").device == "cuda"

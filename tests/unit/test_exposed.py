"""What would be open to strangers is not started."""

from pathlib import Path
from typing import Any

import pytest

from reconciler.core.keys import Scope
from reconciler.host.errors import UserError
from reconciler.host.key_file import KeyFile
from reconciler.host.settings import Settings
from reconciler.loop.exposed import check_exposure


def settings(folder: Path, **changes: Any) -> Settings:
    return Settings(state_dir=folder, **changes)


def test_loopback_needs_no_key(tmp_path: Path) -> None:
    check_exposure(settings(tmp_path))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"listen_host": "0.0.0.0"}, "reconcile keys add NAME"),
        ({"api_host": "::"}, "--scope admin"),
        ({"serve_host": "10.0.0.1"}, "RECONCILE_TRUST_SERVE_NETWORK=true"),
    ],
)
def test_beyond_loopback_it_says_what_is_needed(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as error:
        check_exposure(settings(tmp_path, **changes))
    assert says in str(error.value)
    assert next(iter(changes)) in str(error.value)


def test_with_keys_it_may(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    keys.add("app", [Scope.INFERENCE])
    keys.add("me", [Scope.ADMIN])
    open_to_all = {"listen_host": "0.0.0.0", "api_host": "0.0.0.0", "serve_host": "10.0.0.1"}
    check_exposure(settings(tmp_path, **open_to_all, trust_serve_network=True))


def test_one_who_has_no_api_is_not_asked_about_it(tmp_path: Path) -> None:
    check_exposure(settings(tmp_path, api_host="0.0.0.0"), front_door_alone=True)

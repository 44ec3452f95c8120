"""What an application says so that it starts sooner, and when it says nothing of the kind."""

import json
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.fast_start import BUILD_ENVIRONMENT, CALLBACK, HOOK_ENV, REPLICA_HOOK
from reconciler.core.render import Renderer
from reconciler.core.spec import ModelSpec
from reconciler.core.target import Platform, Target

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
LOCAL: dict[str, Any] = {"name": "m", "source": {"path": "/weights/m"}}


def compiled(*, fast: bool, **changes: Any) -> Target:
    renderer = Renderer(TEMPLATE, Platform(device="cuda", fast_start=fast))
    spec = ModelSpec.model_validate_json(json.dumps({**LOCAL, **changes}))
    return renderer.compile_target(spec, file="m.yaml", folder="/models")


def test_both_halves_are_rendered_and_are_part_of_the_version() -> None:
    fast, plain = compiled(fast=True), compiled(fast=False)
    assert fast.application != plain.application
    assert fast.config["runtime_env"] == BUILD_ENVIRONMENT
    llm = fast.config["args"]["llm_configs"][0]
    assert llm["callback_config"] == CALLBACK
    # A deployment's environment is the application's with its own on top, and its own must win.
    assert llm["runtime_env"]["env_vars"][HOOK_ENV] == REPLICA_HOOK


def test_without_the_setting_nothing_of_it_is_rendered() -> None:
    config = compiled(fast=False).config
    assert "runtime_env" not in config
    assert "reconciler." not in json.dumps(config)
    assert HOOK_ENV not in json.dumps(config)


@pytest.mark.parametrize(
    "changes",
    [{"source": {"repo": "o/m"}}, {"resources": {"pipeline_parallel": 2, "across_nodes": True}}],
    ids=["the engine fetches the weights itself", "several nodes"],
)
def test_what_comes_up_in_rays_own_way(changes: dict[str, Any]) -> None:
    assert compiled(fast=True, **changes).config == compiled(fast=False, **changes).config

"""From a model file to an application: what is escaped, what the digest depends on, what is read back."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from reconciler.core.application import demand_of, deployment_name, model_of, with_in_place
from reconciler.core.diff import Effect, effect_of
from reconciler.core.render import Renderer, RenderError, slug
from reconciler.core.spec import ModelSpec
from reconciler.core.state import Demand
from reconciler.core.target import Platform, Target

TEMPLATE = (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8")
CUDA = Renderer(TEMPLATE, Platform(device="cuda"))
CPU = Renderer(TEMPLATE, Platform(device="cpu"))
BASE: dict[str, Any] = {"name": "m", "source": {"repo": "o/m"}}
HOSTILE = st.text(
    alphabet=st.sampled_from(list("\"'\\{}%#,:a0 \u2028\u00e9\U0001f600<>&")) | st.characters(codec="utf-8"),
    min_size=1,
    max_size=40,
) | st.sampled_from(
    ["{{7*7}}", '", "import_path": "os:system', "{% for x in y %}", "</script>", "\\u0000", "${HOME}"]
)
PRINTABLE = HOSTILE.filter(lambda text: min(text) > "\x1f")


def compiled(renderer: Renderer = CUDA, **changes: Any) -> Target:
    spec = ModelSpec.model_validate_json(json.dumps({**BASE, **changes}))
    return renderer.compile_target(spec, file="m.yaml", folder="/models")


@settings(deadline=None)
@given(PRINTABLE, PRINTABLE, HOSTILE, HOSTILE)
def test_no_string_of_a_file_can_add_anything_to_the_application(
    path: str, tokenizer: str, description: str, label: str
) -> None:
    plain = compiled(source={"path": "/x", "tokenizer": "t"})
    target = compiled(
        source={"path": "/" + path, "tokenizer": "/" + tokenizer},
        description=description,
        labels={"team": label},
        engine={"args": {"chat_template_content_format": description, "hf_overrides": {label: [path]}}},
    )
    assert target.fields["description"] == description
    llm = target.config["args"]["llm_configs"][0]
    assert {llm["model_loading_config"]["model_source"], llm["engine_kwargs"]["tokenizer"]} == set(target.paths)
    assert llm["engine_kwargs"]["hf_overrides"] == {label: [path]}
    assert llm["engine_kwargs"]["chat_template_content_format"] == description
    assert target.config.keys() == plain.config.keys()
    assert llm.keys() == plain.config["args"]["llm_configs"][0].keys()
    assert json.loads(json.dumps(target.config)) == target.config
    assert model_of(target.config) == "m"


def other_value(path: str, value: Any) -> Any:
    """Another allowed value for a field."""
    special: dict[str, Any] = {
        "name": "other",
        "source.repo": "o/other",
        "source.revision": "v2",
        "source.tokenizer": "o/tok",
        "task": "embed",
        "engine.dtype": "bfloat16",
        "engine.kv_cache_dtype": "fp8",
        "engine.quantization": "awq",
        "engine.gpu_memory_utilization": 0.5,
        "engine.args": {"seed": 1},
        "engine.max_lora_rank": 32,
        "adapters": [{"name": "b", "path": "/lora"}],
        "source.tokenizer_revision": "v2",
        "resources.accelerator": "H100",
        "resources.replicas.max": 3,
        "aliases": ["x"],
        "labels": {"a": "b"},
        "description": "text",
        "lifecycle.policy": "manual",
        "lifecycle.heal": "off",
        "lifecycle.group": "g",
        "lifecycle.sleep_after": "5m",
        "lifecycle.schedule": [{"start": "0 8 * * 1", "end": "0 9 * * 1"}],
    }
    if path in special:
        return special[path]
    if path.endswith(("_timeout", "min_stay")):
        return "77s"
    if isinstance(value, bool):
        return not value
    return 7


def leaves(model: BaseModel, path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name in type(model).model_fields:
        here, value = f"{path}.{name}" if path else name, getattr(model, name)
        found += leaves(value, here) if isinstance(value, BaseModel) else [(here, value)]
    return found


LEAVES = leaves(ModelSpec.model_validate({**BASE, "resources": {"replicas": {"min": 1, "max": 9}}}))


@pytest.mark.parametrize(("path", "value"), [leaf for leaf in LEAVES if leaf[0] != "source.path"])
def test_the_digest_depends_on_every_engine_field_and_on_no_other(path: str, value: Any) -> None:
    """Through the fields of the class itself, so that a new one cannot be forgotten."""
    document: dict[str, Any] = {
        "name": "m",
        "source": {"repo": "o/m", "tokenizer": "o/t"},
        "adapters": [{"name": "a", "path": "/a"}],
        "resources": {"replicas": {"min": 1, "max": 9}},
    }
    before = compiled(**document)
    *sections, last = path.split(".")
    place = document
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = other_value(path, value)
    after = compiled(**document)
    assert after.fields != before.fields
    digests = [target.application.rpartition("-")[2] for target in (before, after)]
    effect = effect_of(path, value, place[last])
    assert (digests[0] != digests[1]) == (effect is Effect.NEW_ENGINE)
    changed_in_place = before.in_place != after.in_place
    if effect is Effect.IN_PLACE:
        assert changed_in_place
    if effect is Effect.FRONT_DOOR:
        assert before.config == after.config


def test_a_local_path_starts_at_the_folder_of_the_files() -> None:
    assert list(compiled(source={"path": "../weights/x/"}).paths) == ["/weights/x"]
    assert list(compiled(source={"path": "/abs"}).paths) == ["/abs"]
    assert compiled(source={"path": "a"}).application != compiled(source={"path": "b"}).application


def test_the_application_is_named_by_model_and_digest() -> None:
    target = compiled(name="Org/Qwen3-0.6B_x")
    assert target.application.startswith("org-qwen3-0-6b-x-")
    assert len(target.application.rpartition("-")[2]) == 8
    assert target.config["route_prefix"] == f"/{target.application}"
    assert slug("A" * 90) == "a" * 40
    assert deployment_name("Org/Q.x") == "LLMServer:Org--Q_x"


def test_two_models_that_look_alike_in_names_are_two_applications() -> None:
    assert compiled(name="a.b").application != compiled(name="a-b").application


def test_what_is_reserved_is_read_back_from_what_was_deployed() -> None:
    target = compiled(
        engine={"gpu_memory_utilization": 0.25},
        resources={"tensor_parallel": 2, "pipeline_parallel": 2, "across_nodes": True, "accelerator": "L4"},
    )
    assert target.demand == Demand(4, 0.25, one_node=False, accelerator="L4")
    assert demand_of(target.config) == target.demand
    assert demand_of(compiled(CPU).config) == compiled(CPU).demand == Demand()
    assert demand_of({"args": "theirs"}) == Demand()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"args": None},
        {"args": {"llm_configs": []}},
        {"args": {"llm_configs": [{"runtime_env": {"env_vars": 3}}]}},
    ],
)
def test_a_foreign_application_is_nobody_s_model(config: dict[str, Any]) -> None:
    assert model_of(config) is None


def test_settings_in_place_touch_nothing_else() -> None:
    config = compiled().config
    assert with_in_place(config, {"name": "x"}) == {**config, "deployments": [{"name": "x"}]}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{{ model.nothing }}", "nothing"),
        ("{", "made no JSON"),
        ("[]", "RECONCILE_MODEL"),
        ('{"args": {}}', "RECONCILE_MODEL"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ model.name.x() }}", "application.json.j2:1: 'str object' has no attribute 'x' (on model m)"),
    ],
)
def test_a_template_that_fails_says_why(template: str, words: str) -> None:
    with pytest.raises(RenderError, match=re.escape(words)):
        compiled(Renderer(template, Platform()))


def test_a_template_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(RenderError):
        Renderer("{% if %}", Platform())

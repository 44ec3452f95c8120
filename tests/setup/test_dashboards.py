"""The files for Prometheus and Grafana: the tools' own checkers take them, and every name in them exists."""

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from reconciler.activator.directory import Directory
from reconciler.core.desired import Desired
from reconciler.core.plan import Plan
from reconciler.core.provenance import Commit, Provenance
from reconciler.core.state import Observed
from reconciler.host.settings import Settings
from reconciler.loop.loop import Look
from reconciler.loop.metrics import Feeds, Metrics, TurnResult

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES, RULES_TEST, CONFIG = (PROMETHEUS / name for name in ("rules.yml", "rules.test.yml", "prometheus.yml"))
DASHBOARD = ROOT / "deploy" / "grafana" / "reconcile.json"
PAGE = ROOT / "docs" / "metrics.md"
OF_PROMETHEUS = {"up", "ALERTS"}
# Where names are made: by the engine, and by Serve.
SOURCES = {
    "vllm": ("vllm", ["v1/metrics/loggers.py"], '"vllm:{}"'),
    "serve": ("ray", ["serve/_private/replica.py", "serve/_private/router.py"], '"serve_{}"'),
}
WORDS = re.compile(
    r"by|without|on|ignoring|group_left|group_right|and|or|unless|bool|offset|inf|nan|sum|max|min|avg|count|vector"
)


def promtool(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    found = shutil.which("promtool")
    assert found is not None, "promtool is missing: install Debian's package `prometheus`"
    return subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def targets() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel, target


def expressions() -> dict[str, str]:
    """Every expression, Grafana's variables filled in."""
    found = {rule["alert"]: str(rule["expr"]) for rule in rules()}
    for panel, target in targets():
        text = target["expr"].replace("$__rate_interval", "5m").replace("$model", ".*")
        assert "$" not in text, target["expr"]
        found[f"{panel['title']} {target['refId']}"] = text
    return found


def names_in(expression: str) -> set[str]:
    """The metrics that an expression reads."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    words = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\(|[a-zA-Z0-9_:])", bare)
    return {word for word in words if not WORDS.fullmatch(word)}


def own_names() -> set[str]:
    """Everything that `/metrics` has, with or without a number as yet."""
    came_from = Provenance("u", "r", Commit("c", "a", 1.0), checked_at=1.0)
    look = Look(Desired(provenance=came_from), Observed(), Plan())
    metrics = Metrics(Feeds(lambda: look, Directory, lambda: True, dict), "1")
    metrics.turn(1.0, TurnResult.OK)
    found: set[str] = set()
    for family in text_string_to_metric_families(metrics.text().decode()):
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        found |= {family.name + end for end in ends}
    return found


def engine_names(package: str) -> str:
    distribution, files, _ = SOURCES[package]
    spec = importlib.util.find_spec(distribution)
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    return "".join((folder / file).read_text(encoding="utf-8") for file in files)


def exists(name: str, own: set[str]) -> bool:
    if name in OF_PROMETHEUS or name in own:
        return True
    found = re.fullmatch(r"ray_(vllm|serve)_(\w+?)(?:_total|_bucket|_sum|_count)?", name)
    if found is None:
        return False
    return SOURCES[found[1]][2].format(found[2]) in engine_names(found[1])


# --- the checkers ---------------------------------------------------------------------------------------------


def test_promtool_takes_the_rules() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert checked.returncode == 0, checked.stderr


def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    # Not only its syntax: the files that it names have to be there.
    for each in (RULES, CONFIG):
        shutil.copy(each, tmp_path)
    missing = promtool("check", "config", tmp_path / CONFIG.name)
    assert missing.returncode != 0
    for name in ("reconcile-key", "ray-token"):
        (tmp_path / name).write_text("x")
    checked = promtool("check", "config", tmp_path / CONFIG.name)
    assert checked.returncode == 0, checked.stderr


def test_every_alert_goes_off_when_it_should_and_only_then() -> None:
    checked = promtool("test", "rules", RULES_TEST)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    text = RULES_TEST.read_text(encoding="utf-8")
    assert [rule["alert"] for rule in rules() if rule["alert"] not in text] == []


def test_the_tests_of_the_rules_can_fail(tmp_path: Path) -> None:
    weaker = RULES.read_text(encoding="utf-8").replace("reconcile_gpu_failed == 1", "reconcile_gpu_failed == 2")
    (tmp_path / RULES.name).write_text(weaker)
    shutil.copy(RULES_TEST, tmp_path)
    assert promtool("test", "rules", tmp_path / RULES_TEST.name).returncode != 0


def test_prometheus_can_read_every_expression(tmp_path: Path) -> None:
    group = [{"record": f"of:number{number}", "expr": text} for number, text in enumerate(expressions().values())]
    file = tmp_path / "all.yml"
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": group}]}))
    checked = promtool("check", "rules", "--lint=none", file)
    assert checked.returncode == 0, checked.stderr
    group[0]["expr"] = "sum by (a ("
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": group}]}))
    assert promtool("check", "rules", "--lint=none", file).returncode != 0


# --- the names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (le, model) (rate(a_bucket{b="c"}[5m]))', {"a_bucket"}),
        ("time() - a > 300 or b unless on (instance) a", {"a", "b"}),
        ('sum without (healed) (a) / 2 * b{c=~"sum(d)"}', {"a", "b"}),
        ('absent(up{job="x"}) or vector(0)', {"up"}),
    ],
)  # fmt: skip
def test_names_are_found_in_expressions(expression: str, names: set[str]) -> None:
    assert names_in(expression) == names


def test_every_metric_that_is_looked_at_exists() -> None:
    own = own_names()
    unknown = {
        f"{where}: {name}"
        for where, text in expressions().items()
        for name in names_in(text)
        if not exists(name, own)
    }
    assert unknown == set()
    assert all(names_in(text) for text in expressions().values())
    assert not exists("ray_vllm_no_such_thing_total", own)
    assert not exists("reconcile_no_such_thing", own)


def test_the_page_in_the_docs_names_every_metric_and_no_other() -> None:
    own = {re.sub(r"_(bucket|sum|count)$", "", name) for name in own_names() if name.startswith("reconcile_")}
    own = {name for name in own if not name.endswith("_created")}
    written = set(re.findall(r"^\| `(reconcile_\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert written == own


def test_the_page_in_the_docs_names_every_alert() -> None:
    written = set(re.findall(r"^\| `([A-Z]\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert written == {rule["alert"] for rule in rules()}


def test_the_example_asks_where_the_reconciler_listens() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["scrape_configs"]}
    settings = Settings.model_fields
    assert jobs["ray"]["http_sd_configs"][0]["url"].startswith(settings["ray_dashboard"].default)
    address = f"{settings['api_host'].default}:{settings['api_port'].default}"
    assert jobs["reconcile"]["static_configs"] == [{"targets": [address]}]
    keeps = jobs["ray"]["metric_relabel_configs"][0]["regex"]
    for text in expressions().values():
        assert all(re.fullmatch(keeps, name) for name in names_in(text) if name.startswith("ray_"))


# --- the dashboard --------------------------------------------------------------------------------------------


def test_the_dashboard_is_laid_out_without_overlaps_and_each_panel_reads_the_chosen_source() -> None:
    loaded = dashboard()
    assert loaded["uid"]
    assert loaded["schemaVersion"] >= 36
    ids = [panel["id"] for panel in loaded["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in loaded["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(panel["datasource"] == target["datasource"] == source for panel, target in targets())
    assert {each["name"] for each in loaded["templating"]["list"]} == {"datasource", "model"}


def test_the_dashboard_shows_what_the_issue_asks_for() -> None:
    names = {
        name for _, target in targets() for name in names_in(target["expr"].replace("$__rate_interval", "5m"))
    }
    for wanted in (
        "reconcile_models", "reconcile_turn_duration_seconds_bucket", "reconcile_turns_total",
        "reconcile_source_age_seconds", "reconcile_drift_applications", "reconcile_model_load_seconds_bucket",
        "reconcile_model_wake_seconds_bucket", "reconcile_model_waiting_requests",
        "reconcile_model_in_flight_requests", "reconcile_model_evictions_total",
        "reconcile_gpu_model_memory_reserved_bytes", "reconcile_gpu_memory_used_bytes",
        "reconcile_download_bytes_per_second", "ray_vllm_request_success_total",
        "ray_vllm_generation_tokens_total", "ray_vllm_e2e_request_latency_seconds_bucket",
        "ray_vllm_kv_cache_usage_perc",
    ):  # fmt: skip
        assert wanted in names


def test_the_dashboard_is_one_to_grafana() -> None:
    """Grafana's own model takes it, and knows every field of it: what it does not know it would drop."""
    register_default_plugins()
    taken = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard())))
    assert list(_lost(dashboard(), taken)) == []


def _lost(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from _lost(value, theirs.get(key), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, value in enumerate(ours):
            yield from _lost(value, theirs[index], f"{path}[{index}]")
    elif ours != theirs:
        yield f"{path}: {ours!r} is {theirs!r} to Grafana"

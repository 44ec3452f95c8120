"""The examples for log shippers: well-formed, and with the events that the documentation says to alert on.

Neither shipper is installed where these run; their own checks (`vector validate`, `fluent-bit --dry-run`) are
named at the top of the files. The keys are those of their documentation.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
VECTOR_KEYS = {
    "file": {"type", "include", "read_from", "max_line_bytes"},
    "remap": {"type", "inputs", "source", "drop_on_error"},
    "filter": {"type", "inputs", "condition"},
    "loki": {"type", "inputs", "endpoint", "encoding", "labels"},
    "http": {"type", "inputs", "uri", "method", "encoding", "batch"},
}
FLUENT_BIT_KEYS = {
    "tail": {
        "name", "tag", "path", "parser", "db", "read_from_head", "refresh_interval", "rotate_wait",
        "buffer_max_size", "skip_long_lines",
    },
    "rewrite_tag": {"name", "match", "rule"},
    "loki": {"name", "match", "host", "port", "labels", "label_keys", "line_format"},
    "http": {"name", "match", "host", "port", "uri", "format", "json_date_key", "tls", "tls.verify"},
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "logs" / name).read_text())
    return config


@pytest.fixture(scope="module")
def to_alert_on() -> set[str]:
    rows = re.findall(r"^\| `([a-z_.]+)` \|.*\| yes \|$", (ROOT / "docs" / "events.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    return set(rows)


def test_vector(to_alert_on: set[str]) -> None:
    config = load("vector.yaml")
    parts = config["sources"] | config["transforms"] | config["sinks"]
    for part in parts.values():
        assert set(part) <= VECTOR_KEYS[part["type"]]
        assert set(part.get("inputs", ())) <= set(parts)
    assert set(re.findall(r'"([a-z_.]+)"', config["transforms"]["alerts"]["condition"])) == to_alert_on
    paths = config["sources"]["reconciler_lines"]["include"]
    assert all(path.startswith("${RECONCILE_STATE_DIR}/logs/reconciler.log") for path in paths)


def test_fluent_bit(to_alert_on: set[str]) -> None:
    config = load("fluent-bit.yaml")
    pipeline = config["pipeline"]
    for part in pipeline["inputs"] + pipeline["filters"] + pipeline["outputs"]:
        assert set(part) <= FLUENT_BIT_KEYS[part["name"]]
    (tail,), (rewrite,) = pipeline["inputs"], pipeline["filters"]
    assert tail["parser"] in {parser["name"] for parser in config["parsers"]}
    key, pattern, tag, keep = rewrite["rule"].split()
    assert (key, keep) == ("$event", "true")
    assert {tail["tag"], tag} == {output["match"] for output in pipeline["outputs"]}
    assert {name for name in to_alert_on if re.fullmatch(pattern, name)} == to_alert_on
    assert {name.replace("\\", "") for name in pattern.strip("^()$").split("|")} == to_alert_on

"""Lines of each origin, as Ray 2.60, vLLM 0.29 and HAProxy 2.8 write them; and whatever else is in a log."""

import json
import logging
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.log_lines import LEVELS, About, LineReader, LogLine, clean
from reconciler.core.log_origins import Form, Of, of_printed, of_serve_file

NOW = datetime(2026, 11, 26, 12, 0, 0)  # noqa: DTZ001 -- local, as the logs are
APP = "qwen3-0-6b-0e55c6cb"
CONTROLLER, REPLICA = Of(Form.SERVE, "serve"), Of(Form.SERVE, "serve", APP)
ENGINE, OWN, EDGE = Of(Form.PRINTED, "vllm", APP), Of(Form.RECONCILER, "reconciler"), Of(Form.EDGE, "edge")


def epoch(local: datetime) -> float:
    return local.replace(tzinfo=UTC).timestamp()


def read(of: Of, text: str, *, about: About | None = None, names: dict[str, str] | None = None) -> list[LogLine]:
    reader = LineReader(of, about=about, now=NOW, epoch=epoch, names={} if names is None else names)
    return [line for raw in text.split("\n") for line in reader.read(raw)]


def at(day: str, clock: str) -> float:
    return datetime.fromisoformat(f"{day}T{clock}+00:00").timestamp()


def test_a_line_of_serve() -> None:
    text = (
        f"WARNING 2026-11-26 04:13:56,027 {APP}_LLMServer:qwen3-0_6b cs7bsi4h -- POST /v1/completions 200 38.5ms"
    )
    (line,) = read(REPLICA, text, about=About("qwen3-0.6b"))
    assert line == LogLine(
        at("2026-11-26", "04:13:56.027"), "serve", "qwen3-0.6b", "warning",
        f"{APP}_LLMServer:qwen3-0_6b cs7bsi4h -- POST /v1/completions 200 38.5ms",
    )  # fmt: skip


PRINTED = """\
:job_id:01000000
:actor_name:ServeReplica:qwen3-0-6b-0e55c6cb:LLMServer:qwen3-0_6b
WARNING 11-26 04:03:56 [importing.py:83] Triton is installed, but could not be imported.
\x1b[0;36m(EngineCore pid=6094)\x1b[0;0m INFO 11-26 04:04:10 [kv_cache_utils.py:2032] GPU KV cache: 5,242 tokens
(EngineCore pid=6094) (RayWorkerWrapper pid=7) ERROR 11-26 04:04:11 [core.py:12] Traceback (most recent call last):
[W1126 04:15:50.815815704 utils.cpp:68] Warning: NUMA binding
INFO 2026-11-26 04:15:55,295 qwen3-0-6b-0e55c6cb_LLMServer:qwen3-0_6b cs7bsi4h -- Serve writes that elsewhere too
INFO:     Started server process [12]
Loading: 10%\rLoading: 50%\rLoading: 100%
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ValueError: no
INFO 11-26 04:16:00 [loggers.py:310] Engine 000: fine
"""


def test_what_an_engine_prints() -> None:
    lines = read(ENGINE, PRINTED, about=About("qwen3-0.6b"))
    seconds = [line.at - at("2026-11-26", "04:00:00") if line.at is not None else None for line in lines]
    assert seconds == pytest.approx([236, 250, 251, 950.815815, 955.295, 955.295, 955.295, 955.295, 955.295, 960])
    assert [line.level for line in lines] == [
        "warning", "info", "error", "warning", "info", "info", "error", "error", "error", "info",
    ]  # fmt: skip
    assert [line.text for line in lines] == [
        "[importing.py:83] Triton is installed, but could not be imported.",
        "(EngineCore pid=6094) [kv_cache_utils.py:2032] GPU KV cache: 5,242 tokens",
        "(EngineCore pid=6094) (RayWorkerWrapper pid=7) [core.py:12] Traceback (most recent call last):",
        "[W1126 04:15:50.815815704 utils.cpp:68] Warning: NUMA binding",
        "INFO:     Started server process [12]",
        "Loading: 100%",
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in <module>',
        "ValueError: no",
        "[loggers.py:310] Engine 000: fine",
    ]


def test_the_formats_are_those_of_the_vllm_and_the_serve_that_are_installed() -> None:
    """A version that writes lines differently fails here, and not in silence."""
    vllm_logger = pytest.importorskip("vllm.logger")
    from ray.serve._private.logging_utils import ServeFormatter
    from vllm.logging_utils import NewLineFormatter

    record = logging.LogRecord("x", logging.ERROR, "/a/core.py", 5, "it broke", (), None)
    record.created = epoch(NOW) - time.localtime().tm_gmtoff
    written = NewLineFormatter(vllm_logger._FORMAT, vllm_logger._DATE_FORMAT).format(record)
    (line,) = read(ENGINE, written)
    assert line.level == "error"
    assert line.at == pytest.approx(epoch(NOW), abs=1)
    assert line.text.endswith("] it broke")
    serve = ServeFormatter("qwen3-0-6b-0e55c6cb_LLMServer:qwen3-0_6b", "cs7bsi4h").format(record)
    (line,) = read(REPLICA, serve)
    assert line.level == "error"
    assert line.at == pytest.approx(epoch(NOW), abs=1)
    assert line.text.endswith(" -- it broke")


@pytest.mark.parametrize(
    ("stamp", "now", "year"),
    [
        ("11-26 04:00:00", NOW, 2026),
        ("12-31 23:59:59", datetime(2027, 1, 1, 0, 1), 2026),  # noqa: DTZ001
        ("01-01 00:00:01", datetime(2026, 12, 31, 23, 59), 2027),  # noqa: DTZ001 -- another node's clock is ahead
        ("11-30 00:00:00", NOW, 2025),
    ],
)
def test_the_year_that_vllm_does_not_name(stamp: str, now: datetime, year: int) -> None:
    reader = LineReader(ENGINE, about=None, now=now, epoch=epoch, names={})
    (line,) = reader.read(f"INFO {stamp} [a.py:1] text")
    assert line.at is not None
    assert datetime.fromtimestamp(line.at, UTC).year == year


def test_lines_of_the_controller_are_whose_application_they_name() -> None:
    text = """\
INFO 2026-11-26 04:16:25,519 controller 5615 -- Deploying new app 'qwen3-0-6b-0e55c6cb'.
ERROR 2026-11-26 04:16:26,519 controller 5615 -- Failed: Deployment(app='qwen3-0-6b-0e55c6cb'):
Traceback (most recent call last):
ValueError: no
INFO 2026-11-26 04:16:27,519 controller 5615 -- Deploying new app 'qwen3-0-6b-base-0e55c6cb'.
and what goes with it
INFO 2026-11-26 04:16:28,519 controller 5615 -- Controller started.
"""
    mine = read(CONTROLLER, text, about=About("qwen3-0.6b"))
    assert [(line.level, line.text.split(" -- ")[-1][:12]) for line in mine] == [
        ("info", "Deploying ne"), ("error", "Failed: Depl"), ("error", "Traceback (m"), ("error", "ValueError: "),
    ]  # fmt: skip
    everything = read(CONTROLLER, text, names={APP: "qwen3-0.6b"})
    assert [line.model for line in everything] == [*["qwen3-0.6b"] * 4, *["qwen3-0-6b-base"] * 2, None]


def event(**fields: object) -> str:
    return json.dumps({**fields, "timestamp": "2026-11-26T04:00:00.250000Z"})


def test_an_event_of_the_reconciler_in_words() -> None:
    text = event(model="qwen", application="qwen-0e55c6cb", reason="no room", event="model.failed", level="error",
                 exception="Traceback\n  boom")  # fmt: skip
    head, *trace = read(OWN, text)
    assert head == LogLine(
        at("2026-11-26", "04:00:00.250"), "reconciler", "qwen", "error",
        'model.failed application=qwen-0e55c6cb reason="no room"',
    )  # fmt: skip
    assert [line.text for line in trace] == ["Traceback", "  boom"]


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({"event": "model.ready", "model": "qwen"}, True),
        ({"event": "model.suspended", "model": "*"}, True),
        ({"event": "model.ready", "model": "other"}, False),
        ({"event": "activator.upstream_died", "application": "qwen-0e55c6cb", "level": "warning"}, True),
        ({"event": "activator.upstream_died", "application": "qwen-b-0e55c6cb", "level": "warning"}, False),
        ({"event": "plan.refused", "models": ["qwen", "other"], "level": "error"}, True),
        ({"event": "plan.refused", "models": ["other"], "level": "error"}, False),
        ({"event": "download.failed", "repo": "org/qwen", "level": "error"}, True),
        ({"event": "download.failed", "repo": "org/other", "level": "error"}, False),
        ({"event": "turn.failed", "reason": "Ray does not answer", "level": "warning"}, True),
        ({"event": "reconcile.settled", "level": "info"}, False),
    ],
)
def test_which_events_are_a_models_business(fields: dict[str, object], counts: bool) -> None:
    assert bool(read(OWN, event(**fields), about=About("qwen", ["org/qwen"]))) == counts


def test_what_the_edge_says() -> None:
    text = "[NOTICE]   (21187) : New worker (21191) forked\n[ALERT]    (21187) : Current worker exited\nmore of it"
    assert [(line.at, line.level, line.text) for line in read(EDGE, text, about=About("qwen"))] == [
        (None, "info", "New worker (21191) forked"),
        (None, "error", "Current worker exited"),
        (None, "error", "more of it"),
    ]


@pytest.mark.parametrize(
    ("name", "application"),
    [
        ("replica_qwen3-0-6b-0e55c6cb_LLMServer_qwen3-0_6b_cs7bsi4h.log", APP),
        ("replica_qwen3-0-6b-0e55c6cb_LLMRouter_xxjkg93x.log.2", APP),
        ("controller_build_qwen3-0-6b-0e55c6cb_16095.log", APP),
        ("controller_5615.log", None),
        ("proxy_127.0.0.1.log", None),
    ],
)
def test_files_of_serve_by_name(name: str, application: str | None) -> None:
    assert of_serve_file(name) == Of(Form.SERVE, "serve", application)


@pytest.mark.parametrize("name", ["replica_default_app_Deployment_abcdefgh.log", "x", "replica_.log", "../a.log"])
def test_files_of_others(name: str) -> None:
    assert of_serve_file(name) is None


def test_whose_a_process_is_by_the_last_name_it_took() -> None:
    build = ":job_id:ffffffff\n:task_name:build_serve_application\nsome text\n"
    assert of_printed(build) is None
    assert of_printed(build + f":actor_name:ServeReplica:{APP}:LLMServer:qwen3-0_6b\n") == ENGINE
    assert of_printed(f":actor_name:ServeReplica:{APP}:LLMRouter\n") == Of(Form.PRINTED, "serve", APP)
    assert of_printed(":actor_name:ProxyActor\n") is None


def test_what_is_shown_has_no_colour_no_control_characters_no_secret_and_an_end() -> None:
    hostile = "\x1b]0;title\x07\x1b[31mred\x1b[0m\ttab\x00\x08\x9b1m \u202eflip\ud800 hf_abcdefghijklmnop"
    assert clean(hostile) == "red    tab1m flip ***"
    assert len(clean("x" * 100_000)) < 5000


@pytest.mark.parametrize(
    "raw",
    [
        "INFO 2026-13-45 99:99:99,000 x -- y", "INFO 13-45 99:99:99 [x:1] y", "INFO 02-29 00:00:00 [x:1] y",
        "ERROR 9999-12-31 23:59:59,999 x -- y", "[W9999 99:99:99.9 x] y", "{", "[" * 100_000, "null", '"x"',
        '{"event": 1, "level": [], "timestamp": {}, "model": 7, "models": 3, "application": []}',
        '{"timestamp": "0001-01-01T00:00:00+14:00"}', '{"event": "x", "n": ' + "9" * 5000 + "}",
        "\x1b[" * 10_000, "(" * 20_000, "://" * 10_000, "a1-" * 10_000, "\r" * 100,
    ],
)  # fmt: skip
@pytest.mark.parametrize("of", [OWN, EDGE, CONTROLLER, REPLICA, ENGINE])
def test_hostile_lines_are_read_quickly(raw: str, of: Of) -> None:
    began = time.process_time()
    for about in (None, About("qwen3-0.6b")):
        for line in read(of, raw, about=about):
            assert line.level in LEVELS
            assert line.at is None or line.at <= epoch(NOW) + 86_400
    # What is quadratic takes many times as long; the collector of a long test run may take a second of it.
    assert time.process_time() - began < 5


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.sampled_from([OWN, EDGE, CONTROLLER, REPLICA, ENGINE]))
def test_any_text_is_read(text: str, of: Of) -> None:
    for line in read(of, text):
        assert line.text.isprintable() or not line.text.encode("utf-8", "strict").isascii()

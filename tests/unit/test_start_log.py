"""The facts of a start, out of logs of real ones (vLLM 0.29 under Ray 2.60; paths shortened), and out of the
words of vLLM's own source, so that a version that words a line differently fails here.
"""

import ast
import importlib.util
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.fit.measured import Measured
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.start_log import StartFacts, measured, merged, start_facts

GIB = 2**30
LOGS = Path(__file__).parent / "start_logs"
QUARTER = GIB // 4


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8")


def gib(size: float) -> int:
    return round(size * GIB)


# --- real starts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "cpu",
            StartFacts(
                version="0.29.0",
                loading_seconds=0.01,
                available_kv=QUARTER,
                kv_tokens=524_288,
                init_seconds=0.16,
                start_seconds=27.0,
            ),
        ),
        # Without a cache, there is nothing to say of one.
        ("cpu_embedding", StartFacts("0.29.0", loading_seconds=0.14, init_seconds=0.01, start_seconds=26.0)),
        (
            "cpu_two_ranks",  # compiled; the cache takes what is left of a share
            StartFacts(
                version="0.29.0",
                loading_seconds=0.01,
                available_kv=gib(1.3),
                kv_tokens=5_452_544,
                init_seconds=39.62,
                start_seconds=66.0,
            ),
        ),
        # Ray's executor, as on GPUs: the workers have logs of their own, which Ray repeats in the replica's.
        (
            "ray_replica",
            StartFacts(
                version="0.29.0",
                loading_seconds=0.01,
                available_kv=QUARTER,
                kv_tokens=1_048_576,
                init_seconds=0.37,
                start_seconds=27.0,
            ),
        ),
        ("ray_rank0", StartFacts(loading_seconds=0.01, available_kv=QUARTER)),
        ("ray_rank1", StartFacts(available_kv=QUARTER)),
        # On an H100, by Ray's executor: compiled, with graphs, and a cache of a fixed size.
        (
            "h100_graphs",
            StartFacts(
                version="0.29.0",
                weights=gib(1.41),
                loading_seconds=2.435991,
                graphs=gib(0.36),
                available_kv=gib(4),
                kv_tokens=65_536,
                init_seconds=27.03,
                start_seconds=48.0,
            ),
        ),
        # The whole GPU, without graphs.
        (
            "h100_eager",
            StartFacts(
                version="0.29.0",
                weights=gib(13.01),
                loading_seconds=3.234584,
                consumed=gib(13.3),
                peak=gib(0.84),
                graphs=0,
                available_kv=gib(58.7),
                kv_tokens=480_880,
                init_seconds=2.77,
                start_seconds=22.0,
            ),
        ),
    ],
)
def test_a_real_start(name: str, facts: StartFacts) -> None:
    assert start_facts(log(name)) == facts


def test_the_logs_of_one_engine_together() -> None:
    parts = [start_facts(log(name)) for name in ("ray_replica", "ray_rank0", "ray_rank1")]
    assert merged(parts) == parts[0]
    assert measured(merged(parts), 5.0) == Measured(
        available_kv=QUARTER, kv_tokens=1_048_576, load_seconds=27.0, at=5.0
    )


# --- vLLM's own words -------------------------------------------------------------------------------------


class Anything:
    """Stands for whatever a message of vLLM's mentions: a number of 2 GiB, with any attribute."""

    def __getattr__(self, _: str) -> "Anything":
        return self

    def __str__(self) -> str:
        return "2.0"


def source(file: str) -> ast.Module:
    """A file of vLLM's."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no engine is installed here to compare with")
    return ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))


def words(file: str, begins: str, **names: Any) -> Iterator[str]:
    """The messages in a file of vLLM's that begin so; f-strings with `names` filled in, or anything."""
    tree = source(file)
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inside = {part for node in joined for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in inside and str(node.value).startswith(begins):
            yield str(node.value)
    for node in joined:
        if isinstance(first := node.values[0], ast.Constant) and str(first.value).startswith(begins):
            known: dict[str, Any] = {part.id: Anything() for part in ast.walk(node) if isinstance(part, ast.Name)}
            known |= {"format_gib": str, **names}
            yield eval(compile(ast.Expression(node), file, "eval"), known)  # vLLM's own expression


def line(message: str, *, file: str = "some.py", at: str = "11-25 17:55:42") -> str:
    return f"(Worker_TP0 pid=7) INFO {at} [{file}:1] {message}\n"


WORKER = SimpleNamespace(
    init_snapshot=SimpleNamespace(free_memory="78.6", total_memory="79.18"),
    cache_config=SimpleNamespace(gpu_memory_utilization=0.92),
    requested_memory="72.85",
    total_consumed="15.31",
    peak_activation_memory="1.9",
    available_kv_cache_memory_bytes="55.64",
)


@pytest.mark.parametrize(
    ("file", "begins", "values", "facts"),
    [
        ("v1/engine/core.py", "Initializing a V1 LLM engine", ("0.29.0", "model"), StartFacts(version="0.29.0")),
        (
            "v1/worker/gpu_model_runner.py",
            "Model loading took",
            ("14.99", 3.25),
            StartFacts(weights=gib(14.99), loading_seconds=3.25),
        ),
        (
            "v1/worker/gpu/model_runner.py",
            "Model loading took",
            ("14.99", 3.25),
            StartFacts(weights=gib(14.99), loading_seconds=3.25),
        ),
        (
            "v1/worker/gpu_model_runner.py",
            "Estimated CUDA graph memory",
            (0.14,),
            StartFacts(graphs_estimated=gib(0.14)),
        ),
        (
            "v1/worker/gpu_model_runner.py",
            "Graph capturing finished",
            (7, 0.22),
            StartFacts(graphs=gib(0.22)),
        ),
        (
            "v1/worker/gpu/model_runner.py",
            "Graph capturing finished",
            (7, 0.22),
            StartFacts(graphs=gib(0.22)),
        ),
        (
            "v1/worker/gpu_worker.py",
            "CUDA graph pool memory",
            (0.22, 0.14, 0.08, 36.4),
            StartFacts(graphs=gib(0.22), graphs_estimated=gib(0.14)),
        ),
        ("v1/worker/gpu_worker.py", "Available KV cache memory", ("55.64",), StartFacts(available_kv=gib(55.64))),
        (
            "v1/worker/gpu_worker.py",
            "CUDA graph memory profiling is disabled",
            (0.92, 0.94),
            StartFacts(graphs_ignored=True),
        ),
        ("v1/worker/gpu_worker.py", "CUDA graph memory profiling is enabled", (0.92, 0.9, 0.94), StartFacts()),
        (
            "multimodal/gpu_ipc_memory.py",
            "Reserving ",
            ("2.0", "1.5", "0.5", 1, "0.5", "53.64"),
            StartFacts(available_kv=gib(53.64)),
        ),
        (
            "v1/core/kv_cache_utils.py",
            "GPU KV cache size",
            ("455,744", "8,192", 55.63),
            StartFacts(kv_tokens=455_744),
        ),
        (
            "model_executor/model_loader/default_loader.py",
            "Loading weights took",
            (2.5,),
            StartFacts(loading_seconds=2.5),
        ),
    ],
)
def test_what_vllm_logs_is_understood(file: str, begins: str, values: tuple[Any, ...], facts: StartFacts) -> None:
    found = list(words(file, begins))
    assert found, f"vLLM's {file} has no message {begins!r} any more"
    for message in found:
        assert start_facts(line(message % values)) == facts


def test_the_end_of_the_start_is_understood_in_every_wording() -> None:
    found = list(words("v1/engine/core.py", "init engine ("))
    assert len(found) == 3
    for message in found:
        text = line("first", at="11-25 17:55:12") + line(message % ((39.62,) * message.count("%")))
        assert start_facts(text) == StartFacts(init_seconds=39.62, start_seconds=30.0)


def test_the_summary_of_the_memory_is_understood() -> None:
    names = {"self": WORKER, "cuda_graph_memory_bytes": "0.22"}
    (message,) = words("v1/worker/gpu_worker.py", "Free memory on device (", **names)
    assert start_facts(line(message)) == StartFacts(consumed=gib(15.31), peak=gib(1.9), graphs=gib(0.22))


def test_a_cache_of_fixed_size_is_understood() -> None:
    found = words("v1/worker/gpu_worker.py", "Initial free memory ", self=WORKER, kv_cache_memory_bytes="4.0")
    facts = [start_facts(line(message)) for message in found]
    assert StartFacts(available_kv=4 * GIB) in facts


def test_the_cache_of_an_engine_on_the_cpu_is_understood() -> None:
    for begins in ("Explicitly set (", "Auto set ("):
        (message,) = words("v1/worker/cpu_worker.py", begins, kv_cache_size="1.3")
        assert start_facts(line(message)) == StartFacts(available_kv=gib(1.3))


def test_lines_begin_as_vllm_begins_them() -> None:
    assert set(words("logger.py", "%m-%d")) == {"%m-%d %H:%M:%S"}
    named = {
        ast.unparse(node.targets[0]): node.value
        for node in source("logger.py").body
        if isinstance(node, ast.Assign)
    }
    assert "%(levelname)s %(asctime)s [%(fileinfo)s:%(lineno)d] %(message)s" in ast.unparse(named["_FORMAT"])


# --- what comes of it -------------------------------------------------------------------------------------

GPU_START = (
    line("Initializing a V1 LLM engine (v0.29.0) with config: model='m'", at="12-31 23:59:10")
    + line("Model loading took 14.99 GiB memory and 3.250000 seconds")
    + line("Estimated CUDA graph memory: 0.14 GiB total")
    + line("Available KV cache memory: 55.64 GiB")
    + line("GPU KV cache size: 455,744 tokens, Maximum concurrency for 8,192 tokens per request: 55.63x")
    + line("Graph capturing finished in 7 secs, took 0.22 GiB")
    + line(
        "Free memory on device (78.6/79.18 GiB) on startup. Desired GPU memory utilization is (0.92, 72.85 GiB). "
        "Actual usage is 15.31 GiB for consumed memory (weights + non-torch), 1.9 GiB for peak activation, and "
        "0.22 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with ..."
    )
)
DONE = line("init engine (profile, create kv cache, warmup model) took 31.20 s", at="01-01 00:00:05")


def test_the_terms_of_a_start_on_a_gpu() -> None:
    found = measured(start_facts(GPU_START + DONE), 9.0)
    assert found is not None
    assert found == Measured(
        weights=gib(14.99),
        activation=gib(1.9) - gib(0.14),
        graphs=gib(0.14),
        graphs_captured=gib(0.22),
        non_torch=gib(15.31) - gib(14.99),
        available_kv=gib(55.64),
        kv_tokens=455_744,
        load_seconds=55.0,  # over the turn of the year
        at=9.0,
    )
    # They add up to what vLLM had: its share of the GPU, as far as hundredths of a GiB say.
    terms = (found.weights, found.activation, found.graphs, found.non_torch, found.available_kv)
    assert sum(term for term in terms if term is not None) == pytest.approx(gib(72.85), abs=gib(0.02))


def test_graphs_that_were_not_set_aside_count_as_captured() -> None:
    found = measured(start_facts(line("CUDA graph memory profiling is disabled (VLLM") + GPU_START), 0.0)
    assert found is not None
    assert (found.graphs, found.activation) == (gib(0.22), gib(1.9))


def test_an_engine_without_graphs_says_so() -> None:
    text = GPU_START.replace("and 0.22 GiB for CUDAGraph", "and 0.0 GiB for CUDAGraph")
    kept = [each for each in text.splitlines(keepends=True) if "graph memory" not in each.lower().split("free")[0]]
    found = measured(start_facts("".join(each for each in kept if "Graph capturing" not in each)), 0.0)
    assert found is not None
    assert (found.graphs, found.activation) == (0, gib(1.9))


def test_a_log_that_says_nothing_is_no_measurement() -> None:
    assert measured(start_facts("Traceback (most recent call last):\n"), 1.0) is None


def test_of_several_ranks_the_one_with_most_decides_and_of_the_cache_the_one_with_least() -> None:
    more = GPU_START.replace("14.99", "15.01").replace("15.31", "15.40").replace("55.64", "55.50")
    for texts in ((GPU_START, more), (more, GPU_START)):
        facts = merged(map(start_facts, texts))
        assert (facts.weights, facts.consumed, facts.available_kv) == (gib(15.01), gib(15.40), gib(55.50))


# --- logs are not to be trusted ---------------------------------------------------------------------------


def test_what_requests_write_into_a_log_changes_nothing() -> None:
    forged = line("Model loading took 900.0 GiB memory and 1.0 seconds") + line("GPU KV cache size: 1 tokens, ")
    assert start_facts(GPU_START + DONE + forged) == start_facts(GPU_START + DONE)
    assert start_facts(GPU_START + "Model loading took 900 GiB memory and 1 seconds\n") == start_facts(GPU_START)


def test_the_clock_starts_with_the_replica_and_not_with_what_its_process_did_before() -> None:
    before = line("a task", at="11-25 10:00:00") + ":actor_name:ServeReplica:m:LLMServer:m\n"
    text = before + line("first", at="11-25 17:55:10") + DONE.replace("01-01 00:00:05", "11-25 17:55:30")
    assert start_facts(text).start_seconds == 20.0


@given(
    st.text()
    | st.lists(st.sampled_from([*GPU_START.split(), " ", "\n", "INFO 99-99 99:99:99 [a:1] "])).map("".join)
)
def test_no_text_raises(text: str) -> None:
    measured(merged([start_facts(text)]), 0.0)


@pytest.mark.parametrize(
    "evil",
    [
        "INFO 11-25 17:55:42 [" * 100_000,
        "INFO 11-25 17:55:42 [a.py:1] Reserving " + "(" * 2_000_000,
        line("GPU KV cache size: " + "9," * 1_000_000),
        line("Model loading took 99999999999999999999999999 GiB memory and 1 seconds") * 20_000,
        "\x1b[" * 1_000_000,
        "INFO 1" * 10 + "\n" * 2_000_000,
    ],
    ids=["headers", "brackets", "digits", "lines", "colours", "newlines"],
)
def test_time_is_in_proportion_to_the_text(evil: str) -> None:
    began = time.monotonic()
    start_facts(evil)
    assert time.monotonic() - began < 5.0


# --- fetching them ----------------------------------------------------------------------------------------


@pytest.fixture
async def dashboard() -> AsyncIterator[str]:
    """A dashboard with an engine of three workers, one with an endless log and one that is gone, and others."""
    rows = [
        {"actor_id": "replica", "node_id": "n1", "placement_group_id": "g1"},
        {"actor_id": "rank0", "node_id": "n1", "placement_group_id": "g1"},
        {"actor_id": "rank1", "node_id": "n2", "placement_group_id": "g1"},
        {"actor_id": "gone", "node_id": "n3", "placement_group_id": "g1"},
        {"actor_id": "other", "node_id": "n1", "placement_group_id": "g2"},
        {"actor_id": "lonely", "node_id": "n1", "placement_group_id": None},
        {"actor_id": "proxy", "node_id": "n1", "placement_group_id": None},
    ]

    async def actors(_: web.Request) -> web.Response:
        return web.json_response({"data": {"result": {"result": rows}}})

    async def logs(request: web.Request) -> web.StreamResponse:
        actor = request.query["actor_id"]
        if actor == "gone":
            return web.Response(status=500, text="no such actor")
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(f"{actor} on {request.query['node_id']}\n".encode())
        while actor == "rank1":
            await answer.write(b"x" * 4096)
        return answer

    app = web.Application()
    app.add_routes([web.get("/api/v0/actors", actors), web.get("/api/v0/logs/file", logs)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_log_is_read_for_the_replica_and_each_of_its_workers_and_no_further_than_asked(
    dashboard: str,
) -> None:
    async with ServeClient(dashboard) as client:
        found = await client.start_logs("replica", most=10_000)
        assert [text[:8] for text in found] == ["replica ", "rank0 on", "rank1 on", ""]
        assert len(found[2]) == 10_000
        assert await client.start_logs("lonely") == ["lonely on n1\n"]
        assert await client.start_logs("unknown") == []


async def test_without_a_dashboard_there_are_no_logs() -> None:
    async with ServeClient("http://127.0.0.1:1") as client:
        assert await client.start_logs("replica") == []

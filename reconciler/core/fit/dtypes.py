"""Bytes of the number types of checkpoints, engines and KV caches. Pure."""

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Bits of one number, by the names in safetensors headers."""

_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2, "float64": 8, "int8": 1}
_ONE_BYTE = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "int8")
KV_DTYPES = (
    "auto", "float16", "bfloat16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_per_token_head",
    "int8_per_token_head", "int4_per_token_head", "nvfp4",
)  # fmt: skip
"""KV cache types whose size is known here, as vLLM 0.29 names them (`vllm/config/cache.py`)."""


def dtype_bytes(name: str) -> int:
    """Bytes of one number of an engine's `dtype`.

    Raises:
        ValueError: The name is not known.
    """
    size = _BYTES.get(name.removeprefix("torch."))
    if size is None:
        raise ValueError(f"{name!r} is no dtype that is known here")
    return size


def kv_content_bytes(kv_dtype: str, key: int, value: int, model_bytes: int) -> int:
    """Bytes that one token leaves in one KV head of one layer.

    `AttentionSpec.state_content_size_bytes` of vLLM and the backends' `customize_spec` (`triton_attn.py` for
    scales per token and head, `flashinfer.py` for NVFP4).

    Args:
        kv_dtype: As vLLM's `kv_cache_dtype`; `auto` is the model's own type.
        key: Numbers in a key.
        value: Numbers in a value.
        model_bytes: Bytes of one number of the model's dtype.

    Raises:
        ValueError: The type is not known.
    """
    if kv_dtype == "auto":
        return (key + value) * model_bytes
    if kv_dtype in _BYTES and kv_dtype != "int8":
        return (key + value) * _BYTES[kv_dtype]
    if kv_dtype in _ONE_BYTE:
        return key + value
    if kv_dtype in ("fp8_per_token_head", "int8_per_token_head"):
        return key + value + 8
    if kv_dtype == "int4_per_token_head":
        return key // 2 + value // 2 + 8
    if kv_dtype.startswith("nvfp4"):
        return key // 2 + key // 16 + value // 2 + value // 16
    raise ValueError(f"{kv_dtype!r} is no KV cache dtype that is known here ({', '.join(KV_DTYPES)})")

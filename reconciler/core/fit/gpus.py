"""Memory of well-known GPUs as NVML and `torch.cuda.mem_get_info` report it: less than what the box says. Pure."""

import difflib
from dataclasses import dataclass

GIB = 2**30
MIB = 2**20

_MIB: dict[str, int] = {
    # MiB as nvidia-smi prints `memory.total`. What CUDA can allocate is a little less (`cuda_total`).
    "h100-80g": 81559,
    "h100-pcie-80g": 81559,
    "h100-nvl": 95830,
    "h100-96g": 97871,
    "h200": 143771,
    "h20": 97871,
    "gh200-96g": 97871,
    "gh200-144g": 147281,
    "b100": 183359,
    "b200": 183359,
    "b300": 275040,
    "a100-40g": 40960,
    "a100-80g": 81920,
    "a30": 24576,
    "a10": 23028,
    "a10g": 23028,
    "a40": 46068,
    "a6000": 49140,
    "rtx-a5000": 24564,
    "rtx-6000-ada": 49140,
    "rtx-pro-6000": 97887,
    "l4": 23034,
    "l40": 46068,
    "l40s": 46068,
    "t4": 15360,
    "v100-16g": 16384,
    "v100-32g": 32768,
    "rtx-2080-ti": 11264,
    "rtx-3060": 12288,
    "rtx-3080": 10240,
    "rtx-3090": 24576,
    "rtx-4070": 12282,
    "rtx-4080": 16376,
    "rtx-4090": 24564,
    "rtx-5070-ti": 16303,
    "rtx-5080": 16303,
    "rtx-5090": 32607,
    "gb10": 122570,
    "mi300x": 196592,
    "mi325x": 262128,
    "mi250x": 65520,
}
_ALIASES = {
    "h100": "h100-80g", "a100": "a100-80g", "gh200": "gh200-96g", "v100": "v100-16g", "dgx-spark": "gb10",
    "tesla-t4": "t4", "rtx-a6000": "a6000",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        total: Bytes that CUDA says it has.
        used: Bytes taken by others.
        large_batches: vLLM takes its larger defaults on it: at least 70 GiB and no A100 (`arg_utils.py`).
        name: For messages.
    """

    total: int
    used: int = 0
    large_batches: bool = False
    name: str = ""


_CUDA_GIB = {
    # Logged at start-up as the GPU's total.
    "h100-80g": 79.18, "a100-80g": 79.25, "a100-40g": 39.56, "h200": 139.8, "l4": 22.16, "t4": 14.56,
    "rtx-4090": 23.63,
}  # fmt: skip

# The driver keeps a part of `memory.total` for itself. Logged at start-up, GiB of `memory.total`: H100 79.18 of
# 79.65, A40 44.52 of 44.99, A100 39.56 of 40.00, RTX 4090 23.63 of 23.99, L4 22.16 of 22.49, T4 14.56 and 14.74 of
# 15.00.
_RESERVED = 0.006
_RESERVED_SMALL, _RESERVED_LARGE = 350 * MIB, 460 * MIB
_LARGE = 70 * GIB


def gpu(name: str) -> Gpu:
    """A GPU by its name, such as `h100-80g`, `l4` or `rtx-4090`.

    Raises:
        ValueError: It is not in the table; the text names near ones.
    """
    key = name.lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-").removesuffix("b")
    for candidate in (name.lower(), key, f"{key}b"):
        wanted = _ALIASES.get(candidate, candidate)
        if wanted in _MIB:
            total = int(_CUDA_GIB[wanted] * GIB) if wanted in _CUDA_GIB else cuda_total(_MIB[wanted] * MIB)
            return of_total(total, name=wanted)
    near = difflib.get_close_matches(key, [*_MIB, *_ALIASES], n=3, cutoff=0.4)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise ValueError(f"no GPU {name[:40]!r} is known here{hint} Or give --gpu-memory-gib")


def of_total(total: int, *, used: int = 0, name: str = "") -> Gpu:
    """A GPU of which only the memory is known."""
    return Gpu(total, used, large_batches=total >= _LARGE and "a100" not in name.lower(), name=name)


def cuda_total(nvml_total: int) -> int:
    """Bytes that CUDA offers of what NVML reports in all."""
    least = _RESERVED_SMALL if nvml_total < 30 * GIB else _RESERVED_LARGE
    return nvml_total - max(least, int(nvml_total * _RESERVED))


def names() -> tuple[str, ...]:
    """All names that are known."""
    return tuple(sorted({*_MIB, *_ALIASES}))

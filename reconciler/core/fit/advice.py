"""What to change when a model does not fit: the nearest settings that do, each with its numbers. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from reconciler.core.fit import parallel
from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.estimate import Engine, Estimate, Extras, Known, estimate
from reconciler.core.fit.gpus import GIB, Gpu
from reconciler.core.fit.quantization import Method, Quantization
from reconciler.core.fit.solve import highest_share
from reconciler.core.fit.tensors import Part

Weigh = Callable[[Architecture], tuple[Part, ...]]
"""The weights' parts of a model."""

_SIBLINGS = (Quantization(Method.FP8, 8), Quantization(Method.AWQ, 4, 128, zeros=True))
_SHORTEST = 2048
_FEW_SEQS = 32
_SHARE_STEP = 0.005
_HIGHEST_SHARE = 0.98


@dataclass(frozen=True, slots=True)
class Advice:
    """One change that makes it fit.

    Attributes:
        change: In words.
        settings: The engine's settings with it.
        found: The estimate with it.
        safe: It fits by the safe values too.
    """

    change: str
    settings: Engine
    found: Estimate

    @property
    def safe(self) -> bool:
        """It fits by the safe values too."""
        return self.found.fits_safely

    def __str__(self) -> str:
        kv = max(0, self.found.available_kv.expected) / GIB
        return (
            f"{self.change}: weights {self.found.weights.expected / GIB:.2f} GiB, KV cache {kv:.2f} GiB for "
            f"{self.found.kv_tokens.expected} tokens{'' if self.safe else ' (by the expected values only)'}"
        )


def smallest_tensor_parallel(
    model: Architecture,
    weigh: Weigh,
    engine: Engine,
    gpu: Gpu,
    gpus: int,
    *,
    safely: bool = True,
    extras: Extras = Extras(),  # noqa: B008 -- frozen
) -> Estimate | None:
    """The estimate with the fewest ranks on which the model fits; None where it does not on so many GPUs."""
    here = weigh(model)
    for size in parallel.tensor_sizes(model, gpus, expert_parallel=engine.expert_parallel):
        if size.rule:
            continue
        found = estimate(model, here, replace(engine, tensor_parallel=size.size), gpu, extras=extras)
        if found.fits_safely if safely else found.fits:
            return found
    return None


def advise(model: Architecture, weigh: Weigh, found: Estimate, gpus: int) -> tuple[Advice, ...]:
    """Changes that make it fit, one at a time, the mildest first; empty where it fits or nothing helps.

    What was measured counts for a change of the context or the share alone, which leave it as it is.

    Args:
        model: What the config says.
        weigh: Gives the weights' parts.
        found: The estimate that does not fit.
        gpus: GPUs alike that there are.
    """
    if found.fits:
        return ()
    return tuple(_changes(model, weigh, found, gpus))


def _changes(model: Architecture, weigh: Weigh, found: Estimate, gpus: int) -> Iterator[Advice]:  # noqa: C901, PLR0912 -- one try after the other
    engine, gpu, tp = found.engine, found.gpu, found.engine.tensor_parallel
    here = weigh(model)
    share = highest_share(gpu, tp, engine.pipeline_parallel, cap=_HIGHEST_SHARE)

    def attempt(
        change: str,
        settings: Engine,
        parts: tuple[Part, ...] = here,
        other: Architecture = model,
        known: Known | None = None,
    ) -> Advice:
        return Advice(change, settings, estimate(other, parts, settings, gpu, known, found.extras))

    # The longest context by the safe values, else by the expected ones, in whole blocks.
    for longest in (found.longest.safe, found.longest.expected):
        length = min(longest // 16 * 16, model.context or longest)
        if min(_SHORTEST, engine.max_model_len) <= length < engine.max_model_len:
            settings = replace(engine, max_model_len=length)
            shorter = attempt(f"max_model_len {length}", settings, known=found.known)
            if shorter.found.fits:
                yield shorter
                break
    tries = []
    if engine.kv_cache_dtype == "auto" and found.needed_kv:
        tries.append(attempt("kv_cache_dtype fp8", replace(engine, kv_cache_dtype="fp8")))
    if engine.max_num_seqs > _FEW_SEQS:
        few = replace(engine, max_num_seqs=_FEW_SEQS)
        tries.append(attempt(f"max_num_seqs {_FEW_SEQS}", few))
    if engine.max_num_batched_tokens > _SHORTEST:
        tries.append(
            attempt(f"max_num_batched_tokens {_SHORTEST}", replace(engine, max_num_batched_tokens=_SHORTEST))
        )
    if not engine.enforce_eager:
        tries.append(attempt("enforce_eager (slower)", replace(engine, enforce_eager=True)))
    if share > 0 and abs(share - engine.gpu_memory_utilization) > _SHARE_STEP and not engine.kv_cache_memory_bytes:
        settings = replace(engine, gpu_memory_utilization=share)
        tries.append(attempt(f"gpu_memory_utilization {share:g}", settings, known=found.known))
    if engine.kv_cache_memory_bytes:
        rest = found.footprint.safe - engine.kv_cache_memory_bytes
        most = (gpu.total - gpu.used - rest) * 10 // GIB / 10
        if most > 0:
            tries.append(
                attempt(f"kv_cache_memory_gib {most:g}", replace(engine, kv_cache_memory_bytes=int(most * GIB)))
            )
    yield from (each for each in tries if each.found.fits)
    for size in parallel.tensor_sizes(model, gpus, expert_parallel=engine.expert_parallel):
        if size.rule or size.size <= tp:
            continue
        wider = attempt(f"tensor_parallel {size.size}", replace(engine, tensor_parallel=size.size), here)
        if wider.found.fits:
            yield wider
            break
    bits = model.quantization.bits if model.quantization is not None else 16
    for sibling in _SIBLINGS:
        if sibling.bits < bits:
            other = replace(model, quantization=sibling)
            smaller = attempt(
                f"a version of the model with {sibling.bits}-bit weights", engine, weigh(other), other
            )
            if smaller.found.fits:
                yield smaller
                break

"""The weights of a model by what is known best: its tensors, a given total, or its config alone. Pure."""

from collections.abc import Sequence

from reconciler.core.fit.advice import Weigh
from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.engine import Engine
from reconciler.core.fit.parts import FIRST, Part, Split, scaled
from reconciler.core.fit.synthesis import parameters_of, parts_of_config
from reconciler.core.fit.tensors import Loading, Tensor, parts_of


def loading_of(model: Architecture, engine: Engine) -> Loading:
    """How the weights are loaded: vLLM makes bfloat16 of a float32 checkpoint unless it is told otherwise."""
    dtype = engine.dtype if engine.dtype not in ("", "auto") else model.dtype or "bfloat16"
    return Loading(
        dtype="bfloat16" if dtype in ("float32", "float") and not engine.dtype else dtype,
        language_model_only=engine.language_model_only,
        speculative=engine.speculative_method == "mtp",
        data_parallel_encoder=engine.data_parallel_encoder,
        pooling=engine.pooling,
    )


def weigher(
    model: Architecture,
    loading: Loading,
    tensors: Sequence[Tensor] | None = None,
    *,
    total: float | None = None,
    parameters: int | None = None,
) -> Weigh:
    """A function that gives the weights of `model`, or of a sibling of it that is quantised otherwise.

    Args:
        model: The model itself.
        loading: What of it is loaded, and how.
        tensors: Of its checkpoint, where they are known.
        total: Bytes of all weights as loaded, over all ranks, where only that is known.
        parameters: How many there are, where only that is known.
    """

    def weigh(wanted: Architecture) -> tuple[Part, ...]:
        if tensors is not None and wanted is model:
            return parts_of(tensors, wanted, loading)
        parts = parts_of_config(wanted, loading)
        if total is not None and wanted is model:
            return scaled(parts, total)
        if parameters is None:
            return parts
        usual = parameters_of(wanted)
        if parameters > usual and wanted.quantization is not None:
            # What a config does not describe is a tower or the like, which is not quantised.
            return (*parts, Part(2.0 * (parameters - usual), Split.EVENLY, FIRST))
        return scaled(parts, sum(part.bytes for part in parts) * parameters / usual)

    return weigh

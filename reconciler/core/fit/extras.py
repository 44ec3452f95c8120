"""What an engine loads beside its model, and what was measured of it at an earlier start. Pure."""

from dataclasses import dataclass

from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.parts import Part


@dataclass(frozen=True, slots=True)
class Known:
    """Numbers that vLLM logged of this model with these settings on such a GPU, in bytes on one rank.

    Each takes the place of a formula; None where it was not logged.

    Attributes:
        weights: `Model loading took`: with LoRA slots and the draft, without what is kept in main memory.
        activation: Peak of the profile run, without the CUDA graphs.
        cuda_graph: What vLLM estimated for the graphs and set aside.
        non_torch: What the profile run showed outside torch.
    """

    weights: int | None = None
    activation: int | None = None
    cuda_graph: int | None = None
    non_torch: int | None = None


@dataclass(frozen=True, slots=True)
class Lora:
    """`enable_lora`, by the names of vLLM's `LoRAConfig`.

    Attributes:
        max_loras: Adapters on the GPU at once, each with a slot.
        max_lora_rank: Rank that every slot has room for, whatever the adapters need.
        target_modules: Modules that have slots; empty for every linear layer, vLLM's default, whichever of them
            the adapters change.
        dtype: `lora_dtype`; empty for the engine's.
    """

    max_loras: int = 1
    max_lora_rank: int = 16
    target_modules: tuple[str, ...] = ()
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """What speculates: a draft model of its own (EAGLE, a smaller model), or the model's own MTP layers.

    Attributes:
        model: Its architecture.
        parts: Its weights; empty where the model's parts hold them.
    """

    model: Architecture
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Extras:
    """What is loaded beside the model. n-gram and suffix speculation load nothing."""

    lora: Lora | None = None
    draft: Draft | None = None

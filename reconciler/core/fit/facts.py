"""What a memory estimate has to know of a model, of which nothing need be here yet: its config, its tensors. Pure.

`reconciler.weights.facts` finds it out; `architecture` reads the config and `tensors` what the tensors take.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from reconciler.core.fit.dtypes import BITS
from reconciler.core.fit.tensors import Tensor
from reconciler.core.state import Json
from reconciler.core.weights import Copy

_VERSION = 1
"""Of the JSON; facts that were written by other rules than today's are found out anew."""
_MOST_DIMENSIONS = 16
_MOST_NUMBERS = 2**50


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """The facts of one commit, or of one folder as it was. Compared by identity: estimates can be kept by it.

    Attributes:
        config: Its config.json; of an adapter, its adapter_config.json.
        tensors: What its safetensors hold, in no particular order; None where it has none, and the config alone
            must do.
    """

    config: Json
    tensors: tuple[Tensor, ...] | None


@dataclass(frozen=True, slots=True)
class FactsState:
    """What is known of a place's facts now.

    Attributes:
        facts: None while they are not known.
        problem: Why they are not known, and what to do about it; empty while that is still being found out.
        retry_at: Seconds since the epoch of the next try, where there was a problem.
    """

    facts: Facts | None = None
    problem: str = ""
    retry_at: float | None = None


Place: TypeAlias = Copy | str
"""Where a model is: a copy in the hub's cache, there already or not, or the absolute path of a folder."""


def facts_to_json(facts: Facts) -> Json:
    """For a file: the tensors' names by dtype and shape, of which even a model with 200,000 tensors has few."""
    if facts.tensors is None:
        return {"version": _VERSION, "config": facts.config, "tensors": None}
    names: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for tensor in facts.tensors:
        names.setdefault((tensor.dtype, tensor.shape), []).append(tensor.name)
    return {
        "version": _VERSION,
        "config": facts.config,
        "tensors": [[*key, found] for key, found in names.items()],
    }


def facts_from_json(data: object) -> Facts:
    """What `facts_to_json` wrote.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(data, dict) or data.get("version") != _VERSION or not isinstance(data.get("config"), dict):
        raise ValueError("these are no facts of a model")
    groups = data.get("tensors", ())
    if groups is None:
        return Facts(data["config"], None)
    if not isinstance(groups, list):
        raise ValueError("the tensors are no list")  # noqa: TRY004 -- whoever reads a file handles one error
    return Facts(data["config"], tuple(tensor for group in groups for tensor in _group(group)))


def _group(group: Any) -> list[Tensor]:  # noqa: ANN401 -- whatever JSON holds
    if not isinstance(group, list) or len(group) != 3 or not isinstance(group[2], list):  # noqa: PLR2004
        raise ValueError("a group of tensors is not a dtype, a shape and names")
    dtype, shape = checked_dtype(group[0]), checked_shape(group[1])
    if not all(isinstance(name, str) for name in group[2]):
        raise ValueError("the name of a tensor is no text")
    return [Tensor(name, dtype, shape) for name in group[2]]


def checked_dtype(value: object) -> str:
    """A dtype as safetensors name them.

    Raises:
        ValueError: It is not one that is known here.
    """
    if not isinstance(value, str) or value not in BITS:
        raise ValueError(
            f"its dtype {value:.20} is not known here" if isinstance(value, str) else "it has no dtype"
        )
    return value


def checked_shape(value: object) -> tuple[int, ...]:
    """The shape of a tensor.

    Raises:
        ValueError: It is none, or of more numbers than any tensor has.
    """
    if (
        not isinstance(value, list)
        or len(value) > _MOST_DIMENSIONS
        # A truth value is a number to Python, and none to safetensors.
        or not all(type(size) is int and 0 <= size <= _MOST_NUMBERS for size in value)
        or prod(value) > _MOST_NUMBERS
    ):
        raise ValueError("it has no shape that a tensor can have")
    return tuple(value)

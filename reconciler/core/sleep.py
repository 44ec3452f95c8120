"""What is decided about engines that sleep: whether one may, whether it did, and which never does again. Pure.

An engine sleeps with its weights in main memory and without a KV cache (level 1 of vLLM's sleep mode). It keeps
its place in Ray, so nobody else is given its GPUs' memory. `loop.sleeping` carries these decisions out.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.core.fit.gpus import GIB
from reconciler.core.spec import Task
from reconciler.core.state import Json

ENOUGH = 0.8
"""Share of weights and KV cache that a sleeping engine has given back at least. What else its processes hold
(CUDA's context, graphs, communicators) stays, and is not counted; but sizes are known to some percent only."""
LEFT_FREE = 2 * GIB
"""Bytes of main memory that an engine going to sleep leaves to everybody else."""
_TEXT = "The quick brown fox"
"""Shorter than a block of the KV cache (16 tokens), so the answer never comes from the prefix cache."""
_LONGEST_ANSWER = 4096


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that an application's engines have on GPUs, over all ranks of all replicas.

    Attributes:
        weights: Of the weights; they move to main memory.
        kv: Of the KV cache; it is dropped.
    """

    weights: int
    kv: int

    @property
    def main_memory(self) -> int:
        """Bytes of main memory that the weights take at most.

        They are pinned, and PyTorch pins by powers of two (`CachingHostAllocator.h` of torch 2.13), each tensor of
        its own, which is anything from nothing to all of it again. It keeps them for the next time when the engine
        wakes (vLLM issue 16663), so an application that has slept once counts until it is gone.
        """
        return 2 * self.weights


@dataclass(frozen=True, slots=True)
class Demotion:
    """A version that failed a check: it is unloaded from now on where others go to sleep."""

    model: str
    application: str
    reason: str


def sleep_budget(setting_gib: float | None, main_memory: int) -> int:
    """Bytes of a host's main memory that sleeping engines may take: the operator's figure, else half of it all."""
    return main_memory // 2 if setting_gib is None else int(setting_gib * GIB)


def sleep_left(host_free: int | None, budget: int, taken: int) -> int:
    """Bytes of main memory that further engines may take for their weights.

    Args:
        host_free: Bytes that processes can have without swapping now; None where nobody can tell.
        budget: Bytes for all engines of this host together, see `sleep_budget`.
        taken: What those have that sleep, or have slept, see `Footprint.main_memory`.
    """
    left = budget - taken
    return left if host_free is None else min(left, host_free - LEFT_FREE)


def not_freed(before: int | None, after: int | None, footprint: Footprint) -> str:
    """Why an engine that says it sleeps does not count as asleep; empty where nothing speaks against it.

    Args:
        before: Bytes that its processes held on GPUs; None where nobody can tell, which is no reason.
        after: The same when it sleeps.
        footprint: What should be gone.
    """
    if before is None or after is None:
        return ""
    expected = ENOUGH * (footprint.weights + footprint.kv)
    if before - after >= expected:
        return ""
    return f"asleep it freed {_gib(before - after)} of GPU memory, and should have freed {_gib(expected)} at least"


def other_answer(before: str, after: str) -> str:
    """Why an engine that woke may not have traffic; empty where it answers as it did before it slept."""
    return "" if before == after else "awake again it answers the fixed prompt otherwise than before it slept"


def still_meant(demotions: Mapping[str, Demotion], versions: Iterable[str]) -> dict[str, Demotion]:
    """The demotions of versions that are still there or wanted. A new version of a model gets a fresh try."""
    known = set(versions)
    return {name: demotion for name, demotion in demotions.items() if name in known}


def fixed_prompt(model: str, task: str) -> tuple[str, Json] | None:
    """Path and body of a request whose answer is the same whenever it is asked; None for a task that has none.

    Args:
        model: The model's name.
        task: What it does, a `Task` value.
    """
    match task:
        case Task.GENERATE:
            # Not a chat: a base model has no template, and a template may know the date.
            exact = {"temperature": 0, "seed": 0, "max_tokens": 16}
            return "/v1/completions", {"model": model, "prompt": _TEXT, **exact}
        case Task.EMBED:
            return "/v1/embeddings", {"model": model, "input": _TEXT}
        case Task.SCORE | Task.RERANK:
            return "/v1/score", {"model": model, "text_1": _TEXT, "text_2": _TEXT}
        case Task.CLASSIFY:
            return "/classify", {"model": model, "input": _TEXT}
        case Task.REWARD:
            return "/pooling", {"model": model, "input": _TEXT}
    return None


def answer_in(body: Any) -> str:  # noqa: ANN401 -- as JSON has it
    """What of the answer to `fixed_prompt` is to be the same again; empty where there is none.

    Numbers are rounded to three digits behind the point, text and all is cut at 4096 characters.
    """
    if not isinstance(body, dict):
        return ""
    said = [each.get("text") for each in _rows(body.get("choices"))] or _rows(body.get("data"))
    return json.dumps(_rounded(said), sort_keys=True)[:_LONGEST_ANSWER] if said else ""


def engine_processes(actors: Iterable[Json], application: str) -> dict[str, set[int]]:
    """Process numbers of an application's replicas and of their engines' workers, by Ray's id of the node.

    With Ray's executor, which engines on GPUs use, the workers are actors in the replica's placement group, and no
    children of its process.

    Args:
        actors: Those that are alive, as Ray's state API describes them (`detail=1`).
        application: The Serve application.
    """
    rows = list(actors)
    # ray.serve._private.common.ReplicaID.to_full_id_str in Ray 2.60.
    ours = [
        row for row in rows if str(row.get("name") or "").startswith(f"SERVE_REPLICA::{application}#LLMServer")
    ]
    groups = {row.get("placement_group_id") for row in ours} - {None, ""}
    found: dict[str, set[int]] = {}
    for row in rows:
        pid = row.get("pid")
        if (row in ours or row.get("placement_group_id") in groups) and isinstance(pid, int) and pid > 0:
            found.setdefault(str(row.get("node_id") or ""), set()).add(pid)
    return found


def _rows(value: Any) -> list[Json]:  # noqa: ANN401 -- as JSON has it
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _rounded(value: Any) -> Any:  # noqa: ANN401 -- as JSON has it
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return {key: _rounded(each) for key, each in value.items()} if isinstance(value, dict) else value


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"

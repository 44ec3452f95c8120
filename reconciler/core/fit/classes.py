"""The kinds of GPU that a cluster has, as far as a model's settings depend on them. Pure.

Settings must not depend on what happens to be free, or every neighbour that comes and goes would change them; so a
class knows totals only, and of its GPUs the smallest counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from reconciler.core.fit.gpus import Gpu, gpu, of_total
from reconciler.core.state import Device, Node

_ALIKE = 1.02


@dataclass(frozen=True, slots=True)
class GpuClass:
    """GPUs that are alike.

    Attributes:
        gpu: The one with the least memory.
        accelerator: How Ray is asked for them; None where any GPU of the cluster will do.
        per_node: GPUs of the node that has most.
        count: GPUs in all.
        mixed: There are larger ones among them.
    """

    gpu: Gpu
    accelerator: str | None
    per_node: int
    count: int
    mixed: bool = False

    def __str__(self) -> str:
        return f"{self.gpu.name or self.accelerator or 'GPU'} ({self.gpu.total / 2**30:.2f} GiB)"


def classes_of(nodes: Iterable[Node], wanted: str = "auto") -> tuple[GpuClass, ...]:
    """The classes that a model may be put on, those with the least memory first.

    Where GPUs cannot be told apart when Ray is asked for them, they are one class. Nodes whose memory nobody knows
    are left out.

    Args:
        nodes: The cluster.
        wanted: `auto`, `gpu`, or a type of GPU as Ray names it.
    """
    by_kind: dict[str | None, list[tuple[Gpu, int]]] = {}
    for node in nodes:
        for memory, count in _memory(node):
            by_kind.setdefault(node.accelerator, []).append((memory, count))
    if wanted not in ("auto", "gpu"):
        return (_class(by_kind[wanted], wanted),) if wanted in by_kind else ()
    if not by_kind:
        return ()
    if len(by_kind) == 1 or None in by_kind:
        return (_class([each for kind in by_kind.values() for each in kind], None),)
    found = [_class(each, kind) for kind, each in by_kind.items()]
    return tuple(sorted(found, key=lambda each: (each.gpu.total, each.accelerator or "")))


def _class(found: list[tuple[Gpu, int]], accelerator: str | None) -> GpuClass:
    smallest = min((memory for memory, _ in found), key=lambda memory: memory.total)
    counts = [count for _, count in found]
    mixed = any(memory.total > smallest.total * _ALIKE for memory, _ in found)
    return GpuClass(smallest, accelerator, max(counts), sum(counts), mixed)


def _memory(node: Node) -> list[tuple[Gpu, int]]:
    """The smallest GPU of a node and how many there are; nothing where nobody knows its memory."""
    well = [device for device in node.devices if not device.failed and device.total > 0]
    if well:
        least = min(well, key=lambda device: device.total)
        return [(of_total(least.total, name=_name(least)), len(well))]
    if node.devices or node.accelerator is None or node.gpus < 1:
        return []
    try:
        return [(gpu(node.accelerator), int(node.gpus))]
    except ValueError:
        return []


def _name(device: Device) -> str:
    return device.name.lower().removeprefix("nvidia ").strip()

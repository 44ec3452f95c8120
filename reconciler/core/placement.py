"""Does an application fit on the GPUs? Ray's ledger, re-enacted.

Ray places each bundle on one node, a share of a GPU on one device, and whole GPUs on free devices. This module
plays that through for what is known to be there, so that a plan does not promise what Ray will leave pending for
ever.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reconciler.core.state import Demand, Node

_EPSILON = 1e-6


@dataclass(slots=True)
class _Device:
    node: str
    free: float
    accelerator: str | None


class Ledger:
    """Free GPU shares by device, after everything in `placed` found its place.

    What others reserve on a node is assumed to sit on as few devices as possible, as Ray packs it.
    """

    def __init__(self, nodes: Sequence[Node], placed: Iterable[Demand] = ()) -> None:
        self._devices = [_Device(node.id, 1.0, node.accelerator) for node in nodes for _ in range(int(node.gpus))]
        for demand in sorted(placed, key=lambda demand: -demand.gpus):
            if not self.take(demand):
                self._take_anyhow(demand)
        for node in nodes:
            self._take_foreign(node)

    def take(self, demand: Demand) -> bool:
        """Reserve `demand`; False, and nothing taken, where it does not fit."""
        if demand.gpus <= 0:
            return True
        for candidates in self._candidates(demand):
            chosen = _choose(candidates, demand)
            if chosen is not None:
                for device, share in chosen:
                    device.free -= share
                return True
        return False

    def fits(self, demand: Demand) -> bool:
        """There is room for `demand`; nothing is taken."""
        return demand.gpus <= 0 or any(_choose(each, demand) is not None for each in self._candidates(demand))

    def describe_free(self) -> str:
        """The free shares in words, such as `1.00 + 0.25 GPU free`."""
        shares = sorted((device.free for device in self._devices if device.free > _EPSILON), reverse=True)
        if not self._devices:
            return "no GPU in the cluster"
        return (" + ".join(f"{share:.2f}" for share in shares) or "0") + " GPU free"

    def _candidates(self, demand: Demand) -> Iterable[list[_Device]]:
        usable = [device for device in self._devices if demand.accelerator in (None, device.accelerator)]
        if not demand.one_node:
            yield usable
            return
        for node in dict.fromkeys(device.node for device in usable):
            yield [device for device in usable if device.node == node]

    def _take_anyhow(self, demand: Demand) -> None:
        # It is there, so it has room, however Ray found that: then less is free than it looks.
        amount = demand.ranks * demand.gpus
        for device in sorted(self._devices, key=lambda device: -device.free):
            share = max(0.0, min(amount, device.free))
            device.free -= share
            amount -= share

    def _take_foreign(self, node: Node) -> None:
        amount = node.gpus_foreign
        on_node = [device for device in self._devices if device.node == node.id]
        for device in sorted(on_node, key=lambda device: device.free):
            share = min(amount, device.free)
            device.free -= share
            amount -= share
            if amount <= _EPSILON:
                return


def _choose(devices: list[_Device], demand: Demand) -> list[tuple[_Device, float]] | None:
    # Best fit: the fullest device that still has room, which is also how Ray fills fractions.
    free = {id(device): device.free for device in devices}
    chosen: list[tuple[_Device, float]] = []
    for _ in range(demand.ranks):
        whole = max(1, round(demand.gpus)) if demand.gpus >= 1 else 1
        share = 1.0 if demand.gpus >= 1 else demand.gpus
        for _ in range(whole):
            fitting = [device for device in devices if free[id(device)] + _EPSILON >= share]
            if not fitting:
                return None
            best = min(fitting, key=lambda device: free[id(device)])
            free[id(best)] -= share
            chosen.append((best, share))
    return chosen

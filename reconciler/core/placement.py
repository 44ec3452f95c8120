"""Does an application fit on the GPUs? Ray's ledger, re-enacted.

Ray places each bundle on one node, a share of a GPU on one device, and whole GPUs on free devices. This module
plays that through for what is known to be there, so that a plan does not promise what Ray will leave pending for
ever.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reconciler.core.state import Demand, Node

_EPSILON = 1e-6


@dataclass(slots=True, eq=False)
class _Device:
    free: float


class _Node:
    """The devices of one node, and how much its emptiest device has free: by that, most nodes are ruled out."""

    def __init__(self, id_: str, gpus: int, accelerator: str | None) -> None:
        self.id = id_
        self.accelerator = accelerator
        self.devices = [_Device(1.0) for _ in range(gpus)]
        self.most_free = 1.0 if gpus else 0.0

    def take(self, device: _Device, share: float) -> None:
        device.free -= share
        self.most_free = max(each.free for each in self.devices)


class Ledger:
    """Free GPU shares by device, after everything in `placed` found its place.

    What others reserve on a node is assumed to sit on as few devices as possible, as Ray packs it.
    """

    def __init__(self, nodes: Sequence[Node], placed: Iterable[Demand] = ()) -> None:
        self._nodes = [_Node(node.id, int(node.gpus), node.accelerator) for node in nodes]
        for demand in sorted(placed, key=lambda demand: -demand.gpus):
            if not self.take(demand):
                self._take_anyhow(demand)
        for node, observed in zip(self._nodes, nodes, strict=True):
            _take_from(node, observed.gpus_foreign, sorted(node.devices, key=lambda device: device.free))

    def take(self, demand: Demand) -> bool:
        """Reserve `demand`; False, and nothing taken, where it does not fit."""
        if demand.gpus <= 0:
            return True
        chosen = self._find(demand)
        for node, device, share in chosen or ():
            node.take(device, share)
        return chosen is not None

    def fits(self, demand: Demand) -> bool:
        """There is room for `demand`; nothing is taken."""
        return demand.gpus <= 0 or self._find(demand) is not None

    def describe_free(self) -> str:
        """The free shares in words, such as `1.00 + 0.25 GPU free`."""
        devices = [device for node in self._nodes for device in node.devices]
        if not devices:
            return "no GPU in the cluster"
        shares = sorted((device.free for device in devices if device.free > _EPSILON), reverse=True)
        return (" + ".join(f"{share:.2f}" for share in shares) or "0") + " GPU free"

    def _find(self, demand: Demand) -> list[tuple[_Node, _Device, float]] | None:
        smallest = min(1.0, demand.gpus)
        roomy = [
            node
            for node in self._nodes
            if node.most_free + _EPSILON >= smallest and demand.accelerator in (None, node.accelerator)
        ]
        groups = ([node] for node in roomy) if demand.one_node else (roomy,)
        return next((chosen for group in groups if (chosen := _choose(group, demand)) is not None), None)

    def _take_anyhow(self, demand: Demand) -> None:
        # It is there, so it has room, however Ray found that: then less is free than it looks.
        amount = demand.ranks * demand.gpus
        pairs = [(home, device) for home in self._nodes for device in home.devices]
        for node, device in sorted(pairs, key=lambda pair: -pair[1].free):
            amount = _take_from(node, amount, [device])


def _take_from(node: _Node, amount: float, devices: Iterable[_Device]) -> float:
    """Take up to `amount` from the devices, one after the other; gives what is left to be taken."""
    for device in devices:
        if amount <= _EPSILON:
            break
        share = max(0.0, min(amount, device.free))
        node.take(device, share)
        amount -= share
    return amount


def _choose(nodes: list[_Node], demand: Demand) -> list[tuple[_Node, _Device, float]] | None:
    # Best fit: the fullest device that still has room, which is also how Ray fills fractions.
    share = min(1.0, demand.gpus)
    count = demand.ranks * (max(1, round(demand.gpus)) if demand.gpus >= 1 else 1)
    free = {device: device.free for node in nodes for device in node.devices}
    home = {device: node for node in nodes for device in node.devices}
    chosen: list[tuple[_Node, _Device, float]] = []
    for _ in range(count):
        best = min(
            (device for device in free if free[device] + _EPSILON >= share), key=free.__getitem__, default=None
        )
        if best is None:
            return None
        free[best] -= share
        chosen.append((home[best], best, share))
    return chosen

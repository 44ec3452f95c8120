"""One node's GPUs in Ray's units, and how Ray picks devices on it. The parts that `placement` is made of. Pure."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from reconciler.core.state import Demand, Node

UNITS = 10_000
"""Ray counts in ten-thousandths of a GPU."""

Key: TypeAlias = tuple[int, int, tuple[int, ...], int]


class Piece(NamedTuple):
    """Where a part of a replica is: the node's and the device's number, and how much of the device it has."""

    place: int
    device: int
    units: int


class GpuNode:
    """The devices of one node in units: what Ray has free on each, and what is foreign on each."""

    __slots__ = ("accelerator", "foreign", "free", "kind", "left", "pieces", "place", "seen")

    def __init__(self, place: int, free: list[int], foreign: tuple[int, ...], kind: int, accelerator: str) -> None:
        self.place = place
        self.free = free
        self.foreign = foreign
        self.kind = kind
        """Nodes of one kind have the same `foreign`."""
        self.accelerator = accelerator
        self.left = self.seen = sum(free)
        """What is left, and what Serve and the GCS believe to be left."""
        self.pieces = 0
        """How many pieces of our replicas it has: Serve prefers a node that has any."""

    def key(self) -> Key:
        """Sorts by what seems left; nodes that differ in the last part alone are interchangeable."""
        return (self.seen, self.kind, tuple(self.free), self.place)

    def find(self, units: int, count: int) -> list[Piece]:
        """The devices that Ray picks for `count` pieces, up to the first one for which there is none."""
        free = self.free.copy()
        pieces: list[Piece] = []
        while len(pieces) < count:
            best, least = -1, UNITS + 1
            for device, available in enumerate(free):
                if units <= available < least:
                    best, least = device, available
            if best < 0:
                break
            free[best] = least - units
            pieces.append(Piece(self.place, best, units))
        return pieces

    def has_memory(self, pieces: Iterable[Piece], spare: int) -> bool:
        """Others have left enough memory on the devices that Ray picked; `spare` units of each stay unused."""
        free = self.free.copy()
        for _, device, units in pieces:
            free[device] -= units
            if free[device] + spare < self.foreign[device]:
                return False
        return True


def units_of(gpus: float) -> int:
    """GPUs in Ray's units."""
    # As Ray rounds. No node has a billion GPUs, and what is not a number fits nowhere.
    return int(max(0.0, min(1e9, gpus)) * UNITS + 0.5)


def pieces_of(demand: Demand, share: int) -> tuple[int, int]:
    """Units of each piece, and pieces of a replica: whole GPUs are found one by one."""
    return min(share, UNITS), demand.ranks * max(1, share // UNITS)


def hopeless(node: GpuNode, pieces: Sequence[Piece], demand: Demand) -> bool:
    """This node is never going to do, and will not be given up either, once Ray chose it.

    Where a first bundle was prepared and had to be given back, the raylet reports what it has left, and so the GCS
    tries the same node again, for ever.
    """
    units, count = pieces_of(demand, units_of(demand.gpus))
    if len(pieces) < count:
        return len(pieces) >= count // demand.ranks
    return not node.has_memory(pieces, units - units_of(demand.memory) if demand.memory else 0)


def foreign_of(node: Node) -> tuple[int, ...]:
    """Units of each device that Ray counts which others have of its memory, rounded up; 0 where nobody looked."""
    foreign = [0] * max(0, int(node.gpus))
    for device in node.devices:
        if 0 <= device.index < len(foreign) and device.total > 0:
            foreign[device.index] = min(UNITS, math.ceil(device.foreign * UNITS / device.total))
    return tuple(foreign)


def fill(amount: int, free: Iterable[Piece]) -> list[Piece]:
    """Take `amount`, or as much as there is, from what is free, one device after the other."""
    pieces = []
    for place, device, units in free:
        if amount <= 0:
            break
        taken = min(amount, units)
        amount -= taken
        if taken:
            pieces.append(Piece(place, device, taken))
    return pieces

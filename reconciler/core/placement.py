"""Does an application fit on the GPUs, and on which? The ledgers of Serve and Ray, re-enacted.

Three parties place a replica, and each knows less than the next. Serve's packing scheduler
(`RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY`) picks the node: among those that have replicas, or else among the
others, the one with the least left over, by the sums of nodes. Ray's GCS tries that node, by its sum again. The
node's raylet finds the devices: a share of a GPU goes to the fullest device that has room, whole GPUs go to the
first free ones. Where it finds none for the first bundle, because the sum is made up of scraps, the GCS still
counts as gone what it wanted to place there (until something really changes on that node), and so goes on to other
nodes, the emptiest first. What finds its devices nowhere that way stays pending for ever. This module plays that
through, so that a plan does not promise it.

Memory that others have on a device is unknown to Ray: its choice is foretold without it and then has to stand the
test, for every node where Serve or Ray may choose between equals (by CPUs, memory and at last at random). A failed
device is left out, though Ray goes on counting it and may place something there until the operator takes it away
from Ray. CPUs and main memory of nodes are not looked at, nor are replicas of applications that are not ours.
"""

import heapq
import itertools
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import NamedTuple

from reconciler.core.gpu_node import UNITS, GpuNode, Key, Piece, fill, foreign_of, hopeless, pieces_of, units_of
from reconciler.core.state import Demand, Node

ATTEMPTS = 30
"""The GCS tries once a second; what needs more nodes than that before it finds one does not fit."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is reserved of one GPU (1: all of it), and by which of our applications."""

    share: float
    applications: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """One GPU before and after.

    Attributes:
        node: The Ray node's id.
        host: The node's name for people.
        device: The GPU's index on its node.
        others: What is reserved in Ray by others than our applications; part of both loads.
        foreign: Part of its memory that processes have which are not Ray's.
        failed: Why it is left out; empty while it is well.
    """

    node: str
    host: str
    device: int
    before: Load
    after: Load
    others: float
    foreign: float
    failed: str


class _Before(NamedTuple):
    """A node as it was, so that what was tried can be undone."""

    node: GpuNode
    free: list[int]
    left: int
    seen: int
    pieces: int


class _Use(NamedTuple):
    """What an application has, and how many of its demands may span nodes."""

    pieces: tuple[Piece, ...]
    spanning: int


class _Index:
    """The nodes of one GPU type in the order of what they have left: those with replicas, and those without."""

    __slots__ = ("busy", "idle")

    def __init__(self, busy: list[Key], idle: list[Key]) -> None:
        self.busy = busy
        self.idle = idle


class Ledger:
    """Free GPU shares by device, after everything in `placed` found its place.

    Args:
        nodes: The cluster.
        placed: What is there, by application where the names matter. What others reserve on a node is assumed to
            sit on as few devices as possible, as Ray packs it.
        homes: Ids of the nodes on which an application's replicas are, as far as that is known; for the rest, and
            for the devices of a node, it is assumed to be where it would be placed now.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        placed: Mapping[str, Demand] | Iterable[Demand] = (),
        homes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._observed = nodes
        self._nodes: list[GpuNode] = []
        self._indices: dict[str, _Index] = {}
        self._uses: dict[str, _Use] = {}
        self._failed: set[tuple[int, int]] = set()
        self._journal: list[_Before | tuple[str, _Use | None]] = []
        self._spanning = 0
        """How many applications may span nodes: Serve's packing is off while there is any."""
        kinds: dict[tuple[int, ...], int] = {}
        for place, observed in enumerate(nodes):
            foreign = foreign_of(observed)
            kind = kinds.setdefault(foreign, len(kinds))
            node = GpuNode(place, [UNITS] * len(foreign), foreign, kind, observed.accelerator or "")
            self._nodes.append(node)
            self._insert(node)
        self._settle(placed, homes or {})
        self._others: dict[tuple[int, int], int] = {}
        for node, observed in zip(self._nodes, nodes, strict=True):
            self._reserve(self._pieces_of_others(node, units_of(observed.gpus_foreign)), replicas=0)
            for device in observed.devices:
                if device.failed and 0 <= device.index < len(node.free):
                    self._reserve([Piece(node.place, device.index, node.free[device.index])], replicas=0)
                    self._failed.add((node.place, device.index))
        self._journal.clear()

    def take(self, demand: Demand, name: str = "") -> bool:
        """Reserve `demand` for the application `name`; False, and nothing taken, where it does not fit."""
        before = self.mark()
        pieces = self._place(demand)
        if pieces is None:
            self.back_to(before)
            return False
        self._note(name, demand, pieces)
        return True

    def fits(self, demand: Demand, without: Iterable[str] = ()) -> bool:
        """There is room for `demand`, or would be if the applications `without` were gone; nothing is taken."""
        before = self.mark()
        self.release(without)
        fits = self._place(demand) is not None
        self.back_to(before)
        return fits

    def release(self, names: Iterable[str]) -> None:
        """Give back what these applications have, as when they are gone."""
        for name in names:
            use = self._uses.get(name)
            if use is not None:
                self._reserve((piece._replace(units=-piece.units) for piece in use.pieces), replicas=-1)
                self._set_use(name, None)

    def mark(self) -> int:
        """A point in time to which `back_to` returns."""
        return len(self._journal)

    def back_to(self, mark: int) -> None:
        """Undo everything since then, as if it had never been tried."""
        while len(self._journal) > mark:
            entry = self._journal.pop()
            if isinstance(entry, _Before):
                node = entry.node
                self._remove(node)
                node.free, node.left, node.seen, node.pieces = entry.free, entry.left, entry.seen, entry.pieces
                self._insert(node)
            else:
                self._set_use(*entry)
                self._journal.pop()

    def describe_free(self) -> str:
        """The free shares in words, such as `1.00 + 0.25 GPU free`; memory that others have is not free."""
        if not any(node.free for node in self._nodes):
            return "no GPU in the cluster"
        usable = (node.free[at] - node.foreign[at] for node in self._nodes for at in range(len(node.free)))
        shares = sorted((units for units in usable if units > 0), reverse=True)
        # Rounded down: what is said to be free is.
        return (" + ".join(f"{units * 100 // UNITS / 100:.2f}" for units in shares) or "0") + " GPU free"

    def loads(self) -> dict[tuple[int, int], Load]:
        """What is reserved now, by the numbers of node and device."""
        units: Counter[tuple[int, int]] = Counter(self._others)
        names: dict[tuple[int, int], list[str]] = {}
        for name, use in self._uses.items():
            for piece in use.pieces:
                units[piece.place, piece.device] += piece.units
                names.setdefault((piece.place, piece.device), []).append(name)
        return {
            (node.place, device): Load(
                units[node.place, device] / UNITS,
                tuple(sorted(set(filter(None, names.get((node.place, device), ()))))),
            )
            for node in self._nodes
            for device in range(len(node.free))
        }

    def bars(self, before: "Ledger") -> tuple[Bar, ...]:
        """Every GPU with its load in `before`, a ledger of the same nodes, and in this one."""
        was, now = before.loads(), self.loads()
        bars = []
        for node, observed in zip(self._nodes, self._observed, strict=True):
            failed = {device.index: device.failed for device in observed.devices}
            bars += [
                Bar(
                    node=observed.id,
                    host=observed.host,
                    device=device,
                    before=was[node.place, device],
                    after=now[node.place, device],
                    others=self._others.get((node.place, device), 0) / UNITS,
                    foreign=node.foreign[device] / UNITS,
                    failed=failed.get(device, ""),
                )
                for device in range(len(node.free))
            ]
        return tuple(bars)

    # --- how it is placed -------------------------------------------------------------------------------

    def _place(self, demand: Demand) -> list[Piece] | None:
        """Reserve every replica where it goes; None where one goes nowhere: then `back_to` has to follow."""
        share = units_of(demand.gpus)
        placed: list[Piece] = []
        if share <= 0 or demand.ranks <= 0:
            return placed
        if share > UNITS and share % UNITS:
            return None  # Ray has no such thing as one and a half GPUs.
        for _ in range(demand.replicas):
            pieces = self._find(demand, share) if demand.one_node else self._span(demand, share)
            if pieces is None:
                return None
            self._reserve(pieces)
            placed += pieces
        return placed

    def _find(self, demand: Demand, share: int) -> list[Piece] | None:
        """Ray's STRICT_PACK, with Serve's choice as the target that is tried first."""
        total, units, count = share * demand.ranks, *pieces_of(demand, share)
        target: GpuNode | None = None
        packing = not self._spanning
        for _ in range(ATTEMPTS):
            if target is not None and target.seen >= total:
                tied = [target]
            else:
                tied = list(self._candidates(total, demand.accelerator, packing=packing and target is None))
            found = [node.find(units, count) for node in tied]
            if not found or any(map(hopeless, tied, found, itertools.repeat(demand))):
                return None
            if len(found[0]) == count:
                return found[0]
            target = target or tied[0]
            self._mislead(tied[0], total)
        return None

    def _candidates(self, total: int, accelerator: str | None, *, packing: bool) -> Iterator[GpuNode]:
        """The nodes that may be chosen for `total` units: one of each sort among those that tie.

        With packing, Serve's `_find_best_fit_node_for_pack`; else the GCS, which takes what has the most left.
        """
        indices = self._indices_of(accelerator)
        if not packing:
            group = [keys for index in indices for keys in (index.busy, index.idle) if keys]
            most = max((keys[-1][0] for keys in group), default=0)
            yield from self._that_seem_to_have(most, group) if most >= total else ()
            return
        for group in ([index.busy for index in indices], [index.idle for index in indices]):
            found = ((keys, bisect_left(keys, (total,))) for keys in group)
            least = min((keys[at][0] for keys, at in found if at < len(keys)), default=None)
            if least is not None:
                yield from self._that_seem_to_have(least, group)
                return

    def _that_seem_to_have(self, seen: int, group: Iterable[list[Key]]) -> Iterator[GpuNode]:
        for keys in group:
            at = bisect_left(keys, (seen,))
            while at < len(keys) and keys[at][0] == seen:
                yield self._nodes[keys[at][-1]]
                at = bisect_right(keys, (*keys[at][:-1], len(self._nodes)))

    def _span(self, demand: Demand, share: int) -> list[Piece] | None:
        """Ray's PACK: the node with the most left takes as many bundles as its sum allows, then the next one."""
        for _ in range(ATTEMPTS):
            bundles, parts = demand.ranks, []
            wanted = (node for node in self._nodes if demand.accelerator in (None, node.accelerator))
            for node in sorted(wanted, key=lambda node: -node.seen):
                count = min(bundles, node.seen // share)
                if count == 0:
                    break
                part = replace(demand, ranks=count)
                parts.append((node, part, node.find(*pieces_of(part, share))))
                bundles -= count
            if bundles or any(hopeless(node, pieces, part) for node, part, pieces in parts):
                return None
            failing = [
                (node, part.ranks * share)
                for node, part, pieces in parts
                if len(pieces) < pieces_of(part, share)[1]
            ]
            if not failing:
                return [piece for _, _, pieces in parts for piece in pieces]
            for node, units in failing:
                self._mislead(node, units)
        return None

    # --- what is there ----------------------------------------------------------------------------------

    def _settle(self, placed: Mapping[str, Demand] | Iterable[Demand], homes: Mapping[str, Sequence[str]]) -> None:
        named = placed.items() if isinstance(placed, Mapping) else (("", demand) for demand in placed)
        nodes = {observed.id: node for observed, node in zip(self._observed, self._nodes, strict=True)}
        for name, demand in sorted(named, key=lambda each: -each[1].gpus):
            settled: list[Piece] = []
            for home in itertools.islice(
                itertools.chain(homes.get(name, ()), itertools.repeat("")), demand.replicas
            ):
                pieces = self._retrace(demand, nodes.get(home))
                if not pieces:
                    break
                self._reserve(pieces)
                settled += pieces
            self._note(name, demand, settled)

    def _retrace(self, demand: Demand, home: GpuNode | None) -> list[Piece]:
        """Where a replica is that is there: at home, or where it would go now, or wherever anything is left."""
        share = units_of(demand.gpus)
        if share <= 0 or demand.ranks <= 0:
            return []
        total, pieces = share * demand.ranks, None
        if demand.one_node:
            nodes = self._in_order(total, demand.accelerator) if home is None else (home,)
            units, count = pieces_of(demand, share)
            found = (node.find(units, count) for node in nodes if node.left >= total)
            pieces = next((each for each in found if len(each) == count), None)
        else:
            home, before = None, self.mark()
            pieces = self._span(demand, share)
            self.back_to(before)
        return self._anyhow(total, self._nodes if home is None else [home]) if pieces is None else pieces

    def _in_order(self, total: int, accelerator: str | None) -> Iterator[GpuNode]:
        indices = self._indices_of(accelerator)
        for group in ([index.busy for index in indices], [index.idle for index in indices]):
            for key in heapq.merge(*(keys[bisect_left(keys, (total,)) :] for keys in group)):
                yield self._nodes[key[-1]]

    def _anyhow(self, amount: int, nodes: Iterable[GpuNode]) -> list[Piece]:
        # It is there, so it has room, however Ray found that: then less is free than it looks.
        free = [(-units, node.place, device) for node in nodes for device, units in enumerate(node.free)]
        return fill(amount, (Piece(place, device, -units) for units, place, device in sorted(free)))

    def _pieces_of_others(self, node: GpuNode, amount: int) -> list[Piece]:
        whole = [device for device, units in enumerate(node.free) if units == UNITS][: amount // UNITS]
        pieces = [Piece(node.place, device, UNITS) for device in whole]
        rest = sorted((units, device) for device, units in enumerate(node.free) if device not in whole)
        pieces += fill(amount - UNITS * len(whole), (Piece(node.place, device, units) for units, device in rest))
        for piece in pieces:
            self._others[piece.place, piece.device] = piece.units
        return pieces

    # --- bookkeeping ------------------------------------------------------------------------------------

    def _note(self, name: str, demand: Demand, pieces: Iterable[Piece]) -> None:
        before = self._uses.get(name, _Use((), 0))
        self._set_use(name, _Use((*before.pieces, *pieces), before.spanning + (not demand.one_node)))

    def _set_use(self, name: str, use: _Use | None) -> None:
        before = self._uses.pop(name, None)
        self._journal.append((name, before))
        if use is not None:
            self._uses[name] = use
        self._spanning += (use.spanning if use else 0) - (before.spanning if before else 0)

    def _reserve(self, pieces: Iterable[Piece], *, replicas: int = 1) -> None:
        for place, group in itertools.groupby(pieces, key=itemgetter(0)):
            node = self._nodes[place]
            self._journal.append(_Before(node, node.free.copy(), node.left, node.seen, node.pieces))
            self._remove(node)
            for _, device, units in group:
                node.pieces += replicas
                if (place, device) not in self._failed:  # There, what comes and goes makes no difference.
                    node.free[device] -= units
                    node.left -= units
            node.seen = node.left
            self._insert(node)

    def _mislead(self, node: GpuNode, units: int) -> None:
        """The GCS takes for gone what it could not place there, until something changes on the node."""
        self._journal.append(_Before(node, node.free.copy(), node.left, node.seen, node.pieces))
        self._remove(node)
        node.seen -= units
        self._insert(node)

    def _remove(self, node: GpuNode) -> None:
        index = self._indices[node.accelerator]
        keys = index.busy if node.pieces else index.idle
        del keys[bisect_left(keys, node.key())]

    def _insert(self, node: GpuNode) -> None:
        index = self._indices.setdefault(node.accelerator, _Index([], []))
        insort(index.busy if node.pieces else index.idle, node.key())

    def _indices_of(self, accelerator: str | None) -> list[_Index]:
        if accelerator is None:
            return list(self._indices.values())
        return [self._indices[accelerator]] if accelerator in self._indices else []

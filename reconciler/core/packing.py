"""Which of the wanted models get a place, and in which order they have to be started for that.

Serve and Ray place greedily whatever is started (`placement`), so all the freedom there is lies in the order of
starts, in the choice among the demands with which a model can do, and in whom to leave out. Large first is a good
beginning; from there on the order is improved, and every order is judged by the ledger itself, so that the result
is what Ray will do: when one application is started after the other, each once the one before has its place.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reconciler.core.placement import Ledger
from reconciler.core.state import Demand, Node

EFFORT = 4_000
"""Attempts to place one model that an arrangement may take: about 0.05 s, for 500 wishes 0.2 s."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A model that wants a place.

    Attributes:
        choices: Any of these demands will do, the earlier the better.
        tier: The lower, the more important: no model makes way for one of a higher tier.
    """

    name: str
    choices: tuple[Demand, ...]
    tier: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """A model that gets a place, with the demand to start it with."""

    name: str
    demand: Demand


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Who is started, in this order, and who is left out."""

    starts: tuple[Start, ...]
    left_out: tuple[str, ...]


def arrange(
    nodes: Sequence[Node],
    placed: Mapping[str, Demand],
    wishes: Sequence[Wish],
    homes: Mapping[str, Sequence[str]] | None = None,
) -> Arrangement:
    """The best order of starts that was found.

    Tier by tier, it places as many wishes as it can, and among those the most GPUs (as the first choices count
    them, so that a wasteful choice is no gain); last come the fewest second choices.

    Args:
        nodes: The cluster.
        placed: What is there and stays, by application.
        wishes: What is to be placed beside it; the names are different from each other and from those in `placed`.
        homes: As in `Ledger`.
    """
    search = _Search(Ledger(nodes, placed, homes), wishes)
    search.improve()
    return Arrangement(
        tuple(Start(wish.name, demand) for wish, demand in search.best.starts),
        tuple(wish.name for wish in search.best.left_out),
    )


class _Outcome(NamedTuple):
    """With which demand a wish was started, if it was; and the ledger's mark before that."""

    wish: Wish
    demand: Demand | None
    mark: int


@dataclass(frozen=True, slots=True)
class _Result:
    """What became of one order."""

    starts: tuple[tuple[Wish, Demand], ...]
    left_out: tuple[Wish, ...]
    score: tuple[float, ...]
    """By tier, the most important first: wishes and GPUs placed; at the end, second choices, negative."""

    def order(self) -> list[Wish]:
        return [*(wish for wish, _ in self.starts), *self.left_out]


class _Search:
    """Climbs from several orders to better ones, until all are placed or the effort is spent."""

    def __init__(self, ledger: Ledger, wishes: Sequence[Wish]) -> None:
        self._ledger = ledger
        self._effort = EFFORT
        self._tiers = {tier: number for number, tier in enumerate(sorted({wish.tier for wish in wishes}))}
        self._size = {wish.name: max(map(_size, wish.choices[:1]), default=0.0) for wish in wishes}
        self._large_first = sorted(wishes, key=lambda wish: (wish.tier, -self._size[wish.name], wish.name))
        self._ideal = self._score([(wish, wish.choices[0]) for wish in wishes if wish.choices])
        self._trail: list[_Outcome] = []
        self.best = _Result((), (), ())
        self._run(self._large_first)

    def improve(self) -> None:
        """Look for a better order; at the end, the important ones start first where that loses nothing."""
        for order in self._without_the_largest():
            self._run(order)
        self._climb(self.best)
        for order in self._elsewhere():
            if not self._goes_on():
                break
            self._climb(self._run(order))
        polite = self._run(sorted(self.best.order(), key=lambda wish: wish.tier))
        if polite.score >= self.best.score:
            self.best = polite

    def _goes_on(self) -> bool:
        return self._effort > 0 and self.best.score < self._ideal

    def _climb(self, current: _Result) -> None:
        """Take the first neighbour that is better, again and again."""
        orders = self._neighbours(current)
        while self._goes_on():
            order = next(orders, None)
            if order is None:
                return
            result = self._run(order)
            if result.score > current.score:
                current, orders = result, self._neighbours(result)

    def _without_the_largest(self) -> Iterator[list[Wish]]:
        """Large first, but the largest of a tier last: where not all have room, that places more."""
        for tier in self._tiers:
            mine = [wish for wish in self._large_first if wish.tier == tier]
            for count in range(1, len(mine), 1 + len(mine) // 8):
                if not self._goes_on():
                    return
                order = self.best.order()
                above = [wish for wish in order if wish.tier < tier]
                below = [wish for wish in order if wish.tier > tier]
                yield [*above, *mine[count:], *reversed(mine[:count]), *below]

    def _neighbours(self, result: _Result) -> Iterator[list[Wish]]:
        """Every order in which one wish has another place; those that were left out first."""
        order = result.order()
        for source in reversed(range(len(order))):
            rest = order[:source] + order[source + 1 :]
            for target in range(len(result.starts)):
                if target != source:
                    yield [*rest[:target], order[source], *rest[target:]]

    def _elsewhere(self) -> Iterator[list[Wish]]:
        """Orders to climb from: large first whatever the tier, then the best one with three wishes moved."""
        yield sorted(self._large_first, key=lambda wish: -self._size[wish.name])
        dice = random.Random(0)  # noqa: S311 -- always the same
        while True:
            order = self.best.order()
            if dice.random() < 0.5:  # noqa: PLR2004 -- half of the times
                order = [*self.best.left_out, *order[: len(self.best.starts)]]
            for _ in range(3):
                order.insert(dice.randrange(len(order)), order.pop(dice.randrange(len(order))))
            yield order

    def _run(self, order: Sequence[Wish]) -> _Result:
        """Start one after the other; who finds no place tries again once others have changed the picture.

        What this order has in common with the one before, at its beginning, stays as it is.
        """
        self._effort -= 1
        same = 0
        while same < min(len(order), len(self._trail)) and order[same] is self._trail[same].wish:
            same += 1
        if same < len(self._trail):
            self._ledger.back_to(self._trail[same].mark)
            del self._trail[same:]
        self._trail += self._pass(order[same:])
        first_pass = self._ledger.mark()
        outcomes, waiting = self._trail, list(order)
        starts: list[tuple[Wish, Demand]] = []
        while True:
            placed = [(each.wish, each.demand) for each in outcomes if each.demand is not None]
            waiting = [each.wish for each in outcomes if each.demand is None]
            starts += placed
            if not placed or not waiting:
                break
            outcomes = self._pass(waiting)
        self._ledger.back_to(first_pass)
        result = _Result(tuple(starts), tuple(waiting), self._score(starts))
        if result.score > self.best.score:
            self.best = result
        return result

    def _pass(self, wishes: Sequence[Wish]) -> list[_Outcome]:
        """Try to start each once, with the first of its choices that fits."""
        outcomes: list[_Outcome] = []
        refused: set[Demand] = set()
        for wish in wishes:
            before, chosen = self._ledger.mark(), None
            for demand in wish.choices:
                if demand not in refused:
                    self._effort -= 1
                    if self._ledger.take(demand, wish.name):
                        chosen = demand
                        refused.clear()
                        break
                    refused.add(demand)
            outcomes.append(_Outcome(wish, chosen, before))
        return outcomes

    def _score(self, starts: Sequence[tuple[Wish, Demand]]) -> tuple[float, ...]:
        score = [0.0] * (2 * len(self._tiers) + 1)
        for wish, demand in starts:
            number = 2 * self._tiers[wish.tier]
            score[number] += 1
            score[number + 1] += self._size[wish.name]
            score[-1] -= demand is not wish.choices[0]
        return tuple(round(value, 6) for value in score)


def _size(demand: Demand) -> float:
    return demand.replicas * demand.ranks * demand.gpus

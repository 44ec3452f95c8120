"""Who gets a place: small cases by hand, and a thousand random ones against the optimum of a solver."""

import pytest

from bench.measure import table
from bench.placement import HEADER, INSTANCES, avoidable, instance, judge_all, rows, share, weighted
from reconciler.core.packing import Start, Wish, arrange
from reconciler.core.placement import Ledger
from reconciler.core.state import Demand, Device, Node

NEAR = 0.98


def test_large_first_where_all_have_room() -> None:
    wishes = [Wish(f"m{share}", (Demand(gpus=share),)) for share in (0.3, 0.4, 0.7, 0.6)]
    arrangement = arrange([Node("n", 2)], {}, wishes)
    assert [start.name for start in arrangement.starts] == ["m0.7", "m0.6", "m0.4", "m0.3"]
    assert arrangement.left_out == ()


def test_two_small_ones_rather_than_a_large_one() -> None:
    wishes = [Wish("large", (Demand(gpus=0.9),)), Wish("a", (Demand(gpus=0.5),)), Wish("b", (Demand(gpus=0.5),))]
    arrangement = arrange([Node("n", 1)], {}, wishes)
    assert {start.name for start in arrangement.starts} == {"a", "b"}
    assert arrangement.left_out == ("large",)


def test_nobody_makes_way_for_one_who_is_less_important() -> None:
    wishes = [
        Wish("pinned", (Demand(gpus=0.9),), (0, 0)),
        *(Wish(f"other{number}", (Demand(gpus=0.3),), (1, -5)) for number in range(3)),
    ]
    arrangement = arrange([Node("n", 1)], {}, wishes)
    assert arrangement.starts == (Start("pinned", Demand(gpus=0.9)),)


def test_a_second_choice_is_for_those_who_need_it() -> None:
    """The first wish can do with two of the small GPUs, the second one cannot."""
    large, small = Demand(gpus=1.0, accelerator="H100"), Demand(ranks=2, gpus=1.0, accelerator="L4")
    nodes = [Node("h", 1, accelerator="H100"), Node("l", 2, accelerator="L4")]
    alone = arrange(nodes, {}, [Wish("either", (large, small))])
    assert alone.starts == (Start("either", large),)
    both = arrange(nodes, {}, [Wish("either", (large, small)), Wish("large only", (large,))])
    assert set(both.starts) == {Start("large only", large), Start("either", small)}


def test_what_is_there_stays() -> None:
    arrangement = arrange([Node("n", 1)], {"old": Demand(gpus=0.6)}, [Wish("new", (Demand(gpus=0.5),), (0,))])
    assert arrangement.left_out == ("new",)


def test_the_order_steers_ray_around_memory_that_others_have() -> None:
    """Ray would put the large one on the first device; only the small one can go there, and so goes first."""
    devices = (Device(0, total=80, foreign=40), Device(1, total=80))
    wishes = [Wish("large", (Demand(gpus=0.7),)), Wish("small", (Demand(gpus=0.4),))]
    arrangement = arrange([Node("n", 2, devices=devices)], {}, wishes)
    assert [start.name for start in arrangement.starts] == ["small", "large"]


def test_nothing_wanted_and_nothing_there() -> None:
    assert arrange([], {}, []).starts == ()
    impossible = [Wish("a", (Demand(gpus=1.0),)), Wish("b", ()), Wish("c", (Demand(),))]
    arrangement = arrange([], {}, impossible)
    assert arrangement.starts == (Start("c", Demand()),)
    assert set(arrangement.left_out) == {"a", "b"}


@pytest.mark.parametrize("seed", range(30))
def test_the_starts_work_in_their_order_and_are_always_the_same(seed: int) -> None:
    case = instance(seed)
    arrangement = arrange(case.nodes, case.placed, case.wishes)
    ledger = Ledger(case.nodes, case.placed)
    assert all(ledger.take(start.demand, start.name) for start in arrangement.starts)
    by_name = {wish.name: wish for wish in case.wishes}
    assert all(start.demand in by_name[start.name].choices for start in arrangement.starts)
    names = [start.name for start in arrangement.starts] + list(arrangement.left_out)
    assert sorted(names) == sorted(by_name)
    assert arrange(case.nodes, case.placed, case.wishes) == arrangement


def test_a_thousand_instances_against_the_optimum() -> None:
    """Within 2 % of a solver that may put every model on any device that has room.

    With memory of others, that is out of reach (86 % of the models): Ray picks a device without knowing of it, and
    no order of starts prevents that. There, the best of all orders is what counts, where all can be tried.
    """
    outcomes = judge_all(range(INSTANCES))
    print(table(HEADER, rows(outcomes)))  # noqa: T201 -- how many instances are below, and where
    assert sum(each.best is None for each in outcomes) < 0.03 * INSTANCES
    free = [each for each in outcomes if each.kind != "memory"]
    for part in (0, 1):
        assert weighted(free, part) >= NEAR
        assert all(share(free, part, tier) >= NEAR for tier in range(3))
    tried = [each for each in outcomes if each.reachable is not None]
    assert len([each for each in tried if each.kind == "memory"]) > 100
    assert sum(map(avoidable, tried)) <= (1 - NEAR) * len(tried)

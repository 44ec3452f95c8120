"""The ledger of GPU shares against trying everything."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.placement import instance
from reconciler.core.gpu_node import UNITS
from reconciler.core.placement import Ledger
from reconciler.core.state import Demand, Device, Node

EPSILON = 1e-6
SHARES = st.sampled_from([0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0])
NODES = st.lists(st.tuples(st.integers(1, 2), st.sampled_from([None, "L4"])), min_size=1, max_size=2).map(
    lambda rows: [Node(f"n{i}", gpus, 0.0, kind) for i, (gpus, kind) in enumerate(rows)]
)
DEMANDS = st.builds(
    Demand, ranks=st.integers(1, 2), gpus=SHARES, one_node=st.booleans(), accelerator=st.sampled_from([None, "L4"])
)


def feasible(nodes: list[Node], demands: list[Demand]) -> bool:
    """Is there any way at all to place these?"""
    devices = [(node, index) for node in nodes for index in range(int(node.gpus))]
    pieces = [(number, demand) for number, demand in enumerate(demands) for _ in range(demand.ranks)]
    for choice in itertools.product(range(len(devices)), repeat=len(pieces)):
        used = [0.0] * len(devices)
        homes: dict[int, set[str]] = {}
        for device, (number, demand) in zip(choice, pieces, strict=True):
            node = devices[device][0]
            used[device] += demand.gpus
            homes.setdefault(number, set()).add(node.id)
            if demand.accelerator not in (None, node.accelerator):
                break
        else:
            together = all(len(homes[n]) == 1 for n, demand in enumerate(demands) if demand.one_node)
            if together and all(amount <= 1 + EPSILON for amount in used):
                return True
    return False


@settings(max_examples=150, deadline=None)
@given(NODES, st.lists(DEMANDS, max_size=3))
def test_what_the_ledger_takes_one_by_one_can_be_there_together(nodes: list[Node], demands: list[Demand]) -> None:
    ledger = Ledger(nodes)
    taken = [demand for demand in demands if ledger.take(demand)]
    assert feasible(nodes, taken)


@settings(max_examples=150, deadline=None)
@given(NODES, DEMANDS)
def test_one_demand_on_free_devices_fits_exactly_when_it_can(nodes: list[Node], demand: Demand) -> None:
    assert Ledger(nodes).take(demand) == feasible(nodes, [demand])


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3), st.lists(SHARES.map(lambda share: Demand(gpus=share)), max_size=4), SHARES)
def test_equal_devices_agree_with_trying_everything(gpus: int, placed: list[Demand], share: float) -> None:
    """For a handful of shares on one node the fullest-first order finds room wherever there is some."""
    nodes = [Node("n", gpus)]
    if not feasible(nodes, placed):
        return
    wanted = Demand(gpus=share)
    if Ledger(nodes, placed).take(wanted):
        assert feasible(nodes, [*placed, wanted])


@given(st.lists(DEMANDS, max_size=6), DEMANDS)
def test_more_is_never_promised_than_there_is(placed: list[Demand], wanted: Demand) -> None:
    """Also where it cannot tell how Ray placed what is there: that takes its room all the same."""
    total = sum(demand.ranks * demand.gpus for demand in placed)
    if total <= 2 + EPSILON and Ledger([Node("n", 2, 0.0, "L4")], placed).take(wanted):
        assert total + wanted.ranks * wanted.gpus <= 2 + EPSILON


def test_what_cannot_be_packed_in_order_still_counts() -> None:
    """Fullest first leaves no device with 0.2; Ray found a way, so nothing is free."""
    shares = [0.5, 0.4, 0.3, 0.3, 0.3, 0.2]
    ledger = Ledger([Node("n", 2)], [Demand(gpus=share) for share in shares])
    assert not ledger.take(Demand(gpus=0.1))
    assert ledger.describe_free() == "0 GPU free"


def test_a_demand_that_does_not_fit_takes_nothing() -> None:
    ledger = Ledger([Node("n", 2)])
    assert not ledger.take(Demand(ranks=3, gpus=1.0))
    assert ledger.take(Demand(ranks=2, gpus=1.0))


def test_others_are_packed_together() -> None:
    ledger = Ledger([Node("n", 2, 0.5)])
    assert ledger.describe_free() == "1.00 + 0.50 GPU free"
    assert ledger.take(Demand(gpus=1.0))


def test_a_tensor_parallel_model_stays_on_one_node() -> None:
    nodes = [Node("a", 1), Node("b", 1)]
    assert not Ledger(nodes).take(Demand(ranks=2, gpus=1.0))
    assert Ledger(nodes).take(Demand(ranks=2, gpus=1.0, one_node=False))


def test_only_the_wanted_type_of_gpu_will_do() -> None:
    nodes = [Node("a", 1, 0.0, "L4"), Node("b", 1, 0.0, "H100")]
    ledger = Ledger(nodes)
    assert ledger.take(Demand(gpus=1.0, accelerator="H100"))
    assert not ledger.take(Demand(gpus=0.5, accelerator="H100"))
    assert ledger.take(Demand(gpus=0.5))


def test_words_for_no_gpu_at_all() -> None:
    ledger = Ledger([])
    assert ledger.take(Demand())
    assert not ledger.take(Demand(gpus=0.1))
    assert ledger.describe_free() == "no GPU in the cluster"


# --- the rules of Serve and Ray -------------------------------------------------------------------------------


def homes(ledger: Ledger, name: str) -> list[tuple[str, int]]:
    """The nodes and devices that an application is on."""
    return [(bar.node, bar.device) for bar in ledger.bars(ledger) if name in bar.after.applications]


def test_serve_prefers_nodes_in_use_and_then_the_fullest_that_has_room() -> None:
    ledger = Ledger(
        [Node("big", 4), Node("small", 1), Node("used", 4)], {"old": Demand(gpus=0.5)}, {"old": ["used"]}
    )
    assert ledger.take(Demand(gpus=1.0), "first")
    assert ledger.take(Demand(ranks=4, gpus=1.0), "second")
    assert homes(ledger, "first") == [("used", 1)]
    assert [node for node, _ in homes(ledger, "second")] == ["big"] * 4
    assert ledger.take(Demand(gpus=0.25), "third")
    assert homes(ledger, "third") == [("used", 0)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5, unique=True), st.lists(SHARES, min_size=1, max_size=20))
def test_the_first_choice_is_that_of_serves_own_code(gpus: list[int], shares: list[float]) -> None:
    serve = pytest.importorskip("ray.serve._private.deployment_scheduler", reason="no Ray is installed here")
    scheduler = serve.DeploymentScheduler(None, "", None)
    ledger = Ledger([Node(f"n{count}", count) for count in gpus])
    replicas: dict[str, set[str]] = {}
    for number, share in enumerate(shares):
        seen = {f"n{count}": node.seen / UNITS for count, node in zip(gpus, ledger._nodes, strict=True)}
        scraps = {
            f"n{count}"
            for count, node in zip(gpus, ledger._nodes, strict=True)
            if max(node.free) / UNITS < share - EPSILON
        }
        target = scheduler._find_best_fit_node_for_pack(
            serve.RequestedResources({"GPU": share}),
            {node: serve.AvailableNodeResources({"GPU": left}) for node, left in seen.items()},
            replicas,
        )
        if not ledger.take(Demand(gpus=share), str(number)):
            assert target is None or target in scraps
            return
        home = homes(ledger, str(number))[0][0]
        replicas.setdefault(home, set()).add(str(number))
        assert home == target or target in scraps or abs(seen[home] - seen[target]) < EPSILON


def test_ray_goes_on_to_another_node_where_a_sum_is_made_of_scraps() -> None:
    nodes = [Node("scraps", 2), Node("next", 3), Node("emptiest", 4)]
    placed = {"a": Demand(gpus=0.6), "b": Demand(gpus=0.6)}
    where = {"a": ["scraps"], "b": ["scraps"]}
    ledger = Ledger(nodes, placed, where)
    assert ledger.take(Demand(gpus=0.75), "new")
    assert homes(ledger, "new") == [("emptiest", 0)]
    assert not Ledger(nodes[:1], placed, where).fits(Demand(gpus=0.75))


def test_ray_stays_for_ever_where_it_could_prepare_a_part() -> None:
    """One of the two bundles finds a device; given back, it makes the node look good again."""
    nodes = [Node("part", 2), Node("empty", 4)]
    placed = {"a": Demand(gpus=0.5), "b": Demand(gpus=0.1)}
    ledger = Ledger(nodes, placed, {"a": ["part"], "b": ["part"]})
    assert not ledger.take(Demand(ranks=2, gpus=0.7))
    assert ledger.take(Demand(ranks=1, gpus=0.7))


def test_what_serve_and_ray_believe_recovers_when_something_changes() -> None:
    nodes = [Node("scraps", 2), Node("empty", 4)]
    ledger = Ledger(nodes, {"a": Demand(gpus=0.6), "b": Demand(gpus=0.6)}, {"a": ["scraps"], "b": ["scraps"]})
    assert ledger.take(Demand(gpus=0.75), "astray")
    assert ledger.take(Demand(gpus=0.3), "does not see the scraps")
    assert homes(ledger, "does not see the scraps") == [("empty", 1)]
    ledger.release(["b"])
    assert ledger.take(Demand(gpus=0.3), "sees them")
    assert homes(ledger, "sees them") == [("scraps", 0)]


def test_every_replica_finds_a_place_of_its_own() -> None:
    nodes = [Node("a", 1), Node("b", 2)]
    ledger = Ledger(nodes)
    assert not ledger.fits(Demand(gpus=0.6, replicas=4))
    assert ledger.take(Demand(gpus=0.6, replicas=3), "three")
    assert len(homes(ledger, "three")) == 3
    assert not Ledger(nodes).fits(Demand(ranks=2, replicas=2, gpus=1.0))


def test_one_model_that_may_span_nodes_turns_packing_off() -> None:
    nodes = [Node("a", 2), Node("b", 4), Node("c", 8)]
    ledger = Ledger(nodes)
    assert ledger.take(Demand(ranks=9, gpus=1.0, one_node=False), "spanning")
    assert {node for node, _ in homes(ledger, "spanning")} == {"b", "c"}
    assert ledger.take(Demand(gpus=0.5), "after")
    assert homes(ledger, "after") == [("b", 1)]
    ledger.release(["spanning"])
    assert ledger.take(Demand(gpus=0.3), "packed")
    assert homes(ledger, "packed") == [("b", 1)]


def test_memory_that_others_have_is_not_free_though_ray_would_use_it() -> None:
    """Ray picks the first of two equal devices; that the second would do is no help."""
    busy = Device(0, total=80, foreign=40)
    node = Node("n", 2, devices=(busy, Device(1, total=80)))
    assert Ledger([node]).describe_free() == "1.00 + 0.50 GPU free"
    assert not Ledger([node]).fits(Demand(gpus=0.6))
    ledger = Ledger([node])
    assert ledger.take(Demand(gpus=0.5), "small")
    assert homes(ledger, "small") == [("n", 0)]
    assert ledger.take(Demand(gpus=0.6))
    assert ledger.fits(Demand(gpus=0.4))
    assert not ledger.fits(Demand(gpus=0.45))


def test_equal_nodes_have_to_do_all_of_them() -> None:
    """Which of two equal nodes Serve picks is not known: one has the memory, the other has not."""
    taken = Node("a", 1, devices=(Device(0, total=80, foreign=40),))
    assert not Ledger([taken, Node("b", 1)]).fits(Demand(gpus=0.6))
    assert Ledger([taken, Node("b", 1)]).fits(Demand(gpus=0.5))


def test_a_failed_device_is_left_out() -> None:
    devices = (Device(0, failed="it fell off the bus"), Device(1))
    ledger = Ledger([Node("n", 2, devices=devices)], {"old": Demand(gpus=1.0), "other": Demand(gpus=0.5)})
    assert ledger.take(Demand(gpus=0.5), "new")
    assert not ledger.fits(Demand(gpus=0.1))
    ledger.release(["old"])
    assert not ledger.fits(Demand(gpus=0.1))
    assert [bar.failed for bar in ledger.bars(ledger)] == ["it fell off the bus", ""]


@pytest.mark.parametrize("gpus", [1.5, float("inf"), float("nan"), 1e300])
def test_what_ray_cannot_have_fits_nowhere(gpus: float) -> None:
    ledger = Ledger([Node("n", 4)], [Demand(gpus=gpus)])
    assert not ledger.take(Demand(gpus=gpus))
    assert not ledger.fits(Demand(ranks=10**9, gpus=0.5))
    assert not ledger.fits(Demand(replicas=10**9, gpus=0.5))


def test_bars_before_and_after() -> None:
    nodes = [Node("x", 2, 0.25, devices=(Device(0, total=80, foreign=20), Device(1, total=80)), host="gpu-1")]
    placed = {"old": Demand(gpus=0.4), "leaves": Demand(gpus=1.0)}
    before, after = Ledger(nodes, placed), Ledger(nodes, placed)
    after.release(["leaves"])
    assert after.take(Demand(gpus=0.35), "new")
    first, second = after.bars(before)
    assert (first.host, first.device, first.foreign) == ("gpu-1", 0, 0.25)
    assert (first.before.share, first.before.applications) == (1.0, ("leaves",))
    assert (first.after.share, first.after.applications) == (0.0, ())
    assert (second.others, second.before.share, second.before.applications) == (0.25, 0.65, ("old",))
    assert (second.after.share, second.after.applications) == (1.0, ("new", "old"))


@settings(max_examples=100, deadline=None)
@given(NODES, st.lists(DEMANDS, max_size=6), DEMANDS)
def test_what_is_undone_leaves_no_trace(nodes: list[Node], demands: list[Demand], wanted: Demand) -> None:
    placed = {str(number): demand for number, demand in enumerate(demands[:3])}
    ledger, untouched = Ledger(nodes, placed), Ledger(nodes, placed)
    mark = ledger.mark()
    for number, demand in enumerate(demands[3:]):
        ledger.take(demand, f"new{number}")
    ledger.release(["0", "new1"])
    ledger.back_to(mark)
    assert ledger.bars(ledger) == untouched.bars(untouched)
    assert ledger.fits(wanted, without=["0", "nobody"]) == untouched.fits(wanted, without=["0"])
    assert ledger.take(wanted, "w") == untouched.take(wanted, "w")
    assert ledger.bars(ledger) == untouched.bars(untouched)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_no_device_has_more_than_there_is(seed: int) -> None:
    """Also with memory of others, failures and models that span nodes."""
    case = instance(seed)
    ledger = Ledger(case.nodes, case.placed)
    for wish in case.wishes:
        ledger.take(wish.choices[0], wish.name)
    new = {wish.name for wish in case.wishes}
    for bar in ledger.bars(ledger):
        assert bar.after.share <= 1.0
        if new & set(bar.after.applications):
            assert not bar.failed
            assert bar.after.share <= 1 - bar.foreign

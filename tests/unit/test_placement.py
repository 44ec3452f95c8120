"""The ledger of GPU shares against trying everything."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.placement import Ledger
from reconciler.core.state import Demand, Node

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

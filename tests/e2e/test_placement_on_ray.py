"""The ledger against Ray itself: real placement groups, on the nodes that Serve's own scheduler picks.

The cluster is the test's own, without Serve and vLLM: raylets on this machine which say that they have GPUs.
"""

import random
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from reconciler.core.gpu_node import UNITS
from reconciler.core.placement import Ledger
from reconciler.core.state import Demand, Node

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # pydantic's, about Serve's own models
]

ray = pytest.importorskip("ray", reason="no Ray is installed here to compare with")

GPUS = (1, 2, 3, 4)
CREATED_SECONDS, PENDING_SECONDS = 20, 3
"""Whole seconds, which is all that Ray looks at. It tries one node a second."""


class Cluster:
    """Four nodes, placement groups as Serve would ask for them, and the ledger of the same."""

    def __init__(self) -> None:
        from ray.serve._private.deployment_scheduler import DeploymentScheduler

        ids = {node["Resources"].get("GPU"): node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self.nodes = [Node(ids[gpus], gpus) for gpus in GPUS]
        self.ledger = Ledger(self.nodes)
        self.homes: dict[str, str] = {}
        self._scheduler = DeploymentScheduler(None, "", None)
        self._groups: dict[str, Any] = {}

    def sums(self) -> dict[str, float]:
        """GPUs that Ray's GCS believes to be free, by node."""
        free = ray._private.state.available_resources_per_node()
        return {node.id: free[node.id].get("GPU", 0.0) for node in self.nodes}

    def settled(self) -> dict[str, float]:
        """The same, once it is what the ledger says, node by node."""
        expected = {node.id: self.ledger._nodes[place].seen / UNITS for place, node in enumerate(self.nodes)}
        deadline = time.monotonic() + CREATED_SECONDS
        while (sums := self.sums()) != pytest.approx(expected, abs=1e-4):
            assert time.monotonic() < deadline, f"Ray has {sums}, the ledger {expected}"
            time.sleep(0.02)
        return sums

    def target(self, demand: Demand) -> str | None:
        """The node that Serve's packing picks: its own code, asked with what Ray has free."""
        from ray.serve._private.deployment_scheduler import AvailableNodeResources, RequestedResources

        free = {node: AvailableNodeResources({"GPU": gpus}) for node, gpus in self.sums().items()}
        replicas = defaultdict(set)
        for name, node in self.homes.items():
            replicas[node].add(name)
        wanted = RequestedResources({"GPU": demand.ranks * demand.gpus})
        chosen = self._scheduler._find_best_fit_node_for_pack(wanted, free, replicas)
        return None if chosen is None else str(chosen)

    def start(self, name: str, demand: Demand, *, packing: bool = True) -> bool | None:
        """Whether Ray creates what Serve asks for, as the ledger has foretold; None after a choice of equals."""
        from ray.util.placement_group import placement_group, placement_group_table

        sums = self.settled()
        group = placement_group(
            [{"GPU": demand.gpus}] * demand.ranks,
            strategy="STRICT_PACK" if demand.one_node else "PACK",
            _soft_target_node_id=self.target(demand) if packing and demand.one_node else None,
        )
        foretold = self.ledger.take(demand, name)
        created = group.wait(CREATED_SECONDS if foretold else PENDING_SECONDS)
        assert created == foretold, f"{demand} on {sums}: {created=}, {foretold=}"
        if not created:
            ray.util.remove_placement_group(group)
            self._renew()
            return False
        homes = placement_group_table(group)["bundles_to_node_id"]
        self._groups[name], self.homes[name] = group, homes[0]
        bars = self.ledger.bars(self.ledger)
        if set(homes.values()) == {bar.node for bar in bars if name in bar.after.applications}:
            return True
        assert len(set(sums.values())) < len(sums), f"{demand} on {sums}: Ray chose {homes}"
        return None

    def stir(self) -> None:
        """Something changes on every node for a while: only then does the GCS learn what is free there."""
        from ray.util.placement_group import placement_group

        groups = [
            placement_group([{"CPU": 0.5}], strategy="STRICT_PACK", _soft_target_node_id=node.id)
            for node in self.nodes
        ]
        assert all(group.wait(CREATED_SECONDS) for group in groups)
        time.sleep(0.5)
        for group in groups:
            ray.util.remove_placement_group(group)
        time.sleep(0.5)

    def _renew(self) -> None:
        self.stir()
        for node in self.ledger._nodes:
            self.ledger._remove(node)
            node.seen = node.left
            self.ledger._insert(node)

    def stop(self, name: str) -> None:
        """The application goes."""
        ray.util.remove_placement_group(self._groups.pop(name))
        del self.homes[name]
        self.ledger.release([name])

    def clear(self) -> None:
        """All of them go."""
        for name in list(self._groups):
            self.stop(name)
        self._renew()
        self.settled()


@pytest.fixture(scope="module")
def _raylets() -> Iterator[None]:
    from ray.cluster_utils import Cluster as Raylets

    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
    try:
        for gpus in GPUS:
            raylets.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=80_000_000)
        ray.init(address=raylets.address, log_to_driver=False)
        raylets.wait_for_nodes()
        yield
    finally:
        ray.shutdown()
        raylets.shutdown()


@pytest.fixture
def cluster(_raylets: None) -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.clear()


def test_scraps_that_make_up_a_sum_are_no_device(cluster: Cluster) -> None:
    """On 0.4 and 0.4 there is no 0.75: Ray finds that out and goes elsewhere; without an elsewhere, it waits."""
    for number in range(2):
        assert cluster.start(f"a{number}", Demand(gpus=0.5))
    for number in range(2):
        assert cluster.start(f"b{number}", Demand(gpus=0.6))
    assert list(cluster.settled().values()) == pytest.approx([0.0, 0.8, 3.0, 4.0])
    scraps = cluster.target(Demand(gpus=0.75))
    assert scraps == cluster.nodes[1].id
    assert cluster.start("c", Demand(gpus=0.75))
    assert cluster.homes["c"] == cluster.nodes[3].id
    assert cluster.start("d", Demand(ranks=3, gpus=1.0))
    assert cluster.start("e", Demand(ranks=3, gpus=1.0))
    assert not cluster.start("f", Demand(gpus=0.5))
    assert cluster.start("g", Demand(gpus=0.4))


@pytest.mark.parametrize("seed", range(2))
def test_what_fits_and_where(cluster: Cluster, seed: int) -> None:
    dice = random.Random(seed)
    outcomes: list[bool] = []
    while outcomes.count(False) < 2 and len(outcomes) < 30:
        ranks = dice.choice((1, 1, 1, 2, 2, 4))
        shares = (0.1, 0.25, 0.3333, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0, 2.0 if ranks == 1 else 1.0)
        if cluster.homes and dice.random() < 0.2:
            cluster.stop(dice.choice(list(cluster.homes)))
        outcome = cluster.start(f"{seed}-{len(outcomes)}", Demand(ranks, dice.choice(shares)))
        if outcome is None:
            break
        outcomes.append(outcome)
    assert len(outcomes) >= 5


def test_without_packing_the_emptiest_node_is_taken(cluster: Cluster) -> None:
    """One model that may span nodes turns Serve's packing off for all; Ray then spreads."""
    assert cluster.start("spanning", Demand(3, 1.0, one_node=False), packing=False)
    for share in (0.5, 0.7, 0.6, 0.6, 0.55):
        assert cluster.start(str(len(cluster.homes)), Demand(gpus=share), packing=False)
    assert list(cluster.settled().values()) == pytest.approx([1.0, 0.85, 1.2, 1.0])
    assert cluster.start("no node", Demand(2, 0.9), packing=False) is False
    assert cluster.start("no devices", Demand(3, 0.6, one_node=False), packing=False) is False
    assert cluster.start("two nodes", Demand(2, 0.6, one_node=False), packing=False)

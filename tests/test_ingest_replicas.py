"""Where replicas go: HDFS's rule for a writer outside the DataNodes, evenly."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.errors import PlacementError
from datalocal.ingest import replica_nodes
from datalocal.spec.cluster import Cluster, Node


def cluster_of(racks: list[int], compute: int = 0, replication: int = 1) -> Cluster:
    """As many storage nodes in each rack as `racks` says, and central nodes in a rack of their own."""
    nodes = [Node(name=f"r{rack}n{i}", rack=f"r{rack}") for rack, size in enumerate(racks) for i in range(size)]
    nodes += [Node(name=f"c{i}", rack="central", role="compute") for i in range(compute)]
    return Cluster(name="test", replication=replication, nodes=tuple(nodes))


def all_names(cluster: Cluster) -> list[str]:
    return [node.name for node in cluster.nodes]


RACKS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(racks=RACKS, compute=st.integers(0, 2), replication=st.integers(1, 5), shard=st.integers(0, 500), data=st.data())
@settings(max_examples=150, deadline=None)
def test_replicas_follow_the_rule_of_hdfs(
    racks: list[int], compute: int, replication: int, shard: int, data: st.DataObject
) -> None:
    """All different, on living storage nodes; the second in another rack, the third in the second's, where there is one."""
    cluster = cluster_of(racks, compute)
    alive = data.draw(st.sets(st.sampled_from(all_names(cluster))))
    up = [node.name for node in cluster.storage_nodes if node.name in alive]
    if len(up) < replication:
        with pytest.raises(PlacementError, match=f"{replication} replicas"):
            replica_nodes(shard, cluster, alive, replication, 0)
        return
    nodes = replica_nodes(shard, cluster, alive, replication, 0)
    assert len(set(nodes)) == replication
    assert set(nodes) <= set(up)
    rack = [cluster.rack_of(name) for name in nodes]
    if replication > 1 and {cluster.rack_of(name) for name in up} - {rack[0]}:
        assert rack[1] != rack[0]
    if replication > 2 and [name for name in up if cluster.rack_of(name) == rack[1] and name not in nodes[:2]]:
        assert rack[2] == rack[1]
    assert replica_nodes(shard, cluster, alive, replication, 0) == nodes, "the same question has the same answer"


@given(racks=RACKS, seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_every_node_is_first_once_a_round(racks: list[int], seed: int) -> None:
    """First replicas are spread to within one shard, whatever the racks and however many shards there are."""
    cluster = cluster_of(racks)
    names = all_names(cluster)
    for shards in (len(names) - 1, 3 * len(names), 3 * len(names) + 1):
        firsts = Counter(replica_nodes(i, cluster, names, 1, seed)[0] for i in range(shards))
        assert max(firsts.values(), default=0) - min(firsts[name] for name in names) <= 1


@given(nodes=st.integers(2, 5), racks=st.integers(2, 4), replication=st.integers(2, 3), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_equal_racks_are_filled_evenly(nodes: int, racks: int, replication: int, seed: int) -> None:
    """With racks of equal size no node holds much more than another: over 20 rounds at most a tenth above the mean."""
    cluster = cluster_of([nodes] * racks)
    names = all_names(cluster)
    held = Counter(
        name for shard in range(20 * len(names)) for name in replica_nodes(shard, cluster, names, replication, seed)
    )
    assert max(held.values()) <= 1.1 * 20 * replication
    assert min(held[name] for name in names) >= 0.9 * 20 * replication


def test_few_shards_use_different_nodes() -> None:
    """Two shards of two replicas on four nodes in two racks use all four, whatever the seed."""
    cluster = cluster_of([2, 2])
    for seed in range(30):
        used = {name for shard in range(2) for name in replica_nodes(shard, cluster, all_names(cluster), 2, seed)}
        assert len(used) == 4


def test_too_few_nodes_are_told_with_numbers_and_names() -> None:
    """The error says how many are needed, how many there are, and who is missing."""
    cluster = cluster_of([2, 1])
    with pytest.raises(
        PlacementError, match="3 replicas need as many storage nodes that are up; there are 2 of 3"
    ) as told:
        replica_nodes(0, cluster, ["r0n0", "r1n0"], 3, 0)
    assert "not up: r0n1" in str(told.value)

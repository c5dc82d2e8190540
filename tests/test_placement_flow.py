"""Exactness: as many local shards as anybody can have, told by independent solvers; balance; the proof; every policy vetted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from datalocal.errors import PlacementError
from datalocal.placement import family, flow, synthetic, waves
from datalocal.placement.certificate import Certificate, gap, sentences
from datalocal.placement.frontier import frontier
from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Names, Problem, Reason
from datalocal.placement.rules import RULES
from datalocal.placement.vet import from_rows, vet

QUICK = ("random", "round-robin", "hdfs-greedy", "rack-aware", "optimal-bytes", "optimal-makespan", *RULES)


def problem_of(
    holders: list[list[int]], slots: list[int], speed: list[float], rack: list[int], sizes: list[int], down: set[int]
) -> Problem:
    """A problem from plain lists."""
    return Problem(
        shard_bytes=np.array(sizes, dtype=np.int64),
        shard_rows=np.ones(len(holders), dtype=np.int64),
        replica_offsets=np.concatenate(([0], np.cumsum([len(each) for each in holders]))).astype(np.int64),
        replica_nodes=np.array([node for each in holders for node in sorted(each)], dtype=np.int32),
        slots=np.array(slots, dtype=np.int64),
        speed=np.array(speed, dtype=np.float64),
        rack=np.array(rack, dtype=np.int32),
        role=np.zeros(len(slots), dtype=np.int8),
        alive=np.array([node not in down for node in range(len(slots))]),
        shard_names=synthetic.numbered("s", len(holders)),
        node_names=synthetic.numbered("n", len(slots)),
        rack_names=Names.of(f"r{number}" for number in range(max(rack) + 1)),
    )


@st.composite
def problems(draw: st.DrawFn, *, sizes: bool = False, down: bool = True) -> Problem:
    """Small clusters in which some nodes are wanted by more shards than they can take."""
    nodes = draw(st.integers(2, 8))
    shards = draw(st.integers(1, 24))
    popular = draw(st.integers(1, nodes))  # replicas lie on the first ones more often than not
    node = st.one_of(st.integers(0, popular - 1), st.integers(0, nodes - 1))
    holders = [draw(st.lists(node, min_size=0 if down else 1, max_size=3, unique=True)) for _ in range(shards)]
    slots = draw(st.lists(st.integers(0, 3), min_size=nodes, max_size=nodes).filter(any))
    speed = draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=nodes, max_size=nodes))
    rack = draw(st.lists(st.integers(0, 2), min_size=nodes, max_size=nodes))
    size = st.integers(1, 9) if sizes else st.just(5)
    lost = draw(st.sets(st.integers(0, nodes - 1), max_size=1)) if down else set()
    problem = problem_of(holders, slots, speed, rack, [draw(size) for _ in range(shards)], lost)
    return problem if problem.rate.any() else replace(problem, alive=np.ones(nodes, dtype=np.bool_))


def tight(seed: int) -> Problem:
    """A small cluster that the seed stands for: replicas crowd on the first nodes, and time is as short as can be."""
    draw = np.random.default_rng(seed)
    nodes, shards = int(draw.integers(3, 12)), int(draw.integers(5, 40))
    crowd = draw.permutation(nodes)[: max(2, nodes // 2)]
    holders = [
        np.unique(np.where(draw.random(2) < 0.7, draw.choice(crowd, 2), draw.integers(nodes, size=2))).tolist()
        for _ in range(shards)
    ]
    slots = draw.integers(1, 4, size=nodes).tolist()
    speed = draw.choice([0.5, 1.0, 2.0], size=nodes).tolist()
    return problem_of(holders, slots, speed, (np.arange(nodes) % 3).tolist(), [7] * shards, set())


def tight_of_sizes(seed: int) -> Problem:
    """As `tight`, with shards of nine sizes."""
    plain = tight(seed)
    return replace(plain, shard_bytes=np.random.default_rng(seed).integers(1, 10, size=plain.shards))


def holders_of(problem: Problem) -> list[list[int]]:
    ends = problem.replica_offsets.tolist()
    return [problem.replica_nodes[a:b].tolist() for a, b in pairwise(ends)]


def local_by_networkx(problem: Problem, capacity: np.ndarray) -> int:
    graph = nx.DiGraph()
    graph.add_node("source")
    graph.add_node("sink")
    for shard, nodes in enumerate(holders_of(problem)):
        graph.add_edge("source", ("shard", shard), capacity=1)
        for node in nodes:
            graph.add_edge(("shard", shard), ("node", node), capacity=1)
    for node, most in enumerate(capacity.tolist()):
        graph.add_edge(("node", node), "sink", capacity=most)
    return int(nx.maximum_flow_value(graph, "source", "sink"))


def moved_by_lsa(problem: Problem, capacity: np.ndarray) -> int:
    """Bytes moved in the best one-to-one assignment of shards to places."""
    places = np.repeat(np.arange(problem.nodes), capacity)
    table = np.repeat(problem.shard_bytes[:, None], len(places), axis=1)
    held = np.zeros((problem.shards, problem.nodes), dtype=np.bool_)
    held[problem.owner, problem.replica_nodes] = True
    table[held[:, places]] = 0
    rows, columns = linear_sum_assignment(table)
    return int(table[rows, columns].sum())


def checked_by_hand(problem: Problem, certificate: Certificate) -> int:
    """The bound from D alone, in plain Python."""
    inside = set(certificate.nodes.tolist())
    enclosed = sum(set(nodes) <= inside for nodes in holders_of(problem))
    able = sum(
        min(int(np.floor(certificate.makespan_s * problem.slots[node] * problem.speed[node])), problem.shards)
        for node in inside
        if problem.alive[node]
    )
    assert (enclosed, able) == (certificate.enclosed, certificate.capacity)
    return max(0, enclosed - able)


class Count:
    """How many of many had something."""

    def __init__(self) -> None:
        self.all = self.some = 0

    def add(self, has: bool) -> None:
        self.all += 1
        self.some += has


def check_number(problem: Problem, slack: float) -> int:
    """The answer against both solvers and its proof; how many shards cannot be local."""
    makespan_s = problem.least_makespan() * slack
    capacity = problem.capacity(makespan_s)
    answer, certificate = family.certified_optimal_bytes(problem, makespan_s)
    vet(problem, answer)
    best = local_by_networkx(problem, capacity)
    assert answer.local == best
    assert problem.shards - best == checked_by_hand(problem, certificate) == certificate.non_local_at_least
    assert moved_by_lsa(problem, capacity) == gap(problem, certificate, answer).moved_bytes
    assert gap(problem, certificate, answer).bytes_share == 0
    return problem.shards - best


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), slack=st.sampled_from([1.0, 1.0, 1.1, 1.5]))
def test_the_number_of_local_shards_is_that_of_networkx_and_of_linear_sum_assignment_and_is_proven(
    problem: Problem, slack: float
) -> None:
    check_number(problem, slack)


def test_that_number_is_right_where_something_has_to_move() -> None:
    moving = sum(check_number(tight(seed), slack=1.0) > 0 for seed in range(200))
    assert moving >= 80, f"too easy: {moving} of 200 have to move something"


@pytest.mark.parametrize("block", range(4))
def test_the_bytes_moved_are_those_of_linear_sum_assignment_on_thousands_of_tight_clusters(block: int) -> None:
    count = Count()
    for seed in range(500 * block, 500 * (block + 1)):
        problem = tight(seed)
        makespan_s = problem.least_makespan()
        answer, certificate = family.certified_optimal_bytes(problem, makespan_s)
        vet(problem, answer)
        found = gap(problem, certificate, answer)
        assert found.moved_bytes == moved_by_lsa(problem, problem.capacity(makespan_s)), f"seed {seed}"
        assert found.ours == checked_by_hand(problem, certificate), f"seed {seed}"
        count.add(found.ours > 0)
    assert count.some >= 0.4 * count.all


def test_a_few_sizes_are_told_apart_however_near_they_are() -> None:
    """One holder with room for one of two shards: the heavier stays, also when it is heavier by a hundredth."""
    assert [part.tolist() for part in flow.size_classes(np.array([100, 101, 100]))] == [[1], [0, 2]]
    many = np.arange(1000, 1000 + 2 * flow.SIZE_CLASSES)
    assert [part.tolist() for part in flow.size_classes(many)] == [list(range(len(many)))]


def check_bytes(problem: Problem, slack: float) -> int:
    """The answer's bytes and number against both solvers; how many shards cannot be local."""
    makespan_s = problem.least_makespan() * slack
    capacity = problem.capacity(makespan_s)
    answer, certificate = family.certified_optimal_bytes(problem, makespan_s)
    vet(problem, answer)
    found = gap(problem, certificate, answer)
    assert found.ours == problem.shards - local_by_networkx(problem, capacity) == found.optimum_at_least
    assert found.moved_bytes == moved_by_lsa(problem, capacity)
    assert found.bytes_share == 0
    return found.ours


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(sizes=True), slack=st.sampled_from([1.0, 1.1, 1.4]))
def test_where_shards_differ_in_size_the_bytes_moved_are_the_fewest_and_so_is_their_number(
    problem: Problem, slack: float
) -> None:
    check_bytes(problem, slack)


def test_those_bytes_are_the_fewest_where_something_has_to_move() -> None:
    moving = sum(check_bytes(tight_of_sizes(seed), slack=1.0) > 0 for seed in range(150))
    assert moving >= 60, f"too easy: {moving} of 150 have to move something"


@pytest.mark.parametrize("seed", [1245, 1317, 1353])
def test_heavier_shards_make_room_for_each_other_before_lighter_ones_leave(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lighter ones have pushed heavier ones onto a node that is too small: in one of 300 clusters that are drawn so."""
    draw = np.random.default_rng(seed)
    nodes, shards = int(draw.integers(2, 7)), int(draw.integers(4, 30))
    holders = [np.unique(draw.integers(nodes, size=int(draw.integers(1, 4)))).tolist() for _ in range(shards)]
    slots = draw.integers(0, 4, size=nodes).tolist() if draw.random() < 0.9 else [1] * nodes
    sizes = draw.integers(1, 5, size=shards).tolist()
    problem = problem_of(holders, slots, [1.0] * nodes, [0] * nodes, sizes, set())
    capacity = draw.integers(0, 6, size=nodes)
    pushed = []
    settle = waves.settle

    def spy(index: waves.Index, place: np.ndarray, load: np.ndarray, most: np.ndarray, **options: object) -> object:
        pushed.append("alike" not in options and bool((load > most).any()))
        return settle(index, place, load, most, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(flow, "settle", spy)
    place = flow.match(problem, capacity).place
    assert any(pushed), "the case that this is about"
    local = place != waves.NOWHERE
    assert (np.bincount(place[local], minlength=nodes) <= capacity).all()
    heavy = int(problem.shard_bytes.sum() - problem.shard_bytes[local].sum())
    room = np.concatenate((capacity, [shards]))  # whoever is not local goes to a node of his own
    assert heavy == moved_by_lsa(with_another(problem), room)


def with_another(problem: Problem) -> Problem:
    """The same with one more node, which holds nothing."""
    return replace(
        problem,
        slots=np.append(problem.slots, problem.shards),
        speed=np.append(problem.speed, 1.0),
        rack=np.append(problem.rack, 0).astype(np.int32),
        role=np.append(problem.role, 0).astype(np.int8),
        alive=np.append(problem.alive, True),
        node_names=synthetic.numbered("n", problem.nodes + 1),
    )


def test_many_sizes_are_put_into_classes_and_the_gap_says_what_that_costs() -> None:
    plain = synthetic.hdfs(3000, 60, writers_skew=1.0, nodes_per_rack=10, seed=3)
    sizes = np.random.default_rng(1).integers(1_000, 100_000_000, size=3000)
    problem = replace(plain, shard_bytes=sizes, slots=np.where(np.arange(60) % 2, 1, 0))
    answer, certificate = family.certified_optimal_bytes(problem, problem.least_makespan() * 1.02)
    found = gap(problem, certificate, answer)
    assert found.ours == found.optimum_at_least > 100
    assert 0 <= found.bytes_share < 0.25


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), seed=st.integers(0, 9), slack=st.sampled_from([1.0, 1.3]))
def test_no_policy_is_below_the_bound_and_each_passes_the_check(problem: Problem, seed: int, slack: float) -> None:
    makespan_s = problem.least_makespan() * slack
    _, certificate = family.certified_optimal_bytes(problem, makespan_s)
    for name in QUICK:
        answer = family.placing(name)(problem, makespan_s, seed)
        vet(problem, answer)
        found = gap(problem, certificate, answer)
        assert found.shards >= 0
        assert found.moved_bytes >= found.moved_bytes_at_least
        assert answer.policy == name
        assert sentences(problem, certificate, answer)
    default = family.placing("optimal-bytes")(problem, None, 0)
    vet(problem, default)
    assert default.local == local_by_networkx(problem, flow.unlimited(problem))


def costs_by_networkx(problem: Problem, capacity: np.ndarray) -> tuple[int, int]:
    """Fewest non-local shards, and among those placements the least sum over nodes of 1 + 2 + ... + load, x 6 / rate."""
    graph = nx.DiGraph()
    graph.add_node("source", demand=-problem.shards)
    graph.add_node("sink", demand=problem.shards)
    dear = 10**7
    working = np.flatnonzero(capacity).tolist()
    for shard, nodes in enumerate(holders_of(problem)):
        graph.add_edge("source", ("shard", shard), capacity=1, weight=0)
        graph.add_edge(("shard", shard), "anywhere", capacity=1, weight=dear)
        for node in nodes:
            graph.add_edge(("shard", shard), ("node", node), capacity=1, weight=0)
    for node in working:
        graph.add_edge("anywhere", ("node", node), weight=0)
        for place in range(int(capacity[node])):
            price = round(6 * (place + 1) / float(problem.rate[node]))
            graph.add_edge(("node", node), ("place", node, place), capacity=1, weight=price)
            graph.add_edge(("place", node, place), "sink", capacity=1, weight=0)
    cost, _ = nx.network_simplex(graph)
    return divmod(int(cost), dear)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), slack=st.sampled_from([1.0, 1.2, 1.6, 3.0]))
def test_among_the_optimal_answers_loads_are_as_even_as_a_minimum_cost_flow_can_make_them(
    problem: Problem, slack: float
) -> None:
    makespan_s = problem.least_makespan() * slack
    capacity = problem.capacity(makespan_s)
    answer = family.optimal_bytes(problem, makespan_s)
    load = np.bincount(answer.node, minlength=problem.nodes)
    busy = np.flatnonzero(load)
    ours = sum(round(6 * (place + 1) / float(problem.rate[node])) for node in busy for place in range(int(load[node])))
    assert (problem.shards - answer.local, ours) == costs_by_networkx(problem, capacity)


@pytest.mark.parametrize("block", [waves.BLOCK, 7])
def test_equally_many_replicas_and_blocks_of_a_few_of_them_give_the_same_optimum(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all shards have as many replicas they are read in another way, and large clusters block by block."""
    monkeypatch.setattr(waves, "BLOCK", block)
    count = Count()
    for seed in range(90):
        cluster = (synthetic.ring, synthetic.three_speeds, synthetic.hdfs)[seed % 3]
        plain = cluster(80, 16, replication=1 + seed % 4, nodes_per_rack=4, seed=seed)
        problem = replace(plain, slots=np.random.default_rng(seed).integers(0, 3, size=16))
        makespan_s = problem.least_makespan()
        capacity = problem.capacity(makespan_s)
        answer, certificate = family.certified_optimal_bytes(problem, makespan_s)
        vet(problem, answer)
        best = local_by_networkx(problem, capacity)
        assert answer.local == best
        assert problem.shards - best == checked_by_hand(problem, certificate)
        load = np.bincount(answer.node, minlength=problem.nodes)
        busy = np.flatnonzero(load)
        ours = sum(round(6 * (k + 1) / float(problem.rate[node])) for node in busy for k in range(int(load[node])))
        assert (problem.shards - best, ours) == costs_by_networkx(problem, capacity)
        count.add(best < problem.shards)
    assert count.some >= 0.4 * count.all


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems())
def test_fewest_bytes_first_takes_the_shortest_makespan_that_allows_them(problem: Problem) -> None:
    answer = family.optimal_bytes(problem, None)
    vet(problem, answer)
    ever = local_by_networkx(problem, flow.unlimited(problem))
    assert answer.local == ever
    rates = problem.rate[problem.rate > 0]
    shorter = max(
        (k / r for r in rates for k in range(1, problem.shards + 1) if k / r < answer.makespan_s * (1 - 1e-9)),
        default=0,
    )
    capacity = problem.capacity(shorter)
    assert int(capacity.sum()) < problem.shards or local_by_networkx(problem, capacity) < ever
    assert flow.least_local_makespan(problem) == answer.makespan_s


def test_the_frontier_goes_down_and_is_convex() -> None:
    problem = synthetic.hdfs(20_000, 100, writers_skew=0.6, workers=0.4, nodes_per_rack=10, seed=5)
    points = frontier(problem, points=9)
    away = np.array([point.non_local for point in points], dtype=float)
    times = np.array([point.makespan_s for point in points])
    assert points[0].makespan_s == problem.least_makespan()
    assert away[0] > away[-1] == flow.match(problem, flow.unlimited(problem)).non_local
    assert (np.diff(away) <= 0).all()
    slopes = np.diff(away) / np.diff(times)
    assert (np.diff(slopes) >= -problem.nodes).all(), "convex but for the shards that rounding down leaves out per node"


@given(problems(sizes=True), st.integers(2, 7))
@settings(max_examples=120, deadline=None)
def test_the_frontier_never_rises_and_ends_at_what_no_time_can_better(problem: Problem, points: int) -> None:
    steps: list[int] = []
    found = frontier(problem, points, lambda: steps.append(1))
    assert 1 <= len(found) <= points and len(steps) == len(found) + 1
    for one, next_ in pairwise(found):
        assert one.makespan_s * (1 + 1e-12) < next_.makespan_s
        assert one.non_local >= next_.non_local
        assert one.moved_bytes >= next_.moved_bytes
        assert one.moved_bytes_at_least >= next_.moved_bytes_at_least
    assert found[0].makespan_s == problem.least_makespan()
    assert found[-1].makespan_s == pytest.approx(flow.least_local_makespan(problem), rel=1e-12)
    ever = problem.capacity(1e9)
    assert found[-1].moved_bytes == moved_by_lsa(problem, ever)
    assert found[-1].non_local == problem.shards - local_by_networkx(problem, ever)
    for point in found:
        capacity = problem.capacity(point.makespan_s)
        assert point.non_local == problem.shards - local_by_networkx(problem, capacity)
        assert point.moved_bytes == point.moved_bytes_at_least == moved_by_lsa(problem, capacity)
        shorter = point.makespan_s * (1 - 1e-12)
        assert (problem.capacity(shorter) < capacity).any(), "the shortest makespan with these capacities"


def test_makespan_first_with_slack_moves_less_the_more_slack_there_is() -> None:
    problem = synthetic.hdfs(20_000, 100, writers_skew=0.6, workers=0.4, nodes_per_rack=10, seed=5)
    moved = [
        problem.shards - family.optimal_makespan(problem, epsilon=epsilon).local for epsilon in (0.0, 0.05, 0.2, 1.0)
    ]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > moved[-1]


def shuffled(problem: Problem, seed: int) -> tuple[Problem, np.ndarray, np.ndarray]:
    """The same problem with shards and nodes in another order; `new = order[old]`."""
    draw = np.random.default_rng(seed)
    shards, nodes = draw.permutation(problem.shards), draw.permutation(problem.nodes)
    number = np.argsort(nodes)
    holders = holders_of(problem)
    moved = problem_of(
        [[int(number[node]) for node in holders[shard]] for shard in shards.tolist()],
        problem.slots[nodes].tolist(),
        problem.speed[nodes].tolist(),
        problem.rack[nodes].tolist(),
        problem.shard_bytes[shards].tolist(),
        {int(number[node]) for node in np.flatnonzero(~problem.alive)},
    )
    return replace(moved, rack_names=problem.rack_names), shards, nodes


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(sizes=True), seed=st.integers(0, 99))
def test_the_order_of_shards_and_nodes_changes_no_figure(problem: Problem, seed: int) -> None:
    other, _, nodes = shuffled(problem, seed)
    makespan_s = problem.least_makespan()
    answer, certificate = family.certified_optimal_bytes(problem, makespan_s)
    again, proof = family.certified_optimal_bytes(other, makespan_s)
    assert answer.local == again.local
    assert gap(problem, certificate, answer) == gap(other, proof, again)
    assert sorted(nodes[proof.nodes].tolist()) == certificate.nodes.tolist(), "the smallest cut is unique"
    loads = [
        np.sort(np.bincount(each.node, minlength=problem.nodes) / np.maximum(problem.rate, 1e-9)) for each in (answer,)
    ]
    even = np.bincount(again.node, minlength=problem.nodes) / np.maximum(other.rate, 1e-9)
    assert loads[0].max() == pytest.approx(even.max())


# What the analysis says (expected values; the tolerance is five standard deviations)


@pytest.mark.parametrize(("nodes", "replication"), [(100, 3), (1000, 3), (50, 2)])
def test_random_placement_is_local_in_r_of_m_cases(nodes: int, replication: int) -> None:
    problem = synthetic.hdfs(100_000, nodes, replication=replication, nodes_per_rack=10, seed=1)
    share = replication / nodes
    found = family.random(problem, None, seed=2).local / problem.shards
    assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / problem.shards)


@pytest.mark.parametrize(("gang", "nodes"), [(8, 1000), (250, 1000), (20, 40)])
def test_a_gang_of_m_nodes_covers_1_minus_1_minus_m_of_M_to_the_r(gang: int, nodes: int) -> None:
    draw = np.random.default_rng(4)
    table = np.stack([draw.permutation(nodes)[:3] for _ in range(20_000)])
    plain = synthetic.hdfs(20_000, nodes, seed=1)
    slots = np.zeros(nodes, dtype=np.int64)
    slots[draw.permutation(nodes)[:gang]] = 1
    problem = replace(plain, replica_nodes=np.sort(table, axis=1).astype(np.int32).ravel(), slots=slots)
    answer = family.optimal_bytes(problem, None)
    share = 1 - np.prod(
        [(nodes - gang - k) / (nodes - k) for k in range(3)]
    )  # without replacement; the formula's limit
    assert abs(answer.local / problem.shards - share) < 5 * np.sqrt(share * (1 - share) / problem.shards)
    assert abs(share - (1 - (1 - gang / nodes) ** 3)) < 0.02
    assert set(np.unique(answer.reason[answer.tier != Tier.NODE_LOCAL])) == {Reason.HOLDERS_WITHOUT_SLOTS}


def test_with_a_replica_everywhere_everything_is_local_and_with_one_replica_there_is_no_choice() -> None:
    everywhere = synthetic.hdfs(1000, 7, replication=7, nodes_per_rack=3, seed=1)
    for name in QUICK:
        assert family.placing(name)(everywhere, None, 1).local == 1000
    alone = synthetic.hdfs(1000, 10, replication=1, nodes_per_rack=5, seed=1)
    answer = family.optimal_bytes(alone, None)
    assert (answer.node == alone.replica_nodes).all()
    tight, certificate = family.certified_optimal_bytes(alone, alone.least_makespan())
    held = np.bincount(alone.replica_nodes, minlength=10)
    assert 1000 - tight.local == int(np.maximum(held - 100, 0).sum()) == certificate.non_local_at_least


def test_a_shard_that_nobody_holds_whole_is_not_local_and_says_why() -> None:
    problem = problem_of([[0], [], [1], [2]], [1, 1, 0], [1.0, 1.0, 1.0], [0, 0, 1], [5] * 4, {1})
    answer, certificate = family.certified_optimal_bytes(problem, 4.0)
    assert answer.reason.tolist() == [
        Reason.LOCAL, Reason.NO_REPLICA, Reason.HOLDERS_DOWN, Reason.HOLDERS_WITHOUT_SLOTS,
    ]  # fmt: skip
    assert certificate.non_local_at_least == 3
    assert answer.node.tolist() == [0, 0, 0, 0]


# The one check


def answers() -> Iterator[tuple[str, Assigned]]:
    problem = synthetic.hdfs(40, 8, nodes_per_rack=4, seed=1)
    good = family.optimal_bytes(problem, problem.least_makespan())
    away = int(np.setdiff1d(np.arange(8), problem.replica_nodes[:3])[0])

    def with_node(node: int) -> Assigned:
        changed = good.node.copy()
        changed[0] = node
        return replace(good, node=changed)

    yield "entries", replace(good, node=good.node[:-1])
    yield "is not placed", with_node(-1)
    yield "node number 8", with_node(8)
    yield "finishes", replace(good, makespan_s=good.makespan_s * 0.9)
    yield "where it is placed", replace(with_node(away), makespan_s=99.0)
    silent = replace(with_node(away), makespan_s=99.0, tier=np.where(np.arange(40) == 0, 2, good.tier).astype(np.int8))
    near = replace(silent, tier=np.where(np.arange(40) == 0, 1, good.tier).astype(np.int8))
    yield "no reason", silent if problem.rack[away] not in problem.rack[problem.replica_nodes[:3]] else near
    yield "a reason though", replace(good, reason=np.full(40, Reason.HOLDERS_FULL, dtype=np.int8))
    yield "a reason though", replace(good, reason=np.full(40, 99, dtype=np.int8))


@pytest.mark.parametrize(("words", "answer"), list(answers()), ids=[words for words, _ in answers()])
def test_the_check_refuses_what_does_not_answer_the_problem(words: str, answer: Assigned) -> None:
    problem = synthetic.hdfs(40, 8, nodes_per_rack=4, seed=1)
    with pytest.raises(PlacementError, match=words):
        vet(problem, answer)


def test_the_check_refuses_a_node_that_is_down() -> None:
    problem = synthetic.hdfs(40, 8, nodes_per_rack=4, seed=1)
    answer = family.optimal_bytes(problem, 99.0)
    with pytest.raises(PlacementError, match="which is down"):
        vet(problem.without(int(answer.node[0])), answer)


def test_rows_of_a_file_are_refused_where_a_shard_is_missing_there_twice_or_unknown() -> None:
    problem = synthetic.hdfs(5, 8, nodes_per_rack=4, seed=1)
    assert from_rows(problem, np.array([4, 0, 1, 3, 2]), np.array([7, 0, 1, 2, 3])).tolist() == [0, 1, 3, 2, 7]
    for rows in ([0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 5], [0, 1, 2, 3, -1]):
        with pytest.raises(PlacementError):
            from_rows(problem, np.array(rows), np.zeros(len(rows), dtype=np.int64))


def test_a_makespan_that_is_too_short_is_refused_with_the_one_that_does() -> None:
    problem = synthetic.three_speeds(1000, 20, nodes_per_rack=5, seed=1)
    least = problem.least_makespan()
    for name in QUICK:
        with pytest.raises(PlacementError, match="makespan of at least") as caught:
            family.placing(name)(problem, least * 0.99, 0)
        assert repr(least) in str(caught.value)
    for strange in (-1.0, float("nan"), float("inf")):
        with pytest.raises(PlacementError, match="makespan"):
            family.optimal_bytes(problem, strange)
    assert int(problem.capacity(least).sum()) >= 1000 > int(problem.capacity(np.nextafter(least, 0)).sum())
    with pytest.raises(PlacementError, match="did you mean optimal-bytes"):
        family.placing("optimal-byte")

"""The dispatch rule: pure, so it is tested with thousands of scripted histories and without any cluster."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.errors import PlacementError
from datalocal.execution.dispatch import Dispatch, GiveUp, Instruction, Replaced, Start
from datalocal.placement.model import Assignment

NODES = ("a", "b", "c")


def assignment(shard: str, node: str) -> Assignment:
    return Assignment(shard=shard, node=node, sources=(node,))


def any_node(shards: Sequence[str], nodes: Collection[str]) -> Sequence[Assignment]:
    """Stands for `placement.repair.replace`: the first usable node takes everything."""
    if not nodes:
        raise PlacementError("no node is left")
    return [assignment(shard, sorted(nodes)[0]) for shard in shards]


def dispatch(count: int, slots: int = 1, attempts: int = 3, window: int = 2) -> Dispatch:
    return Dispatch(
        assignments=[assignment(f"s{i:02d}", NODES[i % 3]) for i in range(count)],
        slots=dict.fromkeys(NODES, slots),
        max_attempts=attempts,
        replace=any_node,
        window_per_slot=window,
    )


def starts(instructions: Sequence[Instruction]) -> list[tuple[str, str]]:
    return [(i.assignment.shard, i.assignment.node) for i in instructions if isinstance(i, Start)]


def test_only_a_window_of_tasks_is_handed_out() -> None:
    book = dispatch(100, slots=2, window=2)
    assert len(starts(book.begin())) == 3 * 2 * 2


def test_a_lost_nodes_running_and_waiting_work_goes_elsewhere_and_is_told() -> None:
    book = dispatch(9, window=1)
    book.begin()
    replaced = [i for i in book.lost("b") if isinstance(i, Replaced)]
    assert {r.shard for r in replaced} == {"s01", "s04", "s07"}
    assert all(r.from_node == "b" and r.to_node == "a" and "b was lost" in r.cause for r in replaced)


def test_a_failure_goes_to_another_node_and_in_the_end_gives_up_with_the_count() -> None:
    book = dispatch(1, attempts=2)
    book.begin()
    assert starts(book.failed("s00", "disk on fire")) == [("s00", "b")]
    (last,) = book.failed("s00", "disk on fire")
    assert isinstance(last, GiveUp)
    assert "attempt 2 of 2" in last.cause and last.node == "b"


def test_a_permanent_failure_is_not_tried_elsewhere() -> None:
    book = dispatch(1)
    book.begin()
    (last,) = book.failed("s00", "ValueError: no", permanent=True, trace="trace")
    assert isinstance(last, GiveUp)
    assert last.cause == "ValueError: no" and last.trace == "trace"


def test_work_planned_for_an_absent_node_is_moved_before_it_starts() -> None:
    book = dispatch(6)
    book.slots = {"a": 1, "c": 1}
    instructions = book.begin()
    assert {i.shard for i in instructions if isinstance(i, Replaced)} == {"s01", "s04"}
    assert {node for _, node in starts(instructions)} <= {"a", "c"}


def test_no_node_left_is_an_error_that_says_so() -> None:
    book = dispatch(3)
    book.begin()
    book.lost("a")
    book.lost("b")
    with pytest.raises(PlacementError, match="no node is left"):
        book.lost("c")


@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["done", "fail", "lose"]), st.integers(0, 10**6)), max_size=60),
)
def test_whatever_happens_every_shard_is_done_once_within_the_window(
    count: int, slots: int, history: list[tuple[str, int]]
) -> None:
    book = dispatch(count, slots=slots, attempts=10**6)
    running: dict[str, str] = {}
    finished: list[str] = []
    alive = set(NODES)

    def obey(instructions: Sequence[Instruction]) -> None:
        for shard, node in starts(instructions):
            assert shard not in running, "a shard is never started while it runs"
            assert shard not in finished, "a finished shard is never started again"
            assert node in alive
            running[shard] = node
        for node in alive:
            assert sum(where == node for where in running.values()) <= slots * 2

    obey(book.begin())
    for what, number in history:
        if what == "lose" and len(alive) > 1:
            node = sorted(alive)[number % len(alive)]
            alive.discard(node)
            for shard in [shard for shard, where in running.items() if where == node]:
                del running[shard]
            obey(book.lost(node))
        elif running:
            shard = sorted(running)[number % len(running)]
            del running[shard]
            if what == "done":
                finished.append(shard)
                obey(book.done(shard))
            else:
                obey(book.failed(shard, "trouble"))
    while running:
        shard = sorted(running)[0]
        del running[shard]
        finished.append(shard)
        obey(book.done(shard))
    assert book.finished
    assert sorted(finished) == [f"s{i:02d}" for i in range(count)]

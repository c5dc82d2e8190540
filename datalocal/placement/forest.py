"""Divided amounts made as whole as they can be: at most one less division than there are bins. Pure.

`amounts[item][bin]` says how much of an item lies in a bin. Items that lie in several bins, and these bins, make a graph;
turning amounts around along its cycles changes no item's total and no bin's load, and each turn empties one entry. What is
left is a forest, and a forest on m bins has at most m - 1 divisions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeAlias, TypeVar

Item = TypeVar("Item", bound=Hashable)
Bin = TypeVar("Bin", bound=Hashable)
Amounts: TypeAlias = dict[Item, dict[Bin, int]]


def to_forest(amounts: Amounts[Item, Bin], cost: Callable[[Item, Bin], int]) -> None:
    """Turn amounts (in place) until no cycle is left. The sum of amount x cost never grows."""
    while cycle := _cycle(amounts):
        # Around a cycle the entries take turns: some gain what the others lose. One of both directions is not dearer.
        even, odd = cycle[0::2], cycle[1::2]
        if sum(cost(*entry) for entry in even) > sum(cost(*entry) for entry in odd):
            even, odd = odd, even
        turn = min(amounts[item][place] for item, place in odd)
        for item, place in even:
            amounts[item][place] += turn
        for item, place in odd:
            amounts[item][place] -= turn
            if not amounts[item][place]:
                del amounts[item][place]


def _cycle(amounts: Amounts[Item, Bin]) -> list[tuple[Item, Bin]]:
    """The entries (item, bin) along a cycle, in order, or nothing."""
    parent: dict[Bin, tuple[Bin, Item]] = {}
    depth: dict[Bin, int] = {}
    # A divided item joins all its bins: seen from the bins it is a star, walked once from the bin that meets it first.
    joined: dict[Bin, list[Item]] = {}
    for item, places in amounts.items():
        if len(places) > 1:
            for place in places:
                joined.setdefault(place, []).append(item)
    for root in joined:
        if root in depth:
            continue
        depth[root] = 0
        stack = [root]
        used: set[Item] = set()
        while stack:
            place = stack.pop()
            for item in joined[place]:
                if item in used:
                    continue
                used.add(item)
                for other in amounts[item]:
                    if other == place:
                        continue
                    if other in depth:
                        return _loop(parent, depth, place, item, other)
                    parent[other], depth[other] = (place, item), depth[place] + 1
                    stack.append(other)
    return []


def _loop(
    parent: dict[Bin, tuple[Bin, Item]], depth: dict[Bin, int], left: Bin, item: Item, right: Bin
) -> list[tuple[Item, Bin]]:
    """The cycle that closes when `item`, met at `left`, reaches `right`, which is known already."""
    steps_left: list[tuple[Bin, Item, Bin]] = []
    steps_right: list[tuple[Bin, Item, Bin]] = []
    a, b = left, right
    while a != b:
        if depth[a] >= depth[b]:
            above, by = parent[a]
            steps_left.append((a, by, above))
            a = above
        else:
            above, by = parent[b]
            steps_right.append((b, by, above))
            b = above
    # Bins around the cycle: right -item- left - ... up - common - ... down - right.
    steps = [(right, item, left), *steps_left]
    for below, by, above in reversed(steps_right):
        if steps[-1][1] == by:  # both ways came down from the common bin by the same item: it stays out
            above = steps.pop()[0]
        steps.append((above, by, below))
    entries: list[tuple[Item, Bin]] = []
    for start, by, end in steps:
        entries += [(by, start), (by, end)]
    return entries

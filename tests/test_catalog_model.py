"""Laws of the columnar catalog."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datalocal.catalog.model import Catalog, ShardEntry, build_catalog

NODES = ("n1", "n2", "n3", "n4")
LABELS = ("cat", "dog")


@st.composite
def entries(draw: st.DrawFn) -> list[ShardEntry]:
    keys = draw(st.lists(st.text("abc/-", min_size=1, max_size=4), unique=True, max_size=8))
    made = []
    for key in keys:
        rows = draw(st.lists(st.integers(0, 500), max_size=4))
        cats = draw(st.integers(0, sum(rows)))
        made.append(
            ShardEntry(
                key=key,
                bytes=draw(st.integers(0, 10**9)),
                replicas=tuple(draw(st.lists(st.sampled_from(NODES), unique=True))),
                group_rows=tuple(rows),
                group_bytes=tuple(row * 10 for row in rows),
                label_counts=(cats, sum(rows) - cats),
            )
        )
    return made


def built(rows: list[ShardEntry]) -> Catalog:
    return build_catalog(dataset="photos", nodes=NODES, entries=rows, labels=LABELS)


def same(one: Catalog, other: Catalog) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(Catalog)
    )


@given(entries(), st.randoms())
def test_the_order_of_the_input_does_not_matter(rows: list[ShardEntry], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    assert same(built(rows), built(shuffled))


@given(entries())
def test_a_catalog_gives_back_what_it_was_built_from(rows: list[ShardEntry]) -> None:
    catalog = built(rows)
    for row in rows:
        number = catalog.index(row.key)
        assert set(catalog.replicas(number)) == set(row.replicas)
        assert catalog.groups(number).tolist() == list(row.group_rows)
        assert catalog.path(number) == f"photos/{row.key}"
    assert catalog.total_rows == sum(sum(row.group_rows) for row in rows)
    assert catalog.total_bytes == sum(row.bytes for row in rows)
    assert catalog.label_counts is not None
    assert catalog.label_counts.sum() == catalog.total_rows


@given(entries(), st.sets(st.sampled_from(NODES)))
def test_without_nodes_only_their_replicas_are_gone(rows: list[ShardEntry], dead: set[str]) -> None:
    catalog = built(rows).without_nodes(dead)
    for row in rows:
        assert set(catalog.replicas(catalog.index(row.key))) == set(row.replicas) - dead


@given(entries(), st.data())
def test_a_selection_equals_a_catalog_of_these_shards(rows: list[ShardEntry], data: st.DataObject) -> None:
    catalog = built(rows)
    chosen = data.draw(st.sets(st.sampled_from(range(len(rows)))) if rows else st.just(set()))
    keys = {catalog.shards[i] for i in chosen}
    assert same(catalog.select(sorted(chosen)), built([row for row in rows if row.key in keys]))

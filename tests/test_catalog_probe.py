"""The catalog of what the nodes hold: complete, or a loud error that names node, shard and cause."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datalocal.catalog.model import Catalog
from datalocal.catalog.probe import probe
from datalocal.errors import ClusterError, DatasetError
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import Columns
from tests.stores import Stores, cluster_of, shard_bytes, stores


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Stores]:
    with stores(tmp_path) as made:
        yield made


def probed(
    world: Stores,
    dataset: str = "photos",
    *,
    columns: Columns | None = None,
    cluster: Cluster | None = None,
    alive: Sequence[str] = ("a", "b", "c"),
) -> Catalog:
    return probe(world.store("head"), cluster or cluster_of("a", "b", "c"), dataset, columns or Columns(), alive)


def lay(world: Stores, placement: Mapping[str, str], **shard: Any) -> None:
    """`placement`: shard name -> nodes, one letter each."""
    for name, nodes in placement.items():
        for node in nodes:
            world.put(node, f"photos/{name}.parquet", shard_bytes(**shard))


def replicas(catalog: Catalog) -> dict[str, str]:
    return {key.removesuffix(".parquet"): "".join(catalog.replicas(i)) for i, key in enumerate(catalog.shards)}


def test_the_catalog_is_the_union_of_the_folders(world: Stores) -> None:
    generator = random.Random(3)
    placement = {f"part-{i}": "".join(sorted(generator.sample("abc", generator.randint(1, 3)))) for i in range(12)}
    lay(world, placement, rows=10, group=4)
    catalog = probed(world)
    assert replicas(catalog) == placement
    assert catalog.dataset == "photos"
    assert catalog.total_rows == 120
    assert catalog.total_bytes == 12 * len(shard_bytes(10, group=4))
    assert [catalog.groups(i).tolist() for i in range(12)] == [[4, 4, 2]] * 12
    assert len(catalog.group_bytes) == 36
    assert (catalog.group_bytes > 0).all()
    assert catalog.labels == ("0", "1", "2")
    assert catalog.label_counts is not None
    assert catalog.label_counts.tolist() == [[4, 3, 3]] * 12
    assert catalog.warnings == ()
    assert {row.class_ for row in world.counter.rows()} == {"control"}


def test_the_order_of_nodes_and_listings_does_not_matter(world: Stores) -> None:
    lay(world, {"x": "ca", "y": "b"})
    forward, backward = probed(world), probed(world, alive=("c", "b", "a"))
    for name in ("shards", "nodes", "labels", "warnings"):
        assert getattr(forward, name) == getattr(backward, name)
    assert np.array_equal(forward.replica_nodes, backward.replica_nodes)


def test_a_data_set_that_is_nowhere_is_refused_with_close_names(world: Stores) -> None:
    lay(world, {"x": "a"})
    with pytest.raises(DatasetError, match="the data set 'fotos' is on no node") as caught:
        probed(world, "fotos")
    assert caught.value.hint == "did you mean photos?"
    with pytest.raises(DatasetError) as caught:
        probed(world, "zzz")
    assert caught.value.hint == "data sets that are there: photos"


def test_empty_stores_point_to_ingest(world: Stores) -> None:
    with pytest.raises(DatasetError) as caught:
        probed(world)
    assert "datalocal ingest" in caught.value.hint


def test_when_no_replica_lies_on_a_node_of_the_cluster_both_name_lists_are_shown(world: Stores) -> None:
    lay(world, {"x": "a", "y": "b"})
    with pytest.raises(DatasetError, match="its replicas are on a, b, the cluster's nodes are host-1, host-2"):
        probed(world, cluster=cluster_of("host-1", "host-2"))


def test_replicas_on_a_stranger_do_not_count_and_lost_shards_are_named(world: Stores) -> None:
    lay(world, {"x": "ac", "y": "c"})
    catalog = probed(world, cluster=cluster_of("a", "b"))
    assert replicas(catalog) == {"x": "a"}
    [warning] = catalog.warnings
    assert warning.startswith("c holds replicas but is not a node of this cluster; 1 shards lie only there")
    assert "y.parquet" in warning


def test_a_truncated_replica_does_not_count_and_its_node_and_file_are_named(world: Stores) -> None:
    lay(world, {"x": "ab", "y": "a"})
    world.put("b", "photos/x.parquet", shard_bytes()[:-5])
    catalog = probed(world)
    assert replicas(catalog) == {"x": "a", "y": "a"}
    [warning] = catalog.warnings
    assert warning.startswith("b: photos/x.parquet cannot be read, this replica does not count: ")


def test_a_shard_without_any_readable_replica_is_an_error_that_names_every_cause(world: Stores) -> None:
    lay(world, {"good": "abc"})
    for node in "ab":
        world.put(node, "photos/torn.parquet", shard_bytes()[:-5])
    with pytest.raises(DatasetError, match=r"no replica of photos/torn\.parquet can be read: a: .*; b: ") as caught:
        probed(world)
    assert "delete it" in caught.value.hint


@pytest.mark.parametrize("odd", ["a", "b", "c"])
def test_the_replica_that_differs_from_the_others_does_not_count(world: Stores, odd: str) -> None:
    lay(world, {"x": "abc"})
    world.put(odd, "photos/x.parquet", shard_bytes(11))
    catalog = probed(world)
    assert replicas(catalog) == {"x": "abc".replace(odd, "")}
    assert catalog.total_rows == 10
    [warning] = catalog.warnings
    assert warning.startswith(f"{odd}: photos/x.parquet has {len(shard_bytes(11))} bytes and 11 rows, elsewhere")


def test_a_node_that_is_not_up_is_a_warning(world: Stores) -> None:
    lay(world, {"x": "ab", "y": "b"})
    catalog = probed(world, alive=("a", "c"))
    assert replicas(catalog) == {"x": "a"}
    assert catalog.warnings == (
        "b is not up: its replicas do not count, and shards that lie only there are not in this catalog",
    )


def test_a_store_that_does_not_answer_is_a_warning_and_its_replicas_do_not_count(world: Stores) -> None:
    lay(world, {"x": "ab", "y": "a"})
    world.servers["b"].close()
    catalog = probed(world)
    assert replicas(catalog) == {"x": "a", "y": "a"}
    [warning] = catalog.warnings
    assert warning.startswith("b is up, but its store cannot be read, its replicas do not count: b at grpc://")


def test_when_no_store_answers_that_is_the_error(world: Stores) -> None:
    for server in world.servers.values():
        server.close()
    with pytest.raises(ClusterError, match=r"no store answers .*a at grpc.*b at grpc.*c at grpc"):
        probed(world)
    with pytest.raises(ClusterError, match="no node is up"):
        probed(world, alive=())


def test_a_missing_column_names_shard_column_and_what_is_there(world: Stores) -> None:
    lay(world, {"x": "a"})
    world.put("b", "photos/y.parquet", shard_bytes(label=None, lable=pa.array([1] * 10)))
    with pytest.raises(
        DatasetError, match=r"photos/y\.parquet has no column 'label'; its columns are image, lable"
    ) as caught:
        probed(world)
    assert caught.value.hint == "set columns.label in the job: did you mean 'lable'?"
    with pytest.raises(DatasetError, match=r"photos/x\.parquet has no column 'picture'; its columns are image, label"):
        probed(world, columns=Columns(image="picture"))


def test_columns_of_no_use_are_refused_by_type(world: Stores) -> None:
    lay(world, {"x": "a"})
    with pytest.raises(DatasetError, match=r"photos/x\.parquet: the column 'label' has the type int64; images are"):
        probed(world, columns=Columns(image="label"))
    with pytest.raises(DatasetError, match=r"photos/x\.parquet: the column 'image' has the type binary; labels are"):
        probed(world, columns=Columns(label="image"))


def test_a_job_without_labels_needs_no_label_column(world: Stores) -> None:
    lay(world, {"x": "a"}, label=None)
    catalog = probed(world, columns=Columns(label=None))
    assert (catalog.labels, catalog.label_counts) == ((), None)


def test_rows_without_a_label_are_told(world: Stores) -> None:
    lay(world, {"x": "a"}, rows=3, labels=[1, None, 2])
    assert probed(world).warnings == ("photos/x.parquet: 1 rows have no label",)


def labelled(world: Stores, *shards: tuple[Sequence[Any], Any]) -> Catalog:
    for number, (labels, metadata) in enumerate(shards):
        told = {"datalocal": json.dumps({"classes": metadata})} if metadata is not None else None
        world.put("a", f"photos/{number}.parquet", shard_bytes(len(labels), labels=labels, metadata=told))
    return probed(world)


@pytest.mark.parametrize(
    ("shards", "labels", "counts"),
    [
        ([([10, 9, 9], None), ([-1], None)], ("-1", "9", "10"), [[0, 2, 1], [1, 0, 0]]),
        ([(["b", "a"], None), (["c", "a"], None)], ("a", "b", "c"), [[1, 1, 0], [1, 0, 1]]),
        (
            [([0, 2], ["cat", "dog", "owl"]), ([2], ["cat", "dog", "owl"])],
            ("cat", "dog", "owl"),
            [[1, 0, 1], [0, 0, 1]],
        ),
        ([([0, 3], ["cat", "dog"])], ("0", "3"), [[1, 1]]),
        ([([0, 1], ["1", "0"])], ("0", "1"), [[1, 1]]),
        ([([0, 1], ["0", "1", "2"])], ("0", "1", "2"), [[1, 1, 0]]),
        ([([0, 1], ["cat", "cat"])], ("0", "1"), [[1, 1]]),
    ],
    ids=[
        "integers in numeric order",
        "strings sorted",
        "integers named by the metadata",
        "too few names",
        "names that look like other numbers",
        "names that are their numbers",
        "names that are not distinct",
    ],
)
def test_labels(world: Stores, shards: list[Any], labels: tuple[str, ...], counts: list[list[int]]) -> None:
    catalog = labelled(world, *shards)
    assert catalog.labels == labels
    assert catalog.label_counts is not None
    assert catalog.label_counts.tolist() == counts


def test_shards_that_name_their_classes_differently_show_numbers_and_a_warning(world: Stores) -> None:
    catalog = labelled(world, ([0, 1], ["cat", "dog"]), ([0, 1], ["dog", "cat"]))
    assert catalog.labels == ("0", "1")
    assert "name the classes differently" in catalog.warnings[0]


def test_shards_whose_labels_are_of_different_types_are_refused(world: Stores) -> None:
    with pytest.raises(
        DatasetError, match=r"disagree about the type of the label column: integers in 0\.parquet, strings in 1"
    ):
        labelled(world, ([0, 1], None), (["cat", "dog"], None))


def test_a_shard_without_rows_is_a_shard(world: Stores) -> None:
    lay(world, {"x": "a"})
    world.put("b", "photos/empty.parquet", shard_bytes(0, label=pa.array([], pa.int64())))
    catalog = probed(world)
    assert catalog.shard_rows.tolist() == [0, 10]
    assert catalog.label_counts is not None
    assert catalog.label_counts.sum(axis=1).tolist() == [0, 10]

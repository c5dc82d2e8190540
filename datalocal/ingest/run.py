"""The story of one ingest: open the source, look at every image, write shards, spread their replicas."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from datalocal.errors import ClusterError, DatasetError, StorageError
from datalocal.ingest.detect import open_source
from datalocal.ingest.model import IngestReport, Layout, Sample, Source
from datalocal.ingest.replicas import replica_nodes
from datalocal.ingest.shards import ShardWriter
from datalocal.ingest.target import Target
from datalocal.ledger.records import Damaged
from datalocal.spec.cluster import Cluster
from datalocal.storage.client import Store
from datalocal.tasks.images import DamagedImage, decode, image_size

Progress = Callable[[int, int], None]
"""(images done, images in all)"""

_AT_A_TIME = 64


def ingest(
    source: Path,
    dataset: str,
    store: Store,
    cluster: Cluster,
    *,
    alive: Collection[str],
    replication: int | None = None,
    layout: Layout | None = None,
    image: str | None = None,
    label: str | None = None,
    shard_bytes: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    validate: bool = True,
    max_pixels: int = 50_000_000,
    progress: Progress | None = None,
) -> IngestReport:
    """Write the images at `source` into the stores as the data set `dataset`; the same source and seed give the same shards.

    `alive` are the nodes that are up; replicas go to the storage nodes among them (default: the cluster's replication).
    `image` and `label` name columns (Parquet) or the JSON key of the label (tars) where they are not found by themselves.
    A shard is as large as a block, or at most `shard_bytes`: smaller ones spread a small data set over more nodes.
    With `validate`, every image is decoded; without, only its header is read, and damage shows later. Damaged images, and
    those of more than `max_pixels`, are left out and listed. At most one shard is in memory or scratch at a time.

    Raises DatasetError (the source, or a data set of this name that is there already and not to be overwritten),
    PlacementError (too few nodes up), StorageError; then nothing is left of the new data set.
    """
    wanted = replication if replication is not None else cluster.replication
    replica_nodes(0, cluster, alive, wanted, seed)  # whether there are nodes enough is known before anything is read
    target = _target(store, dataset, cluster, alive)
    absent = tuple(node.name for node in cluster.storage_nodes if node.name not in alive)
    largest = cluster.block_bytes if shard_bytes is None else shard_bytes
    if largest > cluster.block_bytes:
        raise DatasetError(
            f"shards of {largest} bytes do not fit into the blocks of {cluster.name}, which have {cluster.block_bytes}",
            "ask for smaller shards, or raise block_bytes in the cluster config",
        )
    clear = target.check(overwrite=overwrite, absent=absent)
    images = open_source(source, layout, seed=seed, image=image, label=label, largest_bytes=largest)
    written: dict[str, dict[str, int]] = defaultdict(dict)
    sizes: list[int] = []

    def put(number: int, file: Path) -> None:
        key = f"part-{number:05d}.parquet"
        size_bytes = file.stat().st_size
        if size_bytes > cluster.block_bytes:
            raise StorageError(f"{dataset}/{key} has {size_bytes} bytes, more than a block of {cluster.block_bytes}")
        nodes = replica_nodes(number, cluster, alive, wanted, seed)
        places = store.places(nodes)
        target.check_ours(*places)
        store.write(f"{dataset}/{key}", file, nodes)
        sizes.append(size_bytes)
        for place in places:
            written[place][key] = size_bytes

    with target.in_the_making(clear=clear), tempfile.TemporaryDirectory(prefix="datalocal-ingest-") as scratch:
        writer = ShardWriter(images, block_bytes=largest, scratch=Path(scratch), emit=put)
        try:
            damaged = _write_all(writer, images, validate, max_pixels, progress)
            if not writer.rows:
                told = f", for instance {damaged[0].path}: {damaged[0].problem}" if damaged else ""
                raise DatasetError(f"{source} holds no image that can be used ({len(damaged)} are damaged{told})")
        finally:
            writer.discard()
        target.verify(written)
    return IngestReport(images=writer.rows, bytes=sum(sizes), shards=writer.shards, damaged=tuple(damaged))


def _target(store: Store, dataset: str, cluster: Cluster, alive: Collection[str]) -> Target:
    storage = tuple(node.name for node in cluster.storage_nodes if node.name in alive)
    others = tuple(node.name for node in cluster.nodes if node.name in alive and node.name not in storage)
    if not storage:
        raise ClusterError("no storage node is up", "`datalocal cluster status` shows which nodes are up")
    return Target(store, dataset, tuple(store.places(storage)), others)


def _write_all(
    writer: ShardWriter, source: Source, validate: bool, max_pixels: int, progress: Progress | None
) -> list[Damaged]:
    damaged: list[Damaged] = []
    for done, (sample, problem) in enumerate(_checked(source, validate, max_pixels), 1):
        problem = problem or writer.add(sample)
        if problem:
            damaged.append(Damaged(shard=sample.source, row=sample.row, path=sample.path, problem=problem))
        if progress is not None:
            progress(done, source.images)
    writer.finish()
    return damaged


def _checked(source: Source, validate: bool, max_pixels: int) -> Iterator[tuple[Sample, str]]:
    """Each sample and its problem, in order; a few at a time are looked at, on all cores."""

    def problem(sample: Sample) -> str:
        if sample.problem:
            return sample.problem
        try:
            if validate:
                decode(sample.image, max_pixels=max_pixels, min_side=1)  # every byte is read, few pixels are made
            else:
                height, width = image_size(sample.image)
                if height * width > max_pixels:
                    return f"{width} x {height} pixels, more than the {max_pixels} that are allowed"
        except DamagedImage as damaged:
            return damaged.problem
        return ""

    samples = source.samples()
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="datalocal-ingest") as pool:
        while batch := list(islice(samples, _AT_A_TIME)):
            yield from zip(batch, pool.map(problem, batch), strict=True)

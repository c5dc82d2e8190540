"""What `datalocal demo` tells: sample photographs into the embedded cluster, ready for the job of the four arms."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datalocal.catalog.probe import probe
from datalocal.demo.photos import Crop, make_crops
from datalocal.errors import DatasetError
from datalocal.ingest import IngestReport, ingest
from datalocal.launch.embedded import ClusterHandle
from datalocal.launch.existing import Joined
from datalocal.spec.job import Columns
from datalocal.storage.counting import ByteCounter

DATASET = "photos"

_CROPS_AT_A_TIME = 200


def is_filled(handle: ClusterHandle | Joined, images: int) -> bool:
    """Whether the data set is there, whole: `images` images, every shard with all its replicas."""
    store = handle.store(ByteCounter())
    try:
        catalog = probe(store, handle.cluster, DATASET, Columns(), list(handle.alive))
    except DatasetError:
        return False
    finally:
        store.close()
    wanted = handle.cluster.replication
    return catalog.total_rows == images and all(len(catalog.replicas(i)) == wanted for i in range(len(catalog)))


def fill(handle: ClusterHandle | Joined, images: int, progress: Callable[[int, int], None]) -> IngestReport:
    """Make `images` sample crops and ingest them; what was there of another size is replaced."""
    store = handle.store(ByteCounter())
    try:
        with tempfile.TemporaryDirectory(prefix="datalocal-demo-") as folder:
            source = Path(folder) / "photos"
            source.mkdir()
            write_crops(make_crops(images, 0), source / "photos.parquet", lambda done: progress(done // 2, images))
            return ingest(
                source,
                DATASET,
                store,
                handle.cluster,
                alive=list(handle.alive),
                overwrite=True,
                validate=False,  # we have just encoded them
                progress=lambda done, _: progress((images + done) // 2, images),
            )
    finally:
        store.close()


def write_crops(crops: Iterable[Crop], path: Path, progress: Callable[[int], None]) -> None:
    """The crops as one Parquet file with image, label, split and path."""
    schema = pa.schema([("image", pa.binary()), ("label", pa.string()), ("split", pa.string()), ("path", pa.string())])
    done = 0
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=["label", "split"]) as writer:
        for some in _batched(crops, _CROPS_AT_A_TIME):
            columns = [
                pa.array([crop.image_bytes for crop in some], pa.binary()),
                pa.array([crop.label for crop in some]),
                pa.array([crop.split for crop in some]),
                pa.array([crop.path for crop in some]),
            ]
            writer.write_table(pa.table(columns, schema=schema))
            done += len(some)
            progress(done)


def _batched(crops: Iterable[Crop], size: int) -> Iterator[list[Crop]]:
    iterator = iter(crops)
    while some := list(islice(iterator, size)):
        yield some

"""What a sample takes in the shards at every cut, before anything runs: from shapes, footers and some samples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datalocal.catalog.model import Catalog
from datalocal.estimate.cuts import CutTable, Stage, Stored, cut_table
from datalocal.spec.job import JobSpec, at_cut
from datalocal.spec.pipeline import RAW, RESIZED, RESIZED_JPEG, Pipeline
from datalocal.storage.client import Store
from datalocal.tasks.before_cut import ppm
from datalocal.tasks.image_column import images_of, with_images
from datalocal.tasks.images import DamagedImage, decode_square, encode_jpeg
from datalocal.tasks.shard_file import WRITER_OPTIONS
from datalocal.tasks.train.size import gradient_bytes

_SHARDS, _IMAGES = 4, 256
"""How much is looked at: the first row groups of some shards for the other columns, this many images to be encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What some shards tell of the data set."""

    schema: pa.Schema
    column: str
    other_bytes: float
    """Per sample, in the columns that are carried over."""
    jpeg_bytes: float | None
    """Per sample, resized and encoded again; None where that was not asked."""


def plan_cut(job: JobSpec, folder: Path, catalog: Catalog, store: Store) -> tuple[JobSpec, CutTable | None]:
    """The job cut where it says or where it ships the least, and the table of all cuts; a job without a pipeline as it is.

    `folder` is the job's. Reads the first row group of up to 4 shards. Raises SpecError for stages that cannot be built.
    """
    if job.pipeline is None or job.train is None:
        return job, None
    from datalocal.tasks.frozen import examine

    gradients = gradient_bytes(job.train, folder, len(catalog.labels))
    stages = examine(job.pipeline, folder)
    table = tabulate(job, stages, catalog, store, encode=True, gradient_bytes=gradients)
    return at_cut(job, table.chosen), table


def tabulate(
    job: JobSpec,
    stages: Sequence[Stage],
    catalog: Catalog,
    store: Store,
    *,
    encode: bool = False,
    gradient_bytes: int | None = None,
) -> CutTable:
    """The table of a job's pipeline. With `encode` some images are read and encoded, to know the size of `resized-jpeg`."""
    pipeline, train = job.pipeline, job.train
    assert pipeline is not None and train is not None, "a job without a pipeline has no cuts"
    sample = look(job, catalog, store, encode=encode)
    stored = {cut: _stored(pipeline, stages, cut, sample, catalog) for cut in pipeline.cuts}
    return cut_table(
        pipeline,
        stages,
        stored,
        samples=catalog.total_rows,
        epochs=train.epochs,
        gradient_bytes=gradient_bytes,
    )


def look(job: JobSpec, catalog: Catalog, store: Store, *, encode: bool) -> Sample:
    """Read the first row group of some shards: the columns that are carried over, with `encode` the images too."""
    assert job.pipeline is not None and job.train is not None
    name, tables, sizes = job.columns.image, [], []
    chosen = np.unique(np.linspace(0, len(catalog) - 1, _SHARDS).round().astype(int)).tolist()
    each = -(-_IMAGES // len(chosen))
    for shard in chosen:
        with store.open(catalog.path(shard), catalog.replicas(shard), "control") as source:
            file = pq.ParquetFile(source)
            schema: pa.Schema = file.schema_arrow
            others = [column for column in schema.names if column != name]
            tables.append(file.read_row_group(0, columns=others, use_threads=False))
            if encode:
                images = images_of(file.read_row_group(0, columns=[name], use_threads=False), name).encoded
                places = np.unique(np.linspace(0, len(images) - 1, each).round().astype(int)).tolist()
                sizes += _encoded_sizes([images[place] for place in places], job.pipeline, job.train.max_pixels)
    rows = sum(table.num_rows for table in tables)
    written = sum(_column_bytes(table) for table in tables)
    return Sample(
        schema=schema,
        column=name,
        other_bytes=written / rows if rows else 0.0,
        jpeg_bytes=float(np.mean(sizes)) if sizes else None,
    )


def _encoded_sizes(images: Sequence[pa.Buffer | None], pipeline: Pipeline, max_pixels: int) -> list[int]:
    sizes = []
    for image in images:
        try:
            square = decode_square(image, pipeline.image_size, max_pixels=max_pixels)
        except DamagedImage:
            continue
        sizes.append(len(encode_jpeg(square, pipeline.jpeg_quality)))
    return sizes


def _stored(pipeline: Pipeline, stages: Sequence[Stage], cut: str, sample: Sample, catalog: Catalog) -> Stored:
    if cut == RAW:
        return Stored(bytes_per_sample=catalog.total_bytes / max(catalog.total_rows, 1), origin="catalog")
    if cut == RESIZED_JPEG and sample.jpeg_bytes is None:
        return Stored(
            bytes_per_sample=None, origin="missing", reason="no image was encoded to see how large it becomes"
        )
    column = _Column.of(_like(pipeline, stages, cut, sample), sample)
    each = column.row_bytes + sample.other_bytes
    fixed = len(catalog) * column.file_bytes + len(catalog.group_rows) * column.group_bytes
    return Stored(
        bytes_per_sample=each + fixed / max(catalog.total_rows, 1),
        origin="measured.sample" if cut == RESIZED_JPEG else "exact",
    )


def _like(pipeline: Pipeline, stages: Sequence[Stage], cut: str, sample: Sample) -> pa.Array:
    """One value of the image column as the cut writes it, of the right size and with nothing in it."""
    if cut == RESIZED_JPEG:
        assert sample.jpeg_bytes is not None
        return pa.array([bytes(round(sample.jpeg_bytes))], pa.binary())
    if cut == RESIZED:
        side = pipeline.image_size
        return pa.array([ppm(np.zeros((side, side, 3), np.uint8))], pa.binary())
    shape = next(stage.shape for stage in stages if stage.name == cut)
    values = np.zeros((1, *shape), pipeline.dtype)
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), shape[0])
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """What a Parquet file of such values takes: sizes do not depend on the values, as nothing is compressed."""

    file_bytes: float
    group_bytes: float
    row_bytes: float

    @classmethod
    def of(cls, one: pa.Array, sample: Sample) -> _Column:
        written = with_images(sample.schema, sample.column, one.type)
        schema = pa.schema([_nullable(field) for field in written], metadata=written.metadata)

        def size(*groups: int) -> int:
            memory = io.BytesIO()
            with pq.ParquetWriter(memory, schema, **WRITER_OPTIONS) as writer:
                for rows in groups:
                    columns = [
                        _repeated(one, rows) if field.name == sample.column else pa.nulls(rows, field.type)
                        for field in schema
                    ]
                    writer.write_table(pa.table(columns, schema=schema), row_group_size=rows)
            return memory.tell()

        small, large, two = size(8), size(16), size(8, 8)
        row = (large - small) / 8
        group = two - large
        return cls(file_bytes=small - group - 8 * row, group_bytes=group, row_bytes=row)


def _nullable(field: pa.Field) -> pa.Field:
    """The field with room for nulls, also within structs."""
    type_ = pa.struct([_nullable(each) for each in field.type]) if pa.types.is_struct(field.type) else field.type
    return field.with_type(type_).with_nullable(True)


def _repeated(one: pa.Array, rows: int) -> pa.Array:
    if isinstance(one, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(one.type, pa.concat_arrays([one.storage] * rows))
    return pa.concat_arrays([one] * rows)


def _column_bytes(table: pa.Table) -> int:
    """What these columns take in a shard that we write."""
    if not table.num_columns:
        return 0
    memory = io.BytesIO()
    with pq.ParquetWriter(memory, table.schema, **WRITER_OPTIONS) as writer:
        writer.write_table(table, row_group_size=max(table.num_rows, 1))
    group: Any = pq.read_metadata(io.BytesIO(memory.getvalue())).row_group(0)
    return sum(group.column(place).total_compressed_size for place in range(group.num_columns))

"""The reader over real Parquet files: exactly the planned samples, whatever the plan, and the same pixels as by hand."""

from __future__ import annotations

import gc
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datalocal.errors import DatasetError, TaskError
from datalocal.placement.gang import Segment
from datalocal.spec.job import Columns
from datalocal.tasks.model import RowMask
from datalocal.tasks.train.buffers import BatchMemory
from datalocal.tasks.train.order import step_bounds
from datalocal.tasks.train.reader import Pass, RawBatch, ShardReader
from datalocal.training import ShardDataset, to_float


def jpeg(number: int, side: int = 24, **options: Any) -> bytes:
    """A picture that tells its number: brightness by rows of the image."""
    pixels = np.full((side, side, 3), number % 256, np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=95, **options))


def write_shard(
    folder: Path, name: str, groups: Sequence[int], images: Sequence[bytes] | None = None, **columns: Any
) -> int:
    """A shard with these row groups; the label is the row's number. Returns its rows."""
    rows = sum(groups)
    table = pa.table(
        {"image": pa.array(images or [jpeg(i) for i in range(rows)], pa.binary()), "label": range(rows)} | columns
    )
    with pq.ParquetWriter(folder / name, table.schema, compression="none", use_dictionary=False) as writer:
        first = 0
        for size in groups:
            writer.write_table(table.slice(first, size), row_group_size=max(size, 1))
            first += size
    return rows


def reader(folder: Path, *, opened: Counter[str] | None = None, **options: Any) -> ShardReader:
    def open_shard(shard: str, sources: Sequence[str]) -> pa.NativeFile:
        if opened is not None:
            opened[shard] += 1
        return pa.OSFile(str(folder / shard))

    return ShardReader(open_shard, options.pop("columns", Columns()), **{"image_size": 24, "threads": 2} | options)


def read(
    source: ShardReader, segments: Sequence[Segment], masks: Mapping[str, RowMask], steps: int, **options: Any
) -> list[list[tuple[str, int]]]:
    """(shard, row) of every batch; checks that pictures and labels are those of the row."""
    return read_pass(source, pass_of(segments, masks, steps, **options))


def pass_of(segments: Sequence[Segment], masks: Mapping[str, RowMask], steps: int, **options: Any) -> Pass:
    bounds = step_bounds(sum(segment.samples for segment in segments), steps)
    return Pass(segments=segments, masks=masks, bounds=bounds, **{"seed": 5, "epoch": 0, "rank": 0} | options)


def read_pass(source: ShardReader, what: Pass, then: Pass | None = None) -> list[list[tuple[str, int]]]:
    result = []
    for batch in source.batches(what, then):
        result.append([(batch.shards[s], int(r)) for s, r in zip(batch.shard_of, batch.rows, strict=True)])
        if len(batch):
            assert np.array_equal(batch.labels, batch.rows)
            assert np.abs(batch.images[:, 12, 12, 0].astype(int) - batch.rows % 256).max() <= 2
    return result


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, tuple[list[int], npt.NDArray[np.bool_]]], int, int]:
    """Shards with row groups and masks, a number of ranks, a number of steps."""
    shards = {}
    for i in range(draw(st.integers(1, 3))):
        groups = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
        mask = np.array(draw(st.lists(st.booleans(), min_size=sum(groups), max_size=sum(groups))), bool)
        shards[f"part-{i}.parquet"] = (groups, mask)
    return shards, draw(st.integers(1, 4)), draw(st.integers(1, 6))


def divide(shards: Mapping[str, tuple[list[int], npt.NDArray[np.bool_]]], world: int) -> list[list[Segment]]:
    """Selected rows cut into `world` nearly equal runs, splitting row groups: the hardest plan that can be made."""
    pieces: list[tuple[str, int, int]] = []
    for shard, (groups, mask) in shards.items():
        edges = np.concatenate(([0], np.cumsum(groups)))
        pieces += [(shard, g, int(mask[edges[g] : edges[g + 1]].sum())) for g in range(len(groups))]
    total = sum(count for _, _, count in pieces)
    shares: list[list[Segment]] = []
    for rank in range(world):
        lo, hi, first, share = rank * total // world, (rank + 1) * total // world, 0, []
        for shard, group, count in pieces:
            start, stop = max(lo - first, 0), min(hi - first, count)
            if start < stop:
                share.append(Segment(shard=shard, group=group, start=start, stop=stop, sources=()))
            first += count
        shares.append(share)
    return shares


@settings(max_examples=25, deadline=None)
@given(worlds(), st.booleans())
def test_all_ranks_together_use_every_selected_row_once_and_no_other(
    tmp_path_factory: pytest.TempPathFactory,
    world: tuple[dict[str, tuple[list[int], npt.NDArray[np.bool_]]], int, int],
    row_by_row: bool,
) -> None:
    shards, ranks, steps = world
    folder = tmp_path_factory.mktemp("shards")
    for shard, (groups, _) in shards.items():
        write_shard(folder, shard, groups)
    masks = {shard: RowMask(rows=len(mask), packed=np.packbits(mask).tobytes()) for shard, (_, mask) in shards.items()}
    used: Counter[tuple[str, int]] = Counter()
    for rank, share in enumerate(divide(shards, ranks)):
        source = reader(folder)
        batches = read(source, share, masks, steps, rank=rank, row_by_row=row_by_row)
        source.close()
        assert len(batches) == steps
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
        used.update(sample for batch in batches for sample in batch)
    assert used == Counter((shard, int(row)) for shard, (_, mask) in shards.items() for row in np.flatnonzero(mask))


def test_threads_do_not_change_the_order(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", [20, 20, 20, 20, 20])
    whole = [Segment(shard="a", group=g, start=0, stop=20, sources=()) for g in range(5)]
    runs = [read(reader(tmp_path, threads=threads), whole, {}, 7) for threads in (1, 4, 4)]
    assert runs[0] == runs[1] == runs[2]


def test_rows_that_are_dealt_one_by_one_come_from_all_over_the_row_group_and_change_with_the_epoch(
    tmp_path: Path,
) -> None:
    write_shard(tmp_path, "a", [100])
    pieces = [[Segment(shard="a", group=0, start=start, stop=start + 25, sources=())] for start in range(0, 100, 25)]

    def rows(piece: list[Segment], **options: Any) -> set[int]:
        (batch,) = read(reader(tmp_path), piece, {}, 1, **options)
        return {row for _, row in batch}

    dealt = [rows(piece, row_by_row=True) for piece in pieces]
    assert sorted(row for piece in dealt for row in piece) == list(range(100))
    assert all(max(piece) - min(piece) > 60 for piece in dealt)
    assert rows(pieces[0], row_by_row=True, epoch=1) != dealt[0]
    assert rows(pieces[0]) == set(range(25))


def test_a_bad_row_is_named_by_its_number_in_the_row_group_however_few_rows_are_used(tmp_path: Path) -> None:
    images: list[Any] = [jpeg(i) for i in range(20)]
    images[7] = None
    write_shard(tmp_path, "a", [20], images)
    with pytest.raises(TaskError, match="row 7 of the row group has no image bytes"):
        read(reader(tmp_path), [Segment(shard="a", group=0, start=6, stop=9, sources=())], {}, 1)
    (batch,) = read(reader(tmp_path), [Segment(shard="a", group=0, start=8, stop=10, sources=())], {}, 1)
    assert sorted(batch) == [("a", 8), ("a", 9)]


def test_what_is_exchanged_is_opened_apart(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", [4])
    write_shard(tmp_path, "b", [4])
    opened: Counter[str] = Counter()
    apart: Counter[str] = Counter()

    def other(shard: str, sources: Sequence[str]) -> pa.NativeFile:
        apart[shard] += 1
        return pa.OSFile(str(tmp_path / shard))

    share = [Segment(shard=name, group=0, start=0, stop=4, sources=(), exchanged=name == "b") for name in "ab"]
    read(reader(tmp_path, opened=opened, open_exchanged=other), share, {}, 1)
    assert set(opened) == {"a"} and set(apart) == {"b"}, "the footers too"


@pytest.mark.parametrize("start", [1, 4, 9, 10])
def test_a_resumed_epoch_goes_on_in_the_order_of_the_uninterrupted_one(tmp_path: Path, start: int) -> None:
    write_shard(tmp_path, "a", [10] * 8)
    whole = [Segment(shard="a", group=g, start=0, stop=10, sources=()) for g in range(8)]
    full = read(reader(tmp_path), whole, {}, 10)
    opened: Counter[str] = Counter()
    assert read(reader(tmp_path, opened=opened), whole, {}, 10, start_step=start) == full[start:]
    assert opened["a"] <= 1 + 8 - 8 * (start // 5) / 2  # the footer, and no window that is over already


def test_a_row_group_is_read_once_an_epoch_and_a_footer_once(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", [10] * 6)
    opened: Counter[str] = Counter()
    source = reader(tmp_path, opened=opened)
    whole = [Segment(shard="a", group=g, start=0, stop=10, sources=()) for g in range(6)]
    read(source, whole, {}, 9)
    assert opened["a"] == 1 + 6
    read(source, whole, {}, 9, epoch=1)
    assert opened["a"] == 1 + 12


def test_the_next_epochs_first_window_is_fetched_while_this_ones_last_is_in_use(tmp_path: Path) -> None:
    """Also past a validation in between; what comes, and in which order, is as without it, and nothing is read twice."""
    segments = []
    for name in "abc":
        write_shard(tmp_path, name, [6, 6])
        segments += [Segment(shard=name, group=group, start=0, stop=6, sources=()) for group in (0, 1)]
    epochs = [pass_of(segments, {}, 9, epoch=epoch, window_groups=2) for epoch in range(2)]
    checking = pass_of(segments[:2], {}, 3, shuffle=False)
    alone = [read_pass(reader(tmp_path), what) for what in (epochs[0], checking, epochs[1])]

    opened: Counter[str] = Counter()
    source = reader(tmp_path, opened=opened)
    source.prefetch(epochs[0])
    assert source._prefetched is not None and len(source._prefetched._ahead) == 1
    first: list[int] = []
    found = []
    for batch in source.batches(epochs[0], then=epochs[1]):
        found.append([(batch.shards[s], int(r)) for s, r in zip(batch.shard_of, batch.rows, strict=True)])
        first.append(0 if source._prefetched is None else len(source._prefetched._ahead))
    assert first == sorted(first) and first[0] == 0 and first[-1] == 1, "one window, once the last one is in use"
    assert [found, read_pass(source, checking), read_pass(source, epochs[1])] == alone
    assert source._prefetched is None
    footers = len("abc")
    assert sum(opened.values()) == footers + 6 + 2 + 6


def test_what_is_wrong_with_data_fetched_ahead_is_told_when_they_are_used(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", [4])
    good = pass_of([Segment(shard="a", group=0, start=0, stop=4, sources=())], {}, 2)
    bad = pass_of([Segment(shard="a", group=0, start=0, stop=5, sources=())], {}, 2, epoch=1)
    source = reader(tmp_path)
    assert sum(map(len, read_pass(source, good, then=bad))) == 4
    with pytest.raises(TaskError, match="has 4 of the 5 rows that were planned"):
        read_pass(source, bad)


def test_more_steps_than_samples_give_empty_batches(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", [3])
    batches = read(reader(tmp_path), [Segment(shard="a", group=0, start=0, stop=3, sources=())], {}, 5)
    assert sorted(map(len, batches)) == [0, 0, 1, 1, 1]
    assert read(reader(tmp_path), [], {}, 4) == [[]] * 4


def test_a_batch_stays_as_it_is_while_somebody_holds_it_and_its_memory_is_used_again_after(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", [40])
    source = reader(tmp_path)
    what = pass_of([Segment(shard="a", group=0, start=0, stop=40, sources=())], {}, 20)
    held = [(batch, batch.images.copy()) for batch in source.batches(what)]
    assert all(np.array_equal(batch.images, copy) for batch, copy in held)
    del held
    gc.collect()
    assert source._memory is not None
    before = len(source._memory)
    again = source.batches(what)
    tensors = [torch.from_numpy(batch.images).permute(0, 3, 1, 2)[0, 0, 0, 0] for batch in again]
    assert len({int(t) for t in tensors}) > 10, "a view of a tensor holds the memory, too"
    del tensors
    for _ in source.batches(what):
        pass
    assert len(source._memory) == before


def test_unused_memory_is_reused_at_once() -> None:
    memory = BatchMemory((4,), np.dtype(np.uint8))
    first = memory.take()
    assert memory.take() is not first
    address = first.ctypes.data
    del first
    assert memory.take().ctypes.data == address


def one(folder: Path, data: bytes, size: int, **options: Any) -> npt.NDArray[np.uint8]:
    """The batch image that the reader makes of one encoded image."""
    write_shard(folder, "one", [1], [data])
    segment = Segment(shard="one", group=0, start=0, stop=1, sources=())
    source = reader(folder, image_size=size, **options)
    (batch,) = source.batches(pass_of([segment], {}, 1))
    image: npt.NDArray[np.uint8] = batch.images[0]
    return image


def photo(height: int, width: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 255 // height, x * 255 // width, (x + y) * 127 // (height + width)], -1).astype(np.uint8)


def test_an_image_that_is_large_enough_is_cropped_at_its_centre(tmp_path: Path) -> None:
    pixels = photo(60, 90)
    data = simplejpeg.encode_jpeg(pixels, quality=100, colorsubsampling="444")
    expected = simplejpeg.decode_jpeg(data)[5:55, 20:70]
    assert np.array_equal(one(tmp_path, data, 50), expected)


@pytest.mark.parametrize(("height", "width"), [(30, 45), (120, 180), (500, 400)])
def test_an_image_that_is_too_small_or_much_too_large_is_resized_first(tmp_path: Path, height: int, width: int) -> None:
    image = one(tmp_path, simplejpeg.encode_jpeg(photo(height, width), quality=100, colorsubsampling="444"), 50)
    scale = 50 / min(height, width)
    inside = Image.fromarray(photo(height, width)).resize(
        (round(width * scale), round(height * scale)), Image.Resampling.BILINEAR
    )
    top, left = (inside.height - 50) // 2, (inside.width - 50) // 2
    expected = np.asarray(inside)[top : top + 50, left : left + 50].astype(int)
    assert np.abs(image.astype(int) - expected).mean() < 4


def test_orientation_from_exif_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    memory = io.BytesIO()
    Image.fromarray(photo(50, 50)).save(memory, "JPEG", quality=100, subsampling=0, exif=exif)
    turned = one(tmp_path, memory.getvalue(), 50)
    assert np.abs(turned.astype(int) - np.rot90(photo(50, 50), -1).astype(int)).mean() < 2


def test_a_png_takes_the_slow_path_and_gives_exact_pixels(tmp_path: Path) -> None:
    memory = io.BytesIO()
    Image.fromarray(photo(50, 50)).save(memory, "PNG")
    assert np.array_equal(one(tmp_path, memory.getvalue(), 50), photo(50, 50))


def test_a_damaged_image_stops_training_and_names_shard_and_row(tmp_path: Path) -> None:
    images = [jpeg(i) for i in range(6)]
    images[4] = images[4][: len(images[4]) // 2]
    write_shard(tmp_path, "part-7", [3, 3], images)
    whole = [Segment(shard="part-7", group=g, start=0, stop=3, sources=()) for g in range(2)]
    with pytest.raises(TaskError, match=r"row 4 of part-7") as caught:
        read(reader(tmp_path, where=("node2", "train")), whole, {}, 2)
    assert caught.value.node == "node2"


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="row 0 of one"):
        one(tmp_path, jpeg(1, side=64), 24, max_pixels=1000)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", [2])
    with pytest.raises(TaskError, match=r"no column 'photo'; its columns are image, label"):
        read(
            reader(tmp_path, columns=Columns(image="photo")),
            [Segment(shard="a", group=0, start=0, stop=2, sources=())],
            {},
            1,
        )


def batch_of(folder: Path, table: pa.Table, columns: Columns, **options: Any) -> RawBatch:
    pq.write_table(table, folder / "t")
    segment = Segment(shard="t", group=0, start=0, stop=len(table), sources=())
    source = reader(folder, columns=columns, **options)
    (batch,) = source.batches(pass_of([segment], {}, 1, shuffle=False))
    return batch


def test_a_struct_of_bytes_and_path_is_read_in_either_order(tmp_path: Path) -> None:
    for names in (("bytes", "path"), ("path", "bytes")):
        rows = [{name: jpeg(9) if name == "bytes" else "x.jpg" for name in names} for _ in range(3)]
        batch = batch_of(tmp_path, pa.table({"image": rows, "label": [0, 1, 2]}), Columns())
        assert batch.images.shape == (3, 24, 24, 3)
        assert abs(int(batch.images[1, 5, 5, 1]) - 9) <= 2


def test_fixed_size_lists_come_as_arrays_without_decoding(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    table = pa.table({"features": pa.FixedSizeListArray.from_arrays(values.ravel(), 3), "label": [0, 1, 0, 1]})
    batch = batch_of(tmp_path, table, Columns(image="features"))
    assert batch.images.dtype == np.float32
    assert np.array_equal(batch.images, values)


def test_string_labels_are_numbered_by_the_catalogs_list(tmp_path: Path) -> None:
    table = pa.table({"image": [jpeg(1)] * 3, "label": ["cat", "ant", "bee"]})
    assert batch_of(tmp_path, table, Columns(), labels=("ant", "bee", "cat")).labels.tolist() == [2, 0, 1]
    with pytest.raises(TaskError, match="label 'cat', which the catalog does not list"):
        batch_of(tmp_path, table, Columns(), labels=("ant", "bee"))


def test_integer_labels_are_looked_up_by_their_text_or_are_positions_of_names(tmp_path: Path) -> None:
    table = pa.table({"image": [jpeg(1)] * 3, "label": [10, 2, 7]})
    assert batch_of(tmp_path, table, Columns(), labels=("2", "7", "10")).labels.tolist() == [2, 0, 1]
    with pytest.raises(TaskError, match="label 7"):
        batch_of(tmp_path, table, Columns(), labels=("2", "10"))
    named = pa.table({"image": [jpeg(1)] * 2, "label": [1, 0]})
    assert batch_of(tmp_path, named, Columns(), labels=("no", "yes")).labels.tolist() == [1, 0]


def test_without_an_image_size_all_images_keep_theirs_and_another_one_is_refused(tmp_path: Path) -> None:
    same = pa.table({"image": [jpeg(1, 20), jpeg(2, 20)], "label": [0, 1]})
    assert batch_of(tmp_path, same, Columns(), image_size=None).images.shape == (2, 20, 20, 3)
    other = pa.table({"image": [jpeg(1, 20), jpeg(2, 30)], "label": [0, 1]})
    with pytest.raises(TaskError, match="row 1 of t is 30x30, the first one was 20x20"):
        batch_of(tmp_path, other, Columns(), image_size=None)


def test_the_dataset_gives_every_sample_once_over_ranks_and_loader_workers(tmp_path: Path) -> None:
    write_shard(tmp_path, "a.parquet", [7, 5, 9])
    write_shard(tmp_path, "b.parquet", [4])
    seen: Counter[int] = Counter()
    lengths = set()
    for rank in range(3):
        dataset = ShardDataset(tmp_path, batch=4, image_size=24, rank=rank, world=3)
        batches = list(dataset)
        lengths.add((len(batches), len(dataset)))
        seen.update(int(label) for _, labels in batches for label in labels)
    assert lengths == {(3, 3)}
    assert seen == Counter([*range(21), *range(4)])
    loader = torch.utils.data.DataLoader(ShardDataset(tmp_path, batch=4, image_size=24), batch_size=None, num_workers=2)
    assert sorted(int(label) for _, labels in loader for label in labels) == sorted([*range(21), *range(4)])


def test_the_dataset_repeats_its_order_and_changes_it_with_the_epoch(tmp_path: Path) -> None:
    write_shard(tmp_path, "a.parquet", [20, 20])
    dataset = ShardDataset(tmp_path / "a.parquet", batch=8, image_size=24, seed=3)
    first, again = ([labels.tolist() for _, labels in dataset] for _ in range(2))
    dataset.set_epoch(1)
    assert first == again != [labels.tolist() for _, labels in dataset]
    with pytest.raises(DatasetError, match="nothing"):
        ShardDataset(tmp_path / "nothing", batch=8)


def test_images_become_floats_between_0_and_1_in_the_order_of_torch() -> None:
    pixels = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 3)
    floats = to_float(pixels)
    assert floats.shape == (2, 3, 3, 4)
    assert floats.is_contiguous()
    assert torch.equal(floats, pixels.permute(0, 3, 1, 2) / 255)
    assert torch.equal(to_float(pixels, channels_last=True), floats)
    assert to_float(torch.ones(2, 5, dtype=torch.float64)).dtype == torch.float32


def test_an_image_of_exactly_the_size_is_decoded_into_its_place(tmp_path: Path) -> None:
    data = simplejpeg.encode_jpeg(photo(50, 50), quality=90)
    assert np.array_equal(one(tmp_path, data, 50), simplejpeg.decode_jpeg(data))

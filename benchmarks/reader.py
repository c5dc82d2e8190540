"""Images per second of datalocal's reader against other loaders, on one core, with the same decoder and the same crop.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install torch webdataset litdata datasets . '.[demo]'
    PYTHONPATH=. /tmp/peers/bin/python -m benchmarks.reader [--rounds 20] [--images 2000] [--core 0] [--clock cpu]

Every loader reads the same 256x256 JPEG crops of real photographs in a format of its own, shuffled the way its users do,
decodes them with simplejpeg (same arguments), crops 224x224 from the centre and yields uint8 batches of 64 as torch tensors.
All run in one process that is bound to one core, in turns; every pass must yield every image exactly once. `ceiling` is the
same decode and crop into one batch from images that lie in memory already: what a reader that costs nothing would reach.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.pairs import command, machine, ratio, versions

SIDE, CROP, BATCH, GROUP = 256, 224, 64, 250
Pass = Callable[[int], Iterator[tuple[Any, Any]]]
"""A pass over the data with this epoch number: yields (images, labels)."""


def decode(data: Any) -> npt.NDArray[np.uint8]:
    """What every peer does with an image."""
    import simplejpeg

    edge = (SIDE - CROP) // 2
    crop: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")[edge : edge + CROP, edge : edge + CROP]
    return crop


def photographs() -> list[npt.NDArray[np.uint8]]:
    """The photographs that lie in wheels and are large enough."""
    import matplotlib.cbook
    import PIL.Image
    import skimage.data
    import sklearn.datasets

    found = [*sklearn.datasets.load_sample_images().images]
    found += [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    found.append(np.asarray(PIL.Image.open(matplotlib.cbook._get_data_path("sample_data/grace_hopper.jpg"))))
    return [np.ascontiguousarray(image[..., :3]) for image in found if min(image.shape[:2]) >= SIDE]


def crops(count: int) -> list[bytes]:
    """`count` JPEG crops of the photographs."""
    import simplejpeg

    photos, draw, made = photographs(), np.random.default_rng(0), []
    for i in range(count):
        photo = photos[i % len(photos)]
        top, left = (int(draw.integers(0, photo.shape[axis] - SIDE + 1)) for axis in (0, 1))
        crop = np.ascontiguousarray(photo[top : top + SIDE, left : left + SIDE])
        made.append(bytes(simplejpeg.encode_jpeg(crop, quality=90, colorsubsampling="420")))
    return made


def ours(folder: Path, images: list[bytes]) -> Pass:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from datalocal.training import ShardDataset

    per_shard = 4 * GROUP
    for start in range(0, len(images), per_shard):
        chunk = images[start : start + per_shard]
        table = pa.table({"image": pa.array(chunk, pa.binary()), "label": range(start, start + len(chunk))})
        path = folder / f"part-{start:06d}.parquet"
        pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=GROUP)
    dataset = ShardDataset(folder, batch=BATCH, image_size=CROP, threads=1)

    def run(epoch: int) -> Iterator[tuple[Any, Any]]:
        dataset.set_epoch(epoch)
        return iter(dataset)

    return run


def webdataset(folder: Path, images: list[bytes]) -> Pass:
    import torch
    import webdataset as wds

    path = folder / "crops.tar"
    with tarfile.open(path, "w") as tar:
        for i, data in enumerate(images):
            for name, content in ((f"{i:06d}.jpg", data), (f"{i:06d}.cls", str(i).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    def sample(pair: tuple[bytes, bytes]) -> tuple[Any, int]:
        return torch.from_numpy(decode(pair[0])), int(pair[1])

    def run(epoch: int) -> Iterator[tuple[Any, Any]]:
        dataset = (
            wds.WebDataset(str(path), shardshuffle=False, seed=epoch).shuffle(1000).to_tuple("jpg", "cls").map(sample)
        )
        return iter(torch.utils.data.DataLoader(dataset, batch_size=BATCH))

    return run


def _identity(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


def litdata(folder: Path, images: list[bytes]) -> Pass:
    import litdata as ld
    import torch

    samples = [{"image": data, "label": i} for i, data in enumerate(images)]
    ld.optimize(_identity, samples, str(folder / "chunks"), chunk_bytes="8MB", num_workers=1, verbose=False)

    class Decoded(ld.StreamingDataset):  # type: ignore[misc]  # litdata is not typed here
        def __getitem__(self, index: Any) -> tuple[Any, int]:
            sample = super().__getitem__(index)
            return torch.from_numpy(decode(sample["image"])), sample["label"]

    dataset = Decoded(str(folder / "chunks"), shuffle=True)

    def run(epoch: int) -> Iterator[tuple[Any, Any]]:
        return iter(ld.StreamingDataLoader(dataset, batch_size=BATCH))

    return run


def hugging_face(folder: Path, images: list[bytes]) -> Pass:
    import datasets
    import torch

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Value("binary"), "label": datasets.Value("int64")})
    columns = {"image": images, "label": list(range(len(images)))}
    datasets.Dataset.from_dict(columns, features).save_to_disk(folder / "arrow")
    dataset = datasets.load_from_disk(folder / "arrow")

    def transform(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [torch.from_numpy(decode(data)) for data in rows["image"]], "label": rows["label"]}

    decoded = dataset.with_transform(transform)

    def run(epoch: int) -> Iterator[tuple[Any, Any]]:
        loader = torch.utils.data.DataLoader(decoded, batch_size=BATCH, shuffle=True)
        return ((batch["image"], batch["label"]) for batch in loader)

    return run


def files(folder: Path, images: list[bytes]) -> Pass:
    import torch

    paths = [folder / f"{i:06d}.jpg" for i in range(len(images))]
    for path, data in zip(paths, images, strict=True):
        path.write_bytes(data)

    class Files(torch.utils.data.Dataset[tuple[Any, int]]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return torch.from_numpy(decode(paths[index].read_bytes())), index

    def run(epoch: int) -> Iterator[tuple[Any, Any]]:
        return iter(torch.utils.data.DataLoader(Files(), batch_size=BATCH, shuffle=True))

    return run


def ceiling(folder: Path, images: list[bytes]) -> Pass:
    import simplejpeg
    import torch

    memory, edge = np.empty(SIDE * SIDE * 3, np.uint8), (SIDE - CROP) // 2
    batch = np.empty((BATCH, CROP, CROP, 3), np.uint8)
    held = [np.frombuffer(data, np.uint8) for data in images]

    def run(epoch: int) -> Iterator[tuple[Any, Any]]:
        order = np.random.default_rng(epoch).permutation(len(held)).tolist()
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            for k, i in enumerate(chosen):
                image = simplejpeg.decode_jpeg(held[i], "RGB", buffer=memory)
                batch[k] = image[edge : edge + CROP, edge : edge + CROP]
            yield torch.from_numpy(batch[: len(chosen)]), torch.tensor(chosen)

    return run


CONTENDERS: dict[str, Callable[[Path, list[bytes]], Pass]] = {
    "datalocal": ours,
    "ceiling": ceiling,
    "webdataset": webdataset,
    "litdata": litdata,
    "datasets": hugging_face,
    "files": files,
}


def images_per_second(run: Pass, epoch: int, images: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """One pass; fails unless it yields every image exactly once, as whole uint8 crops."""
    begin = clock()
    labels: list[int] = []
    for batch, label in run(epoch):
        assert batch.shape[1:] == (CROP, CROP, 3), batch.shape
        assert batch.dtype.is_floating_point is False
        labels += label.tolist()
    seconds = clock() - begin
    assert sorted(labels) == list(range(images)), f"{len(set(labels))} of {images} images, {len(labels)} in all"
    return images / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, on a busy machine"
    )
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    os.sched_setaffinity(0, {options.core})
    import torch

    torch.set_num_threads(1)
    images = crops(options.images)
    folder = Path(tempfile.mkdtemp(prefix="datalocal-reader-"))
    try:
        passes: dict[str, Pass] = {}
        for name, make in CONTENDERS.items():
            (folder / name).mkdir()
            passes[name] = make(folder / name, images)
            images_per_second(passes[name], 0, len(images))  # warm caches, and check that it yields everything
        measured: dict[str, list[float]] = {name: [] for name in passes}
        for number in range(1, options.rounds + 1):
            for name in random.Random(number).sample(list(passes), len(passes)):
                measured[name].append(images_per_second(passes[name], number, len(images), clock))
    finally:
        shutil.rmtree(folder)
    print(f"$ {command()}\n{machine()}, bound to core {options.core}")
    print(versions("torch", "pyarrow", "simplejpeg", "webdataset", "litdata", "datasets"))
    size = sum(map(len, images)) / len(images)
    print(
        f"{len(images)} crops of {SIDE}x{SIDE}, {size / 1000:.1f} kB each; batches of {BATCH}, crop {CROP}; {options.clock} clock\n"
    )
    for name, rates in sorted(measured.items(), key=lambda entry: -float(np.median(entry[1]))):
        against = "" if name == "datalocal" else f"   datalocal / {name}: {ratio(measured['datalocal'], rates)}"
        print(f"{name:<12} {np.median(rates):7.0f} images/s{against}")
    best = max(
        (name for name in measured if name not in ("datalocal", "ceiling")), key=lambda name: np.median(measured[name])
    )
    print(f"\nbest peer: {best}: {ratio(measured['datalocal'], measured[best])}; wanted: at least 1.1")
    print(f"ceiling: {ratio(measured['datalocal'], measured['ceiling'])}; wanted: at least 0.95")


if __name__ == "__main__":
    main()

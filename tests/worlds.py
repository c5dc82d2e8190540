"""Small worlds for tests: a cluster config, a data set of real JPEGs, a job with its own code. Everything is made here."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import yaml

from datalocal.ingest import ingest
from datalocal.launch import embedded
from datalocal.spec.cluster import Cluster, load_cluster
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.server import StoreServer

CLASSES = 3


def cluster_file(folder: Path, *, storage: int = 4, compute: int = 1, replication: int = 2, **extra: Any) -> Path:
    """A cluster config with `storage` nodes in two racks and `compute` central nodes."""
    nodes = [
        {"name": f"node{i + 1}", "rack": f"rack{i * 2 // storage + 1}", "role": "storage", "cores": 1}
        for i in range(storage)
    ]
    nodes += [{"name": f"central{i + 1}", "rack": "central", "role": "compute", "cores": 1} for i in range(compute)]
    per_node = extra.pop("per_node", {})
    for node in nodes:
        node.update(per_node.get(node["name"], {}))
    content = {
        "name": "small",
        "kind": "embedded",
        "replication": replication,
        "block_bytes": 1 << 16,
        "free_disk_floor_bytes": 0,
        "nodes": nodes,
        **extra,
    }
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def picture(seed: int, side: int = 64, label: int = 0) -> bytes:
    """A JPEG whose brightness tells its label, with enough texture that it has a size."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 60, (side, side, 3)) + 60 * label
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.astype(np.uint8)), quality=80)
    return encoded


def image_folder(folder: Path, count: int = 120, side: int = 64) -> Path:
    """`count` pictures, class per folder."""
    for number in range(count):
        label = number % CLASSES
        target = folder / f"class{label}" / f"{number:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture(number, side, label))
    return folder


CODE = textwrap.dedent(
    """
    import cv2


    def shrink(images, device, *, side=32):
        return [cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR) for image in images]


    def tiny(classes, width=8):
        import torch  # takes seconds of a core in every process, and only training needs it

        return torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(),
            torch.nn.Linear(width * 16, classes),
        )
    """
)


def job_file(
    folder: Path,
    *,
    dataset: str = "pictures",
    preprocess: bool | dict[str, Any] = True,
    train: bool | dict[str, Any] = True,
    **extra: Any,
) -> Path:
    """A job with a transform and a model in its own folder; a mapping adds to a stage's keys, False leaves the stage out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "code_of_job.py").write_text(CODE, encoding="utf-8")
    content: dict[str, Any] = {"name": "small-job", "dataset": dataset, "seed": 7, **extra}
    if preprocess is not False:
        content["preprocess"] = {"transform": "code_of_job:shrink", "output": f"{dataset}-small", "batch": 8}
        content["preprocess"] |= preprocess if isinstance(preprocess, dict) else {}
    if train is not False:
        content["train"] = {
            "model": "code_of_job:tiny",
            "epochs": 2,
            "batch": 16,
            "image_size": 32,
            "validation": {"fraction": 0.25},
            "checkpoint_every_steps": 2,
            "device": "cpu",
        }
        content["train"] |= train if isinstance(train, dict) else {}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def fill(home: Path, cluster_path: Path, source: Path, dataset: str = "pictures") -> Cluster:
    """Ingest `source` into the folders of a cluster that is down, through real stores, and leave it down."""
    cluster = load_cluster(cluster_path)
    servers = []
    token = "t" * 32
    try:
        for node in cluster.nodes:
            root = embedded.node_root(home, cluster.name, node.name)
            root.mkdir(parents=True, exist_ok=True)
            servers.append(StoreServer(node=node.name, root=root, token=token))
        stores = {node.name: server.location for node, server in zip(cluster.nodes, servers, strict=True)}
        store = Store(node="head", root=None, stores=stores, token=token, counter=ByteCounter())
        try:
            ingest(source, dataset, store, cluster, alive=[node.name for node in cluster.nodes])
        finally:
            store.close()
    finally:
        for server in servers:
            server.close()
    return cluster

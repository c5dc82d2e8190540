"""The central baselines for real, in one process: what is cached, and a storage array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import worlds
from tests.test_runner_inline import arm, moved, run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One run over 60 pictures on 4 storage nodes, a compute node and an array; two epochs."""
    base = tmp_path_factory.mktemp("central")
    here = worlds.cluster_file(base)
    content = yaml.safe_load(here.read_text(encoding="utf-8"))
    content["nodes"].append({"name": "array1", "rack": "array", "role": "array"})
    here.write_text(yaml.safe_dump(content), encoding="utf-8")
    worlds.fill(base / "home", here, worlds.image_folder(base / "images", count=60, side=160))
    what = worlds.job_file(base / "job", policy_options={"cached_share": 0.5}, train={"validation": None})
    code, found = run(base / "home", what, here, "central-nas", "central-cached", "san")
    assert code == 0, found
    return found, base / "home"


def read(arm: dict[str, Any], stage: str) -> dict[tuple[str, str], int]:
    """Input bytes by (source, destination)."""
    found: dict[tuple[str, str], int] = {}
    for row in arm["bytes"]:
        if row["class"] == "input" and row["stage"] == stage:
            key = (row["source"], row["destination"])
            found[key] = found.get(key, 0) + row["bytes"]
    return found


def test_all_arms_do_the_same_work(report: tuple[dict[str, Any], Path]) -> None:
    for found in report[0]["arms"]:
        preprocess, train = found["stages"]
        assert preprocess["images"] == 60
        assert train["samples"]["seen"] == train["samples"]["expected"] == 120


def test_the_cached_half_is_written_to_the_compute_node_once_and_the_rest_is_read_in_every_epoch(
    report: tuple[dict[str, Any], Path],
) -> None:
    plain, cached = arm(report[0], "central-nas"), arm(report[0], "central-cached")
    assert moved(cached, "input", "preprocess") == moved(plain, "input", "preprocess") > 0
    assert moved(cached, "input", "train") == pytest.approx(moved(plain, "input", "train") / 2, rel=0.2)
    assert moved(cached, "output") == pytest.approx(moved(plain, "output") / 2, rel=0.2)
    own = read(cached, "train")["central1", "central1"]
    assert own + moved(cached, "input", "train") == pytest.approx(moved(plain, "input", "train"), rel=0.05)
    assert {row["reason"] for row in cached["not_local"] if row["stage"] == "train"} == {
        "no replica on a compute node: 50% of the shards are not cached"
    }


def test_san_is_loaded_once_and_everything_is_read_from_and_written_to_the_array(
    report: tuple[dict[str, Any], Path],
) -> None:
    found, home = report
    array = arm(found, "san")
    shards = {path.name: path.stat().st_size for path in home.glob(".clusters/small/nodes/*/data/pictures/*.parquet")}
    assert moved(array, "staging") == sum(shards.values())
    assert set(read(array, "preprocess")) == set(read(array, "train")) == {("array1", "central1")}
    assert moved(array, "input", "preprocess") == moved(arm(found, "central-nas"), "input", "preprocess")
    assert {(row["source"], row["destination"]) for row in array["bytes"] if row["class"] == "output"} == {
        ("central1", "array1")
    }
    assert not list(home.glob(".clusters/small/nodes/array1/data/staged/*/*/pictures/*")), "scratch copies are deleted"


def test_a_job_that_only_trains_keeps_a_share_of_the_data_set(tmp_path: Path) -> None:
    """Three epochs: what is kept crosses the network once, the rest three times, and every sample is used once in each."""
    here = worlds.cluster_file(tmp_path, compute=2)
    home = tmp_path / "home"
    worlds.fill(home, here, worlds.image_folder(tmp_path / "images", count=120, side=160))
    what = worlds.job_file(
        tmp_path / "job",
        preprocess=False,
        policy_options={"cached_share": 0.5},
        train={"epochs": 3, "validation": {"column": "label", "value": 1}},
    )
    code, found = run(home, what, here, "central-nas", "central-cached")
    assert code == 0, found
    plain, cached = arm(found, "central-nas"), arm(found, "central-cached")
    (train,) = cached["stages"]
    assert train["samples"]["seen"] == train["samples"]["expected"] == 3 * 80
    assert train["samples"]["repeated"] == train["samples"]["dropped"] == 0
    (staging,) = cached["staging"]
    shards = {path.name: path.stat().st_size for path in home.glob(".clusters/small/nodes/*/data/pictures/*.parquet")}
    copied = {row["shard"] for row in cached["not_local"]}
    kept = {name: size for name, size in shards.items() if name not in copied}
    assert len(kept) == len(shards) // 2 == staging["tasks"]["total"]
    assert moved(cached, "staging") == sum(kept.values())
    own = sum(
        row["bytes"] for row in cached["bytes"] if row["class"] == "input" and row["source"] == row["destination"]
    )
    assert own > 0, "the kept shards are read from the compute nodes' own disks"
    assert own + moved(cached, "input") == pytest.approx(moved(plain, "input"), rel=0.05)
    assert moved(cached, "input") == pytest.approx(moved(plain, "input") / 2, rel=0.25)
    assert not list(home.glob(".clusters/small/nodes/*/data/staged/*/*/pictures/*")), "copies are deleted at the end"

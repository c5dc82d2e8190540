"""`plan`: what a person reads of it that a script does not have to work out, on a cluster of real folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from datalocal.cli import main
from datalocal.estimate.rates import declared
from datalocal.report.planned import to_json
from datalocal.report.schema import PLAN, validate
from datalocal.spec.cluster import Cluster
from tests.test_estimate_plans import plans_of, with_rates
from tests.test_placement_policies import catalog, cluster, job
from tests.worlds import cluster_file, fill, image_folder, job_file

TIGHT = ("optimal-makespan", "hdfs-greedy", "data-local")
PREPROCESS = {"transform": "m:f", "output": "small"}


def uneven(**changes: Any) -> Cluster:
    """node1 is four times as fast as node0; the shards lie on node0 alone in the tests below."""
    content = cluster(2, compute=0).model_dump()
    content["nodes"][1]["cores"] = 4
    return Cluster.model_validate(content | changes)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 shards with one replica each, five on each of four nodes; node2 has four cores, node3 two."""
    folder = tmp_path_factory.mktemp("tight")
    file = cluster_file(folder, replication=1, per_node={"node2": {"cores": 4}, "node3": {"cores": 2}})
    fill(folder / "home", file, image_folder(folder / "pictures", 400))
    job_file(folder / "job", policies=list(TIGHT))
    return folder


def planned(world: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setenv("DATALOCAL_HOME", str(world / "home"))
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(world / "job" / "job.yaml"), "--cluster", str(world / "cluster.yaml"), *words])
    assert ended.value.code == 0


def test_the_proof_is_printed_once_for_arms_that_the_same_sums_bound(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(world, monkeypatch, "--json")
    content = json.loads(capsys.readouterr().out)
    validate(content, PLAN)
    bounds = {arm["policy"]: arm["local_share_bound"] for arm in content["arms"]}
    assert bounds["data-local"] == 1 and bounds["optimal-makespan"] == bounds["hdfs-greedy"] < 1
    (entry,) = content["proofs"]
    assert entry["policies"] == ["optimal-makespan", "hdfs-greedy"] and entry["stage"] == "preprocess"
    planned(world, monkeypatch)
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("proof: all replicas of") == 1
    for sentence in entry["sentences"]:
        assert sentence in out
    proof = next(arm["certificate"] for arm in content["arms"] if arm["policy"] == "optimal-makespan")
    shards, capacity, away = (int(n) for n in re.search(r"(\d+) - (\d+) = (\d+) cannot", out).groups())  # type: ignore[union-attr]
    assert (shards, capacity, away) == (proof["shards"], proof["capacity"], proof["non_local_at_least"])
    assert away == shards - capacity > 0
    assert "within the time that a core takes for 2.75 shards" in out, "without rates nobody knows seconds"
    assert "a replica of these 6 shards on a node outside those 2" in out


def test_arms_of_other_makespans_have_proofs_of_their_own_and_rates_make_seconds_of_them() -> None:
    found = catalog([(10, ("node0",))] * 20, ["node0", "node1"])
    what = job(preprocess=PREPROCESS)
    here = with_rates(uneven())
    plans = plans_of(what, found, here, "optimal-makespan", "random", rates=declared(here, source="here"))
    content = to_json(plans, what, found, here)
    by_policy = {policy: entry for entry in content["proofs"] for policy in entry["policies"]}
    assert set(by_policy) == {"optimal-makespan", "random"} and len(content["proofs"]) == 2
    for policy, entry in by_policy.items():
        certificate = next(arm["certificate"] for arm in content["arms"] if arm["policy"] == policy)
        (proof,) = [line for line in entry["sentences"] if line.startswith("proof")]
        assert f"on 1 node (node0) that finishes {certificate['capacity']} within " in proof
        assert f"20 - {certificate['capacity']} = {certificate['non_local_at_least']} cannot" in proof
        assert re.search(r"within \d+\.\d s", proof)


def test_ranks_are_not_told_to_take_more_slots() -> None:
    found = catalog([(10, ("node0",))] * 6, ["node0", "node1"])
    what = job(train={"model": "m:net"})
    content = to_json(plans_of(what, found, uneven(), "random"), what, found, uneven())
    (entry,) = content["proofs"]
    told = " ".join(entry["sentences"])
    assert "a rank takes for" in told and "with a shard more on this rank, up to 1 more can be local" in told
    assert "slot" not in told


def test_slack_of_a_job_buys_local_shards_with_time() -> None:
    found = catalog([(10, ("node0",))] * 20, ["node0", "node1"])
    local = []
    for slack in (0.0, 0.5, 4.0):
        what = job(preprocess=PREPROCESS, policy_options={"makespan_slack": slack})
        (arm,) = to_json(plans_of(what, found, uneven(), "optimal-makespan"), what, found, uneven())["arms"]
        assert arm["makespan"] <= 4 * (1 + slack) and arm["gap"] == 0
        local.append(arm["local_share"])
    assert local == [4 / 20, 6 / 20, 1.0]

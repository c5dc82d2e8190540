"""`simulate`: placements of clusters that do not exist, with their bound, for people and for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.cli import main
from datalocal.estimate.bottleneck import bottleneck, sources
from datalocal.placement import synthetic
from datalocal.placement.family import placing
from datalocal.placement.model import Tier
from datalocal.report.schema import PLAN, validate


def simulated(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, what was printed, what was told beside it)"""
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *words])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def arms(out: str) -> dict[str, dict[str, Any]]:
    found = json.loads(out)
    validate(found, PLAN)
    assert set(found["verdict"]) == {"choice", "sentence", "because"}
    return {arm["policy"]: arm for arm in found["arms"]}


def test_random_placement_is_local_by_chance_and_no_policy_passes_the_bound(capsys: pytest.CaptureFixture[str]) -> None:
    names = "random,round-robin,hdfs-greedy,rack-aware,optimal-bytes,optimal-makespan"
    code, out, err = simulated(
        capsys, "--shards", "20000", "--nodes", "200", "--layout", "three-speeds", "--policies", names, "--json"
    )
    assert code == 0, err
    found = arms(out)
    assert found["random"]["local_share"] == pytest.approx(3 / 200, abs=0.005)
    for policy, arm in found.items():
        assert set(arm) >= {"origin", "seconds", "bytes", "joules", "makespan", "certificate", "plan_seconds"}
        assert arm["local_share"] <= arm["local_share_bound"] + 1e-12, policy
        assert arm["gap"] >= 0
        assert sum(row["bytes"] for row in arm["bytes"]) == 20_000 * synthetic.BLOCK_BYTES
        assert [row["joules"] for row in arm["joules"]] == [None]
    assert found["optimal-bytes"]["gap"] == 0


def test_a_tight_ring_is_proved_by_two_sums(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--shards",
        "300",
        "--nodes",
        "60",
        "--replication",
        "2",
        "--layout",
        "ring",
        "--policies",
        "optimal-bytes",
    ]
    code, out, err = simulated(capsys, *words, "--json")
    assert code == 0, err
    arm = arms(out)["optimal-bytes"]
    proof = arm["certificate"]
    assert proof["non_local_at_least"] == proof["shards"] - proof["capacity"] > 0
    assert arm["local_share"] == arm["local_share_bound"] == 1 - proof["non_local_at_least"] / 300
    code, out, _ = simulated(capsys, *words)
    assert code == 0
    assert f"{proof['shards']} - {proof['capacity']} = {proof['non_local_at_least']}" in " ".join(out.split())


def test_two_tables_are_placed_and_the_assignment_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, nodes, out_file = (tmp_path / name for name in ("shards.parquet", "nodes.parquet", "tasks.parquet"))
    held = [["a", "b"], ["b"], ["c"], ["c", "a"]]
    pq.write_table(
        pa.table(
            {
                "shard": ["s0", "s1", "s2", "s3"],
                "bytes": [10, 20, 30, 40],
                "rows": [1, 1, 1, 1],
                "replicas": pa.array(held, pa.list_(pa.string())),
            }
        ),
        shards,
    )
    pq.write_table(
        pa.table(
            {
                "node": ["a", "b", "c"],
                "rack": ["r1", "r1", "r2"],
                "slots": [2, 1, 1],
                "speed": [1.0, 1.0, 1.0],
                "role": ["storage"] * 3,
            }
        ),
        nodes,
    )
    words = ["--shards-table", str(shards), "--nodes-table", str(nodes), "--policies", "optimal-bytes,random"]
    code, out, err = simulated(capsys, *words, "--assignment", str(out_file), "--json")
    assert code == 0, err
    assert arms(out)["optimal-bytes"]["local_share"] == 1
    rows = pq.read_table(out_file).to_pylist()
    assert len(rows) == 8
    chosen = {row["shard"]: row["node"] for row in rows if row["policy"] == "optimal-bytes"}
    assert chosen == {"s0": "a", "s1": "b", "s2": "c", "s3": "a"}
    code, _, err = simulated(capsys, "--shards-table", str(nodes), "--nodes-table", str(shards))
    assert code == 2
    assert "this column is missing" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--policies", "optimal-byte"], "did you mean optimal-bytes"),
        (["--policies", "random,random"], "give each policy once"),
        (["--shards-table", "x.parquet"], "belong together"),
        (["--shards-table", "x", "--nodes-table", "y", "--slots", "2"], "--slots describes a synthetic cluster"),
        (["--nodes", "2", "--replication", "3"], "3 replicas do not fit on 2 nodes"),
        (["--preset", "h100"], "did you mean h200"),
        (["--preset", "dgx", "--nodes", "5"], "leave --nodes out"),
        (["--policies", "reduce-then-ship"], "--output-share"),
        (["--makespan-slack", "0.1"], "optimal-makespan what it may take: add it to --policies"),
        (["--lose", "node9"], "did you mean node09"),
        (["--lose", "node09"], "allow a makespan of at least 102.0 s"),
        (["--lose", "dgx0", "--preset", "dgx", "--policies", "central-nas"], "add optimal-bytes to --policies"),
        (["--policies", "central-nas"], "none of the 100 nodes is one"),
        (["--shards", "100", "--nodes", "10", "--makespan", "5"], "allow a makespan of at least 10"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_what_to_do(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = simulated(capsys, *words)
    assert code == 2
    assert told in " ".join(err.split())
    assert not out


def test_a_preset_with_both_sides_gets_a_verdict_with_seconds_and_joules(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "tx1-storage", "--shards", "2000", "--epochs", "3", "--output-share", "0.1"]
    words += ["--policies", "optimal-bytes,energy,central-nas,central-staged,reduce-then-ship"]
    code, out, err = simulated(capsys, *words, "--json")
    assert code == 0, err
    found = arms(out)
    assert {arm["origin"] for arm in found.values()} == {"simulated"}
    for arm in found.values():
        assert arm["seconds"] >= arm["bound_seconds"] > 0 and {row["origin"] for row in arm["joules"]} == {
            "assumed",
            "modelled.literature",
        }
        assert all(row["joules"] > 0 for row in arm["joules"] if row["component"].startswith("nodes"))
    verdict = json.loads(out)["verdict"]
    assert verdict["choice"] == "local" and "moves the fewest bytes: 0 B" in verdict["sentence"]
    assert any("By time the answer would be another" in told for told in verdict["because"])
    code, out, _ = simulated(capsys, *words)
    assert code == 0
    assert "Work where the data lies" in " ".join(out.split())


def test_a_gang_sends_its_gradients_round_and_waits_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shards", "400", "--nodes", "80", "--policies", "optimal-bytes", "--json"]
    code, out, err = simulated(capsys, *words, "--gradient-bytes", "102228128", "--batch", "8000", "--epochs", "2")
    assert code == 0, err
    arm = arms(out)["optimal-bytes"]
    steps = round(arm["seconds_of"]["sync"] / (2 * 79 / 80 * 102_228_128 / 1.25e9))
    assert 2 * 400 * 900 / 8000 < steps < 2 * 400 * 1100 / 8000 + 2
    gradients = sum(row["bytes"] for row in arm["bytes"] if row["class"] == "gradients")
    assert gradients == 2 * 79 * 102_228_128 * steps
    assert arm["seconds"] > arm["bound_seconds"]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 30),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["random", "round-robin", "optimal-bytes"]),
)
def test_every_shard_is_read_from_a_nearest_holder_and_the_bound_adds_up_by_hand(
    shards: int, nodes: int, replication: int, seed: int, policy: str
) -> None:
    problem = synthetic.hdfs(shards, nodes, replication=min(replication, nodes), nodes_per_rack=5, seed=seed)
    answer = placing(policy)(problem, problem.least_makespan(), seed)
    source = sources(problem, answer)
    incoming, outgoing, racks_in = np.zeros(nodes), np.zeros(nodes), np.zeros(len(problem.rack_names))
    for shard in range(shards):
        lo, hi = problem.replica_offsets[shard], problem.replica_offsets[shard + 1]
        assert source[shard] in problem.replica_nodes[lo:hi]
        reader = answer.node[shard]
        same_rack = problem.rack[source[shard]] == problem.rack[reader]
        far = Tier.NODE_LOCAL if source[shard] == reader else Tier.RACK_LOCAL if same_rack else Tier.OFF_RACK
        assert far == answer.tier[shard]
        if far != Tier.NODE_LOCAL:
            incoming[reader] += problem.shard_bytes[shard]
            outgoing[source[shard]] += problem.shard_bytes[shard]
        if far == Tier.OFF_RACK:
            racks_in[problem.rack[reader]] += problem.shard_bytes[shard]
    bound = bottleneck(problem, answer, link_bytes_per_second=1e9, uplink_bytes_per_second=2e9)
    assert bound.link_seconds == max(incoming.max(), outgoing.max()) / 1e9
    assert bound.uplink_seconds >= racks_in.max() / 2e9
    assert bound.seconds == max(bound.compute_seconds, bound.link_seconds, bound.uplink_seconds)


def test_a_policy_that_lets_nodes_wait_pays_for_it_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--shards", "400", "--nodes", "20", "--policies", "dask-replicas,spark-delay,yarn-delay,optimal-bytes")
    code, out, err = simulated(capsys, *words, "--json")
    assert code == 0, err
    found = arms(out)
    waited = {policy: arm["seconds"] - found["optimal-bytes"]["seconds"] for policy, arm in found.items()}
    assert waited["dask-replicas"] < 1, "who never lets a node wait is done with the others, but for a first read"
    for policy in ("spark-delay", "yarn-delay"):
        (told,) = [note for note in found[policy]["notes"] if "in simulated time" in note]
        done = float(told.split("done after ")[1].split(" s")[0])
        assert waited[policy] == pytest.approx(done - 20, abs=1)
    assert waited["yarn-delay"] > 1


@pytest.mark.parametrize(
    ("preset", "policies"),
    [
        ("hadoop-2015", ["random", "hdfs-greedy", "optimal-bytes", "central-nas", "central-staged"]),
        ("h200", ["central-nas", "central-staged"]),
    ],
)
def test_without_names_those_policies_are_compared_that_have_nodes(
    capsys: pytest.CaptureFixture[str], preset: str, policies: list[str]
) -> None:
    code, out, err = simulated(capsys, "--preset", preset, "--shards", "2000", "--json")
    assert code == 0, err
    assert list(arms(out)) == policies


@pytest.mark.parametrize("option", ["--nodes-table", "--shards-table", "--calibrate", "--nodes"])
def test_a_preset_says_all_of_the_cluster(capsys: pytest.CaptureFixture[str], option: str) -> None:
    code, out, err = simulated(capsys, "--preset", "h200", option, "7")
    assert (code, out) == (2, "") and f"leave {option} out" in err


def test_all_central_baselines_are_simulated_with_their_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    names = "central-nas,central-cached,central-staged,san"
    words = ["--preset", "dgx", "--shards", "400", "--epochs", "5", "--cached-share", "0.75", "--policies", names]
    code, out, err = simulated(capsys, *words, "--json")
    assert code == 0, err
    once = 400 * synthetic.BLOCK_BYTES
    off = {
        policy: sum(row["bytes"] for row in arm["bytes"] if row["tier"] != "node_local") / once
        for policy, arm in arms(out).items()
    }
    assert off == {"central-nas": 5, "central-cached": 2, "central-staged": 1, "san": 5}
    code, out, err = simulated(capsys, "--preset", "hadoop-2015", "--shards", "400", "--policies", "san")
    assert (code, out) == (2, "") and "role `array`" in err


def test_work_beside_the_data_is_refused_where_no_storage_node_has_a_slot(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = simulated(capsys, "--preset", "h200", "--policies", "optimal-bytes")
    assert (code, out) == (2, "")
    assert "storage nodes has a slot" in err and "central-nas" in err


def test_the_frontier_is_what_optimal_bytes_reaches_within_each_makespan(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--shards",
        "3000",
        "--nodes",
        "60",
        "--replication",
        "2",
        "--layout",
        "ring",
        "--policies",
        "optimal-bytes",
    ]
    code, out, err = simulated(capsys, *words, "--frontier", "4", "--json")
    assert code == 0, err
    validate(json.loads(out), PLAN)
    points = json.loads(out)["frontier"]
    assert 2 <= len(points) <= 4
    assert points[0]["makespan"] == arms(out)["optimal-bytes"]["makespan"] and points[0]["non_local_at_least"] > 0
    assert points[-1]["non_local_at_least"] == points[-1]["moved_bytes"] == 0
    for point in points:
        code, out, err = simulated(capsys, *words, "--makespan", repr(point["makespan"]), "--json")
        assert code == 0, err
        arm = arms(out)["optimal-bytes"]
        assert arm["local_share"] == point["local_share_bound"] == 1 - point["non_local_at_least"] / 3000
        assert sum(row["bytes"] for row in arm["bytes"] if row["tier"] != "node_local") == point["moved_bytes"]
    code, out, _ = simulated(capsys, *words, "--frontier", "4")
    assert code == 0
    assert "Bytes against makespan" in out and f"{points[0]['non_local_at_least']:,}" in out.split("Bytes against")[1]
    assert "more time saves" in out
    code, out, _ = simulated(
        capsys, "--shards", "400", "--nodes", "20", "--policies", "optimal-bytes", "--frontier", "4"
    )
    assert code == 0 and "more time would save none" in " ".join(out.split())


def test_slack_lets_optimal_makespan_take_longer_and_no_other_policy(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shards", "3000", "--nodes", "60", "--replication", "2", "--layout", "ring", "--json"]
    words += ["--policies", "optimal-makespan,optimal-bytes"]
    found = []
    for more in ([], ["--makespan-slack", "0.02"]):
        code, out, err = simulated(capsys, *words, *more)
        assert code == 0, err
        found.append(arms(out))
    without, with_ = found
    assert without["optimal-makespan"]["makespan"] == without["optimal-bytes"]["makespan"] == 50
    assert without["optimal-makespan"]["local_share"] == without["optimal-bytes"]["local_share"]
    assert with_["optimal-makespan"]["makespan"] == 51 and with_["optimal-bytes"]["makespan"] == 50
    assert with_["optimal-makespan"]["local_share"] > with_["optimal-bytes"]["local_share"]
    code, out, err = simulated(capsys, *words, "--makespan-slack", "0.5", "--makespan", "51")
    assert code == 0, err
    assert arms(out)["optimal-makespan"]["makespan"] == 51, "--makespan goes before"


def test_what_losing_nodes_costs_is_told_of_optimal_placements_and_why_not_of_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--shards", "1000", "--nodes", "100", "--replication", "2", "--layout", "ring", "--makespan", "12"]
    words += ["--policies", "random,optimal-bytes,optimal-makespan", "--lose", "node07", "--lose", "node55"]
    code, out, err = simulated(capsys, *words, "--json")
    assert code == 0, err
    found = arms(out)
    assert [loss["node"] for loss in found["optimal-bytes"]["losses"]] == ["node07", "node55"]
    assert not found["random"]["losses"] and "this one has fewer" in found["random"]["losses_reason"]
    assert (
        not found["optimal-makespan"]["losses"] and "makespan of at least" in found["optimal-makespan"]["losses_reason"]
    )
    last = found["optimal-bytes"]["losses"][-1]
    proof = last["certificate"]
    assert proof["shards"] - proof["capacity"] == last["non_local"] > 0
    assert 0 < last["changed"] < last["anew"]["changed"] and last["repair_seconds"] > 0
    code, out, _ = simulated(capsys, *words)
    assert code == 0
    told = " ".join(out.split())
    assert "optimal-bytes: shards that change node when nodes are lost, one after the other, within 12.0 s" in told
    assert f"{proof['shards']} - {proof['capacity']} = {last['non_local']} cannot be local" in told
    assert "random: repair starts from" in told
    code, out, _ = simulated(capsys, *words[:-2], "--json")
    assert arms(out)["optimal-bytes"]["losses"][0]["changed"] == found["optimal-bytes"]["losses"][0]["changed"]

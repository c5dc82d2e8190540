"""Does training on local shards cost accuracy? Five seeds on MNIST-5k, paired with one process that reads everything."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from datalocal import runner
from datalocal.ingest import ingest
from datalocal.launch import embedded
from datalocal.ledger.run_dir import RunDir
from datalocal.spec.cluster import load_cluster
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.server import StoreServer
from tests import worlds

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 5


def steps(run: RunDir, policy: str) -> list[int]:
    return [event["steps"] for event in run.events(policy) if event["type"] == "launch"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_local_shards_cost_no_accuracy_on_mnist(tmp_path: Path) -> None:
    """Same seed, same global batch, same number of steps: the mean paired difference over five seeds is within one point."""
    from datalocal.demo.mnist import write_images

    home = tmp_path / "home"
    cluster_file = worlds.cluster_file(tmp_path, storage=4, compute=1)
    cluster = load_cluster(cluster_file)
    source = write_images(tmp_path / "mnist")
    servers = {
        node.name: StoreServer(node=node.name, root=embedded.node_root(home, cluster.name, node.name), token="t" * 32)
        for node in cluster.nodes
    }
    store = Store(
        node="head",
        root=None,
        stores={name: server.location for name, server in servers.items()},
        token="t" * 32,
        counter=ByteCounter(),
    )
    report = ingest(source, "mnist-5k", store, cluster, alive=list(servers))
    assert report.images == 5000 and not report.damaged
    store.close()
    for server in servers.values():
        server.close()
    pairs = []
    for seed in range(SEEDS):
        run = runner.prepare(
            runner.RunRequest(
                job_file=ROOT / "jobs" / "mnist.yaml",
                cluster_file=cluster_file,
                home=home,
                policies=("data-local", "central-nas"),
                seed=seed,
                executor="inline",
                run_id=f"mnist-{seed}",
            )
        )
        assert runner.execute(run) == 0, run.state
        arms = {arm["policy"]: arm for arm in run.read_report()["arms"]}
        local, whole = (arms[name]["stages"][-1] for name in ("data-local", "central-nas"))
        assert local["samples"]["seen"] == whole["samples"]["seen"] == local["samples"]["expected"]
        assert steps(run, "data-local") == steps(run, "central-nas")
        pairs.append((local["accuracy"], whole["accuracy"]))
        print(f"seed {seed}: data-local {local['accuracy']:.4f}, one process {whole['accuracy']:.4f}")
    difference = mean(local - whole for local, whole in pairs)
    print(f"mean paired difference over {SEEDS} seeds: {100 * difference:+.2f} points")
    assert all(min(pair) > 0.85 for pair in pairs), "it learned something"
    assert abs(difference) <= 0.01, pairs

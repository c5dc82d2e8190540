"""Every cut of a pipeline on real photographs: bytes per sample predicted and shipped, seconds, and what was learned.

    PYTHONPATH=. python -m benchmarks.cuts [--images 2000] [--job jobs/frozen-features.yaml] [--executor dask]

Brings up the embedded cluster, ingests crops of the demo's photographs, and submits the job once per cut: where images are cut
as they lie, `central-staged` ships them, else `reduce-then-ship` ships what the nodes made of them. *Shipped* is what left the
storage nodes as staging or output, by the run's own account. Everything shares this machine: seconds compare cuts, no more.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pairs import command, machine, versions
from datalocal import runner
from datalocal.catalog.probe import probe
from datalocal.demo.story import fill
from datalocal.estimate.cuts import CutTable
from datalocal.launch import embedded
from datalocal.launch.embedded import ClusterHandle
from datalocal.ledger.run_dir import RunDir
from datalocal.spec.cluster import load_cluster
from datalocal.spec.job import load_job
from datalocal.storage.counting import ByteCounter
from datalocal.tasks.cut_sizes import plan_cut

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One cut, run."""

    cut: str
    predicted_bytes: float | None
    """Per sample, as `plan` says."""
    origin: str
    shipped_bytes: float
    """Per sample, by the run's account."""
    before_seconds: float
    """Staging or preprocessing."""
    train_seconds: float
    accuracy: float
    loss: float
    """Mean over the validation samples, after the last epoch."""
    frozen: dict[str, str]
    run: RunDir


def tabulated(handle: ClusterHandle, job_file: Path) -> CutTable:
    """What `plan` says of the job's cuts."""
    job = load_job(job_file)
    store = handle.store(ByteCounter())
    try:
        catalog = probe(store, handle.cluster, job.dataset, job.columns, list(handle.alive))
        _, table = plan_cut(job, job_file.parent, catalog, store)
    finally:
        store.close()
    assert table is not None, f"{job_file} has no pipeline"
    return table


def measure(
    home: Path, cluster_file: Path, job_file: Path, cuts: Sequence[str], *, table: CutTable, executor: str = "dask"
) -> list[Measured]:
    """Submit the job once per cut, on a cluster that is up."""
    return [_one(home, cluster_file, job_file, cut, table, executor) for cut in cuts]


def _one(home: Path, cluster_file: Path, job_file: Path, cut: str, table: CutTable, executor: str) -> Measured:
    policy = "central-staged" if cut == "raw" else "reduce-then-ship"
    request = runner.RunRequest(
        job_file=job_file,
        cluster_file=cluster_file,
        home=home,
        policies=(policy,),
        overrides=(f"pipeline.cut={cut}",),
        executor=executor,
        run_id=f"cut-{cut}",
    )
    run = runner.prepare(request)
    if runner.execute(run):
        raise SystemExit(f"{run.id}: {run.state['error']}")
    arm: dict[str, Any] = run.read_report()["arms"][0]
    shipped = arm["headline_bytes"]["by_class"]["staging" if cut == "raw" else "output"]
    last = [event for event in run.events(policy) if event["type"] == "validation"]
    last = [event for event in last if event["epoch"] == last[-1]["epoch"]]
    stored = table.row(cut).stored
    return Measured(
        cut=cut,
        predicted_bytes=stored.bytes_per_sample,
        origin=stored.origin,
        shipped_bytes=shipped / table.samples,
        before_seconds=sum(s["seconds"] for s in (*arm["staging"], *arm["stages"]) if s["kind"] != "train"),
        train_seconds=sum(stage["seconds"] for stage in arm["stages"] if stage["kind"] == "train"),
        accuracy=next(stage["accuracy"] for stage in arm["stages"] if stage["kind"] == "train"),
        loss=sum(event["loss_sum"] for event in last) / sum(event["total"] for event in last),
        frozen=arm["cut"]["frozen"],
        run=run,
    )


def lines(rows: Sequence[Measured]) -> list[str]:
    """The table, in Markdown."""
    told = [
        "| cut | predicted, bytes per sample | from | shipped, bytes per sample | off by | seconds before the cut | "
        "seconds of training | accuracy | validation loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        known = row.predicted_bytes
        told.append(
            f"| `{row.cut}` | {'-' if known is None else f'{known:,.1f}'} | {row.origin} | {row.shipped_bytes:,.1f} | "
            f"{'-' if known is None else f'{100 * (known / row.shipped_bytes - 1):+.3f} %'} | {row.before_seconds:.1f} | "
            f"{row.train_seconds:.1f} | {100 * row.accuracy:.2f} % | {row.loss:.6f} |"
        )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--job", type=Path, default=ROOT / "jobs" / "frozen-features.yaml")
    parser.add_argument("--cluster", type=Path, default=ROOT / "cluster-configs" / "embedded.yaml")
    parser.add_argument("--executor", choices=("dask", "inline"), default="dask")
    options = parser.parse_args()
    cluster = load_cluster(options.cluster)
    print(command())
    print(machine())
    print(versions("datalocal", "torch", "pyarrow", "opencv-python-headless", "simplejpeg"))
    with tempfile.TemporaryDirectory(prefix="datalocal-cuts-") as folder:
        home = Path(folder)
        with embedded.running(cluster, home) as handle:
            fill(handle, options.images, lambda done, whole: None)
            table = tabulated(handle, options.job)
            common = {"home": home, "cluster_file": options.cluster, "job_file": options.job, "table": table}
            if options.executor == "dask":
                rows = measure(cuts=[row.cut for row in table.rows if not row.forbidden], **common)
        if options.executor == "inline":  # opens the nodes' folders itself, so the cluster is down
            rows = measure(cuts=[row.cut for row in table.rows if not row.forbidden], executor="inline", **common)
    print("\n".join(lines(rows)))
    hashes = {name: {row.frozen[name] for row in rows} for name in rows[0].frozen}
    for name, found in hashes.items():
        print(f"{name}: {', '.join(sorted(found))} (SHA-256 of its weights at every cut)")


if __name__ == "__main__":
    main()

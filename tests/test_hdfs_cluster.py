"""Real Hadoop daemons in network namespaces: ingest, resize in place, train; every byte by its witnesses; faults."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from datalocal.launch.namespaces import Network
from tests import hdfs, worlds
from tests.hdfs import World

pytestmark = hdfs.MARKS

GATED = textwrap.dedent(
    """
    import os
    import time
    from pathlib import Path

    import cv2


    def shrink(images, device, *, gate, side=32):
        Path(gate, f"at-{os.getppid()}").touch()  # the node's own process
        while not Path(gate, "open").exists():  # the test opens it when the fault has happened
            time.sleep(0.02)
        return [cv2.resize(image, (side, side)) for image in images]
    """
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("hdfs")
    config = hdfs.cluster_file(folder, "test-hdfs", storage=4)
    made = World(folder / "home", config)
    pictures = worlds.image_folder(folder / "pictures", 300, 128)
    try:
        made.up()
        made.cli("ingest", str(pictures), "pictures", "--cluster", str(config))
        yield made
    finally:
        made.destroy()


@pytest.fixture
def whole(world: World) -> World:
    """The cluster with all its processes, whatever the test before did to it."""
    world.heal()
    return world


def job(folder: Path, **gate: Any) -> Path:
    """Resize only, held back until its gate is there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gated.py").write_text(GATED, encoding="utf-8")
    preprocess = {"transform": "gated:shrink", "output": "small", "arguments": gate, "batch": 8}
    # On a busy machine a daemon is away for longer than a task's patience, several times over.
    content = {"name": "gated", "dataset": "pictures", "preprocess": preprocess, "max_attempts": 20}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


# -- the main thing ------------------------------------------------------------------------------------------------------------


def test_every_byte_of_resize_and_train_agrees_with_the_datanodes_own_trace(whole: World, tmp_path: Path) -> None:
    # Of two copies HDFS draws where the second lies, and once in a hundred draws the ranks cannot be even without the network.
    made = worlds.job_file(tmp_path / "job", preprocess={"output_replication": 3}, train={"checkpoint_replication": 2})
    whole.cli(
        "submit",
        str(made),
        *("--cluster", str(whole.config), "--run-id", "bytes"),
        *("--policy", "data-local", "--policy", "central-nas"),
    )
    report = whole.report("bytes")
    rows = report["witnesses"]
    traced = [row for row in rows if row["witness"] in ("clienttrace", "jmx")]
    assert {(row["arm"], row["stage"]) for row in traced} >= {
        (arm, stage) for arm in ("data-local", "central-nas") for stage in ("preprocess", "train")
    }
    assert [row for row in traced if row["bytes"] != row["expected_bytes"]] == []
    local, central = report["arms"]
    for arm in (local, central):
        (train,) = [stage for stage in arm["stages"] if stage["kind"] == "train"]
        assert train["samples"]["seen"] == train["samples"]["expected"] > 0
        assert train["samples"]["repeated"] == train["samples"]["dropped"] == 0
    away = [row for row in local["bytes"] if row["class"] == "input" and row["source"] != row["destination"]]
    assert away == [], "data-local reads nothing from other DataNodes while the holders are alive"
    moved = [row for row in rows if row["arm"] == "data-local" and row["direction"] == "served_remote"]
    assert sum(row["bytes"] for row in moved) == 0
    reads = {(row["arm"], row["stage"], row["node"]): row["operations"] for row in rows if row["witness"] == "reader"}
    on_the_wire = [row for row in rows if row["witness"] == "interface" and reads.get(_where(row))]
    assert {_where(row) for row in on_the_wire} == reads.keys() and len(reads) >= 2 * 5
    for row in on_the_wire:
        share = 0.06 if row["stage"] == "train" else 0.01  # gradients travel in small messages
        # Few reads are few bytes, and ARP, heartbeats and resent segments are there all the same; a block is 190 kB.
        slack = max(share * row["expected_bytes"] + 2048 * reads[_where(row)], 16_384)
        assert abs(row["bytes"] - row["expected_bytes"]) <= slack, row
    listed = json.loads(whole.cli("catalog", "pictures", "--cluster", str(whole.config), "--json").stdout)
    assert central["headline_bytes"]["by_class"]["input"] > listed["bytes"], "and training reads the results besides"
    kept = [line.split() for line in whole.tool("fs", "-ls", "-R", "/datalocal/checkpoints/bytes").splitlines()]
    files = [words for words in kept if words[0].startswith("-")]
    assert {words[1] for words in files} == {"2"}, "replicas of each checkpoint"
    for arm in ("data-local", "central-nas"):
        names = {Path(words[-1]).name for words in files if Path(words[-1]).parent.name == arm}
        stored = {path.name for path in (whole.home / "bytes" / "arms" / arm / "checkpoints").iterdir()}
        assert names == stored | {"weights.pt"} and len(stored) >= 2


def _where(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["arm"], row["stage"], row["node"]


def test_first_replicas_lie_on_all_nodes_and_outputs_beside_their_writers(whole: World) -> None:
    listed = json.loads(whole.cli("catalog", "pictures", "--cluster", str(whole.config), "--json").stdout)
    assert listed["workable_share"] == 1.0
    assert all(node["shards"] > 0 for node in listed["nodes"] if node["node"] != "central1")
    assert "HEALTHY" in whole.tool("fsck", "/datalocal/pictures")


def test_shards_without_one_good_node_are_read_all_the_same_and_told(whole: World) -> None:
    """A shard over several blocks is scored by bytes per node; an erasure-coded one has no preferred node."""
    whole.tool("fs", "-mkdir", "-p", "/datalocal/coded", "/datalocal/split")
    whole.tool("ec", "-enablePolicy", "-policy", "XOR-2-1-1024k")
    whole.tool("ec", "-setPolicy", "-path", "/datalocal/coded", "-policy", "XOR-2-1-1024k")
    one = "/datalocal/pictures/part-00000.parquet"
    whole.tool("fs", "-D", "dfs.blocksize=1048576", "-cp", one, "/datalocal/coded/part-00000.parquet")
    # HDFS puts each block on any node: of one shard's few blocks all may meet on one, of all shards' they do not.
    small = ("-D", "dfs.blocksize=65536", "-D", "dfs.replication=1")
    whole.tool("fs", *small, "-cp", "/datalocal/pictures/part-*.parquet", "/datalocal/split")
    whole.tool("fs", "-touchz", "/datalocal/split/_SUCCESS", "/datalocal/split/_metadata", "/datalocal/split/.a.crc")

    def listed(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(whole.cli("catalog", name, "--cluster", str(whole.config), "--json").stdout)
        return found

    coded, split, plain = listed("coded"), listed("split"), listed("pictures")
    assert coded["shards"] == 1
    assert split["shards"] == plain["shards"] >= 8, "fewer could all be whole by chance"
    assert [text for text in coded["warnings"] if "erasure-coded, so no node is preferred" in text]
    assert [text for text in split["warnings"] if "its blocks lie on different nodes" in text]
    assert plain["warnings"] == []
    code = """
for path in ("pictures/part-00000.parquet", "coded/part-00000.parquet", "split/part-00000.parquet"):
    with store.open(path, ()) as file:
        import hashlib
        say(digest=hashlib.sha256(file.read()).hexdigest())
say(total=sum(row.bytes for row in counter.rows() if row.class_ == "input"))
"""
    *digests, last = whole.on("node1", code)
    assert len({line["digest"] for line in digests}) == 1
    assert last["total"] == 3 * coded["bytes"]


# -- reading -------------------------------------------------------------------------------------------------------------------

READ_ALL = """
import hashlib
from datalocal.spec.job import Columns
keys = [shard.key for shard in store.list("hdfs", "pictures", Columns()).shards]
say(keys=keys)
sys.stdin.readline()
for key in keys:
    begin = time.monotonic()
    try:
        with store.open(f"pictures/{key}", ()) as file:
            content = file.read()
            say(key=key, seconds=time.monotonic() - begin, digest=hashlib.sha256(content).hexdigest())
    except DatalocalError as error:
        say(key=key, seconds=time.monotonic() - begin, error=str(error))
say(rows=[row.to_json() for row in counter.rows()])
"""


def read_all(world: World, node: str, fault: Any = None) -> list[dict[str, Any]]:
    """Read the data set on `node`, from after `fault` on; a line per shard, then the bytes."""
    process = world.start(node, READ_ALL)
    assert process.stdout is not None
    process.stdout.readline()
    if fault is not None:
        fault()
    out, _ = process.communicate("go\n", timeout=200)
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]


def blocks_of_pictures(world: World, node: str) -> list[Path]:
    """The node's own files of the data set's blocks, one a shard; other tests leave other blocks beside them."""
    ours = set(re.findall(r"blk_\d+", world.tool("fsck", "/datalocal/pictures", "-files", "-blocks")))
    return [path for path in world.block_files(node) if path.name in ours]


@contextmanager
def stopped(world: World, name: str) -> Iterator[None]:
    process = world.process(name)
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@contextmanager
def dropping(world: World, node: str) -> Iterator[None]:
    rule = ("INPUT", "-p", "tcp", "--dport", "9866", "-j", "DROP")
    world.run_on(node, "iptables", "-A", *rule)
    try:
        yield
    finally:
        world.run_on(node, "iptables", "-D", *rule)


@pytest.mark.parametrize("fault", [lambda w: stopped(w, "datanode-node1"), lambda w: dropping(w, "node1")])
def test_a_datanode_that_is_silent_costs_seconds_once(whole: World, fault: Any) -> None:
    assert whole.cluster.hdfs is not None
    timeout_seconds = whole.cluster.hdfs.socket_timeout_seconds
    before = {line["key"]: line["digest"] for line in read_all(whole, "central1")[:-1]}
    silent = len(blocks_of_pictures(whole, "node1"))
    with fault(whole):
        *lines, _ = read_all(whole, "central1")
    assert {line["key"]: line.get("digest", line.get("error")) for line in lines} == before
    waited = [line for line in lines if line["seconds"] >= 0.9 * timeout_seconds]
    assert len(waited) <= 1, lines
    assert sum(line["seconds"] for line in lines) < max(15, timeout_seconds * silent), lines


def test_a_namenode_that_is_away_costs_seconds_and_says_so(whole: World) -> None:
    process = whole.start("node1", READ_ALL)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())["keys"][0]
    with stopped(whole, "namenode"):
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        line = json.loads(process.stdout.readline())
        process.kill()
        process.communicate()
    assert line["key"] == first
    assert line["seconds"] < 25
    assert "HDFS does not answer within 10 s" in line["error"]


def test_a_corrupt_block_and_a_deleted_one_are_read_from_the_other_replica(whole: World) -> None:
    before = {line["key"]: line["digest"] for line in read_all(whole, "node2")[:-1]}
    corrupt, deleted, *_ = blocks_of_pictures(whole, "node2")
    sound = corrupt.read_bytes()

    def spoil() -> None:
        content = bytearray(sound)
        content[len(content) // 2] ^= 0xFF
        corrupt.write_bytes(content)
        deleted.unlink()

    try:
        *lines, last = read_all(whole, "node2", spoil)
    finally:
        corrupt.write_bytes(sound)  # hdfs-native reports no corrupt replica: it would be there for all tests to come
    assert {line["key"]: line.get("digest", line.get("error")) for line in lines} == before
    away = [row for row in last["rows"] if row["class"] == "input" and row["source"] not in ("node2", "head")]
    assert sum(row["bytes"] for row in away) > 0, "the tier is what happened, not what was planned"
    wait_for_replicas(whole, deleted.name)


def wait_for_replicas(world: World, block: str) -> None:
    """Until the block lies on two disks and the NameNode knows it: tests to come kill the node of its only other replica."""
    deadline = time.monotonic() + 120
    while True:
        told = world.tool("fsck", "/datalocal/pictures")
        nodes = [node.name for node in world.cluster.storage_nodes]
        disks = [node for node in nodes if block in {path.name for path in world.block_files(node)}]
        if len(disks) == 2 and re.search(r"Under-replicated blocks:\s*0 ", told):
            return
        assert time.monotonic() < deadline, f"{block} is on {disks}\n{told}"


# -- writing -------------------------------------------------------------------------------------------------------------------

WRITE = """
import pyarrow as pa
content = pa.py_buffer(bytes(range(256)) * 20000)
say(ready=True)
sys.stdin.readline()
begin = time.monotonic()
for number in range(6):
    store.write(f"written/{node}/part-{number}.parquet", content, [node, "other"])
say(seconds=time.monotonic() - begin)
with store.open(f"written/{node}/part-5.parquet", ()) as file:
    say(same=file.read() == content.to_pybytes())
"""


def test_a_node_of_the_pipeline_that_dies_leaves_every_file_whole_and_once(whole: World) -> None:
    process = whole.start("node2", WRITE)
    assert process.stdout is not None
    process.stdout.readline()
    whole.kill("datanode-node3")
    out, _ = process.communicate("go\n", timeout=250)
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1]) == {"same": True}
    listed = whole.tool("fs", "-ls", "-R", "/datalocal/written/node2", "/datalocal/.incoming")
    files = [line.split() for line in listed.splitlines() if line.startswith("-")]
    assert sorted(Path(words[-1]).name for words in files) == [f"part-{number}.parquet" for number in range(6)]
    assert {words[4] for words in files} == {str(256 * 20000)}


# -- runs under faults ---------------------------------------------------------------------------------------------------------


Open = Callable[[], None]
"""Lets the tasks go on that are held back."""


def gated_run(world: World, folder: Path, run: str, victim: str, fault: Callable[[Open], None]) -> list[dict[str, Any]]:
    """Run the resize, let `fault` happen while `victim` has a shard half done, and come to the end.

    Checks that the output is there once and that the report tells what was placed again; gives what it tells.
    """
    gate = folder / "gate"
    gate.mkdir()
    path = job(folder, gate=str(gate))
    world.cli("submit", str(path), "--cluster", str(world.config), "--run-id", run, "--detach")
    plan = world.home / run / "arms" / "data-local" / "plan.json"
    _wait_for(plan)
    _wait_for(gate / f"at-{world.process(victim).pid}")
    planned = {a["shard"]: a["node"] for stage in json.loads(plan.read_text())["stages"] for a in stage["assignments"]}
    assert victim in planned.values()
    assert not [event for event in world.events(run) if event["type"] == "task"], "the victim's work is unfinished"
    fault((gate / "open").touch)
    (gate / "open").touch()
    deadline = time.monotonic() + 240
    while json.loads(world.cli("status", run, "--json").stdout)["state"] == "running":
        assert time.monotonic() < deadline, (world.home / run / "run.log").read_text()
    assert (world.home / run / "COMPLETED").exists(), (world.home / run / "run.log").read_text()
    _check_output(world, run, planned)
    return _placed_again(world, run, planned)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 90
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.1)


def _check_output(world: World, run: str, planned: Mapping[str, str]) -> None:
    """Every shard has its result and every image is there, once, with the replicas that it shall have."""
    name = f"small/{run}/data-local"
    listed = world.tool("fs", "-ls", "-R", f"/datalocal/{name}", "/datalocal/.incoming")
    files = [line.split()[-1] for line in listed.splitlines() if line.startswith("-")]
    assert sorted(Path(file).name for file in files) == sorted(planned), "no more, no less, nothing half written"
    code = f"""
import pyarrow.parquet as pq
for key in {sorted(planned)}:
    with store.open("{name}/" + key, ()) as file:
        say(paths=pq.read_table(file, columns=["path"])["path"].to_pylist())
"""
    paths = [path for line in world.on("node1", code) for path in line["paths"]]
    assert len(paths) == len(set(paths)) == 300
    assert "HEALTHY" in world.tool("fsck", f"/datalocal/{name}")


def _placed_again(world: World, run: str, planned: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the report says was placed again: all that did not end where it was planned, and where that was."""
    events = world.events(run)
    finished = {event["record"]["shard"]: event["record"]["node"] for event in events if event["type"] == "task"}
    assert finished.keys() == planned.keys()
    (arm,) = world.report(run)["arms"]
    replaced: list[dict[str, Any]] = arm["replaced"]
    assert {shard for shard, node in finished.items() if node != planned[shard]} <= {row["shard"] for row in replaced}
    assert {row["shard"]: row["to"] for row in replaced}.items() <= finished.items()
    assert [row["shard"] for row in replaced] == [event["shard"] for event in events if event["type"] == "replaced"]
    assert all(row["cause"] for row in replaced)
    assert arm["nodes_lost"] == [event["node"] for event in events if event["type"] == "node_lost"]
    return replaced


def test_a_datanode_and_its_worker_killed_mid_run(whole: World, tmp_path: Path) -> None:
    replaced = gated_run(whole, tmp_path, "killed", "node4", lambda _: whole.kill("datanode-node4", "node4"))
    assert "node4" in {row["from"] for row in replaced}
    assert whole.report("killed")["arms"][0]["nodes_lost"] == ["node4"]


def test_a_namenode_restarted_mid_run(whole: World, tmp_path: Path) -> None:
    def restart(open_gate: Open) -> None:
        whole.kill("namenode")
        open_gate()  # what is half done comes to its end while nobody can be asked where to write it
        whole.up()

    gated_run(whole, tmp_path, "restarted", "node1", restart)
    assert whole.report("restarted")["arms"][0]["nodes_lost"] == []


def test_a_link_that_is_down_for_a_while(whole: World, tmp_path: Path) -> None:
    def cut(open_gate: Open) -> None:
        whole.run_on("node3", "ip", "link", "set", "e0", "down")
        open_gate()
        time.sleep(20)  # the fault is its length
        whole.run_on("node3", "ip", "link", "set", "e0", "up")

    replaced = gated_run(whole, tmp_path, "cut", "node3", cut)
    assert {row["from"] for row in replaced} <= {"node3"}, "who has a link goes on"


# -- up and down ---------------------------------------------------------------------------------------------------------------


def test_two_clusters_with_the_same_addresses_do_not_meet_and_down_of_one_leaves_the_other(
    whole: World, tmp_path: Path
) -> None:
    other = World(tmp_path / "home", hdfs.cluster_file(tmp_path / "other", "test-other", storage=2))
    assert other.cluster.address("node1") == whole.cluster.address("node1")
    before = {name: whole.process(name) for name in ("head", "namenode", "node1", "datanode-node1")}
    try:
        other.up()
        pictures = worlds.image_folder(tmp_path / "pictures", 20)
        other.cli("ingest", str(pictures), "theirs", "--cluster", str(other.config))
        missed = whole.cli("catalog", "theirs", "--cluster", str(whole.config), check=False)
        assert missed.returncode != 0 and "'theirs' is on no node" in missed.stderr
        assert set(whole.network.hosts) == set(other.network.hosts) | {"node3", "node4"}
        other.down()
        assert other.network.hosts == []
    finally:
        other.destroy()
    assert all(process.is_running() for process in before.values())
    listed = json.loads(whole.cli("catalog", "pictures", "--cluster", str(whole.config), "--json").stdout)
    assert listed["rows"] == 300 and listed["workable_share"] == 1.0


def test_down_leaves_nothing_but_the_data_which_are_there_again_after_up(whole: World) -> None:
    whole.kill("head", "namenode")  # as after a crash
    whole.down()
    assert Network(whole.folder).hosts == []
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert whole.network.namespace("x").removesuffix("-x") not in left
    assert not list(Path("/etc/netns").glob(f"{whole.network.namespace('x').removesuffix('-x')}*"))
    whole.up()
    listed = json.loads(whole.cli("catalog", "pictures", "--cluster", str(whole.config), "--json").stdout)
    assert listed["rows"] == 300

"""Who may do what: the token, the paths, the port; and that a server ends at once."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.errors import ClusterError, StorageError
from datalocal.spec.job import Columns
from datalocal.storage.client import Store
from datalocal.storage.files import Folder
from datalocal.storage.server import StoreServer
from tests.stores import TOKEN, Stores, shard_bytes, stores

PATH = "photos/part-0.parquet"

CALLS: dict[str, Callable[[Store], object]] = {
    "open": lambda store: store.open(PATH, ["a"]),
    "write": lambda store: store.write(PATH, pa.py_buffer(b"x"), ["a"]),
    "list": lambda store: store.list("a", "photos", Columns()),
    "datasets": lambda store: store.datasets("a"),
    "delete": lambda store: store.delete("a", "photos"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with stores(tmp_path_factory.mktemp("stores"), "a") as made:
        made.put("a", PATH, shard_bytes())
        yield made


@pytest.mark.parametrize("token", ["wrong", TOKEN + "x", TOKEN[:-1]])
@pytest.mark.parametrize("call", CALLS)
def test_without_the_token_every_call_is_refused(
    world: Stores, call: str, token: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(StorageError, match="refused the token") as caught:
        CALLS[call](world.store("head", token=token))
    told = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in told
    assert token not in told
    assert (world.root / "a" / "data" / PATH).read_bytes() == shard_bytes()


def test_a_bare_flight_client_without_any_header_is_refused(world: Stores) -> None:
    with flight.FlightClient(world.locations["a"]) as client, pytest.raises(flight.FlightUnauthenticatedError):
        list(client.do_action(flight.Action("datasets", b"{}")))


def test_the_token_shows_in_no_representation(world: Stores) -> None:
    store = world.store("head")
    assert TOKEN not in repr(store) + repr(store.peer("a")) + repr(vars(world.servers["a"]))


@pytest.mark.parametrize(
    "path",
    ["../secret", "photos/../../secret", "/etc/passwd", "photos//x", "", ".limits.json", "photos/.x", "_x/y", "a\0b"],
)
def test_paths_that_leave_the_data_folder_are_refused_by_client_and_server(world: Stores, path: str) -> None:
    store = world.store("head")
    for call in (
        lambda: store.open(path, ["a"]),
        lambda: store.write(path, pa.py_buffer(b"x"), ["a"]),
        lambda: store.list("a", path, Columns()),
        lambda: store.delete("a", path),
        lambda: store.peer("a").ask("stat", {"path": path}),
        lambda: store.peer("a").ask("delete", {"dataset": path}),
        lambda: store.peer("a").read({"path": path, "offset": 0, "length": 1, "size": 1}, "input"),
        lambda: store.peer("a").write({"path": path, "bytes": 1}, [pa.py_buffer(b"x")], "output"),
    ):
        with pytest.raises(StorageError, match="refused: the path"):
            call()


@given(st.text(alphabet="ab./_\\ ", max_size=12))
def test_whatever_resolves_lies_inside(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    folder = Folder("a", tmp_path_factory.getbasetemp())
    try:
        resolved = folder.resolve(path)
    except StorageError:
        return
    assert resolved.is_relative_to(folder.data.resolve())
    assert resolved != folder.data.resolve()


def test_a_link_that_leads_out_of_the_folder_is_refused_and_listed_as_an_error(tmp_path: Path) -> None:
    outside = tmp_path / "outside.parquet"
    outside.write_bytes(shard_bytes())
    with stores(tmp_path, "a") as world:
        inside = world.put("a", "photos/ok.parquet", shard_bytes())
        inside.with_name("out.parquet").symlink_to(outside)
        inside.with_name("in.parquet").symlink_to(inside)
        inside.parent.with_name("elsewhere").symlink_to(tmp_path)
        store = world.store("head")
        for path in ("photos/out.parquet", "elsewhere/outside.parquet"):
            with pytest.raises(StorageError, match="leads out of the node's folder"):
                store.open(path, ["a"])
        with pytest.raises(StorageError, match="leads out of the node's folder"):
            store.write("elsewhere/outside.parquet", pa.py_buffer(b"x"), ["a"])
        assert outside.read_bytes() == shard_bytes()
        with store.open("photos/in.parquet", ["a"]) as file:
            assert file.read() == shard_bytes()
        errors = {shard.key: shard.error for shard in store.list("a", "photos", Columns()).shards}
        assert "leads out" in errors.pop("out.parquet")
        assert errors == {"in.parquet": "", "ok.parquet": ""}


def test_what_is_no_file_is_not_opened(world: Stores) -> None:
    with pytest.raises(StorageError, match="photos is not a file"):
        world.store("head").open("photos", ["a"])


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"a: cannot listen on 127.0.0.1 port {port}: Address already in use"):
            StoreServer(node="a", root=tmp_path, token="t", port=port)


def test_two_servers_never_share_a_port(world: Stores, tmp_path: Path) -> None:
    port = int(world.locations["a"].rpartition(":")[2])
    with pytest.raises(ClusterError, match=f"port {port}"):
        StoreServer(node="b", root=tmp_path, token="t", port=port)


def test_a_server_is_reachable_on_loopback_only_unless_told_otherwise(world: Stores) -> None:
    assert world.locations["a"].startswith("grpc://127.0.0.1:")


@pytest.mark.parametrize("token", ["", "tökén", "line\n", " padded"])
def test_a_token_that_no_header_can_carry_is_refused_on_both_sides(world: Stores, tmp_path: Path, token: str) -> None:
    for make in (lambda: StoreServer(node="b", root=tmp_path, token=token), lambda: world.store("head", token=token)):
        with pytest.raises(ClusterError, match="the cluster's token is empty") as caught:
            make()
        assert not token or token not in str(caught.value)


def test_a_proxy_in_the_environment_does_not_see_the_traffic(world: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert world.store("head").datasets("a") == ["photos"]


def test_a_server_closes_at_once_though_clients_are_connected_and_read(tmp_path: Path) -> None:
    with stores(tmp_path, "a") as world:
        world.put("a", PATH, bytes(64 << 20))
        store = world.store("head")
        file = store.open(PATH, ["a"])
        # A client that asked for much and takes nothing: the server's stream to it stands still.
        with flight.FlightClient(world.locations["a"]) as stalled:
            options = flight.FlightCallOptions(timeout=5, headers=[(b"authorization", f"Bearer {TOKEN}".encode())])
            ticket = flight.Ticket(
                b'{"path": "%s", "offset": 0, "length": %d, "size": %d}' % (PATH.encode(), 64 << 20, 64 << 20)
            )
            reader = stalled.do_get(ticket, options)
            began = time.monotonic()
            world.servers["a"].close()
            assert time.monotonic() - began < 3, "the stalled client would be there for 5 s"
            with pytest.raises(StorageError, match="a at grpc"):
                file.read_at(100, 0)
            reader.cancel()
    closers = [thread for thread in threading.enumerate() if thread.name == "datalocal-flight-close"]
    for thread in closers:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in closers)


def test_a_closed_store_says_so(world: Stores) -> None:
    store = world.store("head")
    store.close()
    with pytest.raises(StorageError, match="the connection to a is closed"):
        store.datasets("a")

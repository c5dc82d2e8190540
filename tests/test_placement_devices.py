"""GPUs are slots: one physical GPU counts once, and a job that asks for more is refused with the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.errors import PlacementError
from datalocal.placement.devices import choose_devices, share_gpus


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from(["G0", "G1", "G2", "G3"]), unique=True)))
def test_a_physical_gpu_is_given_to_one_node_that_sees_it(seen: dict[str, list[str]]) -> None:
    shared = share_gpus(list(seen), seen)
    given_out = [uuid for uuids in shared.values() for uuid in uuids]
    assert sorted(given_out) == sorted({uuid for uuids in seen.values() for uuid in uuids})
    assert all(uuid in seen[node] for node, uuids in shared.items() for uuid in uuids)


def test_nodes_of_one_host_share_its_gpus_evenly() -> None:
    everyone = {node: ["G0", "G1", "G2", "G3"] for node in ("a", "b", "c", "d")}
    assert share_gpus(list(everyone), everyone) == {"a": ("G0",), "b": ("G1",), "c": ("G2",), "d": ("G3",)}


def test_auto_falls_back_to_the_cpu_and_says_why() -> None:
    devices = choose_devices("auto", None, ["a", "b"], {"a": ["G0"], "b": ["G0"]})
    assert devices.device == "cpu" and devices.ranks_on("a") == 1
    assert "only 1 GPUs for 2 nodes (none on b)" in devices.reason


def test_auto_takes_the_gpus_when_every_node_has_one() -> None:
    devices = choose_devices("auto", None, ["a", "b"], {"a": ["G0", "G1"], "b": ["G2"]})
    assert devices.device == "cuda" and devices.ranks_on("a") == 2 and devices.ranks_on("b") == 1


def test_more_gpus_than_there_are_is_refused_with_the_numbers() -> None:
    with pytest.raises(PlacementError, match="asks for 8 GPUs, the 2 planned nodes have 1"):
        choose_devices("cuda", 8, ["a", "b"], {"a": ["G0"], "b": ["G0"]})


def test_cuda_without_a_gpu_on_each_node_is_refused() -> None:
    with pytest.raises(PlacementError, match="none on b"):
        choose_devices("cuda", None, ["a", "b"], {"a": ["G0"]})


def test_the_number_of_gpus_asked_for_is_spread_over_the_nodes() -> None:
    devices = choose_devices("cuda", 3, ["a", "b"], {"a": ["G0", "G1"], "b": ["G2", "G3"]})
    assert devices.ranks_on("a") + devices.ranks_on("b") == 3

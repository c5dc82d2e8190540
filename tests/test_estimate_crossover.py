"""The break-even between gradients and images: by the formula, by the estimate of a plan, and by figures worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.catalog.model import Catalog, ShardEntry, build_catalog
from datalocal.estimate.bytes import estimate
from datalocal.estimate.crossover import Crossover, Gang, crossovers
from datalocal.placement.registry import POLICIES
from datalocal.report.advice import advice
from tests.test_placement_policies import BOTH, cluster, job

RESNET50 = 25_557_032 * 4
IMAGENET_IMAGES, IMAGENET_SAMPLE_BYTES = 1_281_167, 114_660


def imagenet(nodes: int) -> Catalog:
    """ImageNet's training images in shards of 1,000, each on one storage node and the next."""
    sizes = [1000] * 1281 + [167]
    return build_catalog(
        dataset="photos",
        nodes=[f"node{i}" for i in range(nodes)],
        entries=[
            ShardEntry(
                key=f"part-{i:05d}.parquet",
                bytes=rows * IMAGENET_SAMPLE_BYTES,
                replicas=tuple({f"node{i % nodes}", f"node{(i + 1) % nodes}"}),
                group_rows=(rows,),
                group_bytes=(rows * IMAGENET_SAMPLE_BYTES,),
            )
            for i, rows in enumerate(sizes)
        ],
    )


def test_resnet50_on_imagenet_on_eight_nodes_to_three_digits() -> None:
    """90 epochs, 256 images per GPU and step: 80.6 TB of gradients against 13.2 TB of images, 0.147 TB where they are kept."""
    here, what = cluster(8), job(train={"model": "m:net", "epochs": 90, "batch": 2048})
    found = {
        name: estimate(POLICIES[name](what, imagenet(8), here), what, imagenet(8), here, gradient_bytes=RESNET50)
        for name in ("data-local", "central-nas", "central-staged")
    }
    moved = {name: each.summary.bytes_off_node for name, each in found.items()}
    assert moved["data-local"] == pytest.approx(80.6e12, rel=5e-4)
    assert moved["central-nas"] == pytest.approx(13.2e12, rel=2e-3)
    assert moved["central-staged"] == pytest.approx(0.147e12, rel=2e-3)
    plan = POLICIES["data-local"](what, imagenet(8), here)
    every, once = crossovers(plan, what, imagenet(8), found["data-local"], RESNET50)
    assert 1 / every.locality_number == pytest.approx(6.1, abs=0.05)
    assert 1 / once.locality_number == pytest.approx(549, abs=0.5)
    assert every.break_even_period == 7
    says = advice(list(found.values()), [every, once])
    assert says["choice"] == "central"
    assert "It turns at 12,483 samples per synchronisation (now 2,048)" in " ".join(says["because"])


@pytest.mark.parametrize(
    ("nodes", "batch", "period", "no_cache", "ten_epochs"),
    [(8, 2048, 8, 0.76, 7.6), (8, 2048, 32, 0.19, 1.9), (8, 16384, 1, 0.76, 7.6), (64, 16384, 1, 6.9, 69)],
)
def test_local_over_central_as_worked_out_by_hand(
    nodes: int, batch: int, period: int, no_cache: float, ten_epochs: float
) -> None:
    gang = Gang(nodes=nodes, batch=batch, gradient_bytes=RESNET50, sample_bytes=IMAGENET_SAMPLE_BYTES, period=period)
    for phi, expected in ((1.0, no_cache), (0.1, ten_epochs)):
        against = Crossover(gang=gang, against="the cluster", fetches_per_epoch=phi)
        assert 1 / against.locality_number == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("parameters", "sample_bytes", "per_node"),
    [(3.5e6, 114_660, 244), (25_557_032, 114_660, 1783), (86e6, 1_000_000, 688), (304e6, 2_830_000, 860)],
)
def test_samples_per_node_and_synchronisation_that_are_needed(
    parameters: float, sample_bytes: int, per_node: int
) -> None:
    nodes = 100_000  # of many nodes, where 2 (m - 1) / m is 2
    gang = Gang(nodes=nodes, batch=1, gradient_bytes=round(4 * parameters), sample_bytes=sample_bytes)
    needed = Crossover(gang=gang, against="the cluster", fetches_per_epoch=1.0).break_even_batch
    assert needed is not None
    assert math.ceil(needed / nodes) == pytest.approx(per_node, abs=1)


@given(
    st.integers(2, 500),
    st.integers(1, 10**5),
    st.integers(1, 10**9),
    st.integers(1, 10**8),
    st.floats(0, 1),
    st.floats(0.001, 1),
)
def test_at_the_break_even_the_gang_moves_no_more_and_one_sample_below_it_does(
    nodes: int, batch: int, gradient_bytes: int, sample_bytes: int, local: float, fetched: float
) -> None:
    def against(samples: int) -> Crossover:
        gang = Gang(
            nodes=nodes,
            batch=samples,
            gradient_bytes=gradient_bytes,
            sample_bytes=sample_bytes,
            local_share=local,
        )
        return Crossover(gang=gang, against="the cluster", fetches_per_epoch=fetched)

    def moves_more(samples: int) -> bool:
        found = against(samples)
        return found.gang.bytes_per_sample > sample_bytes * fetched * (1 + 1e-9)

    needed = against(batch).break_even_batch
    if needed is None:
        assert against(batch).locality_number == 0
        gang = against(10**12).gang
        assert gang.bytes_per_sample >= sample_bytes * fetched * (1 - 1e-9), (
            "no batch, however large, makes it move less"
        )
        return
    assert not moves_more(needed)
    assert needed == 1 or against(needed - 1).locality_number < 1 + 1e-9
    period = against(batch).break_even_period
    assert period is not None
    assert period * batch >= needed > (period - 1) * batch or period == 1


def test_a_job_whose_outputs_are_not_known_gets_advice_once_their_share_is() -> None:
    here, what = cluster(4), job(**BOTH)
    found = imagenet(4)
    names = ("data-local", "reduce-then-ship", "central-nas")
    plans = {name: POLICIES[name](what, found, here) for name in names}
    blind = [estimate(plans[name], what, found, here, gradient_bytes=RESNET50) for name in names]
    assert advice(blind, [])["choice"] == "none"
    seeing = {
        name: estimate(plans[name], what, found, here, gradient_bytes=RESNET50, output_share=0.25) for name in names
    }
    shipped = seeing["reduce-then-ship"].summary
    assert shipped.unknown == ()
    assert shipped.by_class == {"output": pytest.approx(found.total_bytes / 4, abs=len(found))}
    assert advice(list(seeing.values()), [])["choice"] == "reduce-and-ship"


def test_a_gang_of_one_has_nothing_to_weigh() -> None:
    here, what = cluster(1), job(train={"model": "m:net"})
    plan = POLICIES["data-local"](what, imagenet(1), here)
    found = estimate(plan, what, imagenet(1), here, gradient_bytes=RESNET50)
    assert crossovers(plan, what, imagenet(1), found, RESNET50) == ()

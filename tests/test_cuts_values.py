"""The cut as a value: where a pipeline may be cut, what each cut ships, and frozen stages that are the same everywhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datalocal.errors import PlacementError, SpecError, TaskError
from datalocal.estimate.cuts import Stage, Stored, cut_table
from datalocal.placement.policies import reduce_then_ship
from datalocal.report.cuts import cut_figures, cut_line, sentences
from datalocal.spec.job import at_cut, load_job
from datalocal.spec.pipeline import Augment, FrozenStage, Pipeline
from datalocal.tasks.before_cut import ppm
from datalocal.tasks.code import load_target
from datalocal.tasks.cut_sizes import tabulate
from datalocal.tasks.frozen import build, build_stages, check_model, examine, fingerprint
from datalocal.tasks.images import decode, decode_square, encode_jpeg
from datalocal.tasks.model import Cut
from datalocal.tasks.shard_file import ShardFile
from datalocal.tasks.train.columns import EncodedImages, images_of
from datalocal.tasks.train.crop import Cropper
from datalocal.tasks.train.inputs import Inputs
from datalocal.training import to_float
from tests import pipelines
from tests.preprocess_bench import bench, photos, picture


def pipeline(stages: int = 2, **changes: Any) -> Pipeline:
    frozen = tuple(FrozenStage(name=f"s{number}", module="m:f") for number in range(stages))
    return Pipeline(image_size=8, frozen=frozen, **changes)


def found(stages: int = 2) -> list[Stage]:
    return [
        Stage(name=f"s{number}", shape=(4, number + 1), parameters=10, flops=100 * (number + 1), sha256="0")
        for number in range(stages)
    ]


def stored(*sizes: float | None) -> dict[str, Stored]:
    names = ["raw", "resized-jpeg", "resized", *(f"s{number}" for number in range(len(sizes) - 3))]
    return {
        name: Stored(bytes_per_sample=size, origin="missing" if size is None else "exact")
        for name, size in zip(names, sizes, strict=True)
    }


@given(
    sizes=st.lists(st.integers(1, 100), min_size=4, max_size=7),
    after=st.integers(-1, 4),
    samples=st.integers(1, 1000),
    epochs=st.integers(1, 9),
)
def test_the_proposal_ships_least_of_what_keeps_results_and_nothing_forbids(
    sizes: list[int], after: int, samples: int, epochs: int
) -> None:
    stages = len(sizes) - 3
    augment = None
    if 0 <= after <= stages:
        augment = Augment(transform="m:a", after="resized" if after == 0 else f"s{after - 1}")
    line = pipeline(stages, augment=augment)
    table = cut_table(line, found(stages), stored(*sizes), samples=samples, epochs=epochs)
    last = stages if augment is None else after
    allowed = {"raw": sizes[0], "resized": sizes[2]} | {f"s{i}": sizes[3 + i] for i in range(last)}
    assert table.proposed in allowed and allowed[table.proposed] == min(allowed.values())
    assert {row.cut for row in table.rows if row.forbidden} == {f"s{i}" for i in range(last, stages)}
    for row in table.rows:
        once, every = table.once_bytes(row), table.every_epoch_bytes(row)
        assert once is not None and every == once * epochs
        assert row.flops_before + row.flops_after == sum(100 * (i + 1) for i in range(stages))


def test_what_is_computed_before_the_cut_grows_from_cut_to_cut() -> None:
    table = cut_table(pipeline(), found(), stored(9, 1, 8, 7, 2), samples=10, epochs=3)
    assert [row.flops_before for row in table.rows] == [0, 0, 0, 100, 300]
    assert [row.shape for row in table.rows] == [(), (8, 8, 3), (8, 8, 3), (4, 1), (4, 2)]
    assert table.proposed == table.chosen == "s1", "the JPEG is smaller, and not the same picture"


def test_an_unknown_size_is_no_size_and_is_never_proposed() -> None:
    table = cut_table(pipeline(0), [], stored(9, None, 12), samples=10, epochs=3)
    row = table.row("resized-jpeg")
    assert table.once_bytes(row) is None and table.to_json()["cuts"][1]["once_bytes"] is None
    assert table.proposed == "raw"


def test_the_words_say_what_is_lost_forbidden_and_chosen_against_the_proposal() -> None:
    augment = Augment(transform="m:flip", after="s0")
    line = pipeline(augment=augment, cut="resized", dtype="float16")
    told = " ".join(sentences(cut_table(line, found(), stored(9, 1, 8, 7, 2), samples=10, epochs=3)))
    assert "Proposed: cut at `s0`: 7 B per sample, 1.29 times less" in told
    assert "The job says `cut: resized`" in told
    assert "s1 is ruled out: the augmentation m:flip" in told and "resized, s0" in told
    assert "resized-jpeg: encoded a second time" in told and "s0: float16 keeps 11 bits" in told


def test_a_sample_at_the_cut_weighs_what_preprocess_wrote_and_not_what_was_staged() -> None:
    table = cut_table(pipeline(), found(), stored(90, 1, 80, 70, 20), samples=30, epochs=3).to_json()
    events: list[dict[str, Any]] = [
        {"type": "cut", "table": table},
        *(
            {"type": "task", "record": {"shard": shard, "kind": kind, "output_bytes": size, "images_out": 10, **frozen}}
            for kind, size, frozen in (("staging", 900, {}), ("preprocess", 210, {"frozen": {"s0": "a", "s1": "b"}}))
            for shard in (f"{kind}-1", f"{kind}-2")
        ),
    ]
    figures = cut_figures(events)
    assert figures == {
        "cut": "s1",
        "predicted_bytes_per_sample": 20,
        "origin": "exact",
        "measured_bytes_per_sample": 21,
        "frozen": {"s0": "a", "s1": "b"},
    }
    assert "20 B per sample predicted, 21 B measured (-4.76 %)" in cut_line(figures)
    staged = cut_figures([event for event in events if event.get("record", {}).get("kind") != "preprocess"])
    assert staged is not None and staged["measured_bytes_per_sample"] == 60
    assert cut_figures([]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cut": "s7"}, "there is no cut 's7'; the cuts are auto, raw, resized-jpeg, resized, s0, s1"),
        ({"augment": Augment(transform="m:a"), "cut": "s0"}, "one draw of it for ever"),
        ({"augment": Augment(transform="m:a", after="s9")}, "comes after one of: resized, s0, s1"),
    ],
)
def test_a_cut_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**changes)


def test_stage_names_are_unique_and_no_cut_of_every_pipeline() -> None:
    for names, message in ((("raw",), "cannot be called 'raw'"), (("a", "a"), "two frozen stages are called 'a'")):
        with pytest.raises(ValueError, match=message):
            Pipeline(image_size=8, frozen=tuple(FrozenStage(name=name, module="m:f") for name in names))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preprocess={transform: 'frozen_code:flip', output: x}", "leave `preprocess` out"),
        ("train.image_size=32", "leave `train.image_size` out"),
        ("train=null", "give `train.model`"),
        ("pipeline.output=pictures", "never replace their input"),
        ("pipeline.cuts=raw", "unknown key"),
        ("pipeline.frozen=[{name: a, module: 'frozn_code:f'}]", "did you mean frozen_code:f"),
        ("pipeline.frozen=[{name: a, module: 'frozen_code:stem', weights: w.pt}]", "there is no file"),
        ("pipeline.frozen=[{name: a, module: 'frozen_code:stem', weights: ../w.pt}]", "outside the job's folder"),
    ],
)
def test_a_pipeline_that_could_not_run_is_refused_with_its_key(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_job(pipelines.job_file(tmp_path), (override,))


def test_a_cut_job_has_before_the_cut_as_preprocess_and_the_rest_as_training(tmp_path: Path) -> None:
    job = load_job(pipelines.job_file(tmp_path))
    raw, resized, stem = (at_cut(job, cut) for cut in ("raw", "resized", "stem"))
    assert job.train is not None
    assert raw.preprocess is None and raw.train is not None and raw.train.image_size == pipelines.SIDE
    assert resized.preprocess is not None and resized.preprocess.output == "pictures-resized"
    assert resized.train is not None and resized.train.image_size == pipelines.SIDE
    assert stem.train == job.train and stem.pipeline is not None and stem.pipeline.cut == "stem"
    assert [stage.name for stage in stem.pipeline.before("stem")] == ["stem"]
    assert [stage.name for stage in stem.pipeline.after("stem")] == ["pool"]
    assert job.pipeline is not None and job.pipeline.cut == "auto"


def test_frozen_weights_depend_on_the_pipelines_seed_alone(tmp_path: Path) -> None:
    job = load_job(pipelines.job_file(tmp_path))
    line = job.pipeline
    assert line is not None
    hashes = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        module = build(line, line.frozen[0], tmp_path, node="n", task="t")
        assert torch.equal(torch.get_rng_state(), before), "the job's own draws are not disturbed"
        hashes.append(fingerprint(module))
    other = build(line.model_copy(update={"seed": 1}), line.frozen[0], tmp_path, node="n", task="t")
    assert hashes[0] == hashes[1] != fingerprint(other)
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())


def test_the_hash_sees_every_weight_and_buffer(tmp_path: Path) -> None:
    line = load_job(pipelines.job_file(tmp_path)).pipeline
    assert line is not None
    for name in ("0.weight", "0.bias", "1.running_mean"):
        module = build(line, line.frozen[0], tmp_path, node="n", task="t")
        before = fingerprint(module)
        module.state_dict()[name].view(-1)[0] += 1e-6
        assert fingerprint(module) != before


def test_examining_gives_the_shapes_operations_and_hashes_of_all_stages(tmp_path: Path) -> None:
    line = load_job(pipelines.job_file(tmp_path)).pipeline
    assert line is not None
    stem, pool = examine(line, tmp_path)
    assert (stem.shape, pool.shape) == ((8, 8, 8), (128,))
    assert stem.flops == 2 * 8 * 8 * 8 * 27 and pool.flops == 0
    assert stem.parameters == 8 * 27 + 8 + 16
    assert Stage.from_json(stem.to_json()) == stem


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("frozen_code:Restless", "other weights each time"),
        ("frozen_code:flat", r"for 2 images"),
        ("frozen_code:count", "raised|cannot be called|not callable"),
        ("frozen_code:head", "raised"),
    ],
)
def test_a_stage_that_cannot_be_shipped_is_refused_before_anything_starts(
    tmp_path: Path, module: str, message: str
) -> None:
    job = load_job(pipelines.job_file(tmp_path, frozen=[{"name": "a", "module": module}]))
    assert job.pipeline is not None
    with pytest.raises(SpecError, match=message) as refused:
        examine(job.pipeline, tmp_path)
    assert refused.value.key == "pipeline.frozen.a"


def test_a_model_that_does_not_take_the_features_is_refused_before_anything_starts(tmp_path: Path) -> None:
    job = load_job(pipelines.job_file(tmp_path), ("train.arguments={features: 100}",))
    assert job.pipeline is not None and job.train is not None
    stages = examine(job.pipeline, tmp_path)
    with pytest.raises(SpecError, match=r"head does not take what the frozen stage 'pool' gives, \[128\] per sample"):
        check_model(job.pipeline, stages, job.train, tmp_path)
    state = torch.get_rng_state()
    check_model(job.pipeline, stages, job.train.model_copy(update={"arguments": {}}), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_reduce_then_ship_has_nothing_to_ship_of_a_pipeline_cut_at_raw(tmp_path: Path) -> None:
    scene: Any = SimpleNamespace(job=at_cut(load_job(pipelines.job_file(tmp_path)), "raw"))
    with pytest.raises(PlacementError, match="central-staged"):
        reduce_then_ship.on(scene)


def test_a_node_with_other_weights_refuses_to_work(tmp_path: Path) -> None:
    line = load_job(pipelines.job_file(tmp_path)).pipeline
    assert line is not None
    sha256 = {stage.name: stage.sha256 for stage in examine(line, tmp_path)}
    cut = Cut(pipeline=line, at="pool", sha256=sha256)
    assert len(build_stages(cut, line.frozen, tmp_path, torch.device("cpu"), node="n", task="t")) == 2
    other = Cut(pipeline=line, at="pool", sha256=sha256 | {"stem": "f" * 64})
    with pytest.raises(TaskError, match=r"stage 'stem' are not those of the run.*ffffffffffff expected"):
        build_stages(other, line.frozen, tmp_path, torch.device("cpu"), node="n", task="t")


def test_weights_come_from_a_file_in_the_jobs_folder(tmp_path: Path) -> None:
    stage = {"name": "stem", "module": "frozen_code:stem", "weights": "w.pt"}
    path = pipelines.job_file(tmp_path, frozen=[stage])
    torch.save({}, tmp_path / "w.pt")
    line = load_job(path).pipeline
    assert line is not None
    with pytest.raises(TaskError, match=r"cannot take its weights from w\.pt"):
        build(line, line.frozen[0], tmp_path, node="n", task="t")
    drawn = build(line.model_copy(update={"frozen": (FrozenStage(name="stem", module="frozen_code:stem"),)}),
                  FrozenStage(name="stem", module="frozen_code:stem"), tmp_path, node="n", task="t")  # fmt: skip
    state = {name: value + 1 for name, value in drawn.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    read = build(line, line.frozen[0], tmp_path, node="n", task="t")
    assert all(np.array_equal(read.state_dict()[name], value) for name, value in state.items())
    assert load_job(path).files == {"pipeline.frozen.stem.weights": "w.pt"}


def test_inputs_run_what_lies_after_the_cut_and_augment_training_samples_only(tmp_path: Path) -> None:
    """The stages of a line cut at `raw`, `stem` and `pool` give the same; noise after `stem` is where it belongs."""
    job = load_job(pipelines.job_file(tmp_path, augment={"transform": "frozen_code:flip", "after": "stem"}))
    line = job.pipeline
    assert line is not None
    sha256 = {stage.name: stage.sha256 for stage in examine(line, tmp_path)}
    pixels = torch.randint(0, 256, (3, pipelines.SIDE, pipelines.SIDE, 3), dtype=torch.uint8)
    stem, pool = (build(line, stage, tmp_path, node="n", task="t") for stage in line.frozen)
    features = stem(to_float(pixels))

    def inputs(cut: str) -> Inputs:
        session: Any = SimpleNamespace(
            node="n", device=torch.device("cpu"), folder=tmp_path, cut=Cut(pipeline=line, at=cut, sha256=sha256),
            load=lambda target: load_target(target, tmp_path),
        )  # fmt: skip
        return Inputs(session)

    for cut, images in (("raw", pixels), ("resized", pixels), ("stem", features), ("pool", pool(features))):
        validated = inputs(cut)(images, training_samples=False)
        assert torch.equal(validated, pool(features)) and not validated.requires_grad
    for cut, images in (("raw", pixels), ("stem", features)):
        torch.manual_seed(5)
        drawn = inputs(cut)(images, training_samples=True)
        torch.manual_seed(5)
        assert torch.equal(drawn, pool(features + 0.5 * torch.randn_like(features)))


def test_without_a_pipeline_inputs_are_the_floats_of_the_images() -> None:
    session: Any = SimpleNamespace(cut=None)
    pixels = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    assert torch.equal(Inputs(session)(pixels, training_samples=True), to_float(pixels))


@pytest.mark.parametrize("cut", ["resized", "resized-jpeg"])
def test_before_the_cut_images_become_what_training_would_see_in_the_row_groups_of_the_input(
    tmp_path: Path, cut: str
) -> None:
    """Row groups decide the order of training: a file of small features would otherwise have fewer of them."""
    with bench(tmp_path) as here:
        here.shard(photos(25))  # row groups of 10, 10 and 5
        line = Pipeline(image_size=20, cut=cut)
        record, table = here.run(cut=Cut(pipeline=line, at=cut, sha256={}))
        metadata = pq.read_metadata(here.output())
        assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [10, 10, 5]
        assert record.frozen == {}
    for row, value in enumerate(table.column("image").to_pylist()):
        expected = decode(picture(row), max_pixels=10**6)[6:26, 6:26]
        if cut == "resized":
            assert np.array_equal(decode(value, max_pixels=10**6), expected)
        else:
            assert value == encode_jpeg(expected, 90)


@given(height=st.integers(8, 90), width=st.integers(8, 90), side=st.integers(4, 40), number=st.integers(0, 3))
def test_a_square_before_the_cut_is_the_one_that_training_cuts_out(
    height: int, width: int, side: int, number: int
) -> None:
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3)).astype(np.uint8)
    encoded = encode_jpeg(pixels, 90)
    images = images_of(pa.chunked_array([pa.array([encoded], pa.binary())]))
    assert isinstance(images, EncodedImages)
    out = np.empty((1, side, side, 3), np.uint8)
    Cropper(side, 10**6).decode(images, np.array([0]), [0], out)
    assert np.array_equal(decode_square(encoded, side, max_pixels=10**6), out[0])
    again = images_of(pa.chunked_array([pa.array([ppm(out[0])], pa.binary())]))
    assert isinstance(again, EncodedImages)
    read = np.empty_like(out)
    Cropper(side, 10**6).decode(again, np.array([0]), [0], read)
    assert np.array_equal(read, out), "shipped pixels are read back as they were"


@pytest.mark.parametrize("tall", [True, False])
def test_of_a_line_of_pixels_only_the_middle_is_enlarged(monkeypatch: pytest.MonkeyPatch, tall: bool) -> None:
    """A file of a kilobyte would else become gigabytes, though it is within `max_pixels`."""
    sizes, resize = [], cv2.resize

    def spy(image: Any, size: tuple[int, int], **options: Any) -> Any:
        sizes.append(size)
        return resize(image, size, **options)

    monkeypatch.setattr(cv2, "resize", spy)
    line = np.zeros((1, 4001, 3), np.uint8)
    line[:, 1998:2002] = 200
    square = decode_square(ppm(line.swapaxes(0, 1) if tall else line), 32, max_pixels=10**6)
    assert square.shape == (32, 32, 3) and (square == 200).all()
    assert [width * height for width, height in sizes] == [4 * 32 * 32]


def test_a_column_that_must_not_be_null_is_weighed_like_any_other(tmp_path: Path) -> None:
    sizes = sizes_of_cuts(tmp_path)
    assert sizes[0] == 100 and sizes[1] is None
    assert sizes[2] is not None and 0 < sizes[2] - 3 * pipelines.SIDE**2 < 2000


def test_the_names_of_classes_are_weighed_as_every_shard_carries_them(tmp_path: Path) -> None:
    """As they are, and once more within Arrow's own schema, in base64."""
    plain, named = sizes_of_cuts(tmp_path), sizes_of_cuts(tmp_path, {"datalocal": "n" * 3000})
    for less, more in zip(plain[2:], named[2:], strict=True):
        assert less is not None and more is not None
        assert 4 * (more - less) == pytest.approx(3000 * (1 + 4 / 3), rel=0.02)


def sizes_of_cuts(folder: Path, metadata: dict[str, str] | None = None) -> list[float | None]:
    """Bytes per sample at every cut of a pipeline over a shard of four images."""
    schema = pa.schema(
        [
            pa.field("image", pa.binary(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("about", pa.struct([pa.field("year", pa.int64(), nullable=False)])),
        ],
        metadata=metadata,
    )
    rows = [{"image": picture(row), "label": 1, "about": {"year": 1999}} for row in range(4)]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "shard")
    catalog: Any = Shards()
    store: Any = SimpleNamespace(open=lambda path, replicas, class_: pa.OSFile(str(folder / "shard")))
    job = load_job(pipelines.job_file(folder / "job"))
    table = tabulate(job, examine(job.pipeline or pipeline(), folder / "job"), catalog, store)
    return [row.stored.bytes_per_sample for row in table.rows]


class Shards:
    """A catalog of one shard."""

    total_rows, total_bytes, group_rows = 4, 400, (4,)

    def __len__(self) -> int:
        return 1

    def path(self, shard: int) -> str:
        return ""

    def replicas(self, shard: int) -> tuple[str, ...]:
        return ()


def test_row_groups_that_are_told_are_not_divided_by_size(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"x"] * 600, pa.binary())})
    for told, expected in ((True, [600]), (False, [500, 100])):
        with ShardFile("n", tmp_path, table.schema, groups_are_told=told) as file:
            file.add(table, [1] * 600)
            file.end_group()
            metadata = pq.read_metadata(file.finish())
        assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == expected

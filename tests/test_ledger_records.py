"""Records survive JSON, and the accounting of samples obeys its laws."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datalocal.ledger.accounting import stage_samples, total_samples
from datalocal.ledger.checkpoints import CheckpointBook
from datalocal.ledger.records import ByteRow, Damaged, RankRecord, SamplesLine, TaskRecord
from datalocal.ledger.samples import Samples, account, decode_uses, encode_uses

names = st.text(max_size=12)
counts = st.integers(min_value=0, max_value=2**50)
seconds = st.floats(min_value=0, max_value=1e9)
byte_rows = st.builds(
    ByteRow,
    class_=st.sampled_from(["input", "staging", "gradients", "output", "checkpoint", "control"]),
    source=st.sampled_from(["a", "b", "head"]),
    destination=st.sampled_from(["a", "b", "head"]),
    bytes=counts,
    origin=st.sampled_from(["measured.reader", "measured.writer", "measured.socket"]),
)
task_records = st.builds(
    TaskRecord,
    kind=st.sampled_from(["staging", "preprocess"]),
    task=names, arm=names, stage=names, shard=names, planned_node=names, node=names, executor=names, reason=names,
    attempt=counts, started=seconds, seconds=seconds, images_in=counts, images_out=counts,
    output_nodes=st.lists(names, max_size=3).map(tuple),
    damaged=st.lists(st.builds(Damaged, shard=names, row=counts, path=names, problem=names), max_size=3).map(tuple),
    bytes=st.lists(byte_rows, max_size=4).map(tuple),
    seconds_by_step=st.dictionaries(names, seconds, max_size=3),
)  # fmt: skip
rank_records = st.builds(
    RankRecord,
    arm=names, stage=names, node=names, device=names, launch=counts, rank=counts, world=counts, steps=counts,
    images=counts, seconds=seconds, bytes=st.lists(byte_rows, max_size=4).map(tuple),
    gradients=st.dictionaries(names, seconds, max_size=3), seconds_by_step=st.dictionaries(names, seconds, max_size=3),
)  # fmt: skip


@given(task_records)
def test_a_task_record_survives_json(record: TaskRecord) -> None:
    assert TaskRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


@given(rank_records)
def test_a_rank_record_survives_json_within_its_event(record: RankRecord) -> None:
    event = {"type": "rank", "time": 1.0, **record.to_json()}
    assert RankRecord.from_json(json.loads(json.dumps(event))) == record


@given(st.builds(SamplesLine, epoch=counts, from_step=counts, to_step=counts, rank=counts, node=names,
                 used=st.dictionaries(names, names, max_size=3)))  # fmt: skip
def test_a_samples_line_survives_json_within_its_event(line: SamplesLine) -> None:
    event = {"type": "samples", "launch": 0, "checkpoint": "l0-e0-s1", **line.to_json()}
    assert SamplesLine.from_json(json.loads(json.dumps(event))) == line


uses = st.lists(st.integers(min_value=0, max_value=3), min_size=1, max_size=30).map(lambda x: np.array(x, np.uint8))


@given(uses)
def test_uses_survive_their_encoding(array: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    assert (decode_uses(encode_uses(array)) == array).all()


@given(st.data())
def test_every_use_and_every_expected_row_is_accounted_for(data: st.DataObject) -> None:
    rows = data.draw(st.integers(min_value=1, max_value=20))
    fixed = st.lists(st.integers(0, 2), min_size=rows, max_size=rows)
    expected = np.array(data.draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)), np.uint8)
    lines = [np.array(line, np.uint8) for line in data.draw(st.lists(fixed, max_size=4))]
    found = account({"s": expected}, [{"s": encode_uses(line)} for line in lines])["s"]
    assert found.seen + found.dropped == found.expected == expected.sum()
    assert found.seen + found.repeated == sum(int(line.sum()) for line in lines)


# A stage with launches and rollbacks


def event(type_: str, **content: Any) -> dict[str, Any]:
    return {"type": type_, "time": 0.0, "stage": "train", **content}


def line(
    launch: int, steps: tuple[int, int], rows: list[int], *, rank: int = 0, epoch: int = 0, total: int = 8
) -> dict[str, Any]:
    used = np.zeros(total, np.uint8)
    np.add.at(used, rows, 1)
    return event(
        "samples", launch=launch, epoch=epoch, from_step=steps[0], to_step=steps[1], rank=rank, node="n",
        used={"s": encode_uses(used)}, checkpoint=f"l{launch}-e{epoch}-s{steps[1]}",
    )  # fmt: skip


def launch(number: int, checkpoint: str | None, world: int = 1) -> dict[str, Any]:
    return event("launch", launch=number, world=world, checkpoint=checkpoint)


def checkpoint(name: str) -> dict[str, Any]:
    return event("checkpoint", name=name)


def epoch(number: int = 0, total: int = 8) -> dict[str, Any]:
    return event("epoch", epoch=number, expected={"s": encode_uses(np.ones(total, np.uint8))})


def test_an_uninterrupted_stage_sees_every_sample_once_per_epoch() -> None:
    history = [epoch(0), epoch(1), launch(0, None)]
    for number in range(2):
        history += [line(0, (0, 2), [0, 1, 2, 3], epoch=number), checkpoint(f"l0-e{number}-s2")]
        history += [line(0, (2, 4), [4, 5, 6, 7], epoch=number), checkpoint(f"l0-e{number}-s4")]
    assert total_samples(history, "train") == Samples(expected=16, seen=16)


def test_the_surviving_line_counts_and_the_rolled_back_one_is_told() -> None:
    history = [
        epoch(), launch(0, None), line(0, (0, 2), [0, 1, 2, 3]), checkpoint("l0-e0-s2"),
        line(0, (2, 4), [4, 5]),  # its checkpoint never became complete
        launch(1, "l0-e0-s2"), line(1, (2, 4), [4, 5, 6, 7]), checkpoint("l1-e0-s4"),
    ]  # fmt: skip
    assert total_samples(history, "train") == Samples(expected=8, seen=8, rolled_back=2)


def test_lines_that_the_rolled_back_event_tells_are_not_counted_twice() -> None:
    history = [
        epoch(), launch(0, None), line(0, (0, 2), [0, 1, 2, 3]), checkpoint("l0-e0-s2"), line(0, (2, 4), [4, 5]),
        event("rolled_back", launch=0, epoch=0, from_step=2, to_step=5, samples=4),
        launch(1, "l0-e0-s2"), line(1, (2, 4), [4, 5, 6, 7]), checkpoint("l1-e0-s4"),
    ]  # fmt: skip
    assert total_samples(history, "train").rolled_back == 4


def test_lines_of_the_last_launch_wait_for_their_checkpoint() -> None:
    history = [epoch(), launch(0, None), line(0, (0, 2), [0, 1])]
    assert total_samples(history, "train") == Samples(expected=8, dropped=8)


def test_repeated_and_dropped_are_found_by_shard() -> None:
    history = [epoch(), launch(0, None), line(0, (0, 4), [0, 0, 1, 2, 3, 4, 5]), checkpoint("l0-e0-s4")]
    assert stage_samples(history, "train") == {"s": Samples(expected=8, seen=6, repeated=1, dropped=2)}


@given(st.permutations(["blob", "line0", "line1"]))
def test_a_checkpoint_is_complete_when_all_its_parts_are_in_whatever_their_order(order: list[str]) -> None:
    book = CheckpointBook(lambda arm, launch: 2)
    answers = [
        book.blob("a", "l0-e1-s7", 100, "c0de")
        if part == "blob"
        else book.line("a", {"checkpoint": "l0-e1-s7", "rank": int(part[-1]), "stage": "train"})
        for part in order
    ]
    assert answers[:2] == [None, None]
    at = {"stage": "train", "launch": 0, "name": "l0-e1-s7", "epoch": 1, "step": 7}
    assert answers[2] == at | {"bytes": 100, "sha256": "c0de"}


def test_one_rank_twice_is_not_two_ranks() -> None:
    book = CheckpointBook(lambda arm, launch: 2)
    book.blob("a", "l0-e0-s1", 1, "c0de")
    for _ in range(2):
        assert book.line("a", {"checkpoint": "l0-e0-s1", "rank": 0, "stage": "train"}) is None

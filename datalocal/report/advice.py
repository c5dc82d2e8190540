"""What `plan` advises before anything runs: the way of working that would move the fewest bytes, and what would turn that. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datalocal.estimate.bytes import Estimate
from datalocal.estimate.cost import Cost
from datalocal.estimate.crossover import Crossover
from datalocal.estimate.equal import MEASURES, Measure
from datalocal.report.verdict import ADVICE, MARGIN, choice_of
from datalocal.units import format_bytes, format_joules, format_seconds, format_share


def advice(
    estimates: Sequence[Estimate],
    crossovers: Sequence[Crossover],
    *,
    costs: Sequence[Cost] = (),
    equal: Mapping[str, Mapping[Measure, float]] | None = None,
    shared_host: bool = False,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """{choice, sentence, because}: among the arms of which every byte is known; by bytes that would leave a node.

    `costs`: what the arms take; `equal`: seconds of central arms with as many GPUs as the local arm has, or for its money or
    power; `notes`: what was taken for granted of the rates.
    """
    known = sorted(
        (each for each in estimates if not each.summary.unknown),
        key=lambda each: (each.summary.bytes_off_node, each.policy),
    )
    choice, sentence = _by_bytes(known)
    because = [_bytes_sentence(each) for each in known]
    because += [
        f"{each.policy} is left out: {'; '.join(each.summary.unknown)}." for each in estimates if each.summary.unknown
    ]
    because += [sentence for each in crossovers for sentence in each.sentences()]
    because += _times(costs, equal or {}, choice, shared_host=shared_host)
    because += list(dict.fromkeys(told for each in estimates for told in each.assumptions))
    because += notes
    return {"choice": choice, "sentence": sentence, "because": because}


def _by_bytes(known: Sequence[Estimate]) -> tuple[str, str]:
    if len({choice_of(each.policy) for each in known}) < 2:
        return "none", "No advice: the bytes of fewer than two ways of working are known beforehand."
    best = known[0]
    choice = choice_of(best.policy)
    rival = next(each for each in known if choice_of(each.policy) != choice)
    least, more = best.summary.bytes_off_node, rival.summary.bytes_off_node
    pair = f"{best.policy} would let {format_bytes(least)} leave a node, {rival.policy} {format_bytes(more)}"
    if more - least < MARGIN * max(more, 1):
        return "none", f"No difference in bytes: {pair}."
    factor = f" ({more / least:.3g} times as much)" if least else ""
    return choice, f"{ADVICE[choice]}: {pair}{factor}."


def _times(
    costs: Sequence[Cost], equal: Mapping[str, Mapping[Measure, float]], choice: str, *, shared_host: bool
) -> list[str]:
    """Seconds and joules of each arm, and whether they would turn the answer."""
    told = []
    timed = [(each, each.seconds) for each in costs]
    for each, seconds in timed:
        if seconds is None:
            told.append(f"{each.policy}: seconds are not known: {each.reason}.")
            continue
        waits = ", ".join(f"{stage.stage} waits for {stage.bottleneck}" for stage in each.stages)
        joules = ", ".join(f"{row['component']} {format_joules(row['joules'])}" for row in each.joules)
        told.append(f"{each.policy} would take {format_seconds(seconds)} ({waits}); joules: {joules}.")
        serving = sum(stage.serving_seconds for stage in each.stages)
        if serving > MARGIN * seconds:
            told.append(
                f"{each.policy}: {format_seconds(serving)} of it because nodes serve others beside their own work."
            )
    told += [
        f"{policy} at equal {measure}, with the disks and links it has, would take {format_seconds(seconds)}."
        for policy, found in equal.items()
        for measure, seconds in found.items()
    ]
    if shared_host:
        if told:
            told.append("The nodes share one physical host: these seconds and joules are not those of a cluster.")
        return told
    if choice == "none" or any(seconds is None for _, seconds in timed):
        return told
    for measure in MEASURES:
        if measure != "GPUs" and not any(measure in found for found in equal.values()):
            continue
        fair = sorted(
            (equal.get(each.policy, {}).get(measure, seconds), each.policy)
            for each, seconds in timed
            if seconds is not None
        )
        if fair and choice_of(fair[0][1]) != choice:
            at_equal = f" at equal {measure}" if measure in equal.get(fair[0][1], {}) else ""
            told.append(
                f"By time {'' if measure == 'GPUs' else f'for the same {measure} '}the answer would be another: "
                f"{fair[0][1]} is the fastest, with {format_seconds(fair[0][0])}{at_equal}."
            )
    return told


def _bytes_sentence(found: Estimate) -> str:
    summary = found.summary
    parts = ", ".join(f"{class_} {format_bytes(size)}" for class_, size in summary.by_class.items())
    return (
        f"{found.policy}: {format_bytes(summary.bytes_off_node)} would leave a node{f' ({parts})' if parts else ''}; "
        f"{format_share(summary.local_byte_share)} of the input comes from own disks."
    )

"""What `plan` advises before anything runs: the way of working that would move the fewest bytes, and what would turn that. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datalocal.estimate.bytes import Estimate
from datalocal.estimate.crossover import Crossover
from datalocal.report.verdict import MARGIN, choice_of
from datalocal.units import format_bytes, format_share

_ADVICE = {
    "local": "Work where the data lies",
    "reduce-and-ship": "Reduce where the data lies and ship the results",
    "central": "Work centrally",
}


def advice(estimates: Sequence[Estimate], crossovers: Sequence[Crossover]) -> dict[str, Any]:
    """{choice, sentence, because}: among the arms of which every byte is known; by bytes that would leave a node."""
    known = sorted(
        (each for each in estimates if not each.summary.unknown),
        key=lambda each: (each.summary.bytes_off_node, each.policy),
    )
    because = [_bytes_sentence(each) for each in known]
    because += [
        f"{each.policy} is left out: {'; '.join(each.summary.unknown)}." for each in estimates if each.summary.unknown
    ]
    because += [sentence for each in crossovers for sentence in each.sentences()]
    if len({choice_of(each.policy) for each in known}) < 2:
        return {
            "choice": "none",
            "sentence": "No advice: the bytes of fewer than two ways of working are known beforehand.",
            "because": because,
        }
    best = known[0]
    choice = choice_of(best.policy)
    rival = next(each for each in known if choice_of(each.policy) != choice)
    least, more = best.summary.bytes_off_node, rival.summary.bytes_off_node
    pair = f"{best.policy} would let {format_bytes(least)} leave a node, {rival.policy} {format_bytes(more)}"
    if more - least < MARGIN * max(more, 1):
        return {"choice": "none", "sentence": f"No difference in bytes: {pair}.", "because": because}
    factor = f" ({more / least:.3g} times as much)" if least else ""
    return {"choice": choice, "sentence": f"{_ADVICE[choice]}: {pair}{factor}.", "because": because}


def _bytes_sentence(found: Estimate) -> str:
    summary = found.summary
    parts = ", ".join(f"{class_} {format_bytes(size)}" for class_, size in summary.by_class.items())
    return (
        f"{found.policy}: {format_bytes(summary.bytes_off_node)} would leave a node{f' ({parts})' if parts else ''}; "
        f"{format_share(summary.local_byte_share)} of the input comes from own disks."
    )

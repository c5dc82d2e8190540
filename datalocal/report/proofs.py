"""Why no placement keeps more local than the bound of `plan` says: two sums, once for all arms that they bound. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datalocal.estimate.locality import Locality
from datalocal.placement.certificate import advice, gap, headline, proof

NAMES = 5
"""So many nodes of a cut are named; the JSON has all."""


def proofs(localities: Mapping[str, Locality]) -> list[dict[str, Any]]:
    """[{policies, stage, sentences}] of the localities by policy whose bound is below 100 %.

    Arms with the same makespan and the same cut share an entry: what each of them reaches, the proof, and then what would help,
    which is told of the arm that moves the least.
    """
    alike: dict[tuple[str, str], list[Locality]] = {}
    for each in localities.values():
        if each.certificate.non_local_at_least:
            alike.setdefault((each.stage, proof(each.problem, each.certificate, NAMES, each.within)), []).append(each)
    return [_entry(stage, proven, bounded) for (stage, proven), bounded in alike.items()]


def _entry(stage: str, proven: str, bounded: list[Locality]) -> dict[str, Any]:
    best = min(bounded, key=_moved)
    what = advice(best.problem, best.certificate, best.answer, best.within, ranks=best.of_ranks)
    return {
        "policies": [each.answer.policy for each in bounded],
        "stage": stage,
        "sentences": [
            *(headline(each.problem, each.certificate, each.answer, each.within) for each in bounded),
            proven,
            *what,
        ],
    }


def _moved(locality: Locality) -> tuple[int, int, str]:
    found = gap(locality.problem, locality.certificate, locality.answer)
    return found.ours, found.moved_bytes, locality.answer.policy

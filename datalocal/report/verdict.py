"""Which way of working moved the fewest bytes, in a sentence, and on what that rests. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datalocal.units import format_bytes, format_joules, format_seconds, format_share

Arm = dict[str, Any]
MARGIN = 0.01
"""Arms that differ by less are told apart by chance."""

ADVICE = {
    "local": "Work where the data lies",
    "reduce-and-ship": "Reduce where the data lies and ship the results",
    "central": "Work centrally",
}
"""What to do, by choice, before anything has run."""

_NAMES = {"local": "Working where the data lies", "reduce-and-ship": "Reducing first and shipping the results"}


def choice_of(policy: str) -> str:
    """The way of working that a policy stands for."""
    if policy.startswith("central") or policy == "san":
        return "central"
    return "reduce-and-ship" if policy.startswith("reduce") else "local"


def verdict(arms: Sequence[Arm], *, shared_host: bool, in_process: bool = False) -> dict[str, Any]:
    """{choice, sentence, because}: by bytes that left a node, among the arms that completed.

    `in_process`: the ranks of a gang shared one model, so nothing was exchanged that a cluster would have to send.
    """
    completed = sorted(
        (arm for arm in arms if arm["state"] == "completed"),
        key=lambda arm: (arm["headline_bytes"]["off_node"], arm["policy"]),
    )
    because = [_bytes_sentence(arm) for arm in completed]
    because += [
        f"{arm['policy']} did not complete ({arm['state']}) and is left out." for arm in arms if arm not in completed
    ]
    because += _different_work(completed)
    because += _gradients_outweigh(completed)
    because += _host_sentences(completed, shared_host)
    if len(completed) < 2:
        how_many = "No arm completed" if not completed else f"Only {completed[0]['policy']} completed"
        return _says("none", f"{how_many}, so there is nothing to compare its bytes with.", because)
    if in_process and any(_gang(arm) > 1 for arm in completed):
        return _says(
            "none",
            "No verdict: in one process the ranks of a gang share their model, so the gradients that a cluster would send are "
            "missing from these bytes.",
            [*because, "Submit the job with `--executor dask` to have them sent and counted."],
        )
    best = completed[0]
    choice = choice_of(best["policy"])
    rival = next((arm for arm in completed[1:] if choice_of(arm["policy"]) != choice), completed[1])
    least, more = best["headline_bytes"]["off_node"], rival["headline_bytes"]["off_node"]
    pair = (
        f"{best['policy']} let {format_bytes(least)} leave their node, "
        f"{rival['policy']}, the next way of working, {format_bytes(more)}"
    )
    if more - least < MARGIN * max(more, 1):
        apart = format_share((more - least) / more) if more else format_share(0)
        return _says("none", f"No difference shown in bytes moved between nodes: {pair} ({apart} apart).", because)
    what = _NAMES.get(choice, "Working centrally")
    factor = f" ({more / least:.3g} times as much)" if least else ""
    return _says(choice, f"{what} moved the fewest bytes between nodes: {pair}{factor}.", because)


def _says(choice: str, sentence: str, because: list[str]) -> dict[str, Any]:
    return {"choice": choice, "sentence": sentence, "because": because}


def _bytes_sentence(arm: Arm) -> str:
    moved = arm["headline_bytes"]
    classes = sorted(moved["by_class"].items(), key=lambda item: -item[1])
    parts = ", ".join(f"{class_} {format_bytes(count)}" for class_, count in classes)
    return (
        f"{arm['policy']}: {format_bytes(moved['off_node'])} left a node"
        + (f" ({parts})" if parts else "")
        + f", {format_bytes(moved['off_rack'])} of it left a rack."
    )


def _different_work(arms: Sequence[Arm]) -> list[str]:
    """Arms that did not do the same work are not compared in silence."""
    done = {arm["policy"]: tuple((s["name"], s["images"]) for s in arm["stages"]) for arm in arms}
    if len(set(done.values())) <= 1:
        return []
    told = "; ".join(f"{policy} {', '.join(f'{n} {i}' for n, i in work)}" for policy, work in done.items())
    return [f"The arms did not work on the same number of images: {told}."]


def _gang(arm: Arm) -> int:
    """Ranks that trained together; 0 where nothing was trained."""
    return max((stage["tasks"]["total"] for stage in arm["stages"] if stage["kind"] == "train"), default=0)


def _gradients_outweigh(arms: Sequence[Arm]) -> list[str]:
    """Say it when an arm loses by its gradients: that depends on the model and the batch, not on where the data lies."""
    told = []
    for arm in arms[1:]:
        exchanged = arm["headline_bytes"]["by_class"].get("gradients", 0)
        if exchanged > arms[0]["headline_bytes"]["off_node"]:
            told.append(
                f"{arm['policy']} sent {format_bytes(exchanged)} of gradients, more than everything that left a node under "
                f"{arms[0]['policy']}: a larger batch or a smaller model sends less."
            )
    return told


def _host_sentences(arms: Sequence[Arm], shared_host: bool) -> list[str]:
    if shared_host:
        return [
            "The nodes share one physical host, its cores, disk and power: the verdict rests on bytes alone, and seconds and "
            "joules of these arms are not those of a cluster."
        ]
    return [
        f"{arm['policy']} took {format_seconds(arm['seconds'])}; joules: {joules_in_words(arm['joules'])}."
        for arm in arms
    ]


def joules_in_words(rows: Sequence[dict[str, Any]]) -> str:
    """What is known, by origin; what is missing is said and never added as 0."""
    parts = []
    for origin in dict.fromkeys(row["origin"] for row in rows if row["joules"] is not None):
        total = sum(row["joules"] for row in rows if row["origin"] == origin and row["joules"] is not None)
        parts.append(f"{format_joules(total)} {origin}")
    missing = sorted({row["component"] for row in rows if row["joules"] is None})
    if missing:
        parts.append(f"missing for {', '.join(missing)}")
    return ", ".join(parts) or "not measured"

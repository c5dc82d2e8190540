"""What the terminal and the page both show: the report's rows, grouped and put into words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datalocal.report.traffic import CLASSES
from datalocal.units import format_count, format_joules, format_share

Arm = Mapping[str, Any]
TIER_NAMES = ("node_local", "rack_local", "off_rack")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Shards that were not local for the same reason."""

    stage: str
    reason: str
    shards: tuple[str, ...]


def not_local_groups(arm: Arm) -> list[Group]:
    """Most frequent reason first."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in arm["not_local"]:
        found.setdefault((row.get("stage", ""), row["reason"]), []).append(row["shard"])
    groups = [Group(stage=stage, reason=why, shards=tuple(shards)) for (stage, why), shards in found.items()]
    return sorted(groups, key=lambda group: (-len(group.shards), group.stage, group.reason))


def by_class_and_tier(arm: Arm) -> list[tuple[str, dict[str, int]]]:
    """[(class, {tier: bytes})] of the classes that occur, in the order of the classes."""
    table: dict[str, dict[str, int]] = {}
    for row in arm["bytes"]:
        tiers = table.setdefault(row["class"], dict.fromkeys(TIER_NAMES, 0))
        tiers[row["tier"]] += row["bytes"]
    return [(class_, table[class_]) for class_ in CLASSES if class_ in table]


def matrix(arm: Arm, nodes: Sequence[str]) -> tuple[list[str], dict[tuple[str, str], int]]:
    """Names (cluster's nodes, then who else occurs) and bytes by (source, destination), all classes together."""
    cells: dict[tuple[str, str], int] = {}
    for row in arm["bytes"]:
        key = (row["source"], row["destination"])
        cells[key] = cells.get(key, 0) + row["bytes"]
    others = sorted({name for key in cells for name in key} - set(nodes))
    return [*nodes, *others], cells


def local_share(arm: Arm) -> str:
    """Of what tasks and ranks read, the share that came from their own node's disk (copies made by staging included)."""
    moved = arm["headline_bytes"]
    return format_share(moved["input_local"] / moved["input"]) if moved["input"] else "-"


def joules_by_component(arm: Arm) -> list[tuple[str, str, str]]:
    """[(component, joules, origin)] over all stages and nodes; what is missing stays missing."""
    groups: dict[tuple[str, str], list[float | None]] = {}
    reasons: dict[tuple[str, str], str] = {}
    for row in arm["joules"]:
        key = (row["component"], row["origin"])
        groups.setdefault(key, []).append(row["joules"])
        reasons.setdefault(key, row["reason"])
    found = []
    for (component, origin), values in groups.items():
        known = [value for value in values if value is not None]
        text = format_joules(sum(known)) if known else f"missing: {reasons[component, origin]}"
        found.append((component, text, origin if known else ""))
    return found


def joules_rows(arm: Arm) -> list[dict[str, Any]]:
    """The arm's rows; those that miss the same thing for the same reason are one, with all their stages."""
    shown: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, row in enumerate(arm["joules"]):
        missing = row["joules"] is None
        key = (row["node"], row["component"], row["reason"]) if missing else (number,)
        if key in shown:
            shown[key]["stage"] += f", {row['stage']}"
        else:
            shown[key] = dict(row)
    return list(shown.values())


def joules_cells(arm: Arm) -> list[dict[str, str]]:
    """The same as lines of a cell: {text, class}."""
    found = joules_by_component(arm)
    lines = [{"text": f"{component} {text} ({origin})", "class": ""} for component, text, origin in found if origin]
    absent = list(dict.fromkeys(component for component, _, origin in found if not origin))
    return lines + [{"text": f"{component} missing", "class": "missing"} for component in absent]


def joules_short(arm: Arm) -> str:
    """One cell: the figures with their origins, or `missing`."""
    parts = [f"{text} {origin}" for _, text, origin in joules_by_component(arm) if origin]
    if any(not origin for _, _, origin in joules_by_component(arm)):
        parts.append("missing in part" if parts else "missing")
    return ", ".join(parts) or "-"


def accuracy(arm: Arm) -> str:
    """Of the last train stage that has one."""
    found = [stage["accuracy"] for stage in arm["stages"] if stage["accuracy"] is not None]
    return format_share(found[-1]) if found else "-"


def train_stages(arm: Arm) -> list[Mapping[str, Any]]:
    return [stage for stage in arm["stages"] if stage["kind"] == "train"]


def mixing(arm: Arm) -> list[tuple[str, Mapping[str, Any]]]:
    """[(stage, figures)] of the train stages with more than one rank: a single one has all there is."""
    found = [(stage["name"], stage["mixing"]) for stage in train_stages(arm) if stage.get("mixing")]
    return [(name, figures) for name, figures in found if figures["ranks"] > 1]


def all_stages(arm: Arm) -> list[Mapping[str, Any]]:
    """Staging first: it comes before whatever reads it."""
    return [*arm.get("staging", ()), *arm["stages"]]


def stage_names(arms: Sequence[Arm]) -> list[str]:
    """The stages of any arm, in the order of work."""
    staging = [stage["name"] for arm in arms for stage in arm.get("staging", ())]
    return list(dict.fromkeys([*staging, *(stage["name"] for arm in arms for stage in arm["stages"])]))


def stage_named(arm: Arm, name: str) -> Mapping[str, Any] | None:
    """The arm's stage of that name; None where it has none."""
    return next((stage for stage in all_stages(arm) if stage["name"] == name), None)


def all_local(arm: Arm) -> str:
    """What to say of an arm without a shard that was not local."""
    if arm["state"] != "completed":
        return "Nothing is known: the arm did not complete."
    if arm.get("remarks"):
        return "Every shard was worked on where it lies, but for this:"
    after = "After staging, every" if arm.get("staging") else "Every"
    return f"{after} task read its own node's disk."


def samples_in_words(stage: Mapping[str, Any]) -> str:
    """The proof of a stage in a sentence."""
    samples = stage["samples"]
    rest = [f"{format_count(samples[key])} {word}" for key, word in _FAULTS if samples[key]]
    each = "each used once" if not samples["repeated"] and not samples["dropped"] else ""
    parts = [part for part in (each, *rest) if part]
    return f"{format_count(samples['seen'])} of {format_count(samples['expected'])} samples, {', '.join(parts)}"


_FAULTS = (("repeated", "repeated"), ("dropped", "not used"), ("rolled_back", "rolled back and done again"))

EXCLUSIONS = (
    "Moving bytes is a small part of the energy: wire energy is about 0.1 % of a training run (estimates range from 0.03 to "
    "0.3 %). Fewer bytes are not the same as a proportional saving.",
    "Locality does not always buy time: in 85 % of the jobs of a 2011 study rack-local reads ran as fast as disk-local ones.",
)

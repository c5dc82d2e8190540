"""The catalog from the nodes themselves: the union of what their folders hold is the truth about replicas."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from datalocal.catalog.model import Catalog, ShardEntry, build_catalog
from datalocal.errors import ClusterError, DatasetError, StorageError
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import Columns
from datalocal.storage.client import Store
from datalocal.storage.listing import Listing, ShardListing

_NODES_AT_A_TIME = 16
_SHOWN = 5
"""Names in one message: enough to see what is wrong, few enough to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replica:
    node: str
    shard: ShardListing


def probe(store: Store, cluster: Cluster, dataset: str, columns: Columns, alive: Collection[str]) -> Catalog:
    """The data set as the nodes in `alive` hold it now; what was left out, and why, is in the catalog's warnings.

    Raises DatasetError: the data set is nowhere, a shard has no readable replica, a column is missing or of no use, no
    replica lies on a node of the cluster. Raises ClusterError when no store answers.
    """
    listings, warnings = _listings(store, cluster, dataset, columns, alive)
    warnings += store.remarks(dataset, columns)
    found = [_Replica(node=listing.node, shard=shard) for listing in listings for shard in listing.shards]
    if not found:
        raise _nowhere(store, dataset, [listing.node for listing in listings])
    members = [node.name for node in cluster.nodes]
    replicas = _on_members(found, members, dataset, warnings)
    by_key: dict[str, list[_Replica]] = defaultdict(list)
    for replica in replicas:
        by_key[replica.shard.key].append(replica)
    kept = {key: _agreeing(dataset, key, by_key[key], warnings) for key in sorted(by_key)}
    shards = [group[0].shard for group in kept.values()]
    for shard in shards:
        _check_columns(dataset, shard, columns, warnings)
    labels, texts = _labels(dataset, shards, warnings) if columns.label is not None else ((), ())
    return build_catalog(
        dataset=dataset,
        nodes=members,
        entries=[_entry(group, texts) for group in kept.values()],
        labels=labels,
        warnings=warnings,
    )


def _listings(
    store: Store, cluster: Cluster, dataset: str, columns: Columns, alive: Collection[str]
) -> tuple[list[Listing], list[str]]:
    """What each store says, in the cluster's order, and a warning for each node that could not be asked."""
    members = [node.name for node in cluster.nodes]
    asked = [name for name in members if name in alive] + sorted(set(alive) - set(members))
    warnings = [
        f"{name} is not up: its replicas do not count, and shards that lie only there are not in this catalog"
        for name in members
        if name not in alive
    ]

    def ask(name: str) -> Listing | StorageError:
        try:
            return store.list(name, dataset, columns)
        except StorageError as error:
            return error

    with ThreadPoolExecutor(_NODES_AT_A_TIME) as pool:
        answers = list(pool.map(ask, asked))
    problems = [
        f"{name} is up, but its store cannot be read, its replicas do not count: {answer.message}"
        for name, answer in zip(asked, answers, strict=True)
        if isinstance(answer, StorageError)
    ]
    listings = [answer for answer in answers if isinstance(answer, Listing)]
    if not listings:
        raise ClusterError(
            f"no store answers for the data set {dataset!r}: " + ("; ".join(problems) or "no node is up"),
            "`datalocal cluster status` shows which nodes are up",
        )
    return listings, warnings + problems


def _nowhere(store: Store, dataset: str, nodes: Iterable[str]) -> DatasetError:
    known: set[str] = set()
    for node in nodes:
        try:
            known.update(store.datasets(node))
        except StorageError:  # its listing came, now it is gone: what the others know is enough for a hint
            continue
    near = difflib.get_close_matches(dataset, sorted(known), n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif known:
        hint = f"data sets that are there: {_few(sorted(known))}"
    else:
        hint = "the stores are empty: bring data in with `datalocal ingest`"
    return DatasetError(f"the data set {dataset!r} is on no node", hint)


def _on_members(found: Sequence[_Replica], members: Sequence[str], dataset: str, warnings: list[str]) -> list[_Replica]:
    """The replicas on nodes of the cluster. Names that do not match are the classic silent killer of locality: say so."""
    inside = [replica for replica in found if replica.node in members]
    strangers = sorted({replica.node for replica in found} - set(members))
    if not inside:
        raise DatasetError(
            f"no replica of the data set {dataset!r} lies on a node of the cluster: its replicas are on {_few(strangers)}, "
            f"the cluster's nodes are {_few(members)}",
            "the names must be the same: correct `nodes` in the cluster config, or the names that the nodes report",
        )
    for stranger in strangers:
        lost = {replica.shard.key for replica in found if replica.node == stranger} - {r.shard.key for r in inside}
        only = f"; {len(lost)} shards lie only there and are left out: {_few(sorted(lost))}" if lost else ""
        warnings.append(f"{stranger} holds replicas but is not a node of this cluster{only}")
    return inside


def _agreeing(dataset: str, key: str, replicas: Sequence[_Replica], warnings: list[str]) -> list[_Replica]:
    """The replicas that are the same file: those of the version that most nodes hold (then the first node's)."""
    readable = [replica for replica in replicas if not replica.shard.error]
    damaged = [replica for replica in replicas if replica.shard.error]
    if not readable:
        told = "; ".join(f"{replica.node}: {replica.shard.error}" for replica in damaged)
        raise DatasetError(
            f"no replica of {dataset}/{key} can be read: {told}",
            "restore the file from its source (`datalocal ingest` again), or delete it on these nodes",
        )
    warnings += [
        f"{replica.node}: {dataset}/{key} cannot be read, this replica does not count: {replica.shard.error}"
        for replica in damaged
    ]
    versions = Counter((replica.shard.bytes, replica.shard.group_rows) for replica in readable)
    version = versions.most_common(1)[0][0]
    warnings += [
        f"{replica.node}: {dataset}/{key} has {replica.shard.bytes} bytes and {sum(replica.shard.group_rows)} rows, "
        f"elsewhere {version[0]} bytes and {sum(version[1])} rows: this replica does not count"
        for replica in readable
        if (replica.shard.bytes, replica.shard.group_rows) != version
    ]
    return [replica for replica in readable if (replica.shard.bytes, replica.shard.group_rows) == version]


def _check_columns(dataset: str, shard: ShardListing, columns: Columns, warnings: list[str]) -> None:
    for key, name in (("image", columns.image), ("label", columns.label)):
        if name is not None and name not in shard.columns:
            near = difflib.get_close_matches(name, shard.columns, n=1, cutoff=0.5)
            raise DatasetError(
                f"{dataset}/{shard.key} has no column {name!r}; its columns are {', '.join(shard.columns) or 'none'}",
                f"set columns.{key} in the job" + (f": did you mean {near[0]!r}?" if near else ""),
            )
    for key, name, problem in (
        ("image", columns.image, shard.image_problem),
        ("label", columns.label, shard.label_problem),
    ):
        if problem:
            raise DatasetError(f"{dataset}/{shard.key}: the column {name!r} {problem}", f"set columns.{key} in the job")
    if shard.unlabelled_rows:
        warnings.append(f"{dataset}/{shard.key}: {shard.unlabelled_rows} rows have no label")


def _labels(
    dataset: str, shards: Sequence[ShardListing], warnings: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labels as the catalog shows them, and their texts in the data, position by position."""
    kinds = {shard.label_kind: shard.key for shard in shards if shard.label_counts}
    if len(kinds) > 1:
        told = ", ".join(f"{kind}s in {key}" for kind, key in sorted(kinds.items(), key=lambda item: str(item[0])))
        raise DatasetError(f"{dataset}: the shards disagree about the type of the label column: {told}")
    seen = {text for shard in shards for text in shard.label_counts}
    if "integer" not in kinds:
        texts = tuple(sorted(seen))
        return texts, texts
    texts = tuple(sorted(seen, key=int))
    declared = {shard.classes for shard in shards if shard.classes}
    if len(declared) > 1:
        warnings.append(f"{dataset}: the shards' metadata name the classes differently; labels are shown as numbers")
    names = declared.pop() if len(declared) == 1 else ()
    if not _fit(names, texts):
        return texts, texts
    return names, tuple(str(number) for number in range(len(names)))


def _fit(names: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether `names` can stand for the integer labels: one for each, all different, and none that looks like another number."""
    return (
        len(names) > 0
        and len(set(names)) == len(names)
        and all(0 <= int(text) < len(names) for text in texts)
        and not any(name.lstrip("-").isdigit() and name != str(number) for number, name in enumerate(names))
    )


def _entry(replicas: Sequence[_Replica], texts: Sequence[str]) -> ShardEntry:
    shard = replicas[0].shard
    counts: Mapping[str, int] = shard.label_counts
    return ShardEntry(
        key=shard.key,
        bytes=shard.bytes,
        replicas=tuple(replica.node for replica in replicas),
        group_rows=shard.group_rows,
        group_bytes=shard.group_bytes,
        label_counts=tuple(counts.get(text, 0) for text in texts),
    )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

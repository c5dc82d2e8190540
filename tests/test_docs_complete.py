"""The documents name every key, command and option that there is, and none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from datalocal.cli import COMMANDS, cli
from datalocal.placement.registry import POLICIES
from datalocal.spec.cluster import Cluster, Network, Node, PowerProfile, Rates, Storage
from datalocal.spec.job import Columns, GangChoice, JobSpec, Optimizer, PolicyOptions, Preprocess, Train, Validation
from datalocal.spec.joining import Tls
from datalocal.spec.pipeline import Augment, FrozenStage, Pipeline

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def sections(page: str) -> dict[str, str]:
    """The text below each second-level heading, by heading without backticks."""
    parts = re.split(r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].replace("`", ""): part.partition("\n")[2] for part in parts}


def first_column(text: str) -> set[str]:
    """What stands in backticks in the first column of the tables of `text`."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


KEYS: list[tuple[str, str, type[BaseModel]]] = [
    ("job-files.md", "The job", JobSpec),
    ("job-files.md", "policy_options", PolicyOptions),
    ("job-files.md", "columns", Columns),
    ("job-files.md", "preprocess", Preprocess),
    ("job-files.md", "pipeline", Pipeline),
    ("job-files.md", "frozen", FrozenStage),
    ("job-files.md", "augment", Augment),
    ("job-files.md", "train", Train),
    ("job-files.md", "optimizer", Optimizer),
    ("job-files.md", "gang", GangChoice),
    ("job-files.md", "validation", Validation),
    ("cluster-files.md", "The cluster", Cluster),
    ("cluster-files.md", "nodes", Node),
    ("cluster-files.md", "storage", Storage),
    ("cluster-files.md", "network", Network),
    ("cluster-files.md", "tls", Tls),
    ("cluster-files.md", "power", PowerProfile),
    ("cluster-files.md", "rates", Rates),
]


@pytest.mark.parametrize(("page", "heading", "model"), KEYS, ids=[model.__name__ for _, _, model in KEYS])
def test_the_tables_of_keys_are_those_of_the_models(page: str, heading: str, model: type[BaseModel]) -> None:
    assert first_column(sections(page)[heading]) == {field.alias or name for name, field in model.model_fields.items()}


def commands() -> list[tuple[str, click.Command]]:
    context = click.Context(cli)
    found: list[tuple[str, click.Command]] = []
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        parts = command.commands.items() if isinstance(command, click.Group) else [("", command)]
        found += [(f"{name} {part}".strip(), each) for part, each in parts]
    return found


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_command_has_a_section_with_all_its_options(name: str, command: click.Command) -> None:
    text = sections("cli.md")[f"datalocal {name}"]
    words = [w for p in command.params if isinstance(p, click.Option) for w in (*p.opts, *p.secondary_opts)]
    missing = [word for word in words if f"`{word}`" not in text and word not in {"-h", "--help"}]
    assert not missing
    assert set(re.findall(r"`(--[a-z-]+)`", text)) <= set(words)


def test_every_policy_is_explained() -> None:
    assert set(POLICIES) <= first_column(sections_of_concepts())


def sections_of_concepts() -> str:
    return (DOCS / "concepts.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_the_readme_begins_with_the_two_commands() -> None:
    """A newcomer's tools run the first two `sh` blocks."""
    blocks = re.findall(r"^```(?:sh|bash)\s*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)
    assert [block.strip() for block in blocks[:2]] == [
        "python3 -m venv .venv && .venv/bin/pip install '.[demo]' && .venv/bin/datalocal demo",
        ".venv/bin/pip install '.[test]' && .venv/bin/pytest",
    ]

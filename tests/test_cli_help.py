"""The command line answers quickly, explains itself, and exits as it says."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

import click
import pytest

from datalocal.cli import COMMANDS, cli

HEAVY = ("torch", "pyarrow", "distributed", "dask", "pydantic", "numpy", "rich", "yaml")


def leaves() -> list[tuple[str, click.Command]]:
    """Every command that a person can type, with its words."""
    context = click.Context(cli)
    found: list[tuple[str, click.Command]] = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += [(f"{name} {part}", each) for part, each in command.commands.items()]
        else:
            found.append((name, command))
    return found


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_in_less_than_three_tenths_of_a_second() -> None:
    """In seconds of CPU: what the command needs, however busy the machine is. It waits for nothing else."""
    seconds = []
    for _ in range(5):
        before = cpu_seconds_of_children()
        subprocess.run([sys.executable, "-m", "datalocal", "--help"], check=True, capture_output=True)
        seconds.append(cpu_seconds_of_children() - before)
    assert statistics.median(seconds) < 0.3, seconds


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom datalocal.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_a_command_imports_nothing_heavy(name: str) -> None:
    script = f"import sys\nimport datalocal.cli.{name}_\nprint([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "command"), leaves(), ids=[name for name, _ in leaves()])
def test_every_command_and_option_has_help(name: str, command: click.Command) -> None:
    assert command.help, name
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


def test_the_commands_of_a_user_are_there() -> None:
    wanted = (
        "demo cluster head worker ingest catalog plan simulate submit list status logs cancel report compare doctor"
    )
    assert set(COMMANDS) == set(wanted.split())


@pytest.mark.parametrize("name", ["demo", "ingest", "catalog", "plan", "submit", "list", "status", "report", "compare"])
def test_every_reporting_command_has_json(name: str) -> None:
    command = dict(leaves())[name]
    assert "--json" in [word for parameter in command.params for word in parameter.opts]


def test_the_exit_codes_are_in_the_help() -> None:
    done = subprocess.run([sys.executable, "-m", "datalocal", "--help"], check=True, capture_output=True, text=True)
    text = " ".join(done.stdout.split())
    for code in ("0 done", "1 the run failed", "2 bad input", "3 trouble with the cluster", "130 cancelled"):
        assert code in text

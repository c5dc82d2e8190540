"""Bad input is told in one message on stderr, with its cause and the right exit code, and nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from datalocal.cli import main

JOB = """\
name: small
dataset: pictures
train:
  model: own:model
  epochs: 2
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for runs."""
    place = tmp_path / "home"
    monkeypatch.setenv("DATALOCAL_HOME", str(place))
    return place


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job that could be submitted."""
    path = tmp_path / "job" / "job.yaml"
    path.parent.mkdir()
    path.write_text(JOB, encoding="utf-8")
    path.with_name("own.py").write_text("def model(classes): ...\n", encoding="utf-8")
    return path


def misspelt(job: Path) -> Path:
    """The same job with a typing error in a key."""
    job.write_text(JOB.replace("epochs", "epoch"), encoding="utf-8")
    return job


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and stderr of a command that must say nothing on stdout."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert isinstance(ended.value.code, int)
    return ended.value.code, err


def test_a_job_file_that_is_not_there(home: Path, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = refused(capsys, "submit", str(job.with_name("jab.yaml")))
    assert code == 2
    assert "there is no such file" in err and "job.yaml" in err


def test_a_mistyped_shipped_job_is_answered_with_the_near_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = refused(capsys, "submit", "resize-then-trian")
    assert code == 2
    assert "did you mean resize-then-train?" in err


def test_a_cluster_whose_token_is_missing_here_starts_no_run(
    home: Path, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.yaml"
    node = "{name: a, rack: r, hosts: [127.0.0.1], folder: /nowhere}"
    file.write_text(
        f"name: here\nkind: existing\nscheduler: tcp://127.0.0.1:1\ntoken_file: absent\nreplication: 1\nnodes: [{node}]\n",
        encoding="utf-8",
    )
    code, err = refused(capsys, "submit", str(job), "--cluster", str(file))
    assert code == 3
    assert f"{tmp_path / 'absent'} cannot be read" in err and "cluster certificates" in err
    assert not home.exists() or not list(home.iterdir())


def test_an_unknown_key_is_named_with_its_nearest(home: Path, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = refused(capsys, "submit", str(misspelt(job)))
    assert code == 2
    assert "train.epoch" in err and "epochs" in err


def test_an_override_of_an_unknown_key(home: Path, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = refused(capsys, "submit", str(job), "--set", "train.epoch=3")
    assert code == 2
    assert "train.epoch" in err


def test_an_unknown_policy_is_named_with_its_nearest(home: Path, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = refused(capsys, "submit", str(job), "--policy", "data-locl")
    assert code == 2
    assert "data-local" in err


def test_a_cluster_file_that_is_not_there(home: Path, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = refused(capsys, "plan", str(job), "--cluster", str(job.with_name("nowhere.yaml")))
    assert code == 2
    assert "nowhere.yaml" in err


def test_nothing_is_left_of_a_job_that_was_refused(home: Path, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "submit", str(misspelt(job)))
    assert not home.exists() or not list(home.iterdir())


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "report", "compare"])
def test_a_run_that_is_not_there(home: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = refused(capsys, command, "nothing-like-it")
    assert code == 2
    assert "there is no run 'nothing-like-it'" in err


def test_a_mistyped_command_is_answered_with_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = refused(capsys, "sumbit")
    assert code == 2
    assert "submit" in err

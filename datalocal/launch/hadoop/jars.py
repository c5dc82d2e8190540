"""Hadoop's jars: from `HADOOP_HOME` where it is set, else from Maven Central by the coordinates of `pom.xml`, once per pom."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from datalocal.errors import ClusterError

POM = Path(__file__).with_name("pom.xml")
_MAVEN_SECONDS = 600
_PARTS = ("common", "common/lib", "hdfs", "hdfs/lib")
"""Below `share/hadoop` of a distribution."""


def cache_folder() -> Path:
    """Where the jars of this pom lie: `$XDG_CACHE_HOME/datalocal/`, one folder per content of the pom."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "datalocal" / f"hadoop-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"


def missing() -> str:
    """What this machine lacks to run HDFS daemons, in words; empty when nothing."""
    if shutil.which("java") is None:
        return "Java (a JRE, 17 or later)"
    if not os.environ.get("HADOOP_HOME") and not cache_folder().is_dir() and shutil.which("mvn") is None:
        return "Hadoop's jars: neither Maven nor HADOOP_HOME is there"
    return ""


def class_path() -> str:
    """The class path of HDFS's daemons, without a configuration. Fetches the jars when they are not there yet.

    Raises ClusterError: no Java, no Maven, or Maven's own words.
    """
    if told := missing():
        raise ClusterError(
            f"HDFS cannot be brought up on this machine: it lacks {told}",
            "install it (Debian: apt install default-jre-headless maven), or use a cluster config without HDFS",
        )
    if home := os.environ.get("HADOOP_HOME"):
        parts = [Path(home) / "share" / "hadoop" / part for part in _PARTS]
        if not all(part.is_dir() for part in parts):
            raise ClusterError(
                f"HADOOP_HOME is {home}, and there is no {next(part for part in parts if not part.is_dir())}",
                "set it to an unpacked Hadoop 3 distribution, or unset it: then the jars come from Maven Central",
            )
        return ":".join(f"{part}/*" for part in parts)
    return f"{_fetched(cache_folder())}/*"


def _fetched(folder: Path) -> Path:
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two clusters that come up at once fetch once
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                jars = Path(scratch) / "jars"
                _run_maven(jars, Path(scratch) / "target")
                jars.rename(folder)
    return folder


def _run_maven(jars: Path, build: Path) -> None:
    command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
    try:
        done = subprocess.run(
            [*command, f"-DbuildDirectory={build}"], capture_output=True, text=True, timeout=_MAVEN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"Maven did not bring Hadoop's jars within {_MAVEN_SECONDS} s", _HINT) from None
    if done.returncode or not any(jars.glob("hadoop-hdfs-*.jar")):
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line] or ["it said nothing"]
        raise ClusterError(f"Maven could not bring Hadoop's jars: {lines[0]}", _HINT)


_HINT = "is Maven Central reachable (~/.m2/settings.xml names a mirror)? Or set HADOOP_HOME to an unpacked distribution"

"""What several sections of a job name, and the patterns that names keep to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

Target = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""`module:name`, resolved from the job file's folder first, then from the node's environment."""

DatasetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*(/[A-Za-z0-9][A-Za-z0-9._@-]*)*$")]
"""A data set in the cluster's store: a relative path without `..`, hidden parts or a leading slash."""

Device = Literal["auto", "cpu", "cuda"]

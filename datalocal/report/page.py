"""The report as one HTML page: no script, nothing from elsewhere, light and dark, as wide as a phone or a screen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jinja2

from datalocal.report import view
from datalocal.report.prediction import cells
from datalocal.report.traffic import CLASSES
from datalocal.report.witnesses import in_words
from datalocal.units import (
    format_bytes,
    format_count,
    format_joules,
    format_rate,
    format_ratio,
    format_seconds,
    format_share,
)


def render(report: Mapping[str, Any]) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("datalocal.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "joules": format_joules,
        "rate": format_rate,
        "ratio": format_ratio,
        "seconds": format_seconds,
        "share": format_share,
    }
    run = report["run"]
    nodes = [node["name"] for node in run.get("cluster_spec", {}).get("nodes", ())]
    started = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run["started"])) if "started" in run else ""
    return environment.get_template("page.html.j2").render(
        report=report,
        run=run,
        arms=report["arms"],
        verdict=report["verdict"],
        started=started,
        classes=[name for name in CLASSES if any(name in arm["headline_bytes"]["by_class"] for arm in report["arms"])],
        most=max((arm["headline_bytes"]["off_node"] for arm in report["arms"]), default=0),
        matrices=[_matrix(arm, nodes) for arm in report["arms"]],
        stages=view.stage_names(report["arms"]),
        gradients=[
            (arm["policy"], stage["name"], stage["gradients"])
            for arm in report["arms"]
            for stage in view.train_stages(arm)
            if stage.get("gradients")
        ],
        foretold=[
            (arm["policy"], *cells(row)) for arm in report["arms"] for row in arm.get("prediction", {}).get("rows", ())
        ],
        mixing=[(arm["policy"], name, row) for arm in report["arms"] for name, row in view.mixing(arm)],
        damaged=any(arm.get("damaged") for arm in report["arms"]),
        view=view,
        in_words=in_words,
    )


def _matrix(arm: Mapping[str, Any], nodes: list[str]) -> dict[str, Any]:
    names, cells = view.matrix(arm, nodes)
    most = max((count for (source, destination), count in cells.items() if source != destination), default=0)
    return {"policy": arm["policy"], "names": names, "cells": cells, "most": most}

"""What holds for all tests: properties explore at random on a developer's machine, and are the same in every CI run."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)  # a CI run that fails must fail again when it is looked into
if os.environ.get("CI"):
    settings.load_profile("ci")
